"""What callers do: ``submit``, ``map`` and ``concurrently``."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from typing import TYPE_CHECKING, Any
from typing import Protocol as TypingProtocol
from weakref import WeakKeyDictionary

from laraman.errors import ConfigError
from laraman.net.current import current_worker
from laraman.tasks import NAME
from laraman.tasks.declared import LONGEST, Call, as_task
from laraman.tasks.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

    from laraman.tasks.declared import Task

#: Tasks that a program outside of a server has under way at a time, and that wait in it.
OUTSIDE_PLACES, OUTSIDE_QUEUE = 8, 1000

HOW = "start it with --task-workers 2 (or task_workers = 2 in [tool.laraman])"


class Performer(TypingProtocol):
    """Who performs tasks. ``hear`` gets what they tell before they are over, and whom to ask for a pause."""

    places: int

    async def perform(self, call: Call, seconds: float | None, hear: Callable[[Any, Any], None] | None) -> Any: ...


#: Makes the performer of a program that is no worker's process, for the loop that runs; the last one counts.
_outside: list[Callable[[], Performer]] = []
_performers: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[object, Performer]] = WeakKeyDictionary()


async def submit(f: Task[Any, Any], /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
    """Run a task in a task worker, and return what it returns.

    ``timeout`` is in seconds, waiting for a free worker included; by default the task's own, without which there is none. A task whose time is over,
    or whose caller is cancelled, is ended; a plain function with its process, which is replaced. It is begun at most once.

    Raises TaskError for what it raised, TimeoutError, ConnectionLost when its process has ended, Busy when too many wait, LocalProtocolError for
    arguments that cannot be encoded, ConfigError for what is no task, and where there are no task workers, and LinkDown when their server has ended.
    """
    return await _submitted(Call(as_task(f), args, kwargs), timeout)


async def _submitted(call: Call, timeout: float | None) -> Any:
    if call.task.generator or call.task.async_generator:
        raise ConfigError(f"{call.task.name} is a generator: iterate over its stream(...)")
    return await performed(call, call.task.timeout if timeout is None else timeout, None)


async def performed(call: Call, seconds: float | None, hear: Callable[[Any, Any], None] | None) -> Any:
    """The same for every kind of task, with what is told before it is over."""
    performer = _performer()
    if seconds is None or seconds > LONGEST:
        return await performer.perform(call, None, hear)
    late = f"task {call.task.name} took longer than {seconds:g} s"
    if not seconds > 0:  # nothing is begun that would have to be ended at once
        raise TimeoutError(late)
    try:
        async with asyncio.timeout(seconds) as limit:
            return await performer.perform(call, seconds, hear)
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(late) from None
        raise


async def map(
    f: Task[Any, Any], items: Iterable[Any] | AsyncIterable[Any], *, limit: int | None = None, timeout: float | None = None
) -> AsyncIterator[Any]:
    """The results of ``f(item)`` in the order of ``items``: ``async for result in laraman.map(f, items)``.

    At most ``limit`` are under way or finished and not taken, by default two for each task worker; no more of ``items`` are taken meanwhile.
    ``timeout`` is for each. The first error comes out in its turn, and ends the rest. Raises what ``submit`` does.
    """
    task = as_task(f)
    room = limit or 2 * _performer().places
    under_way: deque[asyncio.Task[Any]] = deque()
    source = _asynchronous(items)
    try:
        more = True
        while more or under_way:
            while more and len(under_way) < room:
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    more = False
                else:
                    under_way.append(asyncio.create_task(_submitted(Call(task, (item,), {}), timeout)))
            if under_way:
                result = await under_way[0]
                under_way.popleft()
                yield result
    finally:
        await _ended(under_way)


async def _asynchronous(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def concurrently(*calls: Call, timeout: float | None = None) -> list[Any]:
    """Run these at the same time; their results in order: ``await laraman.concurrently(f(x), g(y), timeout=3)``.

    The first error comes out, and the rest are ended; so they are when they have not all finished in ``timeout`` seconds. Raises what ``submit``
    does.
    """
    for call in calls:
        if not isinstance(call, Call):
            close = getattr(call, "close", None)
            if inspect.iscoroutine(call) and close is not None:
                close()
            raise ConfigError(f"concurrently takes calls of tasks, f(x) of a function with @laraman.task, not {call!r}")
    running = [asyncio.create_task(_submitted(call, None)) for call in calls]
    try:
        async with asyncio.timeout(timeout) as limit:
            pending: set[asyncio.Task[Any]] = set(running)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
        return [task.result() for task in running]
    except TimeoutError:
        if limit.expired():
            late = ", ".join(call.task.name for call, task in zip(calls, running, strict=True) if not task.done())
            raise TimeoutError(f"{late} took longer than {timeout:g} s") from None
        raise
    finally:
        await _ended(running)


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what runs, and do not leave before it is over."""
    tasks = [*tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Who performs them ----------------------------------------------------------------------------------------------------------------


def _performer() -> Performer:
    loop = asyncio.get_running_loop()
    worker = current_worker.get()
    key: object = _outside[-1] if _outside else worker
    known = _performers.get(loop)
    if known is not None and known[0] is key:
        return known[1]
    if _outside:
        performer = _outside[-1]()
    elif worker is None:
        raise ConfigError("no server is here that has task workers: with laraman.tasks.calling.use(...) a program uses those of one that runs")
    else:
        path = worker.inner_paths.get(NAME)
        if path is None and worker.leases is None:
            raise ConfigError("a server that is this process alone has no task workers: laraman.run(..., task_workers=2) and laraman start have")
        if path is None:
            raise ConfigError(f"this server has no task workers: {HOW}")
        if worker.inner == NAME and worker.config.task_workers == 1:
            raise ConfigError(f"a task cannot wait for another one where one task worker is all there is: {HOW}")
        performer = Pool(path, worker.config.task_workers, worker.config.task_queue, worker)
    _performers[loop] = key, performer
    return performer


def is_outside() -> bool:
    """Whether somebody else performs tasks here than this server's task workers: see ``performing``."""
    return bool(_outside)


@contextlib.contextmanager
def performing(make: Callable[[], Performer]) -> Iterator[None]:
    """Inside of this, tasks that this process submits are performed by what ``make()`` makes, once for each loop."""
    _outside.append(make)
    try:
        yield
    finally:
        _outside.remove(make)


def use(path: str, *, places: int = OUTSIDE_PLACES) -> contextlib.AbstractContextManager[None]:
    """Inside of this, tasks go to the task workers whose socket is ``path``: ``task.sock`` in the state directory of a server that runs.

    At most ``places`` are under way at a time.
    """
    return performing(lambda: Pool(path, places, OUTSIDE_QUEUE))
