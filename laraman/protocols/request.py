"""``request://``: JSON behind a 4-byte big-endian length of the body alone, as EasySwoole's unix process frames it.

A body that is not JSON is bytes on both sides: what its clients send may be plain text.
"""

from __future__ import annotations

import json
from typing import Any

from laraman.errors import LocalProtocolError
from laraman.protocols.framing import MAX_MESSAGE_SIZE, LengthPrefixed

#: Bytes of the length in front of a body.
HEADER = 4


class Request:
    """Requests or replies on a stream. ``max_size`` bounds a body, in bytes; with ``once`` nothing is read behind the first one."""

    __slots__ = ("_frames", "_once", "_over")

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE, *, once: bool = False) -> None:
        self._frames = LengthPrefixed(HEADER, max_size=max_size)
        self._once = once
        self._over = False

    def receive_data(self, data: bytes) -> list[Any]:
        if self._over:
            return []
        bodies = self._frames.receive_data(data)
        if self._once and bodies:
            self._over = True
            del bodies[1:]
        return [_decoded(body) for body in bodies]

    @property
    def unread(self) -> int:
        """Bytes that have arrived of the next body, with its length."""
        return 0 if self._over else self._frames.waiting

    def receive_eof(self) -> None:
        if not self._over:
            self._frames.receive_eof()

    def send(self, message: Any) -> bytes:
        return self._frames.send(message if isinstance(message, bytes) else _encoded(message))

    def data_to_send(self) -> bytes:
        return b""


def _decoded(body: bytes) -> Any:
    """What the JSON says, or the body itself where there is none: JSON is UTF-8 and has no NaN (RFC 8259), whatever Python thinks."""
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return body


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _encoded(message: Any) -> bytes:
    try:
        try:
            return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except UnicodeEncodeError:  # half of a character, which JSON can only say in ASCII
            return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise LocalProtocolError(f"a message must be bytes or JSON: {exc}") from None
