"""To perform a task: what kinds of functions there are, and what is told of one that has raised."""

from __future__ import annotations

import asyncio
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman.errors import LocalProtocolError, TaskError
from laraman.net.encoding import decode, encode
from laraman.tasks.declared import teller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.tasks.declared import Task

_HERE = str(Path(__file__).parent)


async def perform(
    task: Task[Any, Any],
    args: list[Any],
    kwargs: dict[str, Any],
    *,
    blocking: Callable[..., Awaitable[Any]],
    part: Callable[[Any], Awaitable[None]],
    tell: Callable[[Any], None],
) -> Any:
    """What the task returns, or raise what it raises.

    ``blocking(function, *args)`` calls a plain function where it may block, ``part`` sends a value that a generator yields, and ``tell`` what the
    task tells of its progress, in whatever thread it does.
    """
    teller.set(tell)
    function = task.function
    if task.coroutine:
        return await function(*args, **kwargs)
    if task.async_generator:
        async for value in function(*args, **kwargs):
            await part(value)
            await asyncio.sleep(0)  # one that waits for nothing itself would keep the loop, which would not hear that its caller has gone
        return None
    if task.generator:
        return await blocking(_iterate, function(*args, **kwargs), part, asyncio.get_running_loop())
    return await blocking(partial(function, *args, **kwargs) if kwargs else function, *(() if kwargs else args))


def _iterate(generator: Any, part: Callable[[Any], Any], loop: asyncio.AbstractEventLoop) -> Any:
    """In the thread: each value has been sent before the next one is asked for."""
    while True:
        try:
            value = next(generator)
        except StopIteration as exc:
            return exc.value
        asyncio.run_coroutine_threadsafe(part(value), loop).result()


def result_of(task: Task[Any, Any], result: Any) -> bytes:
    """Raises LocalProtocolError, which names the value that cannot be encoded."""
    return encode(result, f"the result of {task.name}")


def raised(exc: BaseException) -> bytes:
    """What the caller is told of it."""
    ours = isinstance(exc, LocalProtocolError)  # it says where it is; a stack of ours would not
    error = TaskError.of(exc, "" if ours else "".join(traceback.format_exception(type(exc), exc, _outside(exc))))
    return encode([error.type, error.message, error.traceback])


def _outside(exc: BaseException) -> Any:
    """Its traceback from the application's first frame on; all of it when there is none."""
    step = exc.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename.startswith((_HERE, str(Path(_HERE).parent / "sandbox"))):
        step = step.tb_next
    return step or exc.__traceback__


def error_of(payload: bytes) -> TaskError:
    """What ``raised`` has told."""
    return TaskError(*decode(payload))
