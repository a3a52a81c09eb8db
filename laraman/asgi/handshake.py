"""The HTTP of a websocket's opening (RFC 6455 section 4.2) as ASGI has it: the 101, denial responses, and uvicorn's lines about them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from laraman.protocols.http1 import status_line
from laraman.protocols.upgrade import TOKEN, response_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laraman.asgi.app import Message, Scope

logger = logging.getLogger("uvicorn.error")

_OWN_FIELDS = frozenset((b"connection", b"upgrade", b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-protocol"))


def accept_head(message: Message, offered: Sequence[str], own: Iterable[tuple[bytes, bytes]], default_headers: bytes) -> bytes:
    """The 101 for a ``websocket.accept``; ``own`` are the fields of this handshake. Raises RuntimeError for what the message may not hold."""
    last = []
    subprotocol = message.get("subprotocol")
    if subprotocol:
        if subprotocol not in offered or not TOKEN.fullmatch(subprotocol):
            raise RuntimeError(f"The client has not offered the subprotocol {subprotocol!r}.")
        last.append((b"Sec-WebSocket-Protocol", subprotocol.encode()))
    extra = list(message.get("headers") or ())
    for name, _ in extra:
        if name.lower() in _OWN_FIELDS:
            raise RuntimeError(f"The server sends {name.decode()!r} itself; use 'subprotocol' to choose one.")
    return response_head(101, default_headers, extra, last, first=((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), *own))


class Denial:
    """A denial response. Its head waits for the first body message, which tells how the end is framed."""

    def __init__(self, message: Message) -> None:
        status = message["status"]
        if not 100 <= status < 600:
            raise RuntimeError(f"Invalid HTTP status code '{status}' in response.")
        self.started = False
        self.status = status
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
        return response_head(self.status, default_headers, self._fields, framing)


def log_answer(scope: Scope, outcome: str, *status: int) -> None:
    """uvicorn's line, with its arguments: filters index them."""
    client, path = scope["client"], quote(scope["path"])
    if scope["query_string"]:
        path += "?" + scope["query_string"].decode("ascii", "backslashreplace")
    logger.info('%s - "WebSocket %s"' + outcome, f"{client[0]}:{client[1]}" if client else "", path, *status)


def log_rejected(status: int) -> None:
    """The line that uvicorn has from the websockets library."""
    phrase = status_line(status).decode().rstrip().partition(" ")[2].partition(" ")[2]
    logger.info("connection rejected (%d %s)", status, phrase)
