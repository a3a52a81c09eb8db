"""The receiving half of a connection: bytes become messages, which are handled or wait, and while too many wait nothing is read."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from inspect import isawaitable
from types import CoroutineType
from typing import Any

from laraman import events
from laraman.errors import ConnectionClosed, ConnectionLost, RemoteProtocolError
from laraman.net.handling import MORE, OWED, PAUSED, PENDING, Handling
from laraman.net.sending import wake
from laraman.sandbox.operation import CURRENT, MESSAGE_TRACES, Operation

logger = logging.getLogger("uvicorn.error")

#: Messages, and bytes in them, that wait for a handler before reading pauses; it goes on at half of it. One read's worth may come on top.
MAX_PENDING, MAX_PENDING_SIZE = 64, 2**20

_new, _set_current = Operation.__new__, CURRENT.set


class Receiving(Handling):
    """Calls the handler for what ``protocol`` makes of the bytes that come, until there is an ``error``."""

    __slots__ = ("_ended", "_parsing", "_pending", "_pending_size", "_receiver", "_steps", "bytes_in", "messages_in")

    def __init__(self, protocol: Any, handler: Any, worker: Any, write_timeout: float) -> None:
        super().__init__(protocol, handler, worker, write_timeout)
        self.bytes_in = self.messages_in = 0
        self._ended = False  # the peer sends no more
        self._pending: deque[Any] | None = None
        self._pending_size = 0
        self._receiver: asyncio.Future[None] | None = None
        self._steps = hasattr(protocol, "more")
        self._parsing = False  # a further step of the protocol is scheduled

    def data_received(self, data: bytes) -> None:
        """Handle the messages that are complete now.

        Mostly that is one, nothing runs or waits, and there is nothing to do around it but its context: then it is handled here, as
        ``_handle_messages``, ``Sandbox.context`` and ``Sandbox.ended`` would. After the system calls of the message before, the interpreter's
        code is in no cache, and what counts is how much of it a message needs: five functions fewer are 15 % of laraman's part of an echo.
        """
        self.bytes_in += len(data)
        if self.error is not None:
            self._discard(data)
            return
        try:
            messages = self.protocol.receive_data(data)
            if self._owes:
                self._answer_itself()
        except Exception as exc:
            self._not_received(exc)
            return
        if messages:
            count = len(messages)
            self.messages_in += count
            if self.worker is not None:
                self.worker.requests += count
            if (
                count != 1
                or self._steps
                or self.running is not None
                or self._reading_paused
                or self._wrapper_version != events.version
                or (base := self._base) is None
                or (function := getattr(self.handler, "on_message", None)) is None
            ):
                self._deliver(messages)
            else:
                operation = _new(Operation)
                operation.kind = self.message_kind
                operation.subject = message = messages[0]
                operation.instances = None
                operation.ended = False
                context = base.copy()
                context.run(_set_current, operation)
                try:
                    result = context.run(function, self, message)
                except Exception as exc:
                    result = None
                    self._failed("on_message", exc)
                if result is not None and (type(result) is CoroutineType or isawaitable(result)):
                    self._await("on_message", operation, context, result)
                    return
                operation.ended = True
                if (guard := self._guard) is not None:
                    since = guard.since
                    since.append(MESSAGE_TRACES[type(message)])
                    if len(since) >= guard.due:
                        guard.reached()
        if self._steps:
            self._see_whether_there_is_more()

    #: What becomes of messages that have come.
    _deliver = Handling._handle_messages

    def _not_received(self, exc: Exception) -> None:
        if isinstance(exc, RemoteProtocolError):
            self._refuse(exc)
        else:
            logger.error("%s: its protocol raised", self, exc_info=exc)
            self._fail(exc, ConnectionClosed("its protocol raised"), 1011)

    def _see_whether_there_is_more(self) -> None:
        if self.protocol.more:
            self._pause_reading(MORE)
            self._go_on()
        elif self._reading_paused & MORE:
            self._resume_reading(MORE)

    def _answer_itself(self) -> None:
        if self._write_owed() and self.writing_paused:  # it asks and does not read the answers
            self._pause_reading(OWED)
            self._watch_writing()

    def _go_on(self) -> None:
        """The next step of a protocol that has more to do, in a turn of its own; not while anything waits before it."""
        if self._reading_paused == MORE and not self._pending and not self._parsing:
            self._parsing = True
            asyncio.get_running_loop().call_soon(self._receive_more)

    def _receive_more(self) -> None:
        self._parsing = False
        if self._reading_paused == MORE and not self._pending:
            self.data_received(b"")

    def _discard(self, data: bytes) -> None:
        """What comes after this side has ended the connection."""

    def _refuse(self, exc: RemoteProtocolError) -> None:
        """The peer has broken the protocol."""
        raise NotImplementedError

    def _fail(self, fault: BaseException | None, error: ConnectionClosed, code: int) -> None:
        """Something of this side has raised: tell the handler, and close."""
        raise NotImplementedError

    # Messages that wait ----------------------------------------------------------------------------------------------------------

    async def receive(self) -> Any:
        """The next message: for who dialled without a handler, and for an ``async`` handler in the middle of a dialogue, a handshake in
        ``on_connect`` above all.

        Raises ConnectionClosed or ConnectionLost when there will be none.
        """
        if (self.running is None and self.handler is not None) or self._receiver is not None:
            raise RuntimeError("receive() is for the one async handler that is running, or one task if there is no handler")
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

    def _keep(self, message: Any) -> None:
        if self._pending is None:
            self._pending = deque()
            self._pending_size = 0
        self._pending.append(message)
        self._pending_size += _size(message)
        wake(self._receiver)
        if len(self._pending) >= MAX_PENDING or self._pending_size >= MAX_PENDING_SIZE:
            self._pause_reading()

    def _take(self) -> Any:
        assert self._pending is not None
        message = self._pending.popleft()
        self._pending_size -= _size(message)
        if self._reading_paused:
            if len(self._pending) <= MAX_PENDING // 2 and self._pending_size <= MAX_PENDING_SIZE // 2:
                self._resume_reading()
            self._go_on()
        return message

    @property
    def reading_paused(self) -> bool:
        """Whether reading is paused because handlers have not kept up: the peer's silence is then ours."""
        return self._reading_paused != 0

    def pause(self) -> None:
        """For a plain handler: from the next message on they wait, and reading pauses, until ``resume``. Idempotent."""
        self._pause_reading(PAUSED)

    def resume(self) -> None:
        """Handle what has waited since ``pause``, and read on. What is handled may say ``pause`` again. Idempotent."""
        if self._reading_paused & PAUSED:
            self._resume_reading(PAUSED)
            self._handle_pending()
            self._go_on()

    def _pause_reading(self, reason: int = PENDING) -> None:
        if not self._reading_paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self._reading_paused |= reason

    def _resume_reading(self, reason: int = PENDING) -> None:
        """Take one reason away; reading goes on when there is none left."""
        paused = self._reading_paused
        self._reading_paused = paused & ~reason
        if paused and not self._reading_paused and not self.transport.is_closing():
            self.transport.resume_reading()
        elif self._reading_paused:
            self._go_on()

    def _handle_pending(self) -> None:
        """Handle what has waited; to its end when there will be no more. Between the two, while the connection is closing, it still waits."""
        while self._pending and self.running is None and (self._lost or (self.error is None and not self._reading_paused & PAUSED)):
            self._handle_messages((self._take(),))


def _size(message: Any) -> int:
    """Bytes or characters in it; what a protocol makes otherwise counts as a message only."""
    return len(message) if isinstance(message, bytes | bytearray | str) else 0
