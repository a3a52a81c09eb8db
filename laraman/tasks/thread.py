"""The thread in which a task worker calls plain functions, so that its loop goes on: it answers ``laraman status``, and hears of the end."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from laraman.sandbox.threads import cleaned

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from contextvars import Context

    Job = tuple[Context, Callable[..., Any], tuple[Any, ...], asyncio.Future[tuple[Any, BaseException | None]]]


class Original:
    """This process. A task may fork; what the copy does is the task's, but when it is over there the copy has nobody to answer, and would stay."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self) -> None:
        """End the copy."""
        if os.getpid() != self._pid:
            os._exit(0)


class Thread:
    """Calls one function after another. Unlike an executor's it needs one wake-up for a call and one for its result, which is half of the time that
    a function of no duration takes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._original = Original()

    async def run(self, context: Context, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function(*args)`` returns or raises there. It goes on when this is cancelled: nothing can end it but the end of the process."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="laraman-task", daemon=True)
            self._thread.start()
        future: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self._jobs.put((context, function, args, future))
        result, error = await future
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            context, function, args, future = self._jobs.get()
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(cleaned, function, *args)
            except BaseException as exc:  # SystemExit too: it is the task that wants to end
                error = exc
            self._original.check()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, future, (result, error))
            del context, function, args, future, result, error  # a thread that waits keeps nothing


def _settle(future: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if not future.done():
        future.set_result(outcome)
