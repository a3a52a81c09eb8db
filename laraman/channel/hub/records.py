"""Records of the journal: a checksum and a length, then what was put, or which job is done."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from laraman.protocols.hub import sized, take_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = Struct("!II")
_KIND = Struct("!BQ")
_PUT, _DONE = 1, 2


class Record(NamedTuple):
    """``put``: the job is there, else it is done."""

    put: bool
    number: int
    queue: str = ""
    key: str = ""
    data: bytes = b""


def _record(body: bytes) -> bytes:
    return _HEAD.pack(crc32(body), len(body)) + body


def put_record(number: int, queue: str, key: str, data: bytes) -> bytes:
    return _record(_KIND.pack(_PUT, number) + sized(queue, "queue") + sized(key, "key") + data)


def done_record(number: int) -> bytes:
    return _record(_KIND.pack(_DONE, number))


def is_put(record: bytes) -> bool:
    return record[_HEAD.size] == _PUT


def records_in(data: bytes) -> Iterator[tuple[int, Record]]:
    """The records that are whole, each with where it ends; what follows the first that is not is left out."""
    at = 0
    while len(data) - at >= _HEAD.size:
        checksum, length = _HEAD.unpack_from(data, at)
        start = at + _HEAD.size
        at = start + length
        body = data[start:at]
        if len(body) < max(length, _KIND.size) or crc32(body) != checksum:
            return
        kind, number = _KIND.unpack_from(body)
        if kind == _PUT:
            queue, middle = take_text(body, _KIND.size)
            key, end = take_text(body, middle)
            yield at, Record(True, number, queue, key, body[end:])
        else:
            yield at, Record(False, number)
