from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import ConfigError
from laraman.net.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("frame://127.0.0.1:9100", Address("frame", "127.0.0.1", 9100)),
        ("FRAME://Example.COM:9100/", Address("frame", "example.com", 9100)),
        ("text://[::1]:0", Address("text", "::1", 0)),
        ("localhost:80", Address("tcp", "localhost", 80)),
        ("[::]:80", Address("tcp", "::", 80)),
        ("unix:/run/x.sock", Address("tcp", path="/run/x.sock")),
        ("unix:///run/x.sock", Address("tcp", path="/run/x.sock")),
        ("frame+unix:///run/x.sock", Address("frame", path="/run/x.sock")),
        ("frame+unix://relative.sock", Address("frame", path="relative.sock")),
        ("fd:3", Address("tcp", fd=3)),
        ("http+fd://3", Address("http", fd=3)),
        ("frame+tls://127.0.0.1:9443", Address("frame", "127.0.0.1", 9443, tls=True)),
        ("tcp+tls+unix:///run/x", Address("tcp", path="/run/x", tls=True)),
        ("tcp+unix+tls:///run/x", Address("tcp", path="/run/x", tls=True)),
        ("request+unix:///run/x", Address("request", path="/run/x")),
        ("udp://0.0.0.0:53", Address("udp", "0.0.0.0", 53)),
        ("websocket+tls://127.0.0.1:9443", Address("websocket", "127.0.0.1", 9443, tls=True)),
        ("ws://example.com", Address("ws", "example.com", 80, target="/")),
        ("ws://example.com?a", Address("ws", "example.com", 80, target="/?a")),
        ("WSS://Example.com/Feed/x?a=1&b=%20", Address("ws", "example.com", 443, tls=True, target="/Feed/x?a=1&b=%20")),
        ("wss://[::1]:8443/", Address("ws", "::1", 8443, tls=True, target="/")),
        ("ws+unix:///run/x", Address("ws", path="/run/x", target="/")),
    ],
)
def test_what_is_written(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_the_scheme_that_is_not_written() -> None:
    assert parse_address("127.0.0.1:80", "http") == Address("http", "127.0.0.1", 80)
    assert parse_address("unix:/x", "http") == Address("http", path="/x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        ":80",
        "tcp://:80",
        "tcp://host",
        "tcp://host:",
        "tcp://host:x",
        "tcp://host:-1",
        "tcp://host:65536",
        "tcp://host:80/path",
        "tcp://host:80?query",
        "tcp://host:80#fragment",
        "tcp://user@host:80",
        "tcp://[::1:80",
        "unix:",
        "frame+unix://",
        "fd:",
        "fd:x",
        "fd:-1",
        "http+fd://",
        "fd:9999999999",
        "+unix:///x",
        "unix:/a\0b",
        "fd:\N{SUPERSCRIPT TWO}",
        "://host:80",
        "a b://host:80",
        "tcp://host name:80",
        "tcp://host\n:80",
        "tcp+tls+bad://host:80",
        "tcp+unix+fd://3",
        "udp+unix:///run/x",
        "udp+tls://host:80",
        "ws://",
        "ws:///path",
        "ws://host/#fragment",
        "ws://user:secret@host/",
        "ws://host/a b",
        "ws://host/a\nb",
        "ws://host/\N{SNOWMAN}",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)


@given(st.sampled_from(["tcp", "text", "frame"]), st.ip_addresses(), st.integers(0, 65535))
def test_round_trip(scheme: str, host: object, port: int) -> None:
    address = Address(scheme, str(host), port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["wss://example.com:443", "ws://example.com:80/x", "tcp+tls://[::1]:9", "tcp+tls+unix:///run/x", "ws+tls+unix:///run/x", "http+tls+fd://3"],
)
def test_what_is_shown_is_what_was_written(text: str) -> None:
    assert str(parse_address(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda path: "\0" not in path))
def test_round_trip_of_paths(path: str) -> None:
    address = Address("frame", path=path)
    assert parse_address(str(address)) == address


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert address.path or address.host or address.fd is not None
    assert parse_address(str(address)) == address


def test_what_may_be_a_secret_is_not_shown() -> None:
    assert str(parse_address("wss://example.com/feed?token=secret")) == "wss://example.com:443/feed?..."
    assert str(parse_address("ws://example.com?token=secret")) == "ws://example.com:80?..."
    with pytest.raises(ConfigError, match=r"^address '\.\.\.@example\.com/x': there can be no user and password$"):
        parse_address("wss://me:secret@example.com/x")
