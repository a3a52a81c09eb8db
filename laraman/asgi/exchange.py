"""One HTTP request and its response, as the application sees them: ``receive`` and ``send`` of the ASGI HTTP specification 2.3.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from laraman.asgi.extensions import EARLY_HINT, FILES, TRAILERS, send_early_hint, send_trailers, takes_trailers
from laraman.asgi.fields import CODING, CONNECTION, LENGTH, check_field, field_line, known_lines, without
from laraman.protocols.http1 import status_line
from laraman.sandbox.operation import REQUEST, Operation

if TYPE_CHECKING:
    from laraman.asgi.app import Message, Scope
    from laraman.asgi.http import HttpConnection

logger = logging.getLogger("uvicorn.error")

#: Bytes of a body that nobody wants any more which are read and dropped for the sake of a kept connection.
MAX_DISCARD = 262144

_status_lines = {status: status_line(status) for status in range(200, 600)}

#: Bytes of a body below which it is cheaper to send head and body as one.
WORTH_A_COPY = 16384

#: Bytes of a body that are read before the application asks for them.
READ_AHEAD = 65536

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# How the end of the body is told. _WITH_TRAILERS is in chunks too, and _TRAILERS what follows when the last of them is out.
_BY_LENGTH, _BY_CHUNKS, _BY_CLOSE, _HEAD_ONLY, _NO_BODY, _WITH_TRAILERS, _TRAILERS = range(7)
_BODILESS = (204, 304)


class Exchange(Operation):
    """Runs the application for one request, which is the operation.

    ``head_sent`` says that bytes of the response are on their way; until then an error can still become a 500.
    """

    __slots__ = (
        "_body",
        "_expects_continue",
        "_framing",
        "_keep_alive",
        "_left",
        "_more_body",
        "_plain",
        "_status",
        "_waiter",
        "complete",
        "connection",
        "disconnected",
        "gone",
        "head",
        "part",
        "scope",
        "started",
        "task",
    )

    def __init__(self, connection: HttpConnection, scope: Scope) -> None:
        heads = connection.service.heads
        # Not by the base's constructor: this runs for every request, and the call would cost as much as what it does.
        self.kind = REQUEST
        self.subject = self.scope = scope
        self.instances = None
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.complete = False
        self.disconnected = False
        self.connection = connection
        self._keep_alive = heads.keep_alive
        self._expects_continue = heads.expects_continue
        self._more_body = heads.chunked or heads.content_length > 0
        self._body: bytes | bytearray | None = b""
        self._waiter: asyncio.Future[None] | None = None
        self.head: list[bytes] | None = None  # its pieces, while it waits for the body
        self.part: asyncio.Future[None] | None = None  # while a part of the body goes out that is no message, but a file's
        self.gone = False
        self._framing = _BY_LENGTH
        self._left = 0

    # The request -----------------------------------------------------------------------------------------------------------------

    def feed(self, body: bytes, complete: bool) -> int:
        """Body bytes have come; return how many now wait for the application."""
        waiting = self._body
        self._expects_continue = False  # it comes without having been asked for
        if not waiting:
            self._body = body
        elif isinstance(waiting, bytearray):
            waiting += body
        else:
            self._body = bytearray(waiting)
            self._body += body
        if complete:
            self._more_body = False
        if body or complete:
            self._wake()
        return len(self._body) if self._body else 0

    def disconnect(self, *, gone: bool = False) -> None:
        """The client sends no more; when it is ``gone`` it does not read either, and what is sent goes nowhere."""
        self.disconnected = True
        self.gone = self.gone or gone
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            waiter.set_result(None)

    async def receive(self) -> Message:
        """The next piece of the body, or ``http.disconnect`` once the response is complete or the client has left."""
        while True:
            body = self._body
            if body is not None and not self.complete:
                if body or not self._more_body:
                    more = self._more_body
                    self._body = b"" if more else None
                    if more:
                        self.connection.resume_reading()
                    return {"type": "http.request", "body": bytes(body), "more_body": more}
                if not self.disconnected:
                    self._ask_for_body()
            if self.disconnected or self.complete:
                return {"type": "http.disconnect"}
            if self._waiter is None:
                self._waiter = self.connection.loop.create_future()
            try:
                await asyncio.shield(self._waiter)  # several tasks may wait, and one that stops waiting must not stop the others
            except asyncio.CancelledError:
                self.connection.expect_nothing(self)
                raise

    async def arrived(self) -> None:
        """Return when the body is here, or as much of it as is read ahead: a client that sends slowly shall not have the turn meanwhile."""
        while self._more_body and not self.disconnected and self._body is not None and len(self._body) <= READ_AHEAD:
            self._ask_for_body()
            if self._waiter is None:
                self._waiter = self.connection.loop.create_future()
            await asyncio.shield(self._waiter)

    def _ask_for_body(self) -> None:
        if not self._expects_continue:
            self.connection.expect_body()
        elif self.head_sent:
            self.connection.resume_reading()  # a client that has its answer need not send the body any more, so nothing is overdue
        else:
            self._expects_continue = False
            self.connection.write(CONTINUE)
            self.connection.expect_body()

    # The response ----------------------------------------------------------------------------------------------------------------

    @property
    def head_sent(self) -> bool:
        return self.started and self.head is None

    @property
    def until_close(self) -> bool:
        """The end of the connection is the end of this body."""
        return self.started and self._framing == _BY_CLOSE

    async def send(self, message: Message) -> None:
        """Send one response message. Raises RuntimeError where the order or the content is not allowed; does nothing after a disconnect."""
        kind = message["type"]
        if not self.started:
            if kind != "http.response.start":
                self._send_before_start(kind, message)
                return
            if not self.gone:
                self._start(message)
            self.started = True
            return
        if self.complete or kind != "http.response.body":
            await self._send_other(kind, message)
            return
        more = message.get("more_body", False)
        if self.gone:
            self.complete = not more
            return
        connection = self.connection
        data = message.get("body", b"")
        if type(data) is not bytes:
            data = bytes(memoryview(data))  # any bytes-like object; a copy, since the application may change it before it is written
        head = self.head
        if head is None:
            if self.part is not None:
                await asyncio.shield(self.part)
                await self.send(message)
                return
            if self.disconnected and not more and len(data) < self._left:
                self._give_up()  # middleware that was told of the disconnect ends its stream where it is
                return
            data = self._frame(data, more)
            more = more or self._framing == _TRAILERS
        else:
            if more or len(data) != self._left or not self._plain:
                data = self._frame_first(head, data, more)
                more = more or self._framing == _TRAILERS
            elif len(data) < WORTH_A_COPY:
                # Most responses: known length, one message, kept connection.
                head += (b"\r\n", data)
                data = b"".join(head)
            else:
                connection.write(b"".join((*head, b"\r\n")))
            self.head = None
            if connection.service.access_log:
                connection.service.log_access(self.scope, self._status)
        if data:
            connection.bytes_out += len(data)
            connection.transport.write(data)
        if not more:
            self.finish()
        elif connection.writing_paused:
            await connection.drained()

    def _send_before_start(self, kind: str, message: Message) -> None:
        if self.gone:
            return
        if kind != EARLY_HINT or not self.connection.service.extensions:
            raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
        send_early_hint(self, message)

    async def _send_other(self, kind: str, message: Message) -> None:
        """A message of an extension, or one that is not allowed here."""
        if self.gone:
            return
        offered = self.connection.service.extensions
        if self.complete:
            if kind != TRAILERS or not offered:
                raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
            # Where there is no place for trailers the response is complete without them.
        elif self._framing == _TRAILERS:
            if kind != TRAILERS:
                raise RuntimeError(f"Expected ASGI message 'http.response.trailers', but got '{kind}'.")
            send_trailers(self, message)
        elif kind == EARLY_HINT and offered:
            send_early_hint(self, message)
        elif kind in FILES and kind in offered:
            if self.part is not None:
                await asyncio.shield(self.part)
                await self.send(message)
            else:
                await FILES[kind](self, message)
        else:
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")

    def _start(self, message: Message) -> None:
        """Build the head. It waits for the first body message, which ASGI asks for, or for the end of this turn of the loop."""
        connection = self.connection
        service = connection.service
        status = message["status"]
        line = _status_lines.get(status)
        if line is None:
            raise RuntimeError(f"Invalid HTTP status {status!r}.")
        parts = [line, service.default_headers]
        length: bytes | None = None
        keep_alive = self._keep_alive and not connection.is_closing
        for field in message.get("headers", ()):
            try:
                known = known_lines.get(field)
            except (TypeError, ValueError):  # a list, or bytes-like but not hashable
                field = tuple(bytes(memoryview(part)) for part in field)
                known = None
            if known is not None:
                parts.append(known)
                continue
            name, value = field
            kind = LENGTH if name == b"content-length" else check_field(name, value)
            if kind == LENGTH:
                if length is not None or not value.isdigit() or len(value) > 18:
                    raise RuntimeError("Invalid Content-Length in the response headers.")
                length = value
                parts.append(b"content-length: %b\r\n" % value)
            elif kind == CONNECTION:
                keep_alive = keep_alive and b"close" not in value.lower()
            elif kind != CODING:  # the framing is the server's
                if kind:
                    parts[1] = without(parts[1], kind)
                parts.append(field_line(name, value, kind))
        if self._more_body and (self._expects_continue or connection.body_left > MAX_DISCARD):
            # Nobody asked for the body, so what the client sends next could be it or a request; or there is too much to read for nothing.
            keep_alive = False
        self._keep_alive = keep_alive
        self._status = status
        self.head = parts
        if length is None or status in _BODILESS or self.scope["method"] == "HEAD":
            self._frame_head(status, length, message)
        else:
            self._framing = _BY_LENGTH
            self._left = int(length)
        self._plain = keep_alive and self._framing == _BY_LENGTH and self.scope["http_version"] == "1.1"
        held = service.held
        if not held:
            service.flush_heads_soon()
        held.append(self)

    def _frame_head(self, status: int, length: bytes | None, message: Message) -> None:
        """Choose how the end of the body is told (RFC 9112 section 6.3). ``_left`` is the length, or -1 while it is unknown."""
        self._left = -1 if length is None else int(length)
        if status == 204 and length is not None:
            assert self.head is not None
            self.head = [part for part in self.head if not part.startswith(b"content-length:")]
        if status in _BODILESS:
            self._framing = _NO_BODY
        elif self.scope["method"] == "HEAD":
            self._framing = _HEAD_ONLY
        elif not self.is_1_1:
            self._framing = _BY_CLOSE
        elif self.connection.service.extensions and message.get("trailers", False) and takes_trailers(self.scope):
            self._framing = _WITH_TRAILERS
        else:
            self._framing = _BY_CHUNKS

    def _frame(self, body: bytes, more: bool) -> bytes:
        """What of ``body`` goes on the wire. Raises RuntimeError where it does not fit the Content-Length, and then nothing has changed."""
        framing = self._framing
        if framing == _BY_LENGTH:
            self._count(len(body), more)
            return body
        if framing == _BY_CLOSE:
            return body
        if framing == _TRAILERS:
            raise RuntimeError("Expected ASGI message 'http.response.trailers', but got 'http.response.body'.")
        if framing in (_HEAD_ONLY, _NO_BODY):
            return b""
        end = b"" if more else self._last_chunk()
        return b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end

    def _count(self, size: int, more: bool) -> None:
        """So much of the announced length is sent now."""
        left = self._left - size
        if left < 0:
            raise RuntimeError("Response content longer than Content-Length")
        if not more and left:
            raise RuntimeError("Response content shorter than Content-Length")
        self._left = left

    def _last_chunk(self) -> bytes:
        if self._framing == _BY_CHUNKS:
            return b"0\r\n\r\n"
        self._framing = _TRAILERS
        return b"0\r\n"

    def _frame_first(self, head: list[bytes], body: bytes, more: bool) -> bytes:
        """The complete head and what of ``body`` goes on the wire."""
        self._settle_length(len(body), more)
        return b"".join((*head, self._end_of_head(), self._frame(body, more)))

    def _settle_length(self, size: int, more: bool) -> None:
        """A body that is whole in its first message gets its length, not chunks."""
        if self._left < 0 and not more and self._framing not in (_NO_BODY, _WITH_TRAILERS):
            self._left = size
            assert self.head is not None
            self.head.append(b"content-length: %d\r\n" % size)
            if self._framing != _HEAD_ONLY:
                self._framing = _BY_LENGTH

    def _end_of_head(self) -> bytes:
        """The fields of framing and connection, and the empty line."""
        framing = self._framing
        end = b"\r\n"
        if framing in (_BY_CHUNKS, _WITH_TRAILERS) or (framing == _HEAD_ONLY and self._left < 0 and self.is_1_1):
            end = b"transfer-encoding: chunked\r\n\r\n"
        elif framing == _BY_CLOSE:
            self._keep_alive = False
        if not self._keep_alive:
            return b"connection: close\r\n" + end
        return end if self.is_1_1 else b"connection: keep-alive\r\n" + end

    @property
    def is_1_1(self) -> bool:
        return bool(self.scope["http_version"] == "1.1")

    def flush_head(self) -> None:
        """The application is busy elsewhere: the client gets the head now."""
        if self.head is not None and not self.gone:
            self._write_head([*self.head, self._end_of_head()], b"")

    def _write_head(self, head: list[bytes], body: bytes) -> None:
        connection = self.connection
        connection.write(b"".join((*head, body)))
        self.head = None
        if connection.service.access_log:
            connection.service.log_access(self.scope, self._status)

    def begin_part(self, size: int, more: bool) -> bytes | None:
        """Write what stands before ``size`` bytes of the body, at least one, which somebody else writes.

        Returns what stands behind them, for ``end_part``; None where no body goes on the wire. Raises RuntimeError where so many do not fit.
        """
        head = self.head
        if head is not None:
            self._settle_length(size, more)
            head = [*head, self._end_of_head()]
        framing = self._framing
        start = end = b""
        if framing == _BY_LENGTH:
            self._count(size, more)
        elif framing in (_BY_CHUNKS, _WITH_TRAILERS):
            start, end = b"%x\r\n" % size, b"\r\n" + (b"" if more else self._last_chunk())
        if head is not None:
            self._write_head(head, start)
        elif start:
            self.connection.write(start)
        return None if framing in (_HEAD_ONLY, _NO_BODY) else end

    def end_part(self, end: bytes, more: bool) -> None:
        """The bytes are out."""
        if self.gone:
            self.complete = not more
            return
        if end:
            self.connection.write(end)
        if not more and self._framing != _TRAILERS:
            self.finish()

    def finish(self) -> None:
        """The response is complete."""
        self.complete = True
        self._body = None
        if self._waiter is not None:
            self._wake()
        self.connection.finished(self._keep_alive)

    # The task --------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Call the application; whatever happens to it, the client gets an honest end."""
        service = self.connection.service
        try:
            wrapper = service.wrapper
            if wrapper is None:
                result = await service.application(self.scope, self.receive, self.send)
            else:
                if service.serial:
                    await self.arrived()
                result = await wrapper(self, service.application, self.scope, self.receive, self.send)
        except GeneratorExit:  # the loop is gone
            raise
        except BaseException as exc:
            # SystemExit and KeyboardInterrupt too, as in uvicorn: one request does not end the worker that serves others.
            if isinstance(exc, asyncio.CancelledError) and self.task is not None and self.task.cancelling():
                self._fail(503)
            else:
                logger.error("Exception in ASGI application\n", exc_info=exc)
                self._fail(500)
        else:
            if result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
            if not self.complete and self.disconnected:
                self._give_up()
            elif not self.complete:
                what = "completing" if self.started else "starting"
                logger.error("ASGI callable returned without %s response.", what)
                self._fail(500)
        finally:
            service.ended(self, self)

    def _fail(self, status: int) -> None:
        if self.complete or self.gone:
            return
        connection = self.connection
        sent = self.head_sent
        self.complete = True
        self._wake()
        if sent:
            connection.abort_exchange()
        else:
            self.started, self.head = True, None
            connection.exchange = None
            connection.refuse(status)
            if connection.service.access_log:
                connection.service.log_access(self.scope, status)

    def _give_up(self) -> None:
        """The application heard of the disconnect and stopped: nothing is missing but the end of the connection."""
        self.complete = True
        if not self.gone:
            self.connection.abort_exchange()

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel("Task cancelled, timeout graceful shutdown exceeded")
