"""Response heads around a websocket: the 101, refusals, and the denial response (ASGI extension websocket.http.response)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from laraman.protocols.http1 import status_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laraman.asgi.app import Message

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def response_head(status: int, default_headers: bytes, *fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A response head. A default field gives way to one of the same name. Raises RuntimeError for what may not stand in a field."""
    parts: list[bytes] = []
    names = set()
    for name, value in (field for group in fields for field in group):
        if not TOKEN.fullmatch(name.decode("latin-1")):
            raise RuntimeError("Invalid HTTP header name.")
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise RuntimeError("Invalid HTTP header value.")
        names.add(name.lower())
        parts += (name, b": ", value, b"\r\n")
    defaults = [line for line in default_headers.splitlines(keepends=True) if line.partition(b":")[0].lower() not in names]
    return b"".join((status_line(status), *defaults, *parts, b"\r\n"))


class Denial:
    """A denial response. Its head waits for the first body message, which tells how the end is framed."""

    def __init__(self, message: Message) -> None:
        status = message["status"]
        if not 100 <= status < 600:
            raise RuntimeError(f"Invalid HTTP status code '{status}' in response.")
        self.started = False
        self._status = status
        self._empty = status < 200 or status in (204, 304)
        own = (b"connection", b"transfer-encoding", b"content-length" if self._empty else b"connection")
        self._fields = [(name, value) for name, value in message.get("headers") or () if name.lower() not in own]
        response_head(status, b"", self._fields)  # checks them
        lengths = [value for name, value in self._fields if name.lower() == b"content-length"]
        if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
            raise RuntimeError("Invalid Content-Length in the response headers.")
        self._left = int(lengths[0]) if lengths else -1  # announced and not sent; -1: the end of the connection is the end of the body

    def body(self, body: bytes, more: bool, default_headers: bytes) -> bytes:
        """The bytes of one body message, the first behind the head. Raises RuntimeError when they are not as many as announced."""
        head = b"" if self.started else self._head(body, more, default_headers)
        if self._empty:
            body = b""
        elif self._left >= 0:
            if len(body) > self._left:
                raise RuntimeError("Response content longer than Content-Length")
            self._left -= len(body)
            if self._left and not more:
                raise RuntimeError("Response content shorter than Content-Length")
        self.started = True
        return head + body

    def _head(self, body: bytes, more: bool, default_headers: bytes) -> bytes:
        framing = [(b"connection", b"close")]
        if self._left < 0 and not more and not self._empty:
            self._left = len(body)
            framing.append((b"content-length", b"%d" % len(body)))
        return response_head(self._status, default_headers, self._fields, framing)
