"""The wire between a channel's clients and the embedded hub: frames with a small binary head, before data that the hub never decodes.

    length  4 bytes, big-endian: what follows        id    4 bytes: whose question, answer, subscription
    op      1 byte, see `Op`                         name  2 bytes of length, then UTF-8: topic, queue, table, ...
    body    the rest: numbers of the op, if it has some, then the data

A message is the tuple ``(op, id, name, body)``. A client numbers what it asks, from 1 on; every question with an ``id`` is answered by OK or ERROR
with the same ``id``, and what the question has made (a subscription, a consumer) goes by that number until CANCEL. One with ``id`` 0 is not answered.
"""

from __future__ import annotations

from enum import IntEnum, unique
from struct import Struct, error
from typing import Any

from laraman.errors import LocalProtocolError, RemoteProtocolError

#: Of this wire: HELLO says it, and a hub that speaks another one refuses.
VERSION = 1

#: Largest frame in bytes, without its length.
MAX_FRAME_SIZE = 16 * 1024 * 1024

#: Largest name in bytes.
MAX_NAME_SIZE = 65535

#: (op, id, name, body)
Message = tuple[int, int, str, bytes]


@unique
class Op(IntEnum):
    """What a frame says. C: the client says it, H: the hub does. Bodies are given as the `Struct` below that they begin with, + what follows."""

    HELLO = 1
    """C, first and once: its worker's name ("" for other programs). Body: HELLO_BODY(VERSION, slot or -1, pid). Answered by OK."""
    OK = 2
    """H: the answer to ``id``. Body: what the op says below, else nothing."""
    ERROR = 3
    """H: the answer to ``id``, or the end of what goes by it; name: one of `Fault`, body: a text for people. ``id`` 0: a complaint, to be logged."""
    CANCEL = 4
    """C: forget what ``id`` has made or waits for: subscription, consumer (its jobs are given to others), call, wait for a lock; no answer.
    H: nobody waits for the CALL with this ``id`` any more."""

    PUBLISH = 10
    """C: name: topic, body: data. OK, body: COUNT(subscriptions that it went to)."""
    SUBSCRIBE = 11
    """C: name: pattern, body: COUNT(messages): how many the hub keeps while this client does not read, the newest. OK; then MESSAGE with
    this ``id``."""
    MESSAGE = 12
    """H: ``id``: the subscription, name: topic, body: data."""
    DROPPED = 13
    """H: ``id``: the subscription, body: COUNT(messages for which there was no room since it was last told)."""

    PUT = 20
    """C: name: queue, body: text(key or "") + data. OK, body: JOB(number, 0), when it is in the journal; of a key that is in the queue already, that
    job's number. ERROR busy when the queue is full."""
    WORK = 21
    """C: consume; name: queue, body: WORK_BODY(visibility in seconds, prefetch: jobs at a time). OK; then GIVEN with this ``id``."""
    GIVEN = 22
    """H: a job; ``id``: the consumer, name: queue, body: JOB(number, attempt, from 1 on) + data."""
    ACK = 23
    """C: it is done; name: queue, body: JOB(number, attempt). OK, when it is in the journal; ERROR gone when it was given to somebody else."""
    NACK = 24
    """C: the job is to be given again; name: queue, body: JOB(number, attempt) + SECONDS(delay). Answered as ACK."""
    EXTEND = 25
    """C: it is still being worked on: its visibility begins anew; name: queue, body: JOB(number, attempt). Answered as ACK."""
    TAKE = 26
    """C: consume, but no more than prefetch jobs in all; else as WORK. CANCEL takes none of them away."""

    METHODS = 30
    """C: the methods that this process answers from now on, instead of those it said before; body: their names, joined by LF. OK."""
    CALL = 31
    """C: name: "method@group" (any member) or "method@group[slot]"; body: SECONDS(until nobody waits) + data. Answered by RESULT or ERROR.
    H: to a member; ``id``: the hub's own, name: method, body: data."""
    CALL_ALL = 32
    """C: the same to every member of a group. First OK, body: COUNT(members), then as many times RESULT or ERROR, the member in ``name``:
    "group[slot]" (of ERROR: in front of its text, "group[slot]: ...")."""
    RESULT = 33
    """C: ``id``: the CALL's, body: data. H: ``id``: the caller's. That the method raised is in the data."""

    GET = 40
    """C: name: table, body: text(key). OK, body: the value, see ``pack_value``."""
    SET = 41
    """C: name: table, body: SECONDS(ttl, 0: for ever) + text(key) + value. OK. ERROR busy when the table is full."""
    INCREMENT = 42
    """C: name: table, body: INCREMENT_BODY(by, ttl of a key that is not there yet) + text(key). OK, body: the new value. ERROR bad when there is
    something else than an int, or it would have more than 64 bits."""
    COMPARE_AND_SET = 43
    """C: name: table, body: SECONDS(ttl) + text(key) + SIZE(of old) + old value + new value; no new value: delete. OK, body: one byte, 1 when
    it was so and has been done, else 0."""
    DELETE = 44
    """C: name: table, body: text(key). OK, body: one byte, 1 when there was one."""
    KEYS = 45
    """C: name: table. OK, body: text(key) of each."""

    ACQUIRE = 50
    """C: name: lock, body: SECONDS(lease). OK, body: TOKEN(larger than all before), when it is this one's turn; CANCEL to wait no longer."""
    RENEW = 51
    """C: name: lock, body: TOKEN + SECONDS(lease). OK; ERROR gone when it is somebody else's. A hub that was restarted takes the holder's word."""
    RELEASE = 52
    """C: name: lock, body: TOKEN. OK; ERROR gone."""


class Fault:
    """The kinds of ERROR."""

    #: A bound of the hub, its queue's or the table's: try later.
    BUSY = "busy"
    #: No member of the group is connected, or the one that was called went away before it answered.
    DOWN = "down"
    #: The group is there, and none of its members has this method.
    METHOD = "method"
    #: The job or lock is no longer the client's.
    GONE = "gone"
    #: The call's time is over.
    LATE = "late"
    #: The question makes no sense: a bug of the client.
    BAD = "bad"
    #: It could not be done: the journal cannot be written.
    FAILED = "failed"


HELLO_BODY = Struct("!BiI")
COUNT = Struct("!I")
WORK_BODY = Struct("!dI")
JOB = Struct("!QI")
SECONDS = Struct("!d")
INCREMENT_BODY = Struct("!qd")
SIZE = Struct("!I")
TOKEN = Struct("!Q")

_INT = Struct("!Bq")
_INT_KIND, _BYTES_KIND = b"i"[0], b"b"

_TEXT = Struct("!H")
_HEAD = Struct("!IBIH")
_AFTER_LENGTH = _HEAD.size - 4


def text(value: str) -> bytes:
    """A key in a body: 2 bytes of length and UTF-8. Raises LocalProtocolError."""
    return sized(value, "key")


def take_text(body: bytes, at: int = 0) -> tuple[str, int]:
    """The key at this place in a body, and where it ends. Raises RemoteProtocolError."""
    start = at + _TEXT.size
    if len(body) < start:
        raise RemoteProtocolError("a key is missing")
    end = start + _TEXT.unpack_from(body, at)[0]
    if len(body) < end:
        raise RemoteProtocolError("a key is cut off")
    try:
        return body[start:end].decode(), end
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError(f"a key is not UTF-8: {exc}") from None


def sized(value: str, what: str) -> bytes:
    """UTF-8 behind 2 bytes of length. Raises LocalProtocolError."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"a {what} must be encodable: {exc}") from None
    if len(encoded) > MAX_NAME_SIZE:
        raise LocalProtocolError(f"a {what} of {len(encoded)} bytes is longer than {MAX_NAME_SIZE}")
    return _TEXT.pack(len(encoded)) + encoded


def take(layout: Struct, body: bytes, at: int = 0) -> tuple[Any, ...]:
    """The numbers at this place in a body. Raises RemoteProtocolError."""
    if len(body) < at + layout.size:
        raise RemoteProtocolError(f"a body of {len(body)} bytes is too short")
    return layout.unpack_from(body, at)


def pack_value(value: int | bytes | None) -> bytes:
    """A table's value in a body: an int of 64 bits, data, or nothing for a key that is not there. Raises LocalProtocolError."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return _BYTES_KIND + value
    try:
        return _INT.pack(_INT_KIND, value)
    except error:
        raise LocalProtocolError(f"{value} has more than 64 bits") from None


def take_value(body: bytes) -> int | bytes | None:
    """The value that a body ends with. Raises RemoteProtocolError."""
    if body[:1] in (b"", _BYTES_KIND):
        return body[1:] if body else None
    kind, value = take(_INT, body)
    if kind != _INT_KIND or len(body) != _INT.size:
        raise RemoteProtocolError("a value is neither an int nor bytes")
    return int(value)


def head(op: int, id: int, rest: int) -> bytes:
    """The beginning of a frame, before ``rest`` bytes that begin with the name and its length: one of those can be behind many heads."""
    return _FORWARDED.pack(5 + rest, op, id)


def frame(op: int, id: int, name: str, body: bytes) -> bytes:
    """A whole frame, of a name that fits."""
    named = name.encode()
    return _HEAD.pack(_AFTER_LENGTH + len(named) + len(body), op, id, len(named)) + named + body


_FORWARDED = Struct("!IBI")


class Hub:
    """Messages on a stream. ``max_size`` bounds a frame, in bytes."""

    __slots__ = ("_buffer", "_max_size", "_needed")

    def __init__(self, max_size: int = MAX_FRAME_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        self._needed = 0  # bytes in the buffer before it is looked at again: a large frame comes in many pieces

    def receive_data(self, data: bytes) -> list[Message]:
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        messages: list[Message] = []
        at, available = 0, len(data)
        unpack, head_size, most = _HEAD.unpack_from, _HEAD.size, self._max_size
        while available - at >= head_size:
            length, op, id, name_size = unpack(data, at)
            end = at + 4 + length
            start = at + head_size
            middle = start + name_size
            if length > most or middle > end:
                if messages:
                    break  # they were right; the next call finds the fault again
                raise _fault(length, most)
            if end > available:
                break
            try:
                messages.append((op, id, data[start:middle].decode(), data[middle:end]))
            except UnicodeDecodeError as exc:
                if messages:
                    break
                raise RemoteProtocolError(f"a name is not UTF-8: {exc}", close_code=1007) from None
            at = end
        if at < available:
            self._buffer += data[at:] if at else data
            length = _HEAD.unpack_from(data, at)[0] if available - at >= head_size else 0
            self._needed = 4 + length if length <= most else 0
        return messages

    def receive_eof(self) -> None:
        if self._buffer:
            raise RemoteProtocolError("connection ended inside a frame")

    def send(self, message: Message) -> bytes:
        """Raises LocalProtocolError when the name or the frame is too large."""
        op, id, name, body = message
        rest = sized(name, "name") + body
        if len(rest) + 5 > self._max_size:
            raise LocalProtocolError(f"a message of {len(rest)} bytes is larger than {self._max_size}")
        return _FORWARDED.pack(5 + len(rest), op, id) + rest


def _fault(length: int, most: int) -> RemoteProtocolError:
    if length > most:
        return RemoteProtocolError(f"a frame of {length} bytes is larger than {most}", close_code=1009)
    return RemoteProtocolError(f"a frame of {length} bytes cannot hold its own name")
