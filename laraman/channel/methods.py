"""Methods: what others may call in this process, and what becomes of it on the way.

An answer is ``[0, result]``, ``[1, type, message, traceback]`` of what was raised, or ``[2, text]`` when there was too much to do.
"""

from __future__ import annotations

import asyncio
import functools
import traceback
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from laraman.errors import Busy, LocalProtocolError, RemoteProtocolError, TaskError
from laraman.net.encoding import decode, encode
from laraman.sandbox.operation import TASK, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Calls that one process answers at a time; more are told that it is busy.
MAX_CALLS = 1000

_RESULT, _RAISED, _BUSY = 0, 1, 2


def result_of(answer: bytes) -> Any:
    """What was returned, or raise what the answer says: TaskError or Busy; RemoteProtocolError when it says nothing."""
    match decode(answer):
        case [0, result]:
            return result
        case [1, str(kind), str(message), str(trace)]:
            raise TaskError(kind, message, trace)
        case [2, str(text)]:
            raise Busy(text)
    raise RemoteProtocolError(f"an answer of {len(answer)} bytes that is none")


class Methods:
    """Answers calls. In a ``worker`` each is an operation, a task of that method's name."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._running: set[asyncio.Task[None]] = set()

    def called(self, function: Callable[..., Any] | None, method: str, payload: bytes, reply: Callable[[bytes], Any]) -> Callable[[], Any] | None:
        """Answer a call, here and now if that can be; else what is returned cancels it."""
        if function is None:
            reply(encode([_RAISED, "LookupError", f"there is no method {method!r}", ""]))
            return None
        if len(self._running) >= MAX_CALLS:
            reply(encode([_BUSY, f"{MAX_CALLS} calls are being answered"]))
            return None
        try:
            args, kwargs, seconds = decode(payload)
            seconds = float(seconds)
            result, operation, context = self._begin(function, method, args, kwargs)
        except (Exception, asyncio.CancelledError) as exc:
            reply(raised(exc))
            return None
        if type(result) in _PLAIN or not isawaitable(result):
            self._ended(operation)
            reply(_returned(method, result))
            return None
        task = asyncio.get_running_loop().create_task(self._finish(method, result, operation, seconds, reply), name=method, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task.cancel

    def _begin(self, function: Callable[..., Any], method: str, args: Any, kwargs: Any) -> tuple[Any, Operation | None, Any]:
        """Call it. What it returns may have to be awaited, in the context that is returned too."""
        if self._worker is None:
            return function(*args, **kwargs), None, None
        sandbox = self._worker.sandbox
        operation = Operation(TASK, method)
        context = sandbox.context(operation)
        wrapper = sandbox.wrapper(TASK)
        if wrapper is not None:
            return wrapper(operation, functools.partial(function, *args, **kwargs)), operation, context
        try:
            return context.run(function, *args, **kwargs), operation, context
        except BaseException:
            sandbox.ended(operation)
            raise

    def _ended(self, operation: Operation | None) -> None:
        if operation is not None:
            self._worker.sandbox.ended(operation)

    async def _finish(self, method: str, waiting: Awaitable[Any], operation: Operation | None, seconds: float, reply: Callable[[bytes], Any]) -> None:
        if self._worker is not None:
            self._worker.in_flight += 1
        try:
            async with asyncio.timeout(seconds) as limit:
                answer = _returned(method, await waiting)
        except (Exception, asyncio.CancelledError) as exc:
            task = asyncio.current_task()
            if limit.expired() or (task is not None and task.cancelling()):
                return  # nobody waits for it any longer
            answer = raised(exc)
        finally:
            if self._worker is not None:
                self._worker.in_flight -= 1
            self._ended(operation)
        reply(answer)

    async def close(self) -> None:
        """Cancel what is still running."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


#: Types of results that need no second look.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, dict, tuple})


def _returned(method: str, result: Any) -> bytes:
    try:
        return encode([_RESULT, result])
    except LocalProtocolError:
        pass
    try:
        encode(result, f"the result of {method}")
        return encode([_RAISED, "RuntimeError", f"the result of {method} cannot be encoded", ""])
    except LocalProtocolError as exc:
        return raised(exc)


def raised(exc: BaseException) -> bytes:
    """The answer of a call that raised."""
    error = TaskError.of(exc, "".join(traceback.format_exception(exc)))
    return encode([_RAISED, error.type, error.message, error.traceback])
