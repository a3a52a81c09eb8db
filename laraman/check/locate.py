"""The line of the application that changed something: a request is played again, and after each line it is looked whether it was that one."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from laraman.check import process
from laraman.sandbox.operation import relative

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Set
    from types import CodeType, FrameType

    from laraman.check.heap import Heap, Snapshot

#: Seconds in which the threads of a pool have to come together.
MEET_SECONDS = 2.0

#: A line of the application: its code and number.
Place = tuple["CodeType", int]


async def locate(path: str, heap: Heap, play: Callable[[], Awaitable[None]], base: Snapshot | None = None) -> str:
    """Plays one request and returns "file:line in function" of the line that changed ``path``, or "" when no line of the application did.

    ``play`` comes as the user who was not there last: what has the same value before and after cannot be seen to change. What the process
    has once for all (its directory, its locale) is put back to what it was in ``base``, before and after.
    """
    if base is not None:
        process.put_back(path, base.roots)
    tracer = _Tracer(path, heap)
    workers, executor = _waiting("AnyIO worker thread"), _waiting(r"asyncio_\d+")
    await _in_threads(workers, executor, tracer.start)
    try:
        with tracer.everywhere():
            await play()
    finally:
        await _in_threads(workers, executor, _stop)
        if base is not None:
            process.put_back(path, base.roots)
    if base is not None:
        process.put_back(path, base.roots)  # the text is relative to the directory, and what is played next finds the process as it was
    return _text(tracer.culprit())


class _Tracer:
    """Attributes each change of what ``path`` leads to, to the line that began last of those that run, whichever thread sees it."""

    def __init__(self, path: str, heap: Heap) -> None:
        self._read: Callable[[], object] = partial(heap.fingerprint, path)
        self._own = heap.outlines.own
        #: The line that runs in each thread, the one that began last at the end.
        self._lines: dict[int, Place] = {}
        self._latest: Place | None = None
        self._lock = threading.RLock()  # the collector may run code of the application in between
        self._first: object = None
        self._state: object = None
        #: Every change, and what it led to.
        self._changes: list[tuple[Place | None, object]] = []

    def start(self) -> None:
        sys.settrace(self._enter)

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Trace this thread and those that are started from now on."""
        before, before_threads = sys.gettrace(), threading.gettrace()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        self._first = self._state = self._read()
        try:
            yield
        finally:
            self._look()
            sys.settrace(before)
            threading.settrace(before_threads)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self._own(frame.f_globals.get("__name__")):
            return None
        self._at(frame)
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "return":
            self._look()
            caller: FrameType | None = frame.f_back
            while caller is not None and not self._own(caller.f_globals.get("__name__")):
                caller = caller.f_back
            if caller is not None:  # whose line goes on
                self._begin(caller)
            else:
                self._lines.pop(threading.get_ident(), None)
        elif event == "line":
            self._at(frame)
        return self._step

    def _at(self, frame: FrameType) -> None:
        self._look()
        self._begin(frame)

    def _begin(self, frame: FrameType) -> None:
        thread = threading.get_ident()
        self._lines.pop(thread, None)
        self._lines[thread] = self._latest = (frame.f_code, frame.f_lineno)

    def _look(self) -> None:
        """Whether something changed since the last look."""
        with self._lock:
            state = self._read()
            if state != self._state:
                self._state = state
                running = list(self._lines.values())
                self._changes.append((running[-1] if running else self._latest, state))

    def culprit(self) -> Place | None:
        """The line after which it stayed as it is now; of things that are counted, the line that made the last one of those that stay."""
        if not self._changes:
            return None
        stays = self._members(len(self._changes) - 1)
        for number in range(len(self._changes) - 1, -1, -1):
            if stays & (self._members(number) - self._members(number - 1)):
                return self._changes[number][0]
            stays &= self._members(number - 1)
        return self._changes[-1][0]

    def _members(self, number: int) -> Set[int]:
        """The things there were after a change, as far as they are counted."""
        state = self._changes[number][1] if number >= 0 else self._first
        return state if isinstance(state, frozenset) else frozenset()


def _text(place: Place | None) -> str:
    if place is None:
        return ""
    code, line = place
    return f"{relative(code.co_filename)}:{line} in {code.co_qualname}"


# Threads that wait in a pool are older than the tracer, and only a thread itself can begin to trace itself ---------------------------


def _waiting(name: str) -> int:
    return sum(re.fullmatch(name, thread.name) is not None for thread in threading.enumerate())


def _stop() -> None:
    sys.settrace(None)


async def _in_threads(workers: int, executor: int, function: Callable[[], None]) -> None:
    """Call a function in each thread of anyio's pool and of the event loop's."""
    barrier = threading.Barrier(max(workers, 1))
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(anyio.to_thread.run_sync(_together, barrier, function, limiter=anyio.CapacityLimiter(1)))
        meeting = threading.Barrier(max(executor, 1))
        for _ in range(executor):
            group.create_task(asyncio.to_thread(_together, meeting, function))


def _together(barrier: threading.Barrier, function: Callable[[], None]) -> None:
    """No thread is done before all are there, so that none of them is asked twice."""
    with suppress(threading.BrokenBarrierError):
        barrier.wait(MEET_SECONDS)
    function()
