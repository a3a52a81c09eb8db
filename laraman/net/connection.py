"""Connections: one live transport with one protocol, accepted or dialled.

A handler is any object; each of these methods is optional, and plain or ``async``:

    on_connect(connection)              first
    on_message(connection, message)     once per message, one after another
    on_error(connection, exception)     a handler raised, or its peer broke the protocol, and it is about to be closed: it may still send
    on_close(connection)                last, when the handlers before it are over; ``connection.error`` says why it ended
    on_buffer_full(connection)          the peer has not read what was sent: from now on ``send`` waits and ``send_nowait`` is Busy ...
    on_drained(connection)              ... until it has. These two come whenever that happens, also while another one runs

An ``async`` handler that is running holds the messages behind it back. They wait in a bounded queue, and reading pauses when it is full,
so a peer that sends faster than it is served costs no memory. While nothing waits there is no queue and no task. A plain handler that has no
room for more says so with ``pause()``, and ``resume()`` later. Without a handler (None) the messages wait for ``receive()``.

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
from typing import Any

from laraman.errors import ConnectionClosed, ConnectionLost, RemoteProtocolError
from laraman.net.handling import OWED, PENDING
from laraman.net.pipe import Pipe
from laraman.net.receiving import Receiving
from laraman.net.sending import WRITE_TIMEOUT, wake
from laraman.net.sockets import keep_alive as keep_alive
from laraman.net.sockets import name_text as name_text

logger = logging.getLogger("uvicorn.error")

OPEN, CLOSING, CLOSED = "OPEN", "CLOSING", "CLOSED"

#: Hooks whose own faults are told to nobody.
_FINAL = frozenset(("on_error", "on_close"))

_numbers = itertools.count(1)


class Connection(Receiving):
    """One live connection.

    ``worker`` is the Worker that accepted it, or None; an accepted connection is in ``worker.connections`` from its first moment to its last.
    ``operates_for`` is the Worker whose operations the calls of the handler are, at first ``worker``; None where they only pass something on.
    ``peer`` and ``local`` are socket names, ``opened`` is the loop's time in seconds. ``error`` is None while it is open, then the
    ConnectionClosed or ConnectionLost that ended it; ``close_code`` the same as a number of RFC 6455 section 7.4.1, which logs and tests can compare.
    """

    __slots__ = (
        "_closing_when_idle",
        "_data",
        "_fault",
        "_gone",
        "_verdict",
        "_write_buffer",
        "close_code",
        "direction",
        "id",
        "local",
        "opened",
        "peer",
        "state",
    )

    def __init__(
        self, protocol: Any, handler: Any, worker: Any, direction: str = "in", write_timeout: float = WRITE_TIMEOUT, write_buffer: int | None = None
    ) -> None:
        """``direction`` is "in" (accepted) or "out" (dialled); ``write_timeout`` is in seconds.

        ``write_buffer`` is how many bytes may wait for a peer that does not read, before senders wait; None is what the loop thinks, 64 KiB.
        """
        super().__init__(protocol, handler, worker, write_timeout)
        self.id = next(_numbers)
        self.direction = direction
        self.state: Any = OPEN
        self.close_code = 0
        self.opened = 0.0
        self.peer: Any = None
        self.local: Any = None
        self._data: dict[Any, Any] | None = None
        self._closing_when_idle = False
        self._fault: BaseException | None = None  # that on_error is still to be told
        self._gone: asyncio.Future[None] | None = None
        self._verdict: tuple[ConnectionClosed, int] | None = None  # how it is closed when on_error, which has to be awaited, is over
        self._write_buffer = write_buffer

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.direction} {name_text(self.peer)} {getattr(self.state, 'name', self.state)}>"

    @property
    def data(self) -> dict[Any, Any]:
        """The application's own, for as long as the connection is there."""
        if self._data is None:
            self._data = {}
        return self._data

    # Transport -------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.opened = asyncio.get_running_loop().time()
        self.peer = transport.get_extra_info("peername")
        self.local = transport.get_extra_info("sockname")
        if self._write_buffer is not None:
            transport.set_write_buffer_limits(self._write_buffer)
        if self.worker is not None:
            self.worker.connections.add(self)
        if self.handler is not None:
            keep_alive(transport.get_extra_info("socket"))
            self._handle("on_connect")

    def pipe(self, target: Connection) -> None:
        """From now on send on ``target`` what is received here, as fast as its peer reads; neither end outlives the other.

        What ``receive_data`` of this one's protocol gives must be what ``send`` of the other's takes. For both directions pipe both ways.
        Called again it takes the place of the pipe that there was.
        """
        former = self.handler
        if isinstance(former, Pipe):
            former.close()
            former = former.handler
        self.handler = Pipe(self, target, former)

    def eof_received(self) -> bool | None:
        """The peer sends no more. A client may still read, so what is being handled for it is finished first; a dialled peer has hung up."""
        finish = getattr(self.protocol, "receive_eof", None)
        try:
            if finish is not None:
                finish()
        except RemoteProtocolError as exc:
            self._refuse(exc)
        self._ended = self._closing_when_idle = True
        wake(self._receiver)
        self._watch_writing()
        return self.running is not None and self.error is None and self.direction == "in"

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.error is None:
            self.error = ConnectionLost(f"the connection was lost: {exc}" if exc else "the peer closed the connection")
            self.error.__cause__ = exc
            self.close_code = 1006 if exc else 1000
        self._lost = True
        self._end_writing()
        wake(self._receiver)
        wake(self._gone)
        if self.handler is None:
            self.state = CLOSED
            self._forget()
            return
        self._handle_pending()  # it was held, and was received before the end
        if self.running is None:
            self._settle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._handle("on_buffer_full")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_paused & OWED:
            self._resume_reading(OWED)
        self._handle("on_drained")

    # What handlers come to --------------------------------------------------------------------------------------------------------------

    def _drop_pending(self) -> None:
        self._pending = None

    def _go_on_handling(self) -> None:
        if self._verdict is not None and self.running is None:
            self._pass_verdict()
        if self._pending is not None:
            self._handle_pending()
            if not self._pending:
                self._pending = None
        if self.running is None and (self._reading_paused or self._closing_when_idle or self._lost or self._fault is not None):
            self._settle()

    def _failed(self, hook: str, exc: BaseException) -> None:
        """A handler that raises ends its connection, never the process. That the peer went away meanwhile is no error of its."""
        error = ConnectionClosed("this side has closed the connection")
        if isinstance(exc, (ConnectionClosed, ConnectionLost)) and self.error is not None:
            self._pending = None
        else:
            logger.error("%s: %s raised, the connection is closed", self, hook, exc_info=exc)
            self._fail(None if hook in _FINAL else exc, error, 1011)

    def _fail(self, fault: BaseException | None, error: ConnectionClosed, code: int) -> None:
        """Tell the handler of a fault that it has not heard of, and close. While something runs it is told after that, and after the close."""
        self._pending = None
        if self._verdict is not None:
            return  # the first one counts
        if fault is not None and self.running is not None:
            self._fault = fault
        elif fault is not None:
            self._handle("on_error", fault)
            if self.running is not None and self.error is None:  # it may send; nothing more is received
                self._verdict = error, code
                self._ended = True
                return
        if self.error is None:
            self._close(error, code)

    def _not_received(self, exc: Exception) -> None:
        if self._verdict is None:  # else it is read on, because a close with unread input would be a reset, which discards what was sent last
            super()._not_received(exc)

    def _pass_verdict(self) -> None:
        assert self._verdict is not None
        (error, code), self._verdict = self._verdict, None
        if self.error is None:
            self._close(error, code)

    def _settle(self) -> None:
        """Nothing is being handled: see what the connection has come to."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            self._handle("on_error", fault)
            if self.running is not None:
                return
        if not self._lost:
            if self._reading_paused & PENDING and not self._pending:
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
        wake(self._receiver)
        if self.transport is not None:
            with contextlib.suppress(Exception):
                self._write_owed()
            self._hang_up()
            self._watch_writing()

    def _hang_up(self) -> None:
        """End the transport, when what was sent is on its way. For protocols that say good-bye, and wait for the answer to it."""
        self.transport.close()

    def _refuse(self, exc: RemoteProtocolError) -> None:
        logger.warning("%s: %s", self, exc)
        error = ConnectionClosed(f"closed because of what the peer sent: {exc}")
        error.__cause__ = exc
        self._fail(exc, error, exc.close_code)

    def abort(self, error: ConnectionLost | None = None) -> None:
        """Close at once; what was not sent is dropped. ``error`` is what is found to be wrong with the connection, if that is why."""
        if self.error is None:
            self.error = error or ConnectionClosed("this side has aborted the connection")
            self.close_code = 1006
            self.state = CLOSING
            self._pending = None
        wake(self._receiver)
        if self.transport is not None and not self._lost:  # that of TLS raises then, in Python 3.11.2
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
