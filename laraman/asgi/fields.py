"""Header fields that applications send: checked once, and kept as what goes on the wire."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# What a response field's name asks of the server. 0: nothing.
LENGTH, CODING, CONNECTION, DATE, SERVER = 1, 2, 3, 4, 5
_KINDS = {b"content-length": LENGTH, b"transfer-encoding": CODING, b"connection": CONNECTION, b"date": DATE, b"server": SERVER}
#: Fields that were checked, and what goes on the wire for them: most applications send the same few again and again. Bounded in both directions.
known_lines: dict[tuple[bytes, bytes], bytes] = {}
_MAX_LINES, _MAX_LINE = 1024, 256


def check_field(name: Any, value: Any) -> int:
    """Check a field of the application's; return what it asks of the server. Raises RuntimeError."""
    if not isinstance(name, bytes) or not _TOKEN.match(name):
        raise RuntimeError("Invalid HTTP header name.")
    if not isinstance(value, bytes) or _CONTROL.search(value):
        raise RuntimeError("Invalid HTTP header value.")
    return _KINDS.get(name.lower(), 0)


def field_line(name: bytes, value: bytes, kind: int) -> bytes:
    """A checked field as it goes on the wire; kept for the next time when it asks nothing of the server."""
    line = b"%b: %b\r\n" % (name.lower(), value)
    if not kind and len(line) <= _MAX_LINE:
        if len(known_lines) >= _MAX_LINES:
            known_lines.clear()
        known_lines[name, value] = line
    return line


def without(defaults: bytes, kind: int) -> bytes:
    """The default fields less the one that the application sends itself."""
    prefix = b"date:" if kind == DATE else b"server:"
    return b"".join(line for line in defaults.splitlines(keepends=True) if not line.lower().startswith(prefix))
