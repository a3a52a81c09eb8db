"""WebSocket (RFC 6455) with permessage-deflate (RFC 7692), both sides: bytes in, messages out. No HTTP, no socket, no clock.

wsproto's frame layer knows the rules of frames, fragments, close codes and UTF-8. Three things are added around it here:

* Work is bounded. ``receive_data`` stops after some work, sets ``more``, and goes on when called with ``b""``; a compressed frame goes to
  wsproto in pieces small enough that each inflates in about two milliseconds, and inflating stops at the size limit.
* A whole message in one small frame, which is nearly every frame there is, is read directly: wsproto takes some 10 us for it, this 1 us.
  tests/protocols/test_websocket.py holds it against wsproto.
* A data frame of this side is a header in front of the payload, which a client masks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, ParseFailed, XorMaskerSimple

from laraman.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from laraman.protocols.deflate import Deflate

#: Largest payload, in bytes, that is read and masked directly. Above it wsproto masks faster.
SMALL = 4096
#: Bytes handed to wsproto at once. Deflate makes up to 1032 bytes of one: 1 KiB then takes 2.4 ms (measured: 256 B 0.6 ms, 16 KiB 43 ms).
PIECE = 131072
COMPRESSED_PIECE = 1024
#: Work of one ``receive_data`` in bytes, read and inflated; every frame counts as some bytes more, since empty ones cost time as well.
STEP = 131072
FRAME_COST = 512
#: Payloads below this many bytes are sent as they are: deflate does not shorten them, it only costs time.
COMPRESS_FROM = 64

_TEXT, _BINARY, _FINAL, _COMPRESSED, _MASKED = 0x1, 0x2, 0x80, 0x40, 0x80
_PLAIN = frozenset((_FINAL | _TEXT, _FINAL | _BINARY))
_DEFLATED = frozenset((*_PLAIN, _FINAL | _COMPRESSED | _TEXT, _FINAL | _COMPRESSED | _BINARY))
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: Encode control frames, a server's and a client's; that keeps no state.
_CONTROL, _MASKED_CONTROL = FrameProtocol(client=False, extensions=[]), FrameProtocol(client=True, extensions=[])


class Close(NamedTuple):
    """The last message of a connection: the peer's close frame, or the close that its fault deserves. 1005: no code was given."""

    code: int
    reason: str = ""


class Ping(NamedTuple):
    """Sent, it asks whether the peer is there. It is answered by its codec; such answers, and the peer's own pings, are no messages."""

    payload: bytes = b""


Message = str | bytes | Close


# The handshake's values ------------------------------------------------------------------------------------------------------------


def accept_value(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 section 4.2.2).

    Raises RemoteProtocolError unless the key is 16 bytes in base64.
    """
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            raise ValueError
    except (binascii.Error, ValueError):
        raise RemoteProtocolError("Sec-WebSocket-Key is not 16 bytes in base64") from None
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


# Frames -----------------------------------------------------------------------------------------------------------------------------


class WebSocket:
    """One open websocket connection, seen from the server, or from the ``client``, who masks what it sends (RFC 6455 section 5.3) and is sent
    nothing masked.

    ``max_size`` bounds a message in bytes, inflated and over all its frames. A fault of the peer is a ``Close`` message with the code of
    RFC 6455 section 7.4.1, and ``data_to_send`` then has the close frame; it also has the pongs and the answer to the peer's own close.
    """

    __slots__ = (
        "_budget",
        "_buffer",
        "_client",
        "_compressed",
        "_deflate",
        "_direct",
        "_frames",
        "_left",
        "_mask_bit",
        "_max_size",
        "_message",
        "_owed",
        "_position",
        "asides",
        "close_sent",
        "closed",
        "faulty",
        "more",
        "pings",
    )

    def __init__(self, max_size: int, deflate: Deflate | None = None, *, client: bool = False) -> None:
        self._max_size = max_size
        self._deflate = deflate
        self._client = client
        self._mask_bit = 0 if client else _MASKED  # of the frames it reads
        self._direct = _PLAIN if deflate is None else _DEFLATED
        self._frames: FrameProtocol | None = None  # only while it is inside a frame or message: 2 KiB that an idle connection does not need
        self._left = 0  # bytes of its current frame that it has not been given yet
        self._message: bytearray | None = None  # what it has made of an unfinished message
        self._compressed = False  # the current message
        self._buffer = b""
        self._position = 0  # where the unread part of the buffer starts
        self._budget = 0
        self._owed = b""
        self.more = False  #: there is more to do: call ``receive_data(b"")``
        self.closed = False  #: there was a ``Close``; what the peer still sends is thrown away
        self.faulty = False  #: because the peer has broken a rule
        self.close_sent = False
        self.asides = 0  #: frames that ended no message: pings, pongs, fragments; for who limits them to count and set back
        self.pings = 0  #: those of them that were pings

    def receive_data(self, data: bytes) -> list[Message]:
        """The messages that are now complete, as far as one step of work goes; see ``more``."""
        position = self._position
        if self._buffer:
            data = self._buffer + data if data else self._buffer
        messages: list[Message] = []
        self._budget = STEP
        while position < len(data) and self._budget > 0 and not self.closed:
            before = position
            position = self._continue_frame(data, position, messages) if self._left else self._read_frame(data, position, messages)
            if position == before:
                break
        self.more = self._budget <= 0 and position < len(data) and not self.closed
        if self.more:
            self._buffer, self._position = data, position
        else:
            self._buffer, self._position = data[position:] if not self.closed else b"", 0
        return messages

    def _read_frame(self, data: bytes, position: int, messages: list[Message]) -> int:
        """Read the frame at ``position`` and return where it was read up to: the same position when more bytes are needed."""
        if len(data) - position < 2:
            return position
        first = data[position]
        second = data[position + 1]
        length = second & 0x7F
        start = position + (6 if second & _MASKED else 2)
        if length > 125:
            width = 2 if length == 126 else 8
            length = int.from_bytes(data[position + 2 : position + 2 + width], "big")
            start += width
        if len(data) < start:
            return position
        opcode = first & 0x0F
        if opcode < 8 and (opcode == 0) != (self._message is not None):  # wsproto would inflate it before it says so
            return self._fail(CloseReason.PROTOCOL_ERROR, "a message inside another, or the continuation of none", messages)
        if opcode in (_TEXT, _BINARY):
            self._compressed = bool(first & _COMPRESSED)
        if opcode < 8 and not self._compressed and length > self._max_size - len(self._message or b""):
            return self._fail(CloseReason.MESSAGE_TOO_BIG, f"message larger than {self._max_size} bytes", messages)
        end = start + length
        if self._is_direct(first, second, length):
            if end > len(data):
                return position
            self._budget -= FRAME_COST + length
            payload = data[start:end]
            self._read_message(opcode, payload if self._client else _masked(data[start - 4 : start], payload), messages)
            return end
        self._left = end - position
        return self._continue_frame(data, position, messages)

    def _is_direct(self, first: int, second: int, length: int) -> bool:
        """Whether the frame is a whole small message in its shortest form, between other messages."""
        if first not in self._direct or self._frames is not None or second & _MASKED != self._mask_bit:
            return False
        marked = second & 0x7F
        return marked < 126 or (marked == 126 and 125 < length <= (COMPRESSED_PIECE if self._compressed else SMALL))

    def _read_message(self, opcode: int, payload: bytes, messages: list[Message]) -> None:
        if self._compressed:
            assert self._deflate is not None
            self._deflate.room = self._max_size
            inflated = self._deflate.inflate(payload, last=True)
            if isinstance(inflated, CloseReason):
                self._fail(inflated, "", messages)
                return
            payload = inflated
            self._budget -= len(payload)
        if opcode == _BINARY:
            messages.append(payload)
            return
        try:
            messages.append(payload.decode())
        except UnicodeDecodeError as exc:
            self._fail(CloseReason.INVALID_FRAME_PAYLOAD_DATA, str(exc), messages)

    def _continue_frame(self, data: bytes, position: int, messages: list[Message]) -> int:
        """Give wsproto the next piece of the current frame."""
        piece = data[position : position + min(self._left, COMPRESSED_PIECE if self._compressed else PIECE)]
        self._left -= len(piece)
        self._budget -= FRAME_COST + len(piece)
        if self._deflate is not None:
            self._deflate.room = self._max_size - len(self._message or b"")
        frames = self._frames
        if frames is None:
            frames = self._frames = FrameProtocol(self._client, [] if self._deflate is None else [self._deflate])
        frames.receive_bytes(piece)
        try:
            for frame in frames.received_frames():
                self._take(frame, messages)
        except ParseFailed as exc:
            self._fail(exc.code, str(exc), messages)
        if not self._left and self._message is None:
            self._frames = None
        return position + len(piece)

    def _take(self, frame: Frame, messages: list[Message]) -> None:
        payload = frame.payload
        if isinstance(payload, tuple):
            self._end(int(payload[0]), payload[1], messages, payload[1])
        elif frame.opcode is Opcode.PING:
            self.asides += 1
            self.pings += 1
            self._owed += self._control.pong(payload)  # type: ignore[arg-type]
        elif frame.opcode is Opcode.PONG:
            self.asides += 1
        else:
            self.asides += frame.frame_finished and not frame.message_finished
            self._take_data(payload, frame, messages)

    def _take_data(self, payload: bytes | str, frame: Frame, messages: list[Message]) -> None:
        self._budget -= len(payload)
        if self._message is None:
            if frame.message_finished:
                messages.append(payload)
                return
            # A bytearray, because a list of parts costs an attacker one byte per part and the server fifty.
            self._message = bytearray()
        self._message += payload.encode() if isinstance(payload, str) else payload
        if frame.message_finished:
            messages.append(self._message.decode() if frame.opcode is Opcode.TEXT else bytes(self._message))
            self._message = None

    def _fail(self, code: CloseReason, reason: str, messages: list[Message]) -> int:
        """The peer broke a rule. Returns 0, a position: nothing more is read."""
        self.faulty = True
        self._end(int(code), reason, messages, _FAULTS.get(code, "protocol error"))
        return 0

    def _end(self, code: int, reason: str, messages: list[Message], answer: str) -> None:
        messages.append(Close(code, reason))
        if not self.close_sent:
            self._owed += self._close_frame(code, answer)
        self.closed = self.close_sent = True
        self._frames = self._message = None
        self._left = 0

    def receive_eof(self) -> None:
        """Raises RemoteProtocolError, with close code 1006, when the peer has not closed the websocket before the connection."""
        if not self.closed:
            raise RemoteProtocolError("connection ended without a close frame", close_code=1006)

    def send(self, message: Message | Ping) -> bytes:
        """The frame of one message. Raises LocalProtocolError after a close was sent, and for a close code that must not be sent."""
        if self.close_sent:
            raise LocalProtocolError("the websocket is closed")
        if isinstance(message, str):
            return self._data_frame(_FINAL | _TEXT, message.encode())
        if isinstance(message, Close):
            if not (message.code in _CLOSE_CODES or 3000 <= message.code <= 4999):
                raise LocalProtocolError(f"{message.code} is not a close code")
            self.close_sent = True
            return self._close_frame(message.code, message.reason)
        if isinstance(message, Ping):
            return self.ping(message.payload)
        return self._data_frame(_FINAL | _BINARY, message)

    def _data_frame(self, first: int, payload: bytes) -> bytes:
        # No server can be made to write bytes of somebody's choice through a client, whose keys cannot be foreseen (RFC 6455 section 10.3).
        return _frame(first, payload, self._deflate if len(payload) >= COMPRESS_FROM else None, os.urandom(4) if self._client else b"")

    @property
    def _control(self) -> FrameProtocol:
        return _MASKED_CONTROL if self._client else _CONTROL

    def _close_frame(self, code: int, reason: str) -> bytes:
        return bytes(self._control.close(CloseReason.NO_STATUS_RCVD) if code == 1005 else self._control.close(code, reason))

    def ping(self, payload: bytes = b"") -> bytes:
        """A ping frame; ``payload`` has at most 125 bytes."""
        return bytes(self._control.ping(payload))

    def rest(self) -> None:
        """Give back what memory an idle connection does not need."""
        if self._deflate is not None:
            self._deflate.rest()

    def data_to_send(self) -> bytes:
        owed, self._owed = self._owed, b""
        return owed


#: What a peer is told of its fault, whatever the log says of it.
_FAULTS = {CloseReason.INVALID_FRAME_PAYLOAD_DATA: "invalid data", CloseReason.MESSAGE_TOO_BIG: "message too big"}
#: What an application may close with (RFC 6455 section 7.4.1 and IANA's registry). 1005 sends no code; wsproto makes 1006 and 1015 1000.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1005, 1016)))


def data_frame(payload: bytes, *, binary: bool, deflate: Deflate | None = None) -> bytes:
    """One message as a server sends it to any number of clients; with ``deflate`` compressed, for those that negotiated it ``shared``."""
    return _frame(_FINAL | (_BINARY if binary else _TEXT), payload, deflate)


def _frame(first: int, payload: bytes, deflate: Deflate | None, key: bytes = b"") -> bytes:
    if deflate is not None:
        payload = deflate.deflate(payload)
        first |= _COMPRESSED
    length = len(payload)
    if key:
        payload = key + _masked(key, payload)
    masked = _MASKED if key else 0
    if length < 126:
        return bytes((first, masked | length)) + payload
    return (struct.pack("!BBH", first, masked | 126, length) if length < 65536 else struct.pack("!BBQ", first, masked | 127, length)) + payload


def _masked(key: bytes, payload: bytes) -> bytes:
    """Mask or unmask. XOR by whole numbers: for small payloads three times as fast as wsproto's four translated slices."""
    length = len(payload)
    if length > SMALL:
        return bytes(XorMaskerSimple(key).process(bytearray(payload)))
    mask = int.from_bytes((key * ((length + 3) >> 2))[:length], "little")
    return (int.from_bytes(payload, "little") ^ mask).to_bytes(length, "little")
