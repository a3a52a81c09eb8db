from __future__ import annotations

import base64
import os
import struct
import zlib
from typing import Any

import pytest

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.deflate import WINDOW_BITS, Deflate, negotiate_deflate
from laraman.protocols.http1 import HeadParser
from laraman.protocols.upgrade import MAX_HEAD, Accept, Answer, Upgrade, WebSocketServer
from laraman.protocols.websocket import Close, data_frame

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
FIELDS = {"Host": "example.com", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY}


def head(target: str = "/", method: str = "GET", **changes: Any) -> bytes:
    """A request; a change of None leaves the field out, underscores stand for hyphens."""
    fields = {**FIELDS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame, with a mask of zeros."""
    length = bytes((0x80 | len(payload),)) if len(payload) < 126 else struct.pack("!BH", 0x80 | 126, len(payload))
    return bytes((first,)) + length + bytes(4) + payload


def opened(data: bytes = b"", accept: Accept | None = None, max_size: int = 1000, **changes: Any) -> WebSocketServer:
    protocol = WebSocketServer(max_size)
    (upgrade,) = protocol.receive_data(head(**changes) + data)
    assert isinstance(upgrade, Upgrade)
    assert upgrade.refusal is None
    protocol.send(accept or Accept())
    return protocol


# The request ----------------------------------------------------------------------------------------------------------------------


def test_a_request_is_read_whole() -> None:
    request = head("/chat%20room?token=1&x=%20", X_Forwarded_For="192.0.2.7", Sec_WebSocket_Protocol="chat, b@d, superchat")
    (upgrade,) = WebSocketServer(1000).receive_data(request)
    assert isinstance(upgrade, Upgrade)
    assert (upgrade.path, upgrade.query, upgrade.subprotocols) == ("/chat room", "token=1&x=%20", ("chat", "superchat"))
    assert (upgrade.headers["host"], upgrade.headers["x-forwarded-for"]) == ("example.com", "192.0.2.7")
    assert upgrade.websocket
    assert upgrade.refusal is None


def test_the_values_of_a_repeated_field_are_joined() -> None:
    request = head().replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: a\r\nX-Forwarded-For: b\r\n\r\n")
    (upgrade,) = WebSocketServer(1000).receive_data(request)
    assert isinstance(upgrade, Upgrade)
    assert upgrade.headers["x-forwarded-for"] == "a, b"


@pytest.mark.parametrize("heads", [None, HeadParser()], ids=["own parser", "shared parser"])
def test_a_request_may_come_byte_by_byte(heads: HeadParser | None) -> None:
    protocol = WebSocketServer(1000, heads)
    messages = [message for byte in head() for message in protocol.receive_data(bytes((byte,)))]
    assert [type(message) for message in messages] == [Upgrade]


@pytest.mark.parametrize("value", ["keep-alive, Upgrade", "upgrade", "Upgrade,keep-alive", "keep-alive,UPGRADE"])
def test_connection_is_a_list_of_tokens(value: str) -> None:
    (upgrade,) = WebSocketServer(1000).receive_data(head(Connection=value))
    assert isinstance(upgrade, Upgrade)
    assert upgrade.refusal is None


def test_a_request_without_upgrade_is_somebody_who_looks() -> None:
    (upgrade,) = WebSocketServer(1000).receive_data(head("/any", Upgrade=None, Connection=None))
    assert isinstance(upgrade, Upgrade)
    assert not upgrade.websocket


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Upgrade": "h2c"}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Connection": "close"}, 400),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400),
    ],
)
def test_what_is_no_websocket_says_what_it_must_be_answered(changes: dict[str, Any], status: int) -> None:
    protocol = WebSocketServer(1000)
    (upgrade,) = protocol.receive_data(head(**changes))
    assert isinstance(upgrade, Upgrade)
    assert upgrade.refusal is not None
    response = protocol.send(upgrade.refusal)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert (b"Sec-WebSocket-Version: 13\r\n" in response) == (status == 426)
    with pytest.raises(LocalProtocolError):
        protocol.send(Accept())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n\nHost: x", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (head(method="POST"), 405),
        (head(method="BREW"), 405),
        (head(Content_Length="3") + b"abc", 400),
        (head(Transfer_Encoding="chunked"), 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (head(X="y" * MAX_HEAD), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_HEAD, 431),
        (head("/" + "x" * 9000), 414),
    ],
)
def test_what_is_no_request_is_answered_and_ends_the_connection(data: bytes, status: int) -> None:
    protocol = WebSocketServer(1000)
    with pytest.raises(RemoteProtocolError):
        protocol.receive_data(data)
    owed = protocol.data_to_send()
    assert owed.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close\r\n" in owed
    assert (b"Allow: GET\r\n" in owed) == (status == 405)
    assert protocol.data_to_send() == b""


# The answer -----------------------------------------------------------------------------------------------------------------------


def test_the_accept_value_is_that_of_the_rfc() -> None:
    protocol = WebSocketServer(1000)
    protocol.receive_data(head(Sec_WebSocket_Protocol="chat"))
    response = protocol.send(Accept("chat"))
    assert response.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in response
    assert b"Sec-WebSocket-Protocol: chat\r\n" in response
    assert b"Extensions" not in response


def test_only_what_was_offered_is_agreed_to() -> None:
    protocol = WebSocketServer(1000)
    protocol.receive_data(head())
    with pytest.raises(LocalProtocolError, match="not offered"):
        protocol.send(Accept("chat"))
    assert b"Extensions" not in protocol.send(Accept(deflate=True))
    assert not protocol.deflated


def test_an_answer_has_a_body_and_a_length() -> None:
    protocol = WebSocketServer(1000)
    protocol.receive_data(head())
    response = protocol.send(Answer(200, b"Hello", ((b"X-A", b"b"),)))
    assert response.endswith(b"\r\n\r\nHello")
    assert b"Content-Length: 5\r\n" in response
    assert b"X-A: b\r\n" in response


def test_messages_have_their_time() -> None:
    protocol = WebSocketServer(1000)
    for message in ("text", Accept()):
        with pytest.raises(LocalProtocolError):
            protocol.send(message)
    protocol = opened()
    for answer in (Accept(), Answer(404)):
        with pytest.raises(LocalProtocolError):
            protocol.send(answer)


# Frames ---------------------------------------------------------------------------------------------------------------------------


def test_frames_behind_the_request_wait_for_the_answer() -> None:
    protocol = WebSocketServer(1000)
    (_,) = protocol.receive_data(head() + frame(b"one") + frame(b"two")[:3])
    assert not protocol.more
    protocol.send(Accept())
    assert protocol.more
    assert protocol.receive_data(b"") == ["one"]
    assert not protocol.more
    assert protocol.receive_data(frame(b"two")[3:]) == ["two"]


def test_the_first_bytes_after_the_answer_stand_behind_those_before_it() -> None:
    protocol = opened(frame(b"one")[:4])
    assert protocol.receive_data(frame(b"one")[4:] + frame(b"two", 0x82)) == ["one", b"two"]


def test_before_the_answer_there_is_room_for_so_much() -> None:
    protocol = WebSocketServer(1000)
    protocol.receive_data(head())
    with pytest.raises(RemoteProtocolError, match="before it is accepted"):
        protocol.receive_data(bytes(MAX_HEAD + 1))


def test_messages_go_both_ways_and_pings_are_answered() -> None:
    protocol = opened()
    assert protocol.receive_data(frame(b"x", 0x89)) == []
    assert protocol.data_to_send() == b"\x8a\x01x"
    assert protocol.send("hi") == b"\x81\x02hi"
    assert protocol.send(b"hi") == b"\x82\x02hi"
    assert protocol.ping() == b"\x89\x00"
    assert protocol.receive_data(frame(struct.pack("!H", 1000), 0x88)) == [Close(1000)]
    assert protocol.data_to_send() == b"\x88\x02\x03\xe8"


def test_a_large_message_is_refused_by_its_length() -> None:
    (close,) = opened(max_size=10).receive_data(frame(bytes(11), 0x82)[:6])
    assert isinstance(close, Close)
    assert close.code == 1009


def test_work_is_done_in_steps() -> None:
    protocol = opened()
    messages: list[Any] = list(protocol.receive_data(frame(b"x") * 1000))
    assert 0 < len(messages) < 1000
    while protocol.more:
        messages += protocol.receive_data(b"")
    assert messages == ["x"] * 1000


def test_a_client_may_leave_at_any_moment() -> None:
    for protocol in (WebSocketServer(1000), opened(), opened(frame(b"one")[:4])):
        protocol.receive_eof()


# Compression that many share ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),
        ("permessage-deflate; server_max_window_bits=15", True),
        (f"permessage-deflate; server_max_window_bits={WINDOW_BITS}", True),
        ("permessage-deflate; server_max_window_bits=9", False),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", True),
        ("x-webkit-deflate-frame", False),
    ],
)
def test_no_side_keeps_a_window(offer: str, agreed: bool) -> None:
    found = negotiate_deflate(offer, shared=True)
    assert (found is not None) == agreed
    if found is not None:
        assert "server_no_context_takeover" in found[1]
        assert "client_no_context_takeover" in found[1]
        assert f"server_max_window_bits={WINDOW_BITS}" in found[1]


def test_one_frame_is_read_by_every_client_that_agreed() -> None:
    payload = (b"all the same " * 400) + base64.b64encode(os.urandom(6000))
    deflate = Deflate(own_takeover=False)
    for _ in range(3):
        made = data_frame(payload, binary=False, deflate=deflate)
        assert made[0] == 0xC1
        assert len(made) < len(payload)
        assert zlib.decompressobj(-WINDOW_BITS).decompress(made[4:] + b"\x00\x00\xff\xff") == payload
    assert data_frame(b"x", binary=True) == b"\x82\x01x"


def test_compressed_messages_are_read_each_for_itself() -> None:
    protocol = opened(accept=Accept(deflate=True), Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
    assert protocol.deflated
    for _ in range(2):
        compressor = zlib.compressobj(wbits=-WINDOW_BITS)
        payload = (compressor.compress(b"abc" * 30) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert protocol.receive_data(frame(payload, 0xC1)) == ["abc" * 30]
