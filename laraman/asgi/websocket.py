"""WebSocket connections: the ASGI side of one session.

https://asgi.readthedocs.io/en/latest/specs/www.html#websocket, spec_version 2.4, with the websocket.http.response extension.

States, and what moves them:

    CONNECTING  the application has not decided   accept -> OPEN; close -> 403, CLOSING; http.response.start -> DENYING; error -> 500
    OPEN        frames go both ways               a close from either side, a fault of the peer, no pong, the worker's stop -> CLOSING
    DENYING     a denial response is under way    its end -> CLOSING
    CLOSING     our last bytes are out            the peer's close or its end, or the deadline -> CLOSED
    CLOSED      the transport is gone

Reading goes a step at a time (``WebSocket.more``), and it pauses while ``ws_max_queue`` messages, or 64 KiB of them, wait for the application: a
client that sends faster than the application receives costs that, two reads and one message of memory.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any

from laraman.asgi.handshake import Denial, accept_head, log_answer, log_rejected
from laraman.asgi.payload import payload_of, size_of
from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.net.connection import Connection, name_text
from laraman.protocols.deflate import negotiate_deflate
from laraman.protocols.upgrade import check_request, response_head
from laraman.protocols.websocket import Close, WebSocket
from laraman.sandbox.operation import REQUEST, Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laraman.asgi.app import Message, Scope
    from laraman.asgi.service import Http

logger = logging.getLogger("uvicorn.error")


class State(Enum):
    CONNECTING = "connecting"
    OPEN = "open"
    DENYING = "denying"
    CLOSING = "closing"
    CLOSED = "closed"


CONNECTING, OPEN, DENYING, CLOSING, CLOSED = State

#: Seconds the peer gets to answer a close.
CLOSE_TIMEOUT = 10.0
#: Seconds the peer gets when the worker stops, or when nothing but its reading of our last bytes is waited for.
LINGER = 1.0
#: Bytes of frames that may wait for one write.
MAX_HELD = 65536
#: Bytes of messages that may wait for the application, whatever their number.
MAX_WAITING = 65536
#: Bytes a client may send before it is accepted.
MAX_EARLY = 65536


class ClientDisconnected(OSError):
    """The application sends on a websocket that the client, the network or the server has ended."""


class WebSocketConnection(Connection):
    """One websocket of a worker's Http service, from the parsed request head on. The service runs it as it runs an HTTP exchange."""

    deadline = 0.0  #: the service looks at every websocket at every tick

    __slots__ = (
        "_accept_value",
        "_closed_by_app",
        "_deadline",
        "_denial",
        "_disconnect",
        "_early",
        "_heard",
        "_held",
        "_held_size",
        "_messages",
        "_next_ping",
        "_offers",
        "_parsing",
        "_pong_deadline",
        "_sent_before",
        "_unsent",
        "_unsent_since",
        "_waiter",
        "_websocket",
        "operation",
        "scope",
        "service",
        "task",
    )

    def __init__(self, service: Http, scope: Scope) -> None:
        super().__init__(None, None, service.worker)
        self.service = service
        self.scope = scope
        self.operation = Operation(REQUEST, scope)
        self.task: asyncio.Task[None] | None = None
        self.state: State = CONNECTING
        self._websocket: WebSocket | None = None  # once it is open
        self._denial: Denial | None = None
        self._accept_value = b""
        self._offers = ""
        self._early = b""
        self._messages: list[Message] = [{"type": "websocket.connect"}]  # what receive() gives next
        self._disconnect: Message | None = None  # and what it gives from then on
        self._closed_by_app = False
        self._waiter: asyncio.Future[None] | None = None
        self._parsing = False  # a further step of parsing is scheduled
        self._deadline = self._next_ping = self._pong_deadline = inf
        self._held: list[bytes] = []  # frames that the next write takes along
        self._held_size = 0
        self._heard = False  # something came since the last ping
        self._sent_before = 0  # messages sent before the last ping
        self._unsent = 0  # bytes in the transport's buffer at the last tick
        self._unsent_since = inf

    # Transport -------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        try:
            self._accept_value, self._offers = check_request(self.scope["headers"])
        except RemoteProtocolError as exc:
            version = ((b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")) if exc.status_hint == 426 else ()
            self._reject(exc.status_hint, str(exc).encode(), version)
            return
        self.service.start(self, self.operation)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._end({"type": "websocket.disconnect", "code": 1006 if self._websocket is None else 1005, "reason": ""})
        self.state = CLOSED
        self._deadline = inf
        self._early = b""
        if self._websocket is not None:
            logger.info("connection closed")

    def eof_received(self) -> None:
        """The client sends no more: the transport closes itself."""

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self._heard = True
        if self._websocket is not None:
            if self._messages and self.state is OPEN and self._is_behind():
                self._pause_reading()
            self._parse(data)
        elif self.state is CONNECTING:
            self._early += data
            if len(self._early) > MAX_EARLY:
                self._pause_reading()

    def _is_behind(self) -> bool:
        """Whether enough waits for the application. One read may bring more messages than may wait, and the bytes of few may be many."""
        return len(self._messages) >= self.service.config.ws_max_queue or sum(map(size_of, self._messages)) > MAX_WAITING

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._messages:
            self._go_on()

    def _write(self, data: bytes) -> None:
        self._flush()
        if not self.transport.is_closing():
            self.bytes_out += len(data)
            self.transport.write(data)

    def _write_soon(self, frame: bytes) -> None:
        """Write a frame, together with the next ones while the application still has messages to answer: a write costs more than all else."""
        self.bytes_out += len(frame)
        if self._messages and self._held_size < MAX_HELD:
            if not self._held:
                self.service.loop.call_soon(self._flush)
            self._held.append(frame)
            self._held_size += len(frame)
        elif self._held:
            self._held.append(frame)
            self._flush()
        else:
            self.transport.write(frame)

    def _flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._held_size = 0
            if not self.transport.is_closing():
                self.transport.write(data)

    # From the client -------------------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """One step of work on what was read."""
        websocket = self._websocket
        if websocket is None:
            return
        received = websocket.receive_data(data)
        owed = websocket.data_to_send()
        if owed:
            self._write(owed)
            if self.writing_paused:  # pings without reading the pongs
                self._pause_reading()
        if self.state is OPEN:
            self._queue(received)
        elif received and isinstance(received[-1], Close):
            self.transport.close()
        if websocket.more:
            self._pause_reading()
        if self._reading_paused and (not self._messages or self.state is not OPEN):
            self._go_on()

    def _queue(self, received: list[str | bytes | Close]) -> None:
        for message in received:
            if isinstance(message, str):
                self._messages.append({"type": "websocket.receive", "text": message})
            elif isinstance(message, bytes):
                self._messages.append({"type": "websocket.receive", "bytes": message})
            else:
                self._peer_closed(message)
                return
            self.messages_in += 1
        if received:
            self._wake()

    def _peer_closed(self, close: Close) -> None:
        """The peer has closed, or broken a rule; the answer is already on its way."""
        self._end({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self._half_close(CLOSE_TIMEOUT)

    def _go_on(self) -> None:
        """The application waits for more: parse what is here, else read."""
        websocket = self._websocket
        if websocket is not None and websocket.more:
            if not self._parsing:
                self._parsing = True
                self.service.loop.call_soon(self._parse_more)
        elif self._reading_paused and not self.writing_paused:
            self._resume_reading()

    def _parse_more(self) -> None:
        self._parsing = False
        self._parse(b"")

    # What the application calls --------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next message; after the last one ``websocket.disconnect``, as often as it is asked for."""
        messages = self._messages
        while not messages:
            if self._disconnect is not None:
                return dict(self._disconnect)
            if self._waiter is not None:  # another task is waiting as well
                await asyncio.wait((self._waiter,))
                continue
            self._waiter = self.service.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = messages.pop(0)
        if self._reading_paused and not messages:
            self._go_on()
        return message

    async def _receive_out_of_turn(self) -> Message:
        """``receive`` under serial isolation: a session has its turn while it works, and others have theirs while it waits for a message."""
        message: Message = await self.service.sandbox.out_of_turn(self.receive, self.operation)
        return message

    async def send(self, message: Message) -> None:
        """Send one message.

        Raises RuntimeError where the order or the content is not allowed, and ClientDisconnected when the websocket has ended otherwise
        than by the application.
        """
        kind = message["type"]
        state = self.state
        if state is OPEN:
            if kind == "websocket.send":
                assert self._websocket is not None
                if self.transport.is_closing():
                    raise ClientDisconnected("the websocket is closed")
                frame = self._websocket.send(payload_of(message))
                self.messages_out += 1
                self._write_soon(frame)
            elif kind == "websocket.close":
                self._close_for_app(message)
            else:
                raise RuntimeError(f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'.")
        elif state is CLOSED or (state is CLOSING and not self._closed_by_app):
            if kind != "websocket.close":  # that is what it is: whoever cleans up in a ``finally`` cannot know
                raise ClientDisconnected("the websocket is closed")
        elif state is CLOSING:
            raise RuntimeError(f"Unexpected ASGI message '{kind}', after sending 'websocket.close'.")
        else:
            self._answer(kind, message)
        if self.writing_paused:
            if self.service.serial:
                await self.service.sandbox.out_of_turn(self.drained, self.operation)  # a client that does not read keeps nobody waiting
            else:
                await self.drained()

    def _answer(self, kind: str, message: Message) -> None:
        if self.state is DENYING:
            if kind != "websocket.http.response.body":
                raise RuntimeError(f"Expected ASGI message 'websocket.http.response.body' but got '{kind}'.")
            self._deny_body(message)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._closed_by_app = True
            log_answer(self.scope, " 403")
            self._reject(403, b"")
        elif kind == "websocket.http.response.start":
            self._denial = Denial(message)
            log_answer(self.scope, " %d", message["status"])
            self.state = DENYING
        else:
            raise RuntimeError(f"Expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start' but got '{kind}'.")

    def _accept(self, message: Message) -> None:
        """Send the 101 (RFC 6455 section 4.2.2) and start with what came early."""
        service = self.service
        agreed = negotiate_deflate(self._offers) if service.config.ws_per_message_deflate else None
        extension = () if agreed is None else ((b"Sec-WebSocket-Extensions", agreed[1].encode()),)
        own = ((b"Sec-WebSocket-Accept", self._accept_value), *extension)
        head = accept_head(message, self.scope["subprotocols"], own, service.default_headers)
        log_answer(self.scope, " [accepted]")
        self.state = OPEN
        self._websocket = WebSocket(service.config.ws_max_size, None if agreed is None else agreed[0])
        self._write(head)
        logger.info("connection open")
        if service.config.ws_ping_interval:
            self._next_ping = service.now + service.config.ws_ping_interval
        early, self._early = self._early, b""
        if early:
            self._parse(early)
        if not self._messages:
            self._go_on()

    def _close_for_app(self, message: Message) -> None:
        code = message.get("code")
        close = Close(1000 if code is None else code, message.get("reason") or "")
        try:
            self._send_close(close, CLOSE_TIMEOUT)
        except LocalProtocolError as exc:
            raise RuntimeError(f"Invalid 'websocket.close': {exc}.") from None
        self._closed_by_app = True

    def _send_close(self, close: Close, timeout: float) -> None:
        """Begin the closing handshake; the peer gets ``timeout`` seconds to answer."""
        assert self._websocket is not None
        self._write(self._websocket.send(close))
        self._end({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self._await_end(timeout)

    def _deny_body(self, message: Message) -> None:
        assert self._denial is not None
        more = message.get("more_body", False)
        self._write(self._denial.body(message.get("body", b""), more, self.service.default_headers))
        if not more:
            self._closed_by_app = True
            log_rejected(self._denial.status)
            self._end({"type": "websocket.disconnect", "code": 1006, "reason": ""})
            self._half_close(LINGER)

    # Ends ------------------------------------------------------------------------------------------------------------------------

    def _end(self, disconnect: Message) -> None:
        """What the application is told when it has received all there is. The first reason stays."""
        if self._disconnect is None:
            self._disconnect = disconnect
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _await_end(self, timeout: float) -> None:
        """The peer gets ``timeout`` seconds to end the connection."""
        self.state = CLOSING
        self._deadline = self.service.now + timeout
        self._go_on()

    def _half_close(self, timeout: float) -> None:
        """Send no more, but read: a close with unread input would be a reset, which discards what was sent last."""
        transport = self.transport
        if not transport.can_write_eof():
            transport.close()
        elif not transport.is_closing():
            transport.write_eof()
        self._await_end(timeout)

    def _reject(self, status: int, body: bytes, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer the handshake with an error."""
        content = ((b"content-type", b"text/plain; charset=utf-8"),) if body else ()
        framing = ((b"content-length", b"%d" % len(body)), (b"connection", b"close"))
        self._write(response_head(status, self.service.default_headers, fields, (*content, *framing)) + body)
        log_rejected(status)
        self._end({"type": "websocket.disconnect", "code": 1006, "reason": ""})
        self._half_close(LINGER)

    # The task --------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Call the application. When it returns the session is over: 1000 where it did not close, 1011 where it raised."""
        try:
            service = self.service
            wrapper = service.wrapper
            if wrapper is None:
                result = await service.application(self.scope, self.receive, self.send)
            else:
                receive = self._receive_out_of_turn if service.serial else self.receive
                result = await wrapper(self.operation, service.application, self.scope, receive, self.send)
        except ClientDisconnected:
            self._finish(1000)
        except asyncio.CancelledError:
            self._finish(1012)
        except Exception as exc:
            logger.error("Exception in ASGI application\n", exc_info=exc)
            self._finish(1011)
        except BaseException:
            self._finish(1011)
            raise
        else:
            if self.state is CONNECTING:
                logger.error("ASGI callable returned without completing handshake.")
            elif self.state is DENYING:
                logger.error("ASGI callable returned without completing response.")
            elif result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
            self._finish(1000)
        finally:
            self.service.ended(self, self.operation)

    def _finish(self, code: int) -> None:
        if self.state is OPEN:
            self._send_close(Close(code), CLOSE_TIMEOUT)
        elif self.state is CONNECTING or (self._denial is not None and not self._denial.started):
            self._reject(500, b"Internal Server Error")
        elif self.state is DENYING:
            self.transport.abort()  # nothing else tells the client that the response is not complete
        self._messages.clear()
        self._go_on()

    def shutdown(self) -> None:
        """The worker is draining: close with 1012 (service restart) at once."""
        if self.state is OPEN:
            self._send_close(Close(1012), LINGER)
        elif self.state is CONNECTING:
            self._end({"type": "websocket.disconnect", "code": 1012, "reason": ""})
            self._reject(503, b"Service Unavailable")
        elif self.state is CLOSING:
            self._deadline = min(self._deadline, self.service.now + LINGER)

    def row(self) -> dict[str, Any]:
        return {**super().row(), "protocol": "websocket", "client": name_text(self.scope["client"])}

    def disconnect(self) -> None:
        """The stop takes long: the application was told by ``shutdown`` already."""

    def cancel(self) -> None:
        """The deadline of the stop has come."""
        if self.task is not None:
            self.task.cancel()
        self.transport.abort()

    # Time ------------------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called about once a second: pings, and the deadlines of everything that is waited for."""
        unsent = self.transport.get_write_buffer_size()
        moves = unsent != self._unsent
        self._unsent = unsent
        if moves or not unsent:
            self._unsent_since = now
        # A slow reader of our last bytes may go on; one that reads nothing may not.
        stuck = unsent and not moves and now - self._unsent_since >= self.service.config.timeout_write
        if stuck or (now >= self._deadline and not moves):
            self.transport.abort()
        elif self.state is OPEN and not self.writing_paused:
            self._keep_alive(now)

    def _keep_alive(self, now: float) -> None:
        """Send pings. Whatever came since the last one shows that the peer lives; while reading is paused its silence is ours."""
        config = self.service.config
        if self._heard or self._reading_paused:
            self._pong_deadline = inf
        elif now >= self._pong_deadline:
            self._send_close(Close(1011, "keepalive ping timeout"), LINGER)
            return
        if now >= self._next_ping:
            assert self._websocket is not None
            self._next_ping = now + config.ws_ping_interval
            self._heard = False
            if config.ws_ping_timeout:
                self._pong_deadline = min(self._pong_deadline, now + config.ws_ping_timeout)
            if self.messages_out == self._sent_before:
                self._websocket.rest()
            self._sent_before = self.messages_out
            self._write(self._websocket.ping())
