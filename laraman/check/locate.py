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
    from collections.abc import Awaitable, Callable, Iterator
    from types import CodeType, FrameType

    from laraman.check.heap import Heap, Snapshot

#: Seconds in which the threads of a pool have to come together.
MEET_SECONDS = 2.0
#: What holds a number of things: only the line that adds one is of interest, those that take away are not.
_COUNTS = ("descriptors", "tasks", "threads", "objects")

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
    """Attributes each change of what ``path`` leads to, to the line of the application that ran last in the same thread."""

    def __init__(self, path: str, heap: Heap) -> None:
        self._read: Callable[[], object] = partial(heap.fingerprint, path)
        self._counts = path.startswith(_COUNTS)
        self._own = heap.outlines.own
        self._last: dict[int, Place] = {}  # by thread
        self._lock = threading.Lock()
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
        self._state = self._read()
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
                self._last[threading.get_ident()] = (caller.f_code, caller.f_lineno)
        elif event == "line":
            self._at(frame)
        return self._step

    def _at(self, frame: FrameType) -> None:
        self._look()
        self._last[threading.get_ident()] = (frame.f_code, frame.f_lineno)

    def _look(self) -> None:
        """Whether something changed since the line that ran last."""
        if not self._lock.acquire(blocking=False):
            return  # another thread looks at this moment; the next line does
        try:
            state = self._read()
            if state != self._state:
                self._state = state
                self._changes.append((self._last.get(threading.get_ident()), state))
        finally:
            self._lock.release()

    def culprit(self) -> Place | None:
        """The line after which it stayed as it is now."""
        if not self._changes:
            return None
        if not self._counts:
            return self._changes[-1][0]
        sizes = [_size(state) for _, state in self._changes]
        reached = len(sizes) - 1
        while reached and sizes[reached - 1] >= sizes[-1]:
            reached -= 1
        return self._changes[reached][0]


def _size(state: object) -> int:
    return state[2] if isinstance(state, tuple) and len(state) > 2 and isinstance(state[2], int) else 0


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
