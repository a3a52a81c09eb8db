"""``worker.tasks``: where what lives as long as the worker is started."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import anyio
    from anyio.abc import TaskGroup, TaskStatus

logger = logging.getLogger("uvicorn.error")


class Tasks:
    """``worker.tasks``: an anyio TaskGroup in which one task's failure is reported and leaves the others alone."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        return self._group.cancel_scope

    def start_soon(self, func: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        """Run ``func(*args)`` as a task of this worker, until it ends or the worker stops."""
        self._group.start_soon(_contained, func, args, name=_named(func, name))

    async def start(self, func: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> Any:
        """The same, and wait until it calls ``task_status.started(value)``; what it raises before that comes out of here."""
        return await self._group.start(_started, func, args, name=_named(func, name))


def _named(func: Callable[..., Any], name: object) -> str:
    return str(name or f"{getattr(func, '__module__', '?')}.{getattr(func, '__qualname__', repr(func))}")


async def _contained(func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], **keywords: Any) -> None:
    try:
        await func(*args, **keywords)
    except Exception:
        logger.exception("Task %s raised", _named(func, None))


class _Status:
    """A task status that remembers whether it was used."""

    def __init__(self, status: TaskStatus[Any]) -> None:
        self._status = status
        self.used = False

    def started(self, value: Any = None) -> None:
        self.used = True
        self._status.started(value)


async def _started(func: Callable[..., Awaitable[Any]], args: tuple[Any, ...], *, task_status: TaskStatus[Any]) -> None:
    status = _Status(task_status)
    try:
        await func(*args, task_status=status)
    except Exception:
        if not status.used:
            raise
        logger.exception("Task %s raised", _named(func, None))
