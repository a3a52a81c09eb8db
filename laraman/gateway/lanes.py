"""Lanes: the handlers of what comes over gateways, in order for each client and at the same time for different ones.

The events of one uniqId are a lane: one of them is handled at a time, in the order they came. Lanes run side by side, up to ``concurrency``;
what comes beyond that waits, and while too much waits ``put`` returns something to be awaited, so that a link stops reading.

Each event is an operation, with a task and a context of its own, like a request. A handler that raises or takes too long is logged and has no
effect on anything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import anyio

from laraman import events
from laraman.events import WorkerError, aemit
from laraman.sandbox.operation import MESSAGE, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

logger = logging.getLogger("uvicorn.error")

#: Events that wait before reading pauses; it goes on at half of it.
BACKLOG = 1024
#: Seconds in which handlers that were cancelled may end.
CANCEL_SECONDS = 1.0

#: What is in ``_lanes`` for a lane in which nothing waits behind the one that is handled.
_NOTHING_WAITS: deque[Any] = deque(maxlen=0)


class _Failed(Exception):
    """A handler raised or took too long, which has been reported: the operation's outcome is "error"."""


class Lanes:
    """Handles events in ``worker``'s sandbox. ``timeout`` is the number of seconds that handling one may take; 0 for no limit."""

    def __init__(self, worker: Any, concurrency: int, timeout: float, backlog: int = BACKLOG) -> None:
        self.waiting = 0
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._concurrency = concurrency
        self._timeout = timeout
        self._backlog = backlog
        #: What waits in each lane that is not at rest.
        self._lanes: dict[str, deque[Any]] = {}
        #: Lanes that wait for others to end.
        self._ready: deque[str] = deque()
        #: Tasks, the one that began first in front, and when each is to be over, in the loop's time.
        self._running: dict[asyncio.Task[None], float] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._room: asyncio.Event | None = None
        self._wrapper: Callable[..., Coroutine[Any, Any, Any]] | None = None  # the sandbox's
        self._wrapper_version = -1

    def put(self, event: Any) -> Awaitable[None] | None:
        """Handle ``event`` when it is its turn. Returns an awaitable when nothing more should come before that is done."""
        if not events.listeners(type(event)):
            return None
        self._worker.in_flight += 1
        uniq_id = event.uniq_id
        lane = self._lanes.get(uniq_id)
        if lane is None and len(self._running) < self._concurrency:
            self._lanes[uniq_id] = _NOTHING_WAITS
            self._begin(event)
            return None
        if lane is None:
            self._lanes[uniq_id] = deque((event,))
            self._ready.append(uniq_id)
        elif lane is _NOTHING_WAITS:
            self._lanes[uniq_id] = deque((event,))
        else:
            lane.append(event)
        self.waiting += 1
        return None if self.waiting < self._backlog else self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while self.waiting >= self._backlog:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()

    # One event -------------------------------------------------------------------------------------------------------------------

    def _begin(self, event: Any) -> None:
        loop = self._loop
        sandbox = self._worker.sandbox
        if self._wrapper_version != events.version:
            self._wrapper_version = events.version
            self._wrapper = sandbox.wrapper(MESSAGE)
        operation = Operation(MESSAGE, event)
        context = sandbox.context(operation)
        if loop.get_task_factory() is None:
            task = asyncio.Task(self._handle(operation), loop=loop, name="message", context=context)
        else:
            task = loop.create_task(self._handle(operation), name="message", context=context)
        timeout = self._timeout
        self._running[task] = due = loop.time() + timeout
        if timeout and self._timer is None:
            self._timer = loop.call_at(due, self._look_at_the_clock)

    async def _handle(self, operation: Operation) -> None:
        event = operation.subject
        wrapper = self._wrapper
        try:
            await (self._call(event) if wrapper is None else wrapper(operation, self._call, event))
        except _Failed:
            pass
        except asyncio.CancelledError:
            if not self._is_late():
                raise
            self._report_late(event)
        finally:
            self._worker.sandbox.ended(operation)
            self._end(event.uniq_id)

    async def _call(self, event: Any) -> None:
        """Call the handlers, one after another. Raises _Failed when one of them did."""
        failed = False
        try:
            for listener in events.listeners(type(event)):
                try:
                    result = listener(event)
                    if result is not None and isawaitable(result):
                        await result
                except GeneratorExit:  # the loop is gone
                    raise
                except BaseException as exc:
                    # SystemExit and KeyboardInterrupt too: one message does not end the worker that serves others.
                    if isinstance(exc, asyncio.CancelledError) and self._is_cancelled():
                        raise
                    failed = True
                    await self._report(event, listener, exc)
        except asyncio.CancelledError:
            if not self._is_late():
                raise
            self._report_late(event)
            failed = True
        if failed:
            raise _Failed

    def _is_late(self) -> bool:
        return asyncio.current_task() in self._late

    def _report_late(self, event: Any) -> None:
        logger.error("The handlers of a %s of %s took longer than %g s and were cancelled", type(event).__name__, event.uniq_id, self._timeout)

    def _is_cancelled(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _report(self, event: Any, listener: Callable[..., Any], exc: BaseException) -> None:
        name = f"{getattr(listener, '__module__', '?')}.{getattr(listener, '__qualname__', repr(listener))}"
        logger.error("Handler %s for %s raised", name, type(event).__name__, exc_info=exc)
        await aemit(WorkerError(worker=self._worker, error=exc, listener=name))

    def _end(self, uniq_id: str) -> None:
        """The next in this lane, or else in another, begins."""
        task = asyncio.current_task()
        assert task is not None
        del self._running[task]
        self._late.discard(task)
        self._worker.in_flight -= 1
        lane = self._lanes[uniq_id]
        if lane:  # behind those lanes that wait already
            if self._ready:
                self._ready.append(uniq_id)
                self._next(self._ready.popleft())
            else:
                self._next(uniq_id)
            return
        del self._lanes[uniq_id]
        if self._ready:
            self._next(self._ready.popleft())

    def _next(self, uniq_id: str) -> None:
        self.waiting -= 1
        if self._room is not None and self.waiting <= self._backlog // 2:
            self._room.set()
            self._room = None
        self._begin(self._lanes[uniq_id].popleft())

    # Those that take too long ----------------------------------------------------------------------------------------------------

    def _look_at_the_clock(self) -> None:
        """One timer for all: everything may take the same time, so the first is due first."""
        self._timer = None
        now = self._loop.time()
        for task, due in tuple(self._running.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._look_at_the_clock)
                return
            self._late.add(task)
            task.cancel()
            del self._running[task]  # and behind the others, because it may not end by this
            self._running[task] = now + self._timeout
        if self._running:
            self._timer = self._loop.call_at(now + self._timeout, self._look_at_the_clock)

    # The end ---------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until this is cancelled, which cancels what is being handled and drops what waits."""
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self.cancel()

    async def cancel(self) -> None:
        """Cancel what is being handled and drop what waits."""
        self._worker.in_flight -= self.waiting
        self.waiting = 0
        self._ready.clear()
        self._lanes = dict.fromkeys(self._lanes, _NOTHING_WAITS)
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.sleep(0)  # a task that is cancelled before its first step runs none of its code, and so none of what ends a turn
        if self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running, timeout=CANCEL_SECONDS)
