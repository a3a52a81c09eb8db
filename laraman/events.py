"""Lifecycle events and the listeners that hear them.

An event is a frozen dataclass: its type is its name. A listener is any callable that takes one; in a worker it may be ``async``.

    @laraman.on(WorkerStarting)
    async def connect(event):
        event.worker.tasks.start_soon(link.run)

Listeners of a type and of its bases run in the order they were registered. An exception in one is reported with the listener's name (and told
as ``WorkerError``), and never changes a response. The one exception: a ``ConfigError`` or ``BootError`` out of a ``...Starting`` listener refuses
the start, because that is what raising it says.
"""

from __future__ import annotations

import inspect
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from laraman.errors import BootError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events."""


# In the master --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterEvent(Event):
    """``server`` is the Master: ``server.add(Worker(...))`` while it is starting."""

    server: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStarting(MasterEvent):
    """Before the first fork: a listener may add Workers. Raised errors of type ConfigError stop the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStarted(MasterEvent):
    """Every worker has reported READY."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStopping(MasterEvent):
    """Told once, before the workers are told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited(MasterEvent):
    """A worker process is gone; ``process`` is its record, ``reason`` what ended it in words."""

    process: Any
    reason: str


# In the worker --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent(Event):
    """``worker`` is the running Worker: ``worker.name``, ``worker.slot``, ``worker.tasks`` (an anyio TaskGroup)."""

    worker: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarting(WorkerEvent):
    """The application is imported; its startup has not run and nothing is accepted yet. Links are started here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(WorkerEvent):
    """The worker accepts connections, and is reported ready when the listeners have returned, or after ten seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopping(WorkerEvent):
    """Told first at every kind of end, before anything is drained, so that streams and consumers can end themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerError(WorkerEvent):
    """A listener raised. ``listener`` is its qualified name."""

    error: BaseException
    listener: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationTerminated(Event):
    """Base of every ``...Terminated`` event, so one reset listener serves all. ``outcome`` is "ok", "error" or "cancelled"."""

    worker: Any
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReceived(Event):
    """A request's head is complete and the application is about to be called."""

    worker: Any
    scope: MutableMapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHandled(Event):
    """The application returned; the response may still be on its way."""

    worker: Any
    scope: MutableMapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTerminated(OperationTerminated):
    """The request is over, whatever ended it."""

    scope: MutableMapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived(Event):
    """A message came over a gateway, a link or a connection, and its handlers are about to be called."""

    worker: Any
    message: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTerminated(OperationTerminated):
    """The handling of a message is over, whatever ended it."""

    message: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReceived(Event):
    """A piece of work of the application's own is about to be done; ``task`` is its name."""

    worker: Any
    task: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTerminated(OperationTerminated):
    """A piece of work is over, whatever ended it."""

    task: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TickReceived(Event):
    """A timer is due; ``tick`` is its name."""

    worker: Any
    tick: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TickTerminated(OperationTerminated):
    """What a timer does is over, whatever ended it."""

    tick: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp(Event):
    """A link is connected and its handshake is done."""

    link: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDown(Event):
    """A link lost its connection; ``error`` says why, None when it was closed on purpose."""

    link: Any
    error: BaseException | None


# Registration and delivery --------------------------------------------------------------------------------------------------------

E = TypeVar("E", bound=Event)

#: (type, listener, names of the modules that registered and defined it), in order of registration
_registered: list[tuple[type[Event], Callable[[Any], Any], frozenset[Any]]] = []
_cache: dict[type[Event], tuple[Callable[[Any], Any], ...]] = {}

#: Grows with every change of what happens around an operation, so that a hot path can remember an answer and see in one comparison that it is old.
version = 0


def changed() -> None:
    """Say that something else is to be done around operations than before."""
    global version
    version += 1
    _cache.clear()


@overload
def on(event_type: type[E]) -> Callable[[Callable[[E], Any]], Callable[[E], Any]]: ...


@overload
def on(event_type: type[E], listener: Callable[[E], Any]) -> Callable[[E], Any]: ...


def on(event_type: type[E], listener: Callable[[E], Any] | None = None) -> Any:
    """Register ``listener`` for ``event_type`` and the types derived from it; without a listener, a decorator.

    Raises ConfigError when the type is not an event or the listener cannot be called.
    """
    if not (isinstance(event_type, type) and issubclass(event_type, Event)):
        raise ConfigError(f"{event_type!r} is not an event type")
    # Who registers, because that is who will register again when it is imported afresh: the listener may be a library's function.
    registrar = sys._getframe(1).f_globals.get("__name__")
    if listener is None:
        return lambda function: register(event_type, function, registrar)
    return register(event_type, listener, registrar)


def register(event_type: type[Event], listener: Callable[[Any], Any], registrar: str | None) -> Callable[[Any], Any]:
    """The same for the module ``registrar``. Raises ConfigError when the listener cannot be called."""
    if not callable(listener):
        raise ConfigError(f"the listener {listener!r} for {event_type.__name__} cannot be called")
    _registered.append((event_type, listener, frozenset({registrar, getattr(listener, "__module__", None)})))
    changed()
    return listener


def listeners(event_type: type[Event]) -> tuple[Callable[[Any], Any], ...]:
    """Who hears this type, in order of registration. Cached, so asking costs one dict lookup."""
    found = _cache.get(event_type)
    if found is None:
        found = _cache[event_type] = tuple(listener for heard, listener, _ in _registered if issubclass(event_type, heard))
    return found


def forget(modules: Iterable[str]) -> None:
    """Drop the listeners that these modules registered or defined: they are about to be imported afresh."""
    gone = set(modules)
    _registered[:] = [entry for entry in _registered if gone.isdisjoint(entry[2])]
    changed()


def emit(event: Event) -> None:
    """Tell the listeners, in the master, where nothing can be awaited: an async listener there is reported as an error."""
    for listener in listeners(type(event)):
        try:
            result = listener(event)
            if inspect.isawaitable(result):
                _discard(result)
                raise ConfigError(f"{type(event).__name__} is told in the master, which has no event loop: make the listener a plain function")
        except Exception as exc:
            _report(event, listener, exc)


async def aemit(event: Event) -> None:
    """Tell the listeners, in a worker; async ones are awaited one after another."""
    for listener in listeners(type(event)):
        try:
            result = listener(event)
            if inspect.isawaitable(result):
                await result
        except Exception as exc:
            error = _report(event, listener, exc)
            if error is not None:
                await aemit(error)


def _report(event: Event, listener: Callable[[Any], Any], exc: Exception) -> WorkerError | None:
    if isinstance(event, (ServerStarting, WorkerStarting)) and isinstance(exc, (ConfigError, BootError)):
        raise exc
    name = f"{getattr(listener, '__module__', '?')}.{getattr(listener, '__qualname__', repr(listener))}"
    logger.error("Listener %s for %s raised", name, type(event).__name__, exc_info=exc)
    if isinstance(event, WorkerError) or not hasattr(event, "worker"):
        return None  # an error about an error would go round for ever
    return WorkerError(worker=event.worker, error=exc, listener=name)


def _discard(awaitable: Any) -> None:
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
