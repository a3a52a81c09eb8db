"""What a call leaves behind in a pool's thread is taken away in that thread, before the next call of somebody else comes there.

Synchronous endpoints run in threads, with a copy of their operation's context; a ``threading.local`` is the thread's, so the next request in
that thread sees it. Two public names lead there, and both are wrapped while a `Cleaning` is open: ``anyio.to_thread.run_sync`` (Starlette and FastAPI
look it up for each call) and ``ThreadPoolExecutor.submit`` (the loop's default executor behind ``asyncio.to_thread`` and ``run_in_executor``, whoever
made it, and the application's own pools). What was set in the pool thread's own context by a call that brought none goes with the call, too.

Not cleaned: threads the application starts itself; calls through a name that was imported before (``from anyio.to_thread import run_sync``); the
threads of asgiref's ``sync_to_async``, in which the calls of one request follow each other and may rely on what the call before them left.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Call:
    """A call in a pool's thread; ``over`` when it has returned, while cleaning or later."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False


_thread = threading.local()


def call() -> Call | None:
    """The call of a pool's thread that the calling code belongs to, if it does and cleaning is open."""
    return getattr(_thread, "call", None)


class Cleaning:
    """While it is open, each of ``actions`` is called after each call in a pool's thread, in that thread. They must not raise.

    Several may be open, as servers embedded in one process have one each, and they close in any order: the names are wrapped once for all.
    """

    _open: ClassVar[list[Cleaning]] = []
    _wrappers: ClassVar[_Wrappers | None] = None

    def __init__(self, actions: Sequence[Callable[[], None]]) -> None:
        self._actions = tuple(actions)
        if not self._open:
            Cleaning._wrappers = _Wrappers(self._clean)
        self._open.append(self)

    def close(self) -> None:
        """Put the names back when no other is open, where nobody has wrapped them again since. What stays wrapped then does nothing."""
        if self in self._open:
            self._open.remove(self)
        if not self._open and Cleaning._wrappers is not None:
            Cleaning._wrappers.remove()
            Cleaning._wrappers = None

    @classmethod
    def _clean(cls) -> None:
        for cleaning in tuple(cls._open):
            for action in cleaning._actions:
                action()


def cleaned(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call it, in a thread that a pool of our own uses again: what is open cleans up behind it."""
    wrappers = Cleaning._wrappers
    return function(*args, **kwargs) if wrappers is None else wrappers.run(function, *args, **kwargs)


class _Wrappers:
    """Both names, wrapped from now on until `remove`: ``clean`` is called after each call."""

    def __init__(self, clean: Callable[[], None]) -> None:
        self._clean = clean
        self._run_sync = run_sync = anyio.to_thread.run_sync
        self._submit = submit = ThreadPoolExecutor.submit
        run = self.run

        async def cleaned_run_sync(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
            return await run_sync(partial(run, func), *args, **options)

        def cleaned_submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            if _is_asgirefs(self):
                return submit(self, fn, *args, **kwargs)
            return submit(self, _in_own_context, run, fn, *args, **kwargs)

        self._ours = (cleaned_run_sync, cleaned_submit)
        anyio.to_thread.run_sync = cleaned_run_sync  # type: ignore[assignment]
        ThreadPoolExecutor.submit = cleaned_submit  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        if anyio.to_thread.run_sync is self._ours[0]:
            anyio.to_thread.run_sync = self._run_sync
        if ThreadPoolExecutor.submit is self._ours[1]:
            ThreadPoolExecutor.submit = self._submit  # type: ignore[method-assign]

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        outer = call()
        _thread.call = this = Call()
        try:
            return function(*args, **kwargs)
        finally:
            this.over = True
            _thread.call = outer
            self._clean()


def _in_own_context(run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return copy_context().run(run, *args, **kwargs)


def _is_asgirefs(executor: ThreadPoolExecutor) -> bool:
    sync = getattr(sys.modules.get("asgiref.sync"), "SyncToAsync", None)
    if sync is None:
        return False
    return executor is getattr(sync, "single_thread_executor", None) or executor in getattr(sync, "context_to_thread_executor", {}).values()
