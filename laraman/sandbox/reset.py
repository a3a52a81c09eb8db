"""Resets: what ``[tool.laraman.sandbox]`` names is made ready at boot, emptied after each operation, or put back.

    warm       resolved at boot, once the application has started; what can be called without arguments is called, and awaited
    flush      emptied after each operation, also while others are in flight: name only what may be empty at any time, like a cache
    restore    put back to what it was when the worker was ready, as soon as no operation is in flight; under ``--isolation serial`` that is
               after each operation. In between, operations that overlap see each other's changes: give each its own with `sandbox.local`

How something is flushed is decided at boot, by its type: a ``threading.local`` is emptied in each pool's thread after each call and in the loop's
thread after each operation; what has ``reset()`` is reset; SQLAlchemy's scoped sessions are removed; ``lru_cache`` is emptied, and so is
whatever has the methods of a dict, list or set; anything else that can be called is called, and awaited.

A reset that raises, or an ``async`` one that takes more than five seconds, is logged once, and `Resets.failed` says that this process is to be
replaced; the other resets still run.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import weakref
from collections.abc import MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from laraman import events
from laraman.config.options import did_you_mean
from laraman.errors import BootError, ConfigError, LaramanError
from laraman.sandbox.adapters import find_adapters, scoped_session
from laraman.sandbox.names import resolve
from laraman.sandbox.threads import Cleaning

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from laraman.config.sandbox import SandboxConfig
    from laraman.sandbox.operation import Operation

T = TypeVar("T")

logger = logging.getLogger("uvicorn.error")

#: Seconds in which an asynchronous reset has to be done.
RESET_SECONDS = 5.0


@runtime_checkable
class Resettable(Protocol):
    """What can be made as if no operation had used it. ``reset`` may be ``async``, and is called while other operations are in flight."""

    def reset(self) -> Any: ...


class Watch(Protocol):
    """One setting of the whole process, as the guard knows it."""

    def read(self) -> Any: ...
    def restore(self, value: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Action:
    """A way to reset something; ``name`` is for people. What ``call`` returns may have to be awaited."""

    name: str
    call: Callable[[], Any]


#: What `resettable` was given, by identity: objects that compare equal, or have no hash, are different ones.
_registered: dict[int, weakref.ref[Any]] = {}


def resettable(obj: T) -> T:
    """Call ``obj.reset()`` after each operation, and await what it returns if that is awaitable, as long as somebody else holds ``obj``.

    Raises TypeError when it has no ``reset()``, or no weak reference to it can be made (``__slots__`` without ``__weakref__``).
    """
    if not _has_reset(obj):
        raise TypeError(f"{obj!r} has no reset()")
    key = id(obj)
    _registered[key] = weakref.ref(obj, lambda _: _registered.pop(key, None))
    events.changed()
    return obj


class Resets:
    """What is to be done after each operation of a worker, and when none is in flight. Made by `prepare`."""

    def __init__(self) -> None:
        #: Non-empty when something could not be reset: this process may hold what belongs to an operation that is over.
        self.failed = ""
        self._each: list[Action] = []
        self._idle: list[Action] = []
        self._in_threads: list[Action] = []
        self._close: list[Callable[[], None]] = []
        self._reported: set[str] = set()

    @classmethod
    async def prepare(cls, config: SandboxConfig, guard_watches: Mapping[str, Watch]) -> Resets:
        """Resolve every name, run ``warm``, and get ready for the rest. Called when the application has started, in its context.

        Raises ConfigError (a name that is wrong, an object that cannot be reset) and BootError (``warm`` raised).
        """
        names = {(option, name) for option in ("warm", "flush", "restore") for name in getattr(config, option) if ":" in name}
        for option, name in sorted(names):  # before anything runs
            resolve(option, name)
        for name in config.warm:
            await _warm(name)
        resets = cls()
        try:
            resets._prepare(config, guard_watches)
        except LaramanError:
            resets.close()
            raise
        return resets

    def _prepare(self, config: SandboxConfig, guard_watches: Mapping[str, Watch]) -> None:
        for name in config.flush:
            self._flush(name)
        cleans = False
        for adapter in find_adapters():
            cleans = True
            self._each += [Action(adapter.name, call) for call in adapter.each]
            self._in_threads += [Action(adapter.name, call) for call in adapter.in_threads]
            self._close.append(adapter.close)
        for name in config.restore:
            self._idle.append(Action(f"restore {name}", self._restore(name, guard_watches)))
        if cleans or self._in_threads:
            cleaning = Cleaning([lambda action=action: self._call(action) for action in self._in_threads])  # type: ignore[misc]
            self._close.append(cleaning.close)

    def _flush(self, name: str) -> None:
        value = resolve("flush", name).value
        here, in_threads = _emptying(name, value)
        self._each.append(Action(f"flush {name}", here))
        if in_threads:
            self._in_threads.append(Action(f"flush {name}", here))

    def _restore(self, name: str, watches: Mapping[str, Watch]) -> Callable[[], Any]:
        if ":" in name:
            from laraman.sandbox.memento import Memento  # it knows many types of the standard library, which have to be imported for that

            found = resolve("restore", name)
            try:
                return Memento(name, found.holder, found.attribute).restore
            except ConfigError as exc:
                raise ConfigError(f"sandbox.restore: {name!r}: {exc}") from None
        if not watches:  # there is no guard, and what it would watch can be put back all the same
            from laraman.sandbox.guard.watches import WATCHES

            watches = {watch.name: watch for watch in WATCHES}
        if name not in watches:
            raise ConfigError(f"sandbox.restore: {name!r} is no import string, and nothing the guard watches{did_you_mean(name, watches)}")
        return _putting_back(watches[name])

    def close(self) -> None:
        """Undo what was put in place around threads and libraries."""
        while self._close:
            self._close.pop()()

    # After operations -------------------------------------------------------------------------------------------------------------

    @property
    def each(self) -> bool:
        """Whether anything is to be done after each operation."""
        return bool(self._each or _registered)

    @property
    def idle(self) -> bool:
        """Whether anything is to be done when no operation is in flight."""
        return bool(self._idle)

    def after(self, operation: Operation) -> Awaitable[None] | None:
        """Flush, in the context and the task of the operation. To be awaited if something is returned. Only a cancellation comes out of it."""
        return self._all(self._actions() if _registered else iter(self._each))

    def when_idle(self) -> Awaitable[None] | None:
        """Restore. To be awaited if something is returned."""
        return self._all(iter(self._idle))

    def _actions(self) -> Iterator[Action]:
        yield from self._each
        for reference in list(_registered.values()):
            obj = reference()
            if obj is not None:
                yield Action(f"{type(obj).__qualname__}.reset", obj.reset)

    def _all(self, actions: Iterator[Action]) -> Awaitable[None] | None:
        for action in actions:
            result = self._call(action)
            if result is not None and isawaitable(result):
                return self._rest(action, result, actions)
        return None

    async def _rest(self, action: Action, result: Awaitable[Any], actions: Iterator[Action]) -> None:
        """Await ``result``, and do the other actions. A cancellation waits until all are done."""
        cancelled: asyncio.CancelledError | None = None
        try:
            async with asyncio.timeout(RESET_SECONDS):
                await result
        except TimeoutError as exc:
            self._report(action, exc)
        except asyncio.CancelledError as exc:
            self._report(action, exc)
            cancelled = exc
        except GeneratorExit:  # the loop is gone
            raise
        except BaseException as exc:
            self._report(action, exc)
        rest = self._all(actions)
        if rest is not None:
            await rest
        if cancelled is not None:
            raise cancelled

    def _call(self, action: Action) -> Any:
        try:
            return action.call()
        except BaseException as exc:  # SystemExit too: the others are to be done
            self._report(action, exc)

    def _report(self, action: Action, exc: BaseException) -> None:
        self.failed = f"{action.name} failed"
        if action.name not in self._reported:
            self._reported.add(action.name)
            logger.error("%s failed; this process is replaced", action.name, exc_info=exc)


# At boot --------------------------------------------------------------------------------------------------------------------------


async def _warm(name: str) -> None:
    found = resolve("warm", name).value
    if not callable(found) or not _takes_nothing(found):
        return
    try:
        result = found()
        if isawaitable(result):
            await result
    except (Exception, SystemExit) as exc:
        logger.error("sandbox.warm: %s raised", name, exc_info=exc)
        raise BootError(f"sandbox.warm: {name} raised {type(exc).__name__}: {exc}") from None


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # C code that does not say
        return True
    return True


def _has_reset(value: Any) -> bool:
    """Whether ``value.reset()`` can be called. Of a class only when it is a method of the class."""
    return isinstance(value, Resettable) and callable(value.reset) and not (isinstance(value, type) and not inspect.ismethod(value.reset))


def _emptying(name: str, value: Any) -> tuple[Callable[[], Any], bool]:
    """How to empty it, and whether that is to be done in each pool's thread as well."""
    scoped = scoped_session(value)
    if scoped is not None:
        return scoped
    if _has_reset(value):
        return value.reset, isinstance(value, threading.local)
    if isinstance(value, threading.local):
        return _emptying_local(name, value), True
    if callable(clear := getattr(value, "cache_clear", None)):
        return clear, False
    if isinstance(value, (MutableMapping, MutableSequence, MutableSet)) and callable(clear := getattr(value, "clear", None)):
        return clear, False
    if callable(value) and not isinstance(value, type):
        if not _takes_nothing(value):
            raise ConfigError(f"sandbox.flush: {name!r} cannot be called without arguments")
        return value, False
    raise ConfigError(f"sandbox.flush: {name!r} is a {type(value).__name__}, which can be neither emptied nor called, and has no reset()")


def _emptying_local(name: str, value: threading.local) -> Callable[[], None]:
    """Of the thread that calls it. A class of its own has put its attributes there in ``__init__``, once for each thread, so that is done again."""
    initialises = type(value).__init__ is not object.__init__
    if initialises and not _takes_nothing(value.__init__):  # type: ignore[misc]
        raise ConfigError(f"sandbox.flush: {name!r}: its class takes arguments, which are not known: give it a reset()")

    def empty() -> None:
        value.__dict__.clear()
        if initialises:
            value.__init__()  # type: ignore[misc]

    return empty


def _putting_back(watch: Watch) -> Callable[[], None]:
    warm = watch.read()

    def put_back() -> None:
        if watch.read() != warm:
            watch.restore(warm)

    return put_back
