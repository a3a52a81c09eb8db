"""The websocket codec: against wsproto itself, and rule by rule."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols import websocket as module
from laraman.protocols.deflate import Deflate, negotiate_deflate
from laraman.protocols.websocket import Close, Message, Ping, WebSocket, accept_value

LIMIT = 1 << 24


def frame(first: int, payload: bytes = b"", *, key: bytes | None = b"\x11\x22\x33\x44", length: int | None = None, width: int = 0) -> bytes:
    """One frame as a client sends it. ``width`` forces the bytes of the length, ``length`` lies about it."""
    size = len(payload) if length is None else length
    if not width:
        width = 1 if size < 126 else 2 if size < 65536 else 8
    masked = 0x80 if key is not None else 0
    head = (
        bytes((first,))
        + {
            1: lambda: bytes((masked | size,)),
            2: lambda: struct.pack("!BH", masked | 126, size),
            8: lambda: struct.pack("!BQ", masked | 127, size),
        }[width]()
    )
    if key is None:
        return head + payload
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


def close_frame(code: int | None, reason: bytes = b"") -> bytes:
    return frame(0x88, (b"" if code is None else struct.pack("!H", code)) + reason)


def receive(websocket: WebSocket, data: bytes, *cuts: int) -> list[Message]:
    """Feed in pieces and to the end."""
    messages: list[Message] = []
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        messages += websocket.receive_data(data[start:end])
        while websocket.more:
            messages += websocket.receive_data(b"")
    return messages


def sent(data: bytes) -> list[tuple[int, bytes]]:
    """The server's frames: first byte and payload."""
    frames = []
    while data:
        size, start = data[1], 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        frames.append((data[0], data[start : start + size]))
        data = data[start + size :]
    return frames


# Against wsproto ----------------------------------------------------------------------------------------------------------------------


class RepairedDeflate(PerMessageDeflate):
    """wsproto's own takes the end of a ping inside a compressed message for the end of the message, and is deaf after a final block."""

    def frame_inbound_header(self, proto: Any, opcode: Opcode, rsv: Any, payload_length: int) -> Any:
        before = self._inbound_compressed
        result = super().frame_inbound_header(proto, opcode, rsv, payload_length)
        if opcode.iscontrol():
            self._inbound_compressed = before
        return result

    def frame_inbound_complete(self, proto: Any, fin: bool) -> bytes | CloseReason | None:
        result = super().frame_inbound_complete(proto, fin) if self._inbound_is_compressible else None
        if result is not None and self._decompressor is not None and self._decompressor.eof:
            self._decompressor = None
        return result


class Reference:
    """The same done by wsproto alone, as its own connection layer does it."""

    def __init__(self, deflate: bool) -> None:
        extension = RepairedDeflate()
        extension.finalize("permessage-deflate; client_max_window_bits=12; server_max_window_bits=12")
        self.frames = FrameProtocol(False, [extension] if deflate else [])
        self.messages: list[Message] = []
        self.owed = b""
        self.parts: list[Any] = []
        self.closed = False

    def receive(self, data: bytes) -> None:
        self.frames.receive_bytes(data)
        try:
            for item in self.frames.received_frames():
                if not self.closed:
                    self._take(item)
        except ParseFailed as exc:
            self._close(int(exc.code), None)

    def _take(self, item: Any) -> None:
        if item.opcode is Opcode.PING:
            self.owed += self.frames.pong(item.payload)
        elif item.opcode is Opcode.CLOSE:
            self._close(*item.payload)
        elif item.opcode is not Opcode.PONG:
            self.parts.append(item.payload)
            if item.message_finished:
                self.messages.append(type(item.payload)().join(self.parts))
                self.parts = []

    def _close(self, code: int, reason: str | None) -> None:
        self.messages.append(Close(int(code), reason or ""))
        self.closed = True


def compressed(payload: bytes, compressor: Any) -> bytes:
    return bytes(compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


texts = st.one_of(st.text(max_size=300).map(str.encode), st.sampled_from([b"", b"x" * 126, b"x" * 5000, b"\xe2\x82\xac" * 40000]))
payloads = st.one_of(texts, texts, texts, st.binary(max_size=200), st.binary(min_size=120, max_size=130))
FIRSTS = (0x81, 0x82, 0xC1, 0xC2, 0x01, 0x02, 0x41, 0x42, 0x00, 0x80, 0x89, 0x8A, 0x88)
seldom = st.sampled_from([False] * 19 + [True])


@st.composite
def streams(draw: Any) -> tuple[bytes, bool, list[int]]:
    """What a client might send: mostly right, compressed or not, cut anywhere."""
    deflate = draw(st.booleans())
    compressor = zlib.compressobj(wbits=-12)
    data = b""
    for first in draw(st.lists(st.sampled_from(FIRSTS), max_size=8)):
        if draw(seldom):
            first = draw(st.integers(0, 255))
        payload = draw(payloads)
        if first & 0x08 and not draw(seldom):
            payload = payload[:125]
        if first == 0x88:
            start = draw(st.one_of(st.just(b""), st.binary(max_size=3), st.integers(0, 65535).map(lambda code: struct.pack("!H", code))))
            payload = start + payload[:20]
        if first & 0x40 and not deflate and not draw(seldom):
            first &= ~0x40
        if first & 0x40 and not draw(seldom):
            payload = compressed(payload, compressor)
        key = None if draw(seldom) else draw(st.sampled_from([b"\x01\xf2\x83\x74", b"\0\0\0\0"]))
        width = draw(st.sampled_from([2, 8])) if draw(seldom) and len(payload) < 65536 else 0
        data += frame(first, payload, key=key, width=width)
    # An unfinished frame at the end would be refused by one sooner than by the other: whole frames only.
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=6)) if data else []
    return data, deflate, sorted(cuts)


@settings(max_examples=400, deadline=None)
@given(streams())
def test_it_does_what_wsproto_does(stream: tuple[bytes, bool, list[int]]) -> None:
    data, deflate, cuts = stream
    reference = Reference(deflate)
    reference.receive(data)
    websocket = WebSocket(LIMIT, Deflate(12, 12) if deflate else None)
    messages = receive(websocket, data, *cuts)
    if messages and isinstance(messages[-1], Close) and reference.messages and isinstance(reference.messages[-1], Close):
        # Reasons of faults are worded here and there. Before wsproto refuses a message inside a compressed one it tries to inflate it, and may
        # say 1007 where 1002 is meant.
        codes = messages[-1].code, reference.messages[-1].code
        assert codes[0] == codes[1] or (deflate and codes == (1002, 1007))
        messages[-1] = reference.messages[-1]
    assert messages == reference.messages
    owed = websocket.data_to_send()
    assert owed.startswith(reference.owed)
    assert reference.closed == (owed != reference.owed) == websocket.closed


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=300), st.binary(max_size=300), st.binary(min_size=65530, max_size=65540)))
def test_its_frames_are_those_of_wsproto(message: str | bytes) -> None:
    assert WebSocket(LIMIT).send(message) == FrameProtocol(False, []).send_data(message)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300)), max_size=10), st.booleans())
def test_compressed_frames_are_understood_by_wsproto(messages: list[str | bytes], takeover: bool) -> None:
    websocket = WebSocket(LIMIT, Deflate(12, 10, own_takeover=takeover))
    extension = PerMessageDeflate(server_no_context_takeover=not takeover, server_max_window_bits=10)
    extension.finalize("permessage-deflate")
    client = FrameProtocol(True, [extension])
    for message in messages:
        client.receive_bytes(websocket.send(message))
    assert [item.payload for item in client.received_frames()] == messages


# The client's side ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300), st.sampled_from([bytes(4096), b"x" * 4097])), max_size=6), st.booleans())
def test_frames_of_a_client_are_understood_by_wsproto(messages: list[str | bytes], compressed: bool) -> None:
    websocket = WebSocket(LIMIT, Deflate(12, 10) if compressed else None, client=True)
    extension = PerMessageDeflate(client_max_window_bits=10)
    extension._enabled = compressed
    server = FrameProtocol(False, [extension] if compressed else [])
    server.receive_bytes(b"".join(websocket.send(message) for message in messages) + websocket.send(Ping(b"x")) + websocket.send(Close(4000, "y")))
    assert [item.payload for item in server.received_frames()] == [*messages, b"x", (4000, "y")]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300), st.sampled_from([bytes(4096), b"x" * 4097])), max_size=6), st.data())
def test_a_client_reads_what_a_server_sends(messages: list[str | bytes], data: st.DataObject) -> None:
    server, client = WebSocket(LIMIT, Deflate(12)), WebSocket(LIMIT, Deflate(12), client=True)
    sent = b"".join(server.send(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
    assert receive(client, sent, *cuts) == messages


def test_every_frame_of_a_client_has_a_mask_of_its_own() -> None:
    websocket = WebSocket(LIMIT, client=True)
    frames = [websocket.send("hello") for _ in range(50)] + [websocket.send(Ping(b"hello")) for _ in range(50)]
    assert all(data[1] == 0x80 | 5 for data in frames)
    assert len({data[2:6] for data in frames}) == 100
    websocket.receive_data(frame(0x89, b"ping", key=None))
    assert websocket.data_to_send()[1] == 0x80 | 4  # pongs too
    assert websocket.send(Close(1000))[1] & 0x80


@pytest.mark.parametrize("data", [frame(0x81, b"hello"), frame(0x89, b"x"), frame(0x82, bytes(5000)), frame(0x88, b"")])
def test_a_server_that_masks_is_a_fault(data: bytes) -> None:
    websocket = WebSocket(LIMIT, client=True)
    (close,) = receive(websocket, data)
    assert isinstance(close, Close)
    assert (close.code, websocket.faulty) == (1002, True)
    assert websocket.data_to_send()[:2] == bytes((0x88, 0x80 | 16))


def test_a_close_of_the_server_is_answered() -> None:
    websocket = WebSocket(LIMIT, client=True)
    assert receive(websocket, frame(0x88, b"\x0f\xa1bye", key=None)) == [Close(4001, "bye")]
    assert not websocket.faulty
    ((first, second), mask, payload) = (lambda data: (data[:2], data[2:6], data[6:]))(websocket.data_to_send())
    assert (first, second) == (0x88, 0x80 | 5)
    assert bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload)) == b"\x0f\xa1bye"


# Rule by rule -------------------------------------------------------------------------------------------------------------------------


def test_fragments_with_control_frames_between_them() -> None:
    data = frame(0x01, "grü".encode()[:3]) + frame(0x89, b"are you there") + frame(0x00, "grü".encode()[3:]) + frame(0x8A) + frame(0x80, b"n")
    for cut in range(len(data)):
        websocket = WebSocket(LIMIT)
        assert receive(websocket, data, cut) == ["grün"]
        assert sent(websocket.data_to_send()) == [(0x8A, b"are you there")]


def test_byte_by_byte() -> None:
    data = frame(0x81, b"one") + frame(0x82, bytes(200)) + frame(0x82, bytes(70000)) + frame(0x81, b"") + close_frame(1000, b"bye")
    assert receive(WebSocket(LIMIT), data, *range(1, len(data))) == ["one", bytes(200), bytes(70000), "", Close(1000, "bye")]


def test_all_pings_are_answered_in_order() -> None:
    websocket = WebSocket(LIMIT)
    assert receive(websocket, b"".join(frame(0x89, b"%d" % number) for number in range(10))) == []
    assert sent(websocket.data_to_send()) == [(0x8A, b"%d" % number) for number in range(10)]
    assert websocket.data_to_send() == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(0x91, b"x"), 1002, id="rsv3"),
        pytest.param(frame(0xA1, b"x"), 1002, id="rsv2"),
        pytest.param(frame(0xC1, b"x"), 1002, id="rsv1 without deflate"),
        pytest.param(frame(0xC9, b"x"), 1002, id="rsv1 on a ping"),
        pytest.param(frame(0x83, b"x"), 1002, id="reserved opcode"),
        pytest.param(frame(0x8B, b"x"), 1002, id="reserved control opcode"),
        pytest.param(frame(0x81, b"x", key=None), 1002, id="unmasked"),
        pytest.param(frame(0x89, b"", key=None), 1002, id="unmasked and empty"),
        pytest.param(frame(0x09, b"x"), 1002, id="fragmented ping"),
        pytest.param(frame(0x89, bytes(126)), 1002, id="oversized ping"),
        pytest.param(frame(0x80, b"x"), 1002, id="continuation of nothing"),
        pytest.param(frame(0x01, b"x") + frame(0x81, b"y"), 1002, id="new message inside a message"),
        pytest.param(frame(0x81, b"x", width=2), 1002, id="two bytes of length for one"),
        pytest.param(frame(0x82, bytes(200), width=8), 1002, id="eight bytes of length for two"),
        pytest.param(frame(0x82, b"", length=1 << 63, width=8), 1009, id="length beyond 63 bits"),
        pytest.param(frame(0x81, b"\xff"), 1007, id="not utf-8"),
        pytest.param(frame(0x81, b"\xed\xa0\x80"), 1007, id="surrogate"),
        pytest.param(frame(0x01, b"\xe2\x82") + frame(0x80, b"\x00"), 1007, id="not utf-8 over fragments"),
        pytest.param(frame(0x01, b"\xe2") + frame(0x80, b""), 1007, id="utf-8 cut off"),
        pytest.param(frame(0x88, b"\x03"), 1002, id="close of one byte"),
        pytest.param(close_frame(1000, b"\xff"), 1007, id="close reason not utf-8"),
        pytest.param(frame(0x88, struct.pack("!H", 1000) + bytes(124)), 1002, id="oversized close"),
        *(pytest.param(close_frame(code), 1002, id=f"close {code}") for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)),
    ],
)
def test_faults_and_their_codes(data: bytes, code: int) -> None:
    websocket = WebSocket(LIMIT)
    messages = receive(websocket, frame(0x82, b"before") + data + frame(0x82, b"after"))
    assert messages[0] == b"before"
    assert [message.code for message in messages[1:] if isinstance(message, Close)] == [code]
    ((first, payload),) = sent(websocket.data_to_send())
    assert (first, payload[:2]) == (0x88, struct.pack("!H", code))
    assert payload[2:] == {1002: b"protocol error", 1007: b"invalid data", 1009: b"message too big"}[code]  # and nothing of Python's
    assert websocket.closed
    assert websocket.receive_data(frame(0x82, b"later")) == []


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999])
def test_a_close_is_answered_with_its_own_code(code: int) -> None:
    websocket = WebSocket(LIMIT)
    assert receive(websocket, close_frame(code, "schön".encode())) == [Close(code, "schön")]
    assert sent(websocket.data_to_send()) == [(0x88, struct.pack("!H", code) + "schön".encode())]
    websocket.receive_eof()


def test_an_empty_close() -> None:
    websocket = WebSocket(LIMIT)
    assert receive(websocket, close_frame(None)) == [Close(1005, "")]
    assert sent(websocket.data_to_send()) == [(0x88, b"")]


def test_an_answered_close_is_not_answered_again() -> None:
    websocket = WebSocket(LIMIT)
    assert websocket.send(Close(4000, "x" * 200)) == bytes((0x88, 125)) + struct.pack("!H", 4000) + b"x" * 123
    with pytest.raises(LocalProtocolError):
        websocket.send("more")
    assert receive(websocket, frame(0x81, b"late") + close_frame(4000)) == ["late", Close(4000, "")]
    assert websocket.data_to_send() == b""


def test_closes_that_may_be_sent() -> None:
    assert sent(WebSocket(LIMIT).send(Close(1005))) == [(0x88, b"")]
    assert sent(WebSocket(LIMIT).send(Close(1006))) == [(0x88, struct.pack("!H", 1000))]
    for code in (-1, 0, 999, 1004, 1016, 2999, 5000, 70000):
        with pytest.raises(LocalProtocolError, match=f"^{code} is not a close code$"):
            WebSocket(LIMIT).send(Close(code))


def test_an_end_without_a_close() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        WebSocket(LIMIT).receive_eof()
    assert caught.value.close_code == 1006


@pytest.mark.parametrize("size", [10, 5000])
def test_the_size_limit(size: int) -> None:
    fits = frame(0x82, bytes(size)) + frame(0x02, bytes(size - 1)) + frame(0x80, b"x")
    assert [len(message) for message in receive(WebSocket(size), fits)] == [size, size]
    for data in (frame(0x82, bytes(size + 1)), frame(0x02, bytes(size - 1)) + frame(0x00, b"x") + frame(0x80, b"y")):
        (close,) = receive(WebSocket(size), data)
        assert close == Close(1009, f"message larger than {size} bytes")
    # Only the head of a frame that will not fit is needed.
    (close,) = receive(WebSocket(size), frame(0x82, b"", length=size + 1, width=8)[:14])
    assert isinstance(close, Close)
    assert close.code in (1002, 1009)


def test_one_call_does_a_bounded_amount_of_work() -> None:
    flood = frame(0x82) * 10000
    websocket = WebSocket(LIMIT)
    first = websocket.receive_data(flood)
    assert 0 < len(first) <= module.STEP / module.FRAME_COST
    assert websocket.more
    assert len(first) + len(receive(websocket, b"")) == 10000
    assert not websocket.more
    pings = WebSocket(LIMIT)
    pings.receive_data(frame(0x89) * 10000)
    assert 0 < len(sent(pings.data_to_send())) <= module.STEP / module.FRAME_COST


def test_many_tiny_fragments_cost_their_bytes() -> None:
    websocket = WebSocket(LIMIT)
    piece = frame(0x00, b"x") * 1000
    tracemalloc.start()
    receive(websocket, frame(0x02, b"x"))
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        receive(websocket, piece)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4 * 100_000
    assert len(receive(websocket, frame(0x80))[0]) == 100_001


# Compression --------------------------------------------------------------------------------------------------------------------------


def test_compressed_messages_share_their_context() -> None:
    compressor = zlib.compressobj(wbits=-12)
    text = "the same text again and again, " * 10
    data = b"".join(frame(0xC1, compressed(text.encode(), compressor)) for _ in range(3))
    assert receive(WebSocket(LIMIT, Deflate(12)), data) == [text] * 3
    assert receive(WebSocket(LIMIT, Deflate(12)), data, *range(1, len(data))) == [text] * 3


def test_without_takeover_each_message_stands_alone() -> None:
    data = b"".join(frame(0xC1, compressed(b"again " * 20, zlib.compressobj(wbits=-12))) for _ in range(3))
    assert receive(WebSocket(LIMIT, Deflate(12, peer_takeover=False)), data) == ["again " * 20] * 3


def test_a_compressed_message_in_fragments_with_a_ping_between() -> None:
    whole = compressed(os.urandom(3000) * 2, zlib.compressobj(wbits=-15))
    data = frame(0x42, whole[:10]) + frame(0x89, b"ping") + frame(0x00, whole[10:3000]) + frame(0x80, whole[3000:]) + frame(0x81, b"plain")
    websocket = WebSocket(LIMIT, Deflate())
    messages = receive(websocket, data)
    assert [len(message) for message in messages] == [6000, 5]
    assert sent(websocket.data_to_send()) == [(0x8A, b"ping")]


def test_a_final_block_ends_a_message_not_the_connection() -> None:
    final = bytes.fromhex("f348cdc9c9070000")  # "Hello" with BFINAL, RFC 7692 section 7.2.3.4
    plain = compressed(b"Hello", zlib.compressobj(wbits=-12))
    websocket = WebSocket(LIMIT, Deflate(12))
    assert receive(websocket, frame(0xC1, final) * 2 + frame(0xC1, plain)) == ["Hello"] * 3
    assert receive(websocket, frame(0x41, final) + frame(0x80, bytes(5000)) + frame(0xC1, plain)) == ["Hello"] * 2


def test_what_is_not_deflate() -> None:
    for data in (frame(0xC2, b"\xff\xff\xff\xff"), frame(0x42, b"\xff" * 5000)):
        (close,) = receive(WebSocket(LIMIT, Deflate()), data)
        assert isinstance(close, Close)
        assert close.code == 1007
    (close,) = receive(WebSocket(LIMIT, Deflate()), frame(0x42, b"") + frame(0xC0, b""))
    assert isinstance(close, Close)
    assert close.code == 1002


@pytest.mark.parametrize("size", [10, 700, 50000])
def test_the_size_limit_holds_for_what_comes_out(size: int) -> None:
    def message(count: int) -> bytes:
        return frame(0xC2, compressed(bytes(count), zlib.compressobj(wbits=-15)))

    assert [len(item) for item in receive(WebSocket(size, Deflate()), message(size))] == [size]
    (close,) = receive(WebSocket(size, Deflate()), message(size + 1))
    assert isinstance(close, Close)
    assert close.code == 1009
    parts = compressed(os.urandom(size + 1), zlib.compressobj(wbits=-15))
    (close,) = receive(WebSocket(size, Deflate()), frame(0x42, parts[:3]) + frame(0x80, parts[3:]))
    assert isinstance(close, Close)
    assert close.code == 1009


def test_a_bomb_is_taken_in_small_steps_and_stops_at_the_limit() -> None:
    compressor = zlib.compressobj(9, wbits=-15)
    first, again = (compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    bomb = first + again * 1023
    websocket = WebSocket(LIMIT, Deflate())
    tracemalloc.start()
    data = frame(0xC2, bomb)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    messages = websocket.receive_data(data[: 1 << 18])
    steps = 1
    while websocket.more:
        messages += websocket.receive_data(b"")
        steps += 1
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert isinstance(messages[0], Close)
    assert messages[0].code == 1009
    assert steps >= LIMIT // (1032 * module.COMPRESSED_PIECE)
    assert grown < 2 * LIMIT


def test_rest_gives_memory_back_and_changes_nothing() -> None:
    websocket = WebSocket(LIMIT, Deflate())
    client = zlib.decompressobj(-12)
    for _ in range(3):
        ((first, payload),) = sent(websocket.send("hello " * 50))
        assert first == 0xC1
        assert client.decompress(payload + b"\x00\x00\xff\xff") == b"hello " * 50
        websocket.rest()
    WebSocket(LIMIT).rest()


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate", "permessage-deflate; server_max_window_bits=12"),
        ("Permessage-Deflate ; client_max_window_bits", "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"),
        ("permessage-deflate; client_max_window_bits=15", "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"),
        ('permessage-deflate; client_max_window_bits="10"', "permessage-deflate; server_max_window_bits=12; client_max_window_bits=10"),
        ("permessage-deflate; client_max_window_bits=8", "permessage-deflate; server_max_window_bits=12; client_max_window_bits=8"),
        ("permessage-deflate; server_max_window_bits=9", "permessage-deflate; server_max_window_bits=9"),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12",
        ),
        ("x-other, permessage-deflate; foo, permessage-deflate", "permessage-deflate; server_max_window_bits=12"),
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=", None),
        ("permessage-deflate; client_max_window_bits=a", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; client_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=8", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate;;", None),
        (";;;,,,=", None),
    ],
)
def test_negotiation(offers: str, answer: str | None) -> None:
    agreed = negotiate_deflate(offers)
    assert (agreed and agreed[1]) == answer


@given(st.text())
def test_no_offer_is_fatal(offers: str) -> None:
    negotiate_deflate(offers)
    negotiate_deflate("permessage-deflate;" + offers)


def test_the_key() -> None:
    assert accept_value(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for key in (b"", b"short", b"dGhlIHNhbXBsZSBub25jZQ", b"dGhlIHNhbXBsZSBub25jZQ==,dGhlIHNhbXBsZSBub25jZQ==", b"!" * 24, b"A" * 24):
        with pytest.raises(RemoteProtocolError, match=r"^Sec-WebSocket-Key is not 16 bytes in base64$"):
            accept_value(key)


def test_local_only_codes_are_those_of_wsproto() -> None:
    assert {code for code in CloseReason if code not in module._CLOSE_CODES} == set()


def test_frames_that_end_no_message_are_counted() -> None:
    websocket = WebSocket(1000)
    client = FrameProtocol(client=True, extensions=[])
    pieces = [client.send_data(text, fin=text == "c") for text in "abc"]
    wire = b"".join((client.ping(b"x"), client.pong(b""), *pieces))
    assert websocket.receive_data(wire) == ["abc"]
    assert (websocket.asides, websocket.pings) == (4, 1)
