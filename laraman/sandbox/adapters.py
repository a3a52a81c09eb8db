"""Adapters: the state of well-known libraries that an operation must not leave for the next. Each is there only where its library was imported
by the time the application had started.

    SQLAlchemy    a session, plain or async, that an operation began and left in a transaction is closed, which rolls back, at the operation's end;
                  said once per endpoint. Registries of sessions (``scoped_session``) are not guessed: name them under ``flush``
    Django        after each call in a pool's thread: stale connections are closed, language and time zone deactivated. In the loop's thread Django
                  refuses connections, unless it is told not to, and keeps language and time zone in the context; Django's own handler
                  does the rest by its signals
    structlog     what a pool's thread has bound goes after each call; what a task has bound is in its context
    decimal       what a call in a pool's thread sets in that thread's context goes with it; operations have contexts of their own

Locale and the factories of `logging` are settings of the whole process: the guard watches them, and ``restore`` names them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import warnings
import weakref
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from laraman.sandbox.operation import Operation, current
from laraman.sandbox.threads import Call, call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

logger = logging.getLogger("uvicorn.error")

#: Endpoints that are remembered, so that each is reported once.
MAX_REPORTED = 1000


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one library needs: ``each`` after each operation, in its task and context; ``in_threads`` after each call in a pool's thread, there."""

    name: str
    each: tuple[Callable[[], Any], ...] = ()
    in_threads: tuple[Callable[[], Any], ...] = ()
    close: Callable[[], None] = lambda: None


def find_adapters() -> Iterator[Adapter]:
    """Those whose library is imported."""
    if "sqlalchemy.orm" in sys.modules:
        sessions = Sessions()
        yield Adapter("SQLAlchemy", each=(sessions.after,), close=sessions.close)
    if (conf := sys.modules.get("django.conf")) is not None and conf.settings.configured:
        yield _django()
    if "structlog" in sys.modules:
        yield _structlog()
    if "decimal" in sys.modules:
        yield Adapter("decimal")  # that calls in pool threads have contexts of their own is enough


# SQLAlchemy -----------------------------------------------------------------------------------------------------------------------

#: Who began a session: a task, a call in a pool's thread, or a thread that the application started.
_Beginner = asyncio.Task[Any] | Call | threading.Thread | None


class Sessions:
    """Every session of SQLAlchemy that was begun in an operation, as long as its transaction lasts.

    One that code uses which the operation has left running (a task, a call in a thread) is left to that code.
    """

    def __init__(self) -> None:
        from sqlalchemy import event
        from sqlalchemy.orm import Session

        #: By the plain session: what is to be closed, and who began it.
        self._open: weakref.WeakKeyDictionary[Operation, dict[Any, tuple[Any, _Beginner]]] = weakref.WeakKeyDictionary()
        self._reported: set[str] = set()
        for name, listener in (("after_transaction_create", self._began), ("after_transaction_end", self._ended)):
            event.listen(Session, name, listener)

    def close(self) -> None:
        """Listen no more."""
        from sqlalchemy import event
        from sqlalchemy.orm import Session

        for name, listener in (("after_transaction_create", self._began), ("after_transaction_end", self._ended)):
            event.remove(Session, name, listener)

    def _began(self, session: Any, transaction: Any) -> None:
        operation = current()
        if operation is not None and not operation.ended and transaction.parent is None:
            self._open.setdefault(operation, {})[session] = (_async_session(session) or session, _beginner())

    def _ended(self, session: Any, transaction: Any) -> None:
        if transaction.parent is None and (operation := current()) is not None and (sessions := self._open.get(operation)) is not None:
            sessions.pop(session, None)

    def after(self) -> Awaitable[None] | None:
        """Of the operation that is about to end, in its task."""
        if not self._open:
            return None
        operation = current()
        sessions = None if operation is None else self._open.pop(operation, None)
        left = [(session, beginner) for session, beginner in (sessions or {}).values() if session.in_transaction() and not _goes_on(beginner)]
        return self._roll_back(operation, left) if operation is not None and left else None

    async def _roll_back(self, operation: Operation, left: list[tuple[Any, _Beginner]]) -> None:
        self._report(operation)
        for session, beginner in left:
            if isinstance(beginner, (Call, threading.Thread)):
                await asyncio.to_thread(session.close)  # it waits for the database, as it did where it began
            elif isawaitable(closing := session.close()):
                await closing

    def _report(self, operation: Operation) -> None:
        place = operation.where
        key = place or operation.name
        if key not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(key)
            where = f" ({place})" if place else ""
            logger.warning("%s%s left a session of SQLAlchemy in a transaction: it is rolled back and closed", operation.name, where)


def _beginner() -> _Beginner:
    try:
        return asyncio.current_task()
    except RuntimeError:  # not the loop's thread
        return call() or threading.current_thread()


def _goes_on(beginner: _Beginner) -> bool:
    """Whether what began the session still runs, beside the operation's own task, which is asking."""
    if isinstance(beginner, Call):
        return not beginner.over
    if isinstance(beginner, threading.Thread):
        return beginner.is_alive()
    return beginner is not None and beginner is not asyncio.current_task() and not beginner.done()


def _async_session(session: Any) -> Any:
    """The AsyncSession that a session works for, None if it is a plain one. Who loses the one loses the way to close the other."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return None if module is None else module.async_session(session)


def scoped_session(value: Any) -> tuple[Callable[[], Any], bool] | None:
    """How SQLAlchemy's registry of sessions is emptied, and whether it has a session for each thread; None when ``value`` is none.

    A registry by task or operation is asked for the session of the operation's own task.
    """
    orm, loop = sys.modules.get("sqlalchemy.orm"), sys.modules.get("sqlalchemy.ext.asyncio")
    if loop is not None and isinstance(value, loop.async_scoped_session):
        return value.remove, False
    if orm is None or not isinstance(value, orm.scoped_session):
        return None
    from sqlalchemy.util import ThreadLocalRegistry

    return value.remove, isinstance(value.registry, ThreadLocalRegistry)


# Django ---------------------------------------------------------------------------------------------------------------------------


def _django() -> Adapter:
    from django.db import close_old_connections
    from django.utils import timezone, translation

    here = (close_old_connections,) if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE") else ()
    return Adapter("Django", each=here, in_threads=(close_old_connections, translation.deactivate, timezone.deactivate))


# structlog ------------------------------------------------------------------------------------------------------------------------


def _structlog() -> Adapter:
    import structlog

    actions: list[Callable[[], Any]] = [structlog.contextvars.clear_contextvars]
    clear: Callable[[], Any] | None = getattr(getattr(structlog, "threadlocal", None), "clear_threadlocal", None)
    if clear is not None:  # going out of use, which it says at every call; the application hears it where it calls it
        warnings.filterwarnings("ignore", "`structlog.threadlocal`", DeprecationWarning, "laraman.sandbox")
        actions.append(clear)
    return Adapter("structlog", in_threads=tuple(actions))


# After a fork ---------------------------------------------------------------------------------------------------------------------


def after_fork() -> None:
    """In a process that was forked from one that has imported the application: let its random numbers be its own.

    The standard library does so itself; what numpy and torch keep for the whole process was copied.
    """
    numpy_random, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy_random is not None:
        numpy_random.seed()
    if torch is not None:
        torch.seed()
