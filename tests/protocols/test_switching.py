"""What a client says before a websocket or a tunnel is open, and what it makes of the answer: no socket."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from laraman.errors import ConfigError, RemoteProtocolError
from laraman.protocols.switching import Handshake, Switch
from laraman.protocols.websocket import accept_value


def fields(handshake: Handshake) -> dict[str, str]:
    lines = handshake.request.decode().split("\r\n")
    assert lines[-2:] == ["", ""]
    return dict(line.split(": ", 1) for line in lines[1:-2])


def answer(handshake: Handshake, status: str = "101 Switching Protocols", **changes: str | None) -> bytes:
    """The right answer, with changes: a field's name with ``_``, and its value, or None for without it."""
    said: dict[str, str | None] = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Accept": accept_value(fields(handshake)["Sec-WebSocket-Key"].encode()).decode(),
        **changes,
    }
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in said.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode()


def test_the_request() -> None:
    handshake = Handshake("feed.test:81", "/x?y=1", 1000, headers={"X-Token": "t"}, subprotocols=["a", "b"])
    assert handshake.request.startswith(b"GET /x?y=1 HTTP/1.1\r\n")
    found = fields(handshake)
    assert len(base64.b64decode(found.pop("Sec-WebSocket-Key"), validate=True)) == 16
    assert found == {
        "Host": "feed.test:81",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
        "Sec-WebSocket-Protocol": "a, b",
        "X-Token": "t",
    }
    keys = {fields(Handshake("h", "/", 1000))["Sec-WebSocket-Key"] for _ in range(20)}
    assert len(keys) == 20


def test_wsproto_opens_it() -> None:
    """With compression and a subprotocol, and its first message comes in the same bytes as the answer, which come one by one."""
    handshake = Handshake("feed.test", "/x", 1000, subprotocols=["a", "b"])
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(handshake.request)
    (request,) = server.events()
    assert isinstance(request, Request)
    data = server.send(AcceptConnection(subprotocol="b", extensions=[PerMessageDeflate()])) + server.send(TextMessage("hello " * 50))
    end = data.index(b"\r\n\r\n") + 4
    for position in range(end):
        assert handshake.receive_data(data[position : position + 1]) == (position == end - 1)
    assert handshake.websocket is not None
    assert handshake.rest == b""
    assert handshake.websocket.receive_data(data[end:]) == ["hello " * 50]
    assert handshake.subprotocol == "b"
    for message in ("hello " * 50, "short", "again " * 50):
        server.receive_data(handshake.websocket.send(message))
        assert [event.data for event in server.events()] == [message]  # type: ignore[union-attr]


def test_what_stands_behind_the_answer_is_kept() -> None:
    handshake = Handshake("h", "/", 1000)
    assert handshake.receive_data(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(handshake) + b"\x81\x02hi")
    assert handshake.rest == b"\x81\x02hi"


@pytest.mark.parametrize("connection", ["upgrade", "keep-alive, Upgrade"])
def test_forms_of_the_answer(connection: str) -> None:
    handshake = Handshake("h", "/", 1000)
    assert handshake.receive_data(answer(handshake, Upgrade="WebSocket", Connection=connection))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"Upgrade": None}, "switch"),
        ({"Upgrade": "h2c"}, "switch"),
        ({"Connection": None}, "Connection"),
        ({"Connection": "close"}, "Connection"),
        ({"Sec_WebSocket_Accept": None}, "Accept"),
        ({"Sec_WebSocket_Accept": accept_value(base64.b64encode(bytes(16))).decode()}, "Accept"),
        ({"Sec_WebSocket_Protocol": "c"}, "'c'"),
        ({"Sec_WebSocket_Protocol": "a, b"}, "'a, b'"),
        ({"Sec_WebSocket_Extensions": "x-other"}, "x-other"),
        ({"Sec_WebSocket_Extensions": "permessage-deflate; what=1"}, "what=1"),
        ({"Sec_WebSocket_Extensions": "permessage-deflate, permessage-deflate"}, "not offered"),
        ({"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits"}, "not offered"),
        ({"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}, "not offered"),
        ({"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits=8"}, "8 bits"),
    ],
)
def test_an_answer_that_is_wrong(changes: dict[str, Any], match: str) -> None:
    handshake = Handshake("h", "/", 1000, subprotocols=["a", "b"])
    with pytest.raises(RemoteProtocolError, match=match):
        handshake.receive_data(answer(handshake, **changes))


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "426", "503 Service Unavailable"])
def test_an_answer_that_is_no(status: str) -> None:
    handshake = Handshake("h", "/", 1000)
    with pytest.raises(ConnectionRefusedError, match=f"answers {status}$"):
        handshake.receive_data(answer(handshake, status))


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"a": "\N{SNOWMAN}"}, {"upgrade": "h2c"}, {"Sec-WebSocket-Protocol": "a"}])
def test_fields_that_may_not_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Handshake("h", "/", 1000, headers=headers)


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n\r\n", b"\x16\x03\x01\x02", b"HTTP/1.1 20 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000])
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not HTTP"):
        Switch("CONNECT", "h:1", [("Host", "h:1")]).receive_data(data)


def test_a_tunnel() -> None:
    switch = Switch("CONNECT", "h:1", [("Host", "h:1")])
    assert switch.request == b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n"
    assert switch.receive_data(b"HTTP/1.0 200 Connection") is None
    found = switch.receive_data(b" established\r\nVia: a\r\nVia: b\r\n\r\nbytes")
    assert found is not None
    assert (found.status, str(found), found.headers) == (200, "200 Connection established", {"via": "a, b"})
    assert switch.rest == b"bytes"


@pytest.mark.parametrize("value", ["secret\n", "a\r\nX: secret", " secret", "secret\0", "secr€t"])
def test_the_value_of_a_field_that_is_refused_is_not_shown(value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Handshake("h", "/", 100, headers={"Authorization": value})
    assert str(raised.value) == "the value of the header field 'Authorization' is none that HTTP allows"
