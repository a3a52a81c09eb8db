"""A task that tells of itself before it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from laraman.tasks.calling import performed

if TYPE_CHECKING:
    from laraman.tasks.declared import Call

#: Values that wait to be taken before no more are read, and the task waits.
MAX_WAITING = 64


class Stream:
    """What a task yields and tells of its progress, in order: ``async for value in f.stream(x)``. ``result`` is what it has returned, then.

    It begins with the iteration. What it raises comes out of the iteration. Whoever leaves that earlier ends the task; for certain at once with
    ``async with f.stream(x) as stream``.
    """

    def __init__(self, call: Call) -> None:
        self.result: Any = None
        self._call = call
        self._inbox = _Inbox()
        self._work: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(performed(self._call, self._call.task.timeout, self._inbox.put))
            self._work.add_done_callback(self._inbox.wake)
        try:
            while not self._inbox.values:
                if self._work.done():
                    self.result = self._work.result()
                    raise StopAsyncIteration
                await self._inbox.more()
        except asyncio.CancelledError:
            self._work.cancel()
            raise
        return self._inbox.take()

    async def aclose(self) -> None:
        """End the task if it runs. Idempotent."""
        if self._work is not None and not self._work.done():
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._work

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._work is not None and not self._work.done() and not self._work.get_loop().is_closed():
            self._work.get_loop().call_soon_threadsafe(self._work.cancel)


class _Inbox:
    """What waits for the iteration. Apart, so that what puts it there does not keep the Stream."""

    def __init__(self) -> None:
        self.values: deque[Any] = deque()
        self._source: Any = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, source: Any, value: Any) -> None:
        """``source`` is paused when there is no room."""
        self.values.append(value)
        self._source = source
        if len(self.values) == MAX_WAITING:
            source.pause()
        self.wake()

    def take(self) -> Any:
        value = self.values.popleft()
        if len(self.values) == MAX_WAITING // 2 and self._source is not None:
            self._source.resume()
        return value

    def wake(self, task: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
