"""Connections: one live transport with one protocol, accepted or dialled.

A handler is any object; each of these methods is optional, and plain or ``async``:

    on_connect(connection)              first
    on_message(connection, message)     once per message, one after another
    on_close(connection)                last, when the handlers before it are over; ``connection.error`` says why it ended

An ``async`` handler that is running holds the messages behind it back. They wait in a bounded queue, and reading pauses when it is full,
so a peer that sends faster than it is served costs no memory. While nothing waits there is no queue and no task. A plain handler that has no
room for more says so with ``pause()``, and ``resume()`` later.

Each of these calls is an operation of the worker: it has a context of its own, and what is registered is done around it. While nothing is, a plain
handler is called there and then.

States of a connection, and what moves it:

    OPEN        close(), abort() or an error of ours -> CLOSING; the end of the transport -> CLOSED
    CLOSING     what was sent is flushed; its end, or ``write_timeout`` seconds without progress -> CLOSED
    CLOSED      the transport is gone and nothing of it is handled any more
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections import deque
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from laraman import events
from laraman.errors import Busy, ConnectionClosed, ConnectionLost, RemoteProtocolError
from laraman.sandbox.operation import CONNECTION, MESSAGE, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

logger = logging.getLogger("uvicorn.error")

OPEN, CLOSING, CLOSED = "OPEN", "CLOSING", "CLOSED"

#: Messages that wait for a handler before reading pauses; it goes on at half of it. One read's worth may come on top.
MAX_PENDING = 64
#: Seconds without progress after which a peer that does not read is cut off.
WRITE_TIMEOUT = 60.0

#: Why reading is paused: messages wait, the protocol has more to do, the peer does not read what the protocol owes it, a handler said ``pause()``.
_PENDING, _MORE, _OWED, _PAUSED = 1, 2, 4, 8

_numbers = itertools.count(1)


class Connection(asyncio.Protocol):
    """One live connection.

    ``worker`` is the Worker that accepted it, or None; an accepted connection is in ``worker.connections`` from its first moment to its last.
    ``operates_for`` is the Worker whose operations the calls of the handler are, at first ``worker``; None where they only pass something on.
    ``peer`` and ``local`` are socket names, ``opened`` is the loop's time in seconds. ``error`` is None while it is open, then the
    ConnectionClosed or ConnectionLost that ended it; ``close_code`` the same as a number of RFC 6455 section 7.4.1, which logs and tests can compare.
    """

    __slots__ = (
        "_closing_when_idle",
        "_drained",
        "_ended",
        "_gone",
        "_lost",
        "_parsing",
        "_pending",
        "_reading_paused",
        "_receiver",
        "_stall",
        "_wrapper",
        "_wrapper_version",
        "_write_timeout",
        "bytes_in",
        "bytes_out",
        "close_code",
        "direction",
        "error",
        "handler",
        "id",
        "local",
        "messages_in",
        "messages_out",
        "opened",
        "operates_for",
        "peer",
        "protocol",
        "running",
        "state",
        "transport",
        "worker",
        "writing_paused",
    )

    #: What a message is as an operation, and the beginning and the end of a connection.
    message_kind = MESSAGE
    hook_kind = CONNECTION

    def __init__(self, protocol: Any, handler: Any, worker: Any, direction: str = "in", write_timeout: float = WRITE_TIMEOUT) -> None:
        """``direction`` is "in" (accepted) or "out" (dialled); ``write_timeout`` is in seconds."""
        self.id = next(_numbers)
        self.protocol = protocol
        self.handler = handler
        self.worker = self.operates_for = worker
        self.direction = direction
        self.state: Any = OPEN
        self.error: ConnectionClosed | ConnectionLost | None = None
        self.close_code = 0
        self.bytes_in = self.bytes_out = self.messages_in = self.messages_out = 0
        self.transport: Any = None
        self.opened = 0.0
        self.peer: Any = None
        self.local: Any = None
        self.writing_paused = False
        #: The task in which handlers run, while one does.
        self.running: asyncio.Task[None] | None = None
        self._pending: deque[Any] | None = None
        self._reading_paused = 0  # the reasons
        self._parsing = False  # a further step of the protocol is scheduled
        self._closing_when_idle = False
        self._ended = self._lost = False
        self._drained: asyncio.Future[None] | None = None
        self._receiver: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._write_timeout = write_timeout
        self._wrapper: Callable[..., Coroutine[Any, Any, Any]] | None = None  # the sandbox's, for messages
        self._wrapper_version = -1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.direction} {name_text(self.peer)} {getattr(self.state, 'name', self.state)}>"

    # Transport -------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.opened = asyncio.get_running_loop().time()
        self.peer = transport.get_extra_info("peername")
        self.local = transport.get_extra_info("sockname")
        if self.worker is not None:
            self.worker.connections.add(self)
        if self.handler is not None:
            keep_alive(transport.get_extra_info("socket"))
            self._handle("on_connect")

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self.error is not None:
            self._discard(data)
            return
        try:
            messages = self.protocol.receive_data(data)
            self._write_owed()
        except RemoteProtocolError as exc:
            self._refuse(exc)
            return
        except Exception:
            logger.exception("%s: its protocol raised", self)
            self.close(1011)
            return
        for message in messages:
            self._deliver(message)
        if getattr(self.protocol, "more", False):
            self._pause_reading(_MORE)
            self._go_on()
        elif self._reading_paused & _MORE:
            self._resume_reading(_MORE)

    def _go_on(self) -> None:
        """The next step of a protocol that has more to do, in a turn of its own; not while anything waits before it."""
        if self._reading_paused == _MORE and not self._pending and not self._parsing:
            self._parsing = True
            asyncio.get_running_loop().call_soon(self._receive_more)

    def _receive_more(self) -> None:
        self._parsing = False
        if self._reading_paused == _MORE and not self._pending:
            self._receive(b"")

    def eof_received(self) -> bool | None:
        """The peer sends no more. A client may still read, so what is being handled for it is finished first; a dialled peer has hung up."""
        finish = getattr(self.protocol, "receive_eof", None)
        try:
            if finish is not None:
                finish()
        except RemoteProtocolError as exc:
            self._refuse(exc)
        self._ended = self._closing_when_idle = True
        _wake(self._receiver)
        self._watch_writing()
        return self.running is not None and self.error is None and self.direction == "in"

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.error is None:
            self.error = ConnectionLost(f"the connection was lost: {exc}" if exc else "the peer closed the connection")
            self.error.__cause__ = exc
            self.close_code = 1006 if exc else 1000
        self._lost = True
        self.writing_paused = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        for waiter in (self._drained, self._receiver, self._gone):
            _wake(waiter)
        if self.handler is None:
            self._forget()
            return
        self._handle_pending()  # it was held, and was received before the end
        if self.running is None:
            self._settle()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        _wake(self._drained)
        if self._reading_paused & _OWED:
            self._resume_reading(_OWED)

    # Sending ---------------------------------------------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        """Send one message; while the peer does not read, wait first.

        Raises LocalProtocolError when the protocol does not allow the message, ConnectionClosed or ConnectionLost when the connection
        has ended, which is also what a peer causes that reads nothing for ``write_timeout`` seconds.
        """
        while self.writing_paused and self.error is None:
            self._watch_writing()
            await self.drained()
        self.send_nowait(message)

    def send_nowait(self, message: Any) -> None:
        """Send one message, for handlers that are plain functions. Raises what ``send`` does, and Busy where it would wait."""
        if self.error is not None:
            raise self._copied_error()
        if self.writing_paused:
            raise Busy("the peer does not read what was sent before")
        data = self.protocol.send(message)
        self.bytes_out += len(data)
        self.messages_out += 1
        self.transport.write(data)

    async def drained(self) -> None:
        """Return once the peer has read enough for more to be written, or the connection is gone."""
        while self.writing_paused:
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def _write_owed(self) -> None:
        owed_by = getattr(self.protocol, "data_to_send", None)
        if owed_by is not None and (owed := owed_by()):
            self.bytes_out += len(owed)
            self.transport.write(owed)
            if self.writing_paused:  # it asks and does not read the answers
                self._pause_reading(_OWED)
                self._watch_writing()

    def _watch_writing(self) -> None:
        """From now on the peer has to read. One timer goes round while there is something to read, none otherwise."""
        if self._stall is None and self.transport is not None and self.transport.get_write_buffer_size():
            self._stall = asyncio.get_running_loop().call_later(self._write_timeout, self._check_writing, self._bytes_flushed())

    def _bytes_flushed(self) -> int:
        return self.bytes_out - int(self.transport.get_write_buffer_size())

    def _check_writing(self, flushed_before: int) -> None:
        self._stall = None
        if self._bytes_flushed() == flushed_before and self.transport.get_write_buffer_size():
            error = ConnectionLost(f"the peer has read nothing for {self._write_timeout:g} seconds")
            logger.warning("%s: %s, the connection is closed", self, error)
            self.abort(error)
        else:
            self._watch_writing()

    # Receiving -------------------------------------------------------------------------------------------------------------------

    async def receive(self) -> Any:
        """The next message, for an ``async`` handler in the middle of a dialogue: a handshake in ``on_connect`` above all.

        Raises ConnectionClosed or ConnectionLost when there will be none.
        """
        if self.running is None or self._receiver is not None:
            raise RuntimeError("receive() is for the one async handler that is running")
        while not self._pending:
            if self.error is not None:
                raise self._copied_error()
            if self._ended:
                raise ConnectionLost("the peer sends no more")
            if self.operates_for is not None and self.operates_for.sandbox.serial:
                await self.operates_for.sandbox.out_of_turn(self._wait_for_more)
            else:
                await self._wait_for_more()
        return self._take()

    async def _wait_for_more(self) -> None:
        self._receiver = asyncio.get_running_loop().create_future()
        try:
            await self._receiver
        finally:
            self._receiver = None

    def _deliver(self, message: Any) -> None:
        if self.error is not None:
            return  # a handler closed the connection: what stood behind it is not wanted
        self.messages_in += 1
        if self.worker is not None:
            self.worker.requests += 1
        if self.running is None and not self._reading_paused & _PAUSED:
            self._handle("on_message", message)
            return
        if self._pending is None:
            self._pending = deque()
        self._pending.append(message)
        _wake(self._receiver)
        if len(self._pending) >= MAX_PENDING:
            self._pause_reading()

    def _take(self) -> Any:
        assert self._pending is not None
        message = self._pending.popleft()
        if self._reading_paused:
            if len(self._pending) <= MAX_PENDING // 2:
                self._resume_reading()
            self._go_on()
        return message

    @property
    def reading_paused(self) -> bool:
        """Whether reading is paused because handlers have not kept up: the peer's silence is then ours."""
        return self._reading_paused != 0

    def pause(self) -> None:
        """For a plain handler: from the next message on they wait, and reading pauses, until ``resume``. Idempotent."""
        self._pause_reading(_PAUSED)

    def resume(self) -> None:
        """Handle what has waited since ``pause``, and read on. What is handled may say ``pause`` again. Idempotent."""
        if self._reading_paused & _PAUSED:
            self._resume_reading(_PAUSED)
            self._handle_pending()
            self._go_on()

    def _pause_reading(self, reason: int = _PENDING) -> None:
        if not self._reading_paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self._reading_paused |= reason

    def _resume_reading(self, reason: int = _PENDING) -> None:
        """Take one reason away; reading goes on when there is none left."""
        paused = self._reading_paused
        self._reading_paused = paused & ~reason
        if paused and not self._reading_paused and not self.transport.is_closing():
            self.transport.resume_reading()
        elif self._reading_paused:
            self._go_on()

    # Handlers --------------------------------------------------------------------------------------------------------------------

    def _handle(self, hook: str, *arguments: Any) -> None:
        """Call a handler. One that must be awaited gets a task, and what comes meanwhile waits behind it."""
        function = getattr(self.handler, hook, None)
        if function is None:
            return
        worker = self.operates_for
        operation = context = None
        try:
            if worker is None:
                result = function(self, *arguments)
            else:
                sandbox = worker.sandbox
                if not arguments:
                    operation = Operation(self.hook_kind, hook)
                    wrapper = sandbox.wrapper(self.hook_kind)
                else:
                    operation = Operation(self.message_kind, arguments[0])
                    if self._wrapper_version != events.version:
                        self._wrapper_version = events.version
                        self._wrapper = sandbox.wrapper(self.message_kind)
                    wrapper = self._wrapper
                context = sandbox.context(operation)
                result = context.run(function, self, *arguments) if wrapper is None else wrapper(operation, function, self, *arguments)
        except Exception as exc:
            result = None
            self._failed(hook, exc)
        if result is not None and isawaitable(result):
            if self.worker is not None:
                self.worker.in_flight += 1
            self.running = asyncio.get_running_loop().create_task(self._run(hook, operation, result), context=context)
        elif operation is not None:
            worker.sandbox.ended(operation)

    def _handle_pending(self) -> None:
        """Handle what has waited; to its end when there will be no more."""
        while self._pending and self.running is None and (self._lost or not self._reading_paused & _PAUSED):
            self._handle("on_message", self._take())

    async def _run(self, hook: str, operation: Operation | None, waiting: Awaitable[Any]) -> None:
        try:
            await waiting
        except Exception as exc:
            self._failed(hook, exc)
        except BaseException as exc:
            task = asyncio.current_task()
            if not isinstance(exc, asyncio.CancelledError) or (task is not None and task.cancelling()):
                self._pending = None  # and nothing more begins
                raise
            self._failed(hook, exc)  # not we were cancelled, but something that it waited for
        finally:
            self.running = None
            if self.worker is not None:
                self.worker.in_flight -= 1
            if operation is not None:
                self.operates_for.sandbox.ended(operation)
            self._handle_pending()
            if self.running is None:
                if not self._reading_paused & _PAUSED:
                    self._pending = None
                self._settle()

    def _failed(self, hook: str, exc: BaseException) -> None:
        """A handler that raises ends its connection, never the process. That the peer went away meanwhile is no error of its."""
        if not (isinstance(exc, (ConnectionClosed, ConnectionLost)) and self.error is not None):
            logger.error("%s: %s raised, the connection is closed", self, hook, exc_info=exc)
        self._pending = None
        self.close(1011)

    def _settle(self) -> None:
        """Nothing is being handled: see what the connection has come to."""
        if not self._lost:
            if self._reading_paused & _PENDING and not self._pending:
                self._resume_reading()
            if self._closing_when_idle:
                self.close()
        elif self.state != CLOSED:
            self.state = CLOSED
            self._handle("on_close")
            if self.running is None:
                self._forget()
        else:
            self._forget()

    def _forget(self) -> None:
        if self.worker is not None:
            self.worker.connections.discard(self)

    # The end ---------------------------------------------------------------------------------------------------------------------

    def close(self, code: int = 1000) -> None:
        """Send what is waiting to be sent, then close. Nothing more is received. Idempotent; ``code`` is kept as ``close_code``."""
        if self.error is None:
            self._close(ConnectionClosed("this side has closed the connection"), code)

    def _close(self, error: ConnectionClosed | ConnectionLost, code: int) -> None:
        self.error = error
        self.close_code = code
        self.state = CLOSING
        self._pending = None
        _wake(self._receiver)
        if self.transport is not None:
            with contextlib.suppress(Exception):
                self._write_owed()
            self._hang_up()
            self._watch_writing()

    def _hang_up(self) -> None:
        """End the transport, when what was sent is on its way. For protocols that say good-bye, and wait for the answer to it."""
        self.transport.close()

    def _discard(self, data: bytes) -> None:
        """What comes after this side has ended the connection."""

    def _refuse(self, exc: RemoteProtocolError) -> None:
        logger.warning("%s: %s", self, exc)
        error = ConnectionClosed(f"closed because of what the peer sent: {exc}")
        error.__cause__ = exc
        self._close(error, exc.close_code)

    def abort(self, error: ConnectionLost | None = None) -> None:
        """Close at once; what was not sent is dropped. ``error`` is what is found to be wrong with the connection, if that is why."""
        if self.error is None:
            self.error = error or ConnectionClosed("this side has aborted the connection")
            self.close_code = 1006
            self.state = CLOSING
            self._pending = None
        _wake(self._receiver)
        if self.transport is not None:
            self.transport.abort()

    async def wait_closed(self) -> None:
        """Return when the transport is gone. Handlers may still be running."""
        while not self._lost:
            if self._gone is None:
                self._gone = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)

    async def wait_idle(self) -> None:
        """Return when nothing is being handled."""
        while self.running is not None:  # each message has a task of its own
            await asyncio.wait({self.running})

    def shutdown(self) -> None:
        """The worker is draining: close as soon as nothing is being handled."""
        self._closing_when_idle = True
        if self.running is None:
            self.close(1001)

    def cancel(self) -> None:
        """The deadline of the stop has come: cancel what is being handled, drop what waits, and abort."""
        self.abort()
        self._pending = None
        if self.running is not None:
            # Not at once: a task that is cancelled before its first step runs none of its code, and so none of what ends a handler's turn.
            asyncio.get_running_loop().call_soon(self.running.cancel)

    # What people see -------------------------------------------------------------------------------------------------------------

    def row(self) -> dict[str, Any]:
        """What ``laraman connections`` shows; ``age`` is in seconds."""
        worker = self.worker
        return {
            "pid": os.getpid(),
            "worker": "" if worker is None else worker.name,
            "slot": None if worker is None else worker.slot,
            "direction": self.direction,
            "protocol": type(self.protocol).__name__.lower(),
            "local": name_text(self.local),
            "peer": name_text(self.peer),
            "state": getattr(self.state, "name", self.state),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "messages_in": self.messages_in,
            "messages_out": self.messages_out,
            "age": round(asyncio.get_running_loop().time() - self.opened, 3),
        }

    def _copied_error(self) -> ConnectionClosed | ConnectionLost:
        """``error`` again, as an instance of its own: one that is raised many times collects tracebacks."""
        assert self.error is not None
        error = type(self.error)(*self.error.args)
        error.__cause__ = self.error.__cause__
        return error


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def name_text(name: Any) -> str:
    """A socket name as people write it: ``127.0.0.1:8000``, ``[::1]:8000``, a path, or "" for an unnamed unix socket."""
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return os.fsdecode(name) if name else ""


def keep_alive(sock: Any, idle: int = 30, interval: int = 10, probes: int = 3) -> None:
    """Let the kernel find out, in about a minute, that a quiet peer's machine is gone (``idle`` and ``interval`` in seconds)."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": interval, "TCP_KEEPCNT": probes, "TCP_USER_TIMEOUT": (idle + interval * probes) * 1000}
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
