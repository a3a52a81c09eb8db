"""HTTP/1.1 connections and the exchanges on them.

States of a connection, and what moves it:

    IDLE        between requests            a complete head -> RESPONDING; part of one -> READING; keep-alive time over -> CLOSED
    READING     part of a head is here      the rest -> RESPONDING; time over -> 408, DRAINING
    RESPONDING  an exchange is running      response complete -> IDLE, or DRAINING when the connection is not kept
    DRAINING    the last response is out    what the client still sends is dropped; its end, or a short time -> CLOSED
    UPGRADED    the transport has moved to a WebSocketConnection
    CLOSED      the transport is gone

One request is parsed at a time. Bytes behind it wait unparsed, and reading pauses when they are many, so a client that pipelines without reading
answers costs no memory. The next head is parsed when the response before it is complete, so answers are in order.
"""

from __future__ import annotations

import logging
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any

from laraman.asgi.exchange import MAX_DISCARD, READ_AHEAD, Exchange
from laraman.asgi.websocket import WebSocketConnection
from laraman.errors import RemoteProtocolError
from laraman.net.connection import Connection, name_text
from laraman.protocols.http1 import HEAD_END, LOOSE_END, ChunkedBody, status_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.asgi.service import Http
    from laraman.protocols.proxy import ProxyHeader

logger = logging.getLogger("uvicorn.error")


class State(Enum):
    IDLE = "idle"
    READING = "reading"
    RESPONDING = "responding"
    DRAINING = "draining"
    UPGRADED = "upgraded"
    CLOSED = "closed"


# The members as globals: a lookup on the enum class costs more than the comparison on each request.
IDLE, READING, RESPONDING, DRAINING, UPGRADED, CLOSED = State

#: Unparsed or unread bytes above which reading pauses.
HIGH_WATER = READ_AHEAD
#: Bytes of a response that wait for the client before the application does. A transport under TLS would take half a MiB, and keep it twice.
MAX_UNREAD = 65536
#: Seconds a client gets to read the last answer before its connection is cut.
LINGER = 2.0
#: Seconds an idle connection stays open when the worker stops: a request may just be on its way.
QUIET = 0.5


class HttpConnection(Connection):
    """One accepted HTTP connection of a worker's Http service."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_closing",
        "_left",
        "_received",
        "_stalled_at",
        "announced",
        "believed",
        "client",
        "deadline",
        "exchange",
        "loop",
        "scheme",
        "server",
        "service",
        "tls",
    )

    #: What a request becomes.
    exchange_type: Callable[..., Exchange] = Exchange
    websocket_type: Callable[..., WebSocketConnection] = WebSocketConnection

    def __init__(self, service: Http) -> None:
        super().__init__(None, None, service.worker)
        #: The header of a proxy that came before the connection's own bytes.
        self.announced: ProxyHeader | None = None
        self.service = service
        self.loop = service.loop
        self.state: State = IDLE
        self.exchange: Exchange | None = None
        self.deadline = inf
        self._buffer: bytearray | None = None
        self._left = 0  # bytes of the current body still to come
        self._received = 0  # bytes of the current body that came
        self._chunked: ChunkedBody | None = None
        self._closing = False
        self._stalled_at: tuple[float, int] | None = None

    # Transport -------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        service = self.service
        secured = transport.get_extra_info("ssl_object")
        self.scheme = "http" if secured is None else "https"
        if secured is not None:
            transport.set_write_buffer_limits(MAX_UNREAD)
        self.tls = None if secured is None or service.tls is None else service.tls.describe(secured)
        announced = self.announced
        self.client = _address(self.peer if announced is None or announced.source is None else announced.source)
        #: Whether what it says of a request's client is believed: it is a trusted proxy's.
        self.believed = service.trusts(self.client)
        self.server = _address(self.local) or ((self.local, None) if self.local else None)
        self.deadline = self.service.now + self.service.header_timeout
        if self.service.draining:  # accepted in the last moment
            self.shutdown()
        elif not self.service.keep_alive:
            self._closing = True

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.state = CLOSED
        self.deadline = inf
        self._buffer = None
        self.service.writing.discard(self)
        if self.exchange is not None:
            self.exchange.disconnect(gone=True)
            self.exchange = None

    def eof_received(self) -> bool:
        """The client sends no more. It may still read, so an answer in progress is finished; ``receive()`` tells the application."""
        if self.state is RESPONDING and self.exchange is not None:
            self._closing = self._ended = True
            self.deadline = inf
            self.exchange.disconnect()
            return self.tls is None  # TLS has no half of a connection: its transport closes
        return False

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        state = self.state
        if state is IDLE:
            self._read_head(data)
        elif state is RESPONDING:
            if self._left or self._chunked is not None:
                data = self._read_body(data)
            if data:
                self._keep(data)
        elif state is READING:
            self._read_more_head(data)

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._resume_reading()

    # Heads -----------------------------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        """``data`` begins where a head begins."""
        if data[0] in b"\r\n":
            data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2: empty lines before a request are ignored
            if not data:
                return
        end = data.find(HEAD_END)
        if end < 0:
            self.state = READING
            self.deadline = self.service.now + self.service.header_timeout
            self._read_more_head(data)
        elif end + 4 == len(data):
            self._begin(data, b"")
        else:
            self._begin(data[: end + 4], data[end + 4 :])

    def _read_more_head(self, data: bytes) -> None:
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = bytearray()
        searched = max(0, len(buffer) - 3)
        buffer += data
        end = buffer.find(HEAD_END, searched)
        if end >= 0:
            self._buffer = None
            self._begin(bytes(buffer[: end + 4]), bytes(buffer[end + 4 :]))
        elif LOOSE_END.search(buffer, searched):
            self.refuse(400)
        elif len(buffer) > self.service.head_limit:
            self.refuse(414 if buffer.find(b"\r\n", 0, self.service.config.limit_request_line) < 0 else 431)

    def _begin(self, head: bytes, rest: bytes) -> None:
        service = self.service
        heads = service.heads
        try:
            if len(head) > service.head_limit:
                raise RemoteProtocolError("request head too large", status_hint=431)
            heads.parse(head)
        except RemoteProtocolError as exc:
            self.refuse(exc.status_hint)
            return
        if heads.content_length > service.body_limit:
            self.refuse(413)
            return
        self.messages_in += 1
        self.worker.requests += 1
        if service.limited and service.is_full():
            logger.warning("Exceeded concurrency limit.")
            if service.access_log:
                service.log_access(service.scope(self), 503)
            self.refuse(503)
            return
        if heads.upgrade and self._upgrade(rest):
            return
        self.state = RESPONDING
        self.deadline = inf
        exchange = self.exchange = self.exchange_type(self, service.scope(self))
        if heads.chunked or heads.content_length:
            self._left = heads.content_length
            self._chunked = ChunkedBody(service.head_limit) if heads.chunked else None
            self._received = 0
            if rest:
                rest = self._read_body(rest)
                if self.exchange is None:  # and it was refused
                    return
        if rest:
            self._keep(rest)
        service.start(exchange, exchange)

    def _upgrade(self, rest: bytes) -> bool:
        """Move the transport to a websocket. A request with a body, or for another protocol, stays HTTP."""
        service = self.service
        heads = service.heads
        wanted = heads.upgrade == b"websocket" and heads.method == "GET" and not (heads.content_length or heads.chunked)
        if not wanted or service.config.ws == "none":
            logger.warning("Unsupported upgrade request.")
            return False
        if service.draining:
            self.refuse(503)
            return True
        websocket = self.websocket_type(service, service.websocket_scope(self))
        self.state = UPGRADED
        self.deadline = inf
        self.worker.connections.discard(self)
        service.look_soon()
        transport = self.transport
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        self.resume_reading()
        if rest:
            websocket.data_received(rest)
        return True

    def _keep(self, data: bytes) -> None:
        """Bytes of later requests wait here until their turn."""
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = bytearray()
        buffer += data
        if len(buffer) > HIGH_WATER:
            self._pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.service.writing.add(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.state is not DRAINING:
            self.service.writing.discard(self)
        if self.state is RESPONDING and self.exchange is None and not self._left and self._chunked is None:
            buffer = self._buffer
            self._buffer = None
            self._next(bytes(buffer) if buffer else b"")

    # Bodies ----------------------------------------------------------------------------------------------------------------------

    def _read_body(self, data: bytes) -> bytes:
        """Hand the body's bytes to the exchange; return those behind the body."""
        if self._chunked is None:
            body, rest = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
            self._left -= len(body)
            complete = not self._left
        else:
            try:
                body, rest = self._chunked.receive_data(data)
            except RemoteProtocolError as exc:
                self._fail_body(exc.status_hint)
                return b""
            complete = self._chunked.done
            if complete:
                self._chunked = None
        self._received += len(body)
        exchange = self.exchange
        if exchange is not None:
            if self._received > self.service.body_limit:
                self._fail_body(413)
                return b""
            if body or complete:  # the framing alone is no progress
                self.deadline = inf
            if exchange.feed(body, complete) > HIGH_WATER:
                self._pause_reading()
        elif complete:
            self._next(rest)
            return b""
        elif self._received > MAX_DISCARD:
            self.drain()
            return b""
        return rest

    def _fail_body(self, status: int) -> None:
        """The body cannot go on: the application sees a disconnect, the client an error if nothing was sent yet."""
        exchange = self.exchange
        self._left, self._chunked = 0, None
        if exchange is None or exchange.head_sent:
            self.abort_exchange()
        else:
            exchange.disconnect(gone=True)
            self.exchange = None
            self.refuse(status)

    def abort_exchange(self) -> None:
        """The response cannot be completed; an end without its framing tells the client so."""
        exchange = self.exchange
        if exchange is not None:
            exchange.disconnect(gone=True)
        if exchange is not None and exchange.until_close:
            self.transport.abort()  # where the end of the connection is the end of the body, only a reset says "incomplete"
        else:
            self._flush_and_close()

    def _flush_and_close(self) -> None:
        """Close once the client has taken what was written, for which it gets LINGER seconds and more while it goes on reading."""
        self.state = DRAINING
        self.deadline = self.service.now + LINGER
        self.service.writing.add(self)
        self.transport.close()

    # The end of an exchange ------------------------------------------------------------------------------------------------------

    def finished(self, keep_alive: bool) -> None:
        """The exchange's response is complete."""
        self.exchange = None
        self.messages_out += 1
        if not keep_alive or self._closing:
            self.drain()
        elif self._left or self._chunked is not None:
            self._received = 0
            self.deadline = self.service.now + LINGER
            self.service.look_soon()
            self.resume_reading()
        else:
            buffer = self._buffer
            self._buffer = None
            self._next(bytes(buffer) if buffer else b"")

    def _next(self, rest: bytes) -> None:
        if self._closing:
            self.drain()
            return
        if self.writing_paused:
            # The client has not taken this answer yet: the next request waits, and the time of an idle connection does not run.
            if rest:
                self._keep(rest)
            return
        self.state = IDLE
        self.deadline = self.service.now + self.service.keep_alive
        if self._reading_paused:
            self._resume_reading()
        if rest:
            self._read_head(rest)

    def refuse(self, status: int) -> None:
        """Answer with an error in place of the application, and close."""
        service = self.service
        if status in (400, 501, 505):
            logger.warning("Invalid HTTP request received.")
        body = service.error_body(status)
        head = b"".join(
            (
                status_line(status),
                service.default_headers,
                b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body),
            )
        )
        self.write(head + body)
        self.drain()

    def drain(self) -> None:
        """Close so that the client can read what was sent: a close with unread input would be a reset, which discards it."""
        if self.state is DRAINING or self.state is CLOSED:
            return
        unread = not self._ended and (self._buffer or self._left or self._chunked is not None or self.state in (READING, IDLE))
        self._buffer = None
        self._left, self._chunked = 0, None
        transport = self.transport
        if unread and not transport.is_closing() and transport.can_write_eof():
            self.state = DRAINING
            self.deadline = self.service.now + LINGER
            self.service.writing.add(self)
            try:
                transport.write_eof()
            except OSError:  # asyncio's, of a client that is gone already
                transport.abort()
            else:
                self.resume_reading()
        else:
            self._flush_and_close()

    def write(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.transport.write(data)

    # Time and the end of the worker ----------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called when the deadline has come, and at every tick while something is being written."""
        if self in self.service.writing and self._is_writing(now):
            return
        if now >= self.deadline:
            self._expire()

    def _expire(self) -> None:
        self.deadline = inf
        if self.state is READING:
            self.refuse(408)
        elif self.state is RESPONDING and self.exchange is not None:
            self._fail_body(408)
        elif self.state is IDLE:
            self._flush_and_close()
        else:
            self.transport.abort()

    def _is_writing(self, now: float) -> bool:
        """Whether the client still has something to take. One that takes nothing for ``timeout_write`` seconds is cut off."""
        size = self.transport.get_write_buffer_size()
        if not size and (self.exchange is None or self.exchange.part is None):
            self._stalled_at = None
            return False
        taken = self.bytes_out - size
        if self._stalled_at is None or self._stalled_at[1] != taken:
            self._stalled_at = (now, taken)
            if self.state is DRAINING:
                self.deadline = now + LINGER
        elif now - self._stalled_at[0] >= self.service.write_timeout:
            self.transport.abort()
        return True

    def expect_body(self) -> None:
        """The application waits for more of the body: from now on it must come."""
        self.deadline = self.service.now + self.service.body_timeout
        self.resume_reading()

    def expect_nothing(self, exchange: Exchange) -> None:
        """The application has stopped waiting: a body that does not come delays nobody."""
        if self.exchange is exchange:
            self.deadline = inf

    @property
    def body_left(self) -> int:
        """Bytes of the body still to come, where that is known."""
        return self._left

    def shutdown(self) -> None:
        """The worker is draining. Called once: an idle connection closes, a busy one after its response."""
        self._closing = True
        if self.state is IDLE:
            # A request may be under way on this connection: for a moment it is still answered, with Connection: close.
            self.deadline = min(self.deadline, self.service.now + QUIET)
        elif self.state is READING:
            self.deadline = min(self.deadline, self.service.now + LINGER)

    @property
    def is_closing(self) -> bool:
        return self._closing

    def row(self) -> dict[str, Any]:
        exchange = self.exchange
        client = self.client if exchange is None else exchange.scope["client"]
        return {**super().row(), "protocol": self.scheme, "client": name_text(client)}

    def cancel(self) -> None:
        """The deadline of the stop has come."""
        if self.exchange is not None:
            self.exchange.cancel()
        elif self.state is not CLOSED:
            self.transport.abort()


def _address(name: Any) -> tuple[str, int] | None:
    """Host and port of a socket name; a unix socket has none."""
    return (name[0], name[1]) if isinstance(name, tuple) else None
