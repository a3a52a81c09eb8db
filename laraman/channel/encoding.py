"""What messages, jobs, arguments and results are made of: msgpack, which every language reads. Nothing that is received is ever run.

None, bool, int (64 bits), float, str, bytes, list, dict with str keys, and datetime with a time zone. A tuple arrives as a list.
"""

from __future__ import annotations

from typing import Any

import msgpack

from laraman.errors import LocalProtocolError, RemoteProtocolError

#: Bytes of one encoded message, job, call or value.
MAX_PAYLOAD = 8 * 1024 * 1024

_PLAIN = (type(None), bool, float, str, bytes, bytearray, memoryview)


def encode(data: Any, what: str = "data") -> bytes:
    """``data`` as bytes. Raises LocalProtocolError which names the value that cannot be encoded and where it is: ``data["user"][0]``."""
    try:
        payload: bytes = msgpack.packb(data, datetime=True, strict_types=False)
    except Exception as exc:  # msgpack has many kinds, none of which says where
        raise LocalProtocolError(_find(data, what) or f"{what} cannot be encoded: {exc}") from None
    if len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(f"{what} takes {len(payload)} bytes, more than the {MAX_PAYLOAD} that one message may have")
    return payload


def decode(payload: bytes) -> Any:
    """What was encoded. Raises RemoteProtocolError for bytes that are not msgpack."""
    try:
        return msgpack.unpackb(payload, timestamp=3)
    except Exception as exc:
        raise RemoteProtocolError(f"{len(payload)} bytes that are not msgpack: {exc or type(exc).__name__}") from None


def _find(value: Any, where: str) -> str:
    """Which value it is, and what is wrong with it; empty when nothing is."""
    raise NotImplementedError
