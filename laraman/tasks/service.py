"""The handler of the worker "task": runs what its callers send, one task at a time.

A plain function runs in a thread. While it does, what ends its process are its caller's end and its time, by the kernel (`laraman.tasks.leash`). It
may hold the interpreter's lock for as long as it likes: that this process does not beat is no sign of anything then, and the master does not ask. At
all other times, while an ``async`` function runs too, the loop has to turn: it puts off, again and again, the alarm with which the kernel ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from laraman import events
from laraman.errors import RemoteProtocolError
from laraman.net.connection import Connection
from laraman.net.encoding import decode, encode
from laraman.process.naming import resolve
from laraman.protocols import task as wire
from laraman.sandbox.operation import TASK, Operation
from laraman.tasks.declared import LONGEST, as_task, teller
from laraman.tasks.door import TaskDoor
from laraman.tasks.leash import end, limit
from laraman.tasks.performing import perform, raised, result_of
from laraman.tasks.thread import Original, Thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from laraman.net.bind import Bind
    from laraman.tasks.declared import Task
    from laraman.tasks.leash import Leash

logger = logging.getLogger("uvicorn.error")

#: Seconds that a task gets on top of its time: its caller, who has the same clock, is to be the first.
MARGIN = 2.0
#: Seconds between two times that the alarm is put off, at most: less than the margin, so a task that is over need not do it.
TURN = 1.0
#: Seconds that an ``async`` task has to end when it is cancelled.
CANCEL_SECONDS = 2.0
#: Bytes of an answer that the thread may send itself: so few go into a unix socket as a whole or not at all. Elsewhere than on Linux nobody says so.
AT_ONCE = 16 * 1024 if sys.platform == "linux" else 0


class Tasks:
    """``entrance`` is its door; ``blocked`` says that a plain function runs, ``known`` are the tasks that have been found.

    ``original`` tells this process from its copies.
    """

    def on_start(self, worker: Any) -> None:
        self.loop: asyncio.AbstractEventLoop = worker.loop
        self.entrance: TaskDoor | Any = None
        self.blocked = False
        self._worker = worker
        self.original = Original()
        self._thread = Thread(worker.loop)
        self.known: dict[str, Task[Any, Any]] = {}
        #: Seconds that the loop may stand still; whoever develops may stand in a debugger.
        self._patience = None if worker.config.reload else worker.config.timeout_worker_healthcheck
        self._limited = False
        self._look()

    def on_stop(self, worker: Any) -> None:
        self._turn.cancel()
        limit(None)

    def connection(self, worker: Any, bind: Bind) -> Served:
        return Served(self, worker)

    def door(self, worker: Any, bind: Bind, factory: Callable[[], Served]) -> TaskDoor:
        door = TaskDoor(worker, factory)
        self.entrance = self.entrance or door  # another one is for who has come too late
        return door

    def _look(self) -> None:
        """The loop turns."""
        if not self.blocked and self._worker.stop_reason != "orphaned":
            self.watch()
        self._turn = self.loop.call_later(min(TURN, (self._patience or TURN) / 4), self._look)

    def watch(self) -> None:
        """From now on the loop has to turn."""
        self._limit(self._patience)

    def _limit(self, seconds: float | None) -> None:
        if seconds is not None or self._limited:
            limit(seconds)
            self._limited = seconds is not None

    async def blocking(self, seconds: float | None, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the thread, where it may do what it likes for so many seconds."""
        self.blocked = True
        self._limit(None if seconds is None else seconds + MARGIN)
        try:
            return await self._thread.run(copy_context(), function, *args)
        finally:
            self.blocked = False

    async def find(self, name: str, blocking: Callable[..., Awaitable[Any]]) -> Task[Any, Any]:
        """The task of that name. Raises ConfigError, and what its module raises when it is imported, which may take its time."""
        found = self.known[name] = as_task(await blocking(resolve, name, "task"))
        return found


class Served(Connection):
    """A caller. One task at a time runs for it; when it hangs up, the task is to end, or else this process."""

    __slots__ = ("_answered", "_descriptor", "_news", "_seconds", "_telling", "leash", "name")

    handler: Tasks
    protocol: wire.Task

    def __init__(self, tasks: Tasks, worker: Any) -> None:
        # Without a buffer: a generator goes on when its caller has what it has yielded.
        super().__init__(wire.Task(), tasks, worker, write_timeout=worker.config.timeout_write, write_buffer=0)
        self.name = ""
        self.leash: Leash | None = None
        self._seconds: float | None = None
        self._news: bytes | None = None
        self._telling = False
        self._descriptor = -1
        self._answered = False

    # Its life --------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Of its own, and open for as long as a task runs: nobody else's can have its number when the thread writes.
        self._descriptor = os.dup(transport.get_extra_info("socket").fileno())
        self.handler.entrance.entered(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.protocol.waiting:
            self.handler.entrance.wait_for_more()

    def eof_received(self) -> bool | None:
        super().eof_received()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        running = self.running
        super().connection_lost(exc)
        if running is not None and not self._answered and not self.worker.stopping:
            self._given_up(running)
        if running is None:
            self._let_loose()
        self.handler.entrance.left(self)

    def _let_loose(self) -> None:
        if self.leash is not None:
            self.leash.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _given_up(self, running: asyncio.Task[None]) -> None:
        """The caller has hung up while its task runs."""
        if self.handler.blocked:
            end()
        logger.info("Task %s is cancelled: its caller has gone", self.name)
        loop = self.handler.loop
        loop.call_soon(running.cancel)
        loop.call_later(CANCEL_SECONDS, lambda: None if running.done() else end())

    def let_go(self, *replies: wire.Message) -> None:
        """Send these, say that nothing more is taken, and close."""
        self._write(*replies, (wire.GONE, b""))
        self.close()

    def _write(self, *messages: wire.Message) -> None:
        """In one piece."""
        if self.error is None:
            data = b"".join(map(self.protocol.send, messages))
            self.bytes_out += len(data)
            self.messages_out += len(messages)
            self.transport.write(data)

    def shutdown(self) -> None:
        self._closing_when_idle = True
        if self.running is None:
            self.let_go()

    # Its task --------------------------------------------------------------------------------------------------------------------

    def _handle_messages(self, messages: Sequence[wire.Message]) -> None:
        for message in messages:
            if self.error is not None:
                return
            if self.running is not None:
                self._keep(message)
            else:
                self._begin(message)

    _deliver = _handle_messages

    def _begin(self, message: wire.Message) -> None:
        if self.handler.entrance.running:  # for somebody else who was let in meanwhile
            self.let_go()
            return
        try:
            name, args, kwargs, seconds = _request(message)
        except RemoteProtocolError as exc:
            self._refuse(exc)
            return
        self.name, self._seconds, self._answered = name, seconds, False
        self.handler.entrance.begin()
        operation = Operation(TASK, name)
        self._await("on_message", operation, self.worker.sandbox.context(operation), self._answer(operation, args, kwargs))

    async def _answer(self, operation: Operation, args: list[Any], kwargs: dict[str, Any]) -> None:
        try:
            reply = await self._outcome(operation, args, kwargs)
            self.handler.original.check()
        finally:
            if self.error is not None:
                self._let_loose()
            following = self.handler.entrance.end()
            if following is not None and self.error is not None:
                self.handler.entrance.take(following)
        if self.error is not None:  # it was answered in the thread, and its caller has gone
            return
        replies: tuple[wire.Message, ...] = () if self._answered else (reply,)
        if self._news is not None and replies:
            replies, self._news = ((wire.PROGRESS, self._news), reply), None
        if self.writing_paused:
            await self.writable()
        if following is not None or self._closing_when_idle:
            self.let_go(*replies)
            if following is not None:
                self.handler.entrance.take(following)
        elif replies:
            self._write(*replies)

    async def _outcome(self, operation: Operation, args: list[Any], kwargs: dict[str, Any]) -> wire.Message:
        """The answer. Raises when there is nobody for it."""
        if self._wrapper_version != events.version:
            self._wrapper_version = events.version
            self._wrapper = self.worker.sandbox.wrapper(TASK)
        wrapper = self._wrapper
        try:
            work = self._perform(args, kwargs) if wrapper is None else wrapper(operation, self._perform, args, kwargs)
            if self._seconds is None:
                return wire.DONE, await work
            async with asyncio.timeout(self._seconds + MARGIN):
                return wire.DONE, await work
        except BaseException as exc:  # whatever it is: its caller waits
            if self.error is not None:
                raise
            return wire.FAILED, raised(exc)

    async def _perform(self, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        task = self.handler.known.get(self.name) or await self.handler.find(self.name, self._blocking)
        if task.coroutine or task.async_generator:
            self.handler.watch()
        elif not task.generator:
            teller.set(self._tell)
            payload: bytes = await self._blocking(self._call, task, args, kwargs)
            return payload
        return result_of(task, await perform(task, args, kwargs, blocking=self._blocking, part=self._part, tell=self._tell))

    async def _blocking(self, function: Callable[..., Any], *args: Any) -> Any:
        assert self.leash is not None
        self.leash.hold()
        try:
            return await self.handler.blocking(self._seconds, function, *args)
        finally:
            self.leash.loose()

    def _call(self, task: Task[Any, Any], args: list[Any], kwargs: dict[str, Any]) -> bytes:
        """In the thread. Where nothing else is to be done or said before the answer it is sent from here: to wake the loop for that takes longer
        than all the rest of a short task.
        """
        payload = result_of(task, task.function(*args, **kwargs))
        self.handler.original.check()
        if self._wrapper is None and len(payload) < AT_ONCE and self._news is None and not (self._telling or self.writing_paused):
            assert self.leash is not None
            frame = self.protocol.send((wire.DONE, payload))
            self.leash.loose()  # who has an answer may go
            self._answered = True
            try:
                os.write(self._descriptor, frame)
            except OSError:  # there is no room for it now, or its caller has gone
                self._answered = False
            else:
                self.bytes_out += len(frame)
                self.messages_out += 1
        return payload

    # What it says while it runs --------------------------------------------------------------------------------------------------

    async def _part(self, value: Any) -> None:
        await self.send((wire.PART, encode(value, f"what {self.name} yields")))
        await self.drained()

    def _tell(self, value: Any) -> None:
        """In whatever thread. What could not be sent yet is replaced."""
        self._news = encode(value, f"the progress of {self.name}")
        if not self._telling:
            self._telling = True
            self.handler.loop.call_soon_threadsafe(self._tell_news)

    def _tell_news(self) -> None:
        self._telling = False
        if self._news is not None and not self.writing_paused:
            news, self._news = self._news, None
            self._write((wire.PROGRESS, news))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell_news()

    def row(self) -> dict[str, Any]:
        """With the task that runs."""
        return {**super().row(), "name": self.name if self.running is not None else ""}


def _request(message: wire.Message) -> tuple[str, list[Any], dict[str, Any], float | None]:
    """Raises RemoteProtocolError for what is no call of a task."""
    op, payload = message
    request = decode(payload) if op == wire.RUN else None
    if type(request) is list and tuple(map(type, request)) in _REQUESTS and (request[3] is None or 0 < request[3] <= LONGEST):
        return tuple(request)
    raise RemoteProtocolError("it is no call of a task")


#: Name, arguments and seconds.
_REQUESTS = {(str, list, dict, seconds) for seconds in (type(None), int, float)}
