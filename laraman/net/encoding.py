"""What messages, jobs, arguments and results are made of: msgpack, which every language reads. Nothing that is received is ever run.

None, bool, int (64 bits), float, str, bytes, list, dict with str keys, and datetime with a time zone. A tuple arrives as a list, a datetime in UTC.
"""

from __future__ import annotations

import reprlib
import threading
from datetime import datetime
from typing import Any

import msgpack

from laraman.errors import LocalProtocolError, RemoteProtocolError

#: Bytes of one encoded message, job, call or value.
MAX_PAYLOAD = 8 * 1024 * 1024
#: Levels of lists and dicts in one another to which it is looked for what cannot be encoded.
MAX_DEPTH = 100

#: What has nothing in it, of these very types: most values are.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, datetime})
_SCALARS = (type(None), bool, float, bytes, bytearray, memoryview)


def encode(data: Any, what: str = "data") -> bytes:
    """``data`` as bytes. Raises LocalProtocolError which names the value that cannot be encoded and where it is: ``data['user'][0]``."""
    payload = _pack(data)
    if payload is None:
        raise LocalProtocolError(_find(data, what, 0) or f"{what} cannot be encoded")
    return _fitting(payload, what)


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> bytes:
    """The arguments of a call, and how long its result is waited for. Raises what ``encode`` does: ``args[0]['user']``."""
    payload = _pack((args, kwargs, seconds))
    if payload is None:
        raise LocalProtocolError(_find(args, "args", 0) or _find(kwargs, "kwargs", 0) or "the arguments cannot be encoded")
    return _fitting(payload, "the arguments")


def decode(payload: bytes) -> Any:
    """What was encoded. Raises RemoteProtocolError for bytes that are not msgpack."""
    try:
        return msgpack.unpackb(payload, timestamp=3)
    except Exception as exc:  # it has many kinds
        raise RemoteProtocolError(f"{len(payload)} bytes that are not msgpack: {exc or type(exc).__name__}") from None


class _Packers(threading.local):
    """One per thread: making one takes four times as long as using it, and it is for one at a time."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(datetime=True).pack


_packers = _Packers()


def _pack(data: Any) -> bytes | None:
    try:
        payload: bytes = _packers.pack(data)
        # That keys are str is what its decoder asks for, not its encoder.
        return payload if type(data) in _PLAIN or _has_str_keys(data) else None
    except Exception:  # it has many kinds, none of which says where
        _packers.__init__()  # type: ignore[misc]
        return None


def _has_str_keys(data: Any) -> bool:
    if isinstance(data, dict):
        for key in data:
            if type(key) is not str and not isinstance(key, str):
                return False
        values: Any = data.values()
    elif isinstance(data, (list, tuple)):
        values = data
    else:
        return True
    for value in values:  # noqa: SIM110 - all() takes three times as long for the usual few
        if type(value) not in _PLAIN and not _has_str_keys(value):
            return False
    return True


def _fitting(payload: bytes, what: str) -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(f"{what}: {len(payload)} bytes when encoded, more than the {MAX_PAYLOAD} that a message may have")
    return payload


def _find(value: Any, where: str, depth: int) -> str:
    """Which value it is, and what is wrong with it; empty when nothing is."""
    if depth > MAX_DEPTH:
        return f"{where[:60]}... is nested too deep"
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                return f"{where} has the key {reprlib.repr(key)}, which is {_kind(key)}, not str"
            if found := _find(inner, f"{where}[{key!r}]", depth + 1):
                return found
        return ""
    if isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            if found := _find(inner, f"{where}[{index}]", depth + 1):
                return found
        return ""
    return _fault(value, where)


def _fault(value: Any, where: str) -> str:
    if isinstance(value, _SCALARS):
        return ""
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**64 else f"{where} is {reprlib.repr(int(value))}, which has more than 64 bits"
    if isinstance(value, str):
        return "" if value.isascii() or _pack(value) is not None else f"{where} is {reprlib.repr(value)}, which is not encodable as UTF-8"
    if isinstance(value, datetime):
        return "" if value.tzinfo is not None else f"{where} is {value!r}, which has no time zone"
    return f"{where} is {reprlib.repr(value)}: {_kind(value)} cannot be sent (None, bool, int, float, str, bytes, list, dict and datetime can)"


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
