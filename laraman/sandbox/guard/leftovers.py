"""Threads and tasks that live longer than the operation that started them."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections import Counter
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laraman.sandbox.guard.places import Place, is_installed, is_server, is_standard, start_of
from laraman.sandbox.guard.watches import shown
from laraman.sandbox.operation import CURRENT, Operation, Trace

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from types import CodeType

#: Threads that are remembered; while so many live, others are not looked at.
MAX_THREADS = 1024
#: Threads that live because of one line: so many may a library start for itself, like those of the connections that it keeps.
LIBRARY_THREADS = 16
#: Whose threads are those of pools.
_POOLS = ("anyio", "concurrent.futures", "multiprocessing")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What was started at ``place`` (for a task: is defined there) by the operation of ``trace``, which is over."""

    what: str
    place: Place
    trace: Trace


@dataclass(slots=True)
class _Started:
    thread: weakref.ref[threading.Thread]
    operation: weakref.ref[Operation]
    trace: Trace
    place: Place
    by_library: bool
    seen: bool = False


class Leftovers:
    """Looks for them. What is seen once may be just ending; what is still there at the next look is reported."""

    def __init__(self) -> None:
        self._threads: list[_Started] = []
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # seen once
        self._reported: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        #: Whether there was something at the last look that the next one may report.
        self.pending = False

    def started(self, thread: threading.Thread, operation: Operation, place: Place, *, by_library: bool = False) -> None:
        """The threads of pools are not its own: whoever has the pool has them."""
        if not _is_pooled(thread) and len(self._threads) < MAX_THREADS:
            self._threads.append(_Started(weakref.ref(thread), weakref.ref(operation), operation.trace, place, by_library))

    def find(self, loop: asyncio.AbstractEventLoop | None) -> list[Leftover]:
        """Those that were there at the last look too, each once."""
        self.pending = False
        return [*self._find_threads(), *(self._find_tasks(loop) if loop is not None else ())]

    def _find_threads(self) -> Iterator[Leftover]:
        if not self._threads:
            return
        starting, self._threads = self._threads, []
        of_libraries = Counter(started.place for started in starting if started.by_library)
        for started in starting:
            thread, operation = started.thread(), started.operation()
            if thread is None or (thread.ident is not None and not thread.is_alive()):
                continue
            ended = operation is None or operation.ended
            if ended and started.seen and not (started.by_library and of_libraries[started.place] <= LIBRARY_THREADS):
                yield Leftover(f"the thread {shown(thread.name)}, started at", started.place, started.trace)
                continue
            self.pending = self.pending or (ended and not started.seen)
            started.seen = ended
            self._threads.append(started)

    def _find_tasks(self, loop: asyncio.AbstractEventLoop) -> Iterator[Leftover]:
        before, self._tasks = self._tasks, weakref.WeakSet()
        for task in asyncio.all_tasks(loop):
            operation = _operation_of(task)
            if operation is None or not operation.ended or task in self._reported:
                continue
            place = _place_of(task)
            if place is None:
                continue
            if task in before:
                self._reported.add(task)
                yield Leftover("a task:", place, operation.trace)
            else:
                self._tasks.add(task)
                self.pending = True


def _is_pooled(thread: threading.Thread) -> bool:
    modules = (type(thread).__module__, getattr(getattr(thread, "_target", None), "__module__", None) or "")
    return any(f"{module}.".startswith(f"{pool}.") for module in modules for pool in _POOLS)


def _operation_of(task: asyncio.Task[Any]) -> Operation | None:
    context: Context | None
    if sys.version_info >= (3, 12):
        context = task.get_context()
    else:  # the first of them; others belong to its callbacks
        context = next((found for found in gc.get_referents(task) if type(found) is Context), None)
    return None if context is None else context.get(CURRENT)


def _place_of(task: asyncio.Task[Any]) -> Place | None:
    """Where the application's part of it is defined: libraries wrap what they run. None for what the server runs, and for ``worker.tasks``."""
    codes = list(_codes(task.get_coro()))
    for code in codes:
        file = code.co_filename
        if is_server(file):
            return None
        if not (is_standard(file) or is_installed(file)):
            return start_of(code)
    outside = (code for code in codes if not is_standard(code.co_filename))
    found = next(outside, codes[0] if codes else None)
    return Place("", 0, shown(task.get_coro())) if found is None else start_of(found)


def _codes(awaited: Any) -> Iterator[CodeType]:
    """Of a coroutine and what it waits for, from the outside to the inside."""
    for _ in range(100):
        for prefix in ("cr", "gi", "ag"):
            code = getattr(awaited, f"{prefix}_code", None)
            if code is not None:
                yield code
                awaited = getattr(awaited, f"{prefix}_await", None) or getattr(awaited, f"{prefix}_yieldfrom", None)
                break
        else:
            return
