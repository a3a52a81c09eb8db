"""Operations: a request, a websocket session, a message, a task, a tick. Whatever code runs for one can ask which one it is."""

from __future__ import annotations

import inspect
import os
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laraman.events import (
    MessageReceived,
    MessageTerminated,
    RequestHandled,
    RequestReceived,
    RequestTerminated,
    TaskReceived,
    TaskTerminated,
    TickReceived,
    TickTerminated,
)

if TYPE_CHECKING:
    from laraman.sandbox.locals import Local


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of operation: the events around it, and the field of these events that says what it is about. Without events it has none of its own.

    ``waits``: under serial isolation, until those that came before are over.
    """

    name: str
    subject: str = ""
    received: type[Any] | None = None
    handled: type[Any] | None = None
    terminated: type[Any] | None = None
    waits: bool = True


#: A request or a websocket session; its subject is the ASGI scope.
REQUEST = Kind("request", "scope", RequestReceived, RequestHandled, RequestTerminated)
#: A message of a gateway or of a connection that was accepted.
MESSAGE = Kind("message", "message", MessageReceived, None, MessageTerminated)
#: Work of the application's own; its subject is its name.
TASK = Kind("task", "task", TaskReceived, None, TaskTerminated)
TICK = Kind("tick", "tick", TickReceived, None, TickTerminated)
#: The beginning or the end of a connection that was accepted; its subject is the hook's name.
CONNECTION = Kind("connection")
#: A message of a link, and the beginning or the end of one. They do not wait for other operations, which may be waiting for what they bring.
LINK_MESSAGE = replace(MESSAGE, waits=False)
LINK = Kind("link", waits=False)
#: That the peer of a connection does not read, or does again: whoever waits for that has the turn.
NOTICE = replace(CONNECTION, waits=False)

#: What is remembered of an operation that is over: verb, path or name, and the framework's route, else the endpoint. Of every one, so it is not
#: made nicer than it comes; and nothing in it belongs to the operation alone.
Trace = tuple[str, str, Any]


class Operation:
    """One operation. ``subject`` is what its events carry; ``instances`` are its own instances of every ``sandbox.local`` that it has used."""

    __slots__ = ("__weakref__", "ended", "instances", "kind", "subject")

    def __init__(self, kind: Kind, subject: Any) -> None:
        self.kind = kind
        self.subject = subject
        self.instances: dict[Local[Any], Any] | None = None
        self.ended = False

    def __repr__(self) -> str:
        return f"<Operation {self.name}>"

    @property
    def trace(self) -> Trace:
        """What may be kept of it when it is over."""
        return trace_of(self)

    @property
    def name(self) -> str:
        """For people: ``GET /orders/{id}``, ``websocket /chat``, ``message Opened``, ``task app.jobs.run``."""
        return name_of(self.trace)

    @property
    def where(self) -> str:
        """Where its endpoint is defined, ``file:line in function``; empty when that is not known."""
        return place_of(self.trace)


class _MessageTraces(dict[type, Trace]):
    """The trace of a message, by its type: it may be a text, which is not to be kept or shown. Made once, as nothing else in it differs."""

    def __missing__(self, kind: type) -> Trace:
        if len(self) >= 64:  # somebody makes types as they go
            self.clear()
        self[kind] = trace = (MESSAGE.name, kind.__name__, None)
        return trace


MESSAGE_TRACES = _MessageTraces()


def trace_of(operation: Operation) -> Trace:
    """See ``Operation.trace``; a property costs more than a function."""
    kind, subject = operation.kind, operation.subject
    if kind.subject == "message":
        return MESSAGE_TRACES[type(subject)]
    if kind is REQUEST:
        return (subject.get("method", "websocket"), subject["path"], subject.get("route") or subject.get("endpoint"))
    return (kind.name, subject if isinstance(subject, str) else type(subject).__name__, None)


def name_of(trace: Trace) -> str:
    """The name of an operation that may be over, in one line: paths come from whoever sends requests."""
    verb, path, target = trace
    name = f"{verb} {getattr(target, 'path', '') or path}"
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def place_of(trace: Trace) -> str:
    """Where the endpoint of an operation is defined, ``file:line in function``; empty when that is not known."""
    if trace[2] is None:
        return ""
    endpoint: Any = getattr(trace[2], "endpoint", trace[2])
    endpoint = getattr(endpoint, "func", endpoint)
    endpoint = inspect.unwrap(endpoint)
    code = getattr(endpoint, "__code__", None) or getattr(getattr(endpoint, "__call__", None), "__code__", None)  # noqa: B004
    if code is None:
        return ""
    return f"{relative(code.co_filename)}:{code.co_firstlineno} in {code.co_qualname}"


#: Taken once: an operation may change the working directory.
_HOME = os.getcwd()


def relative(path: str) -> str:
    """A path as it is easiest to read: below the directory where the server was started without that."""
    below = os.path.relpath(path, _HOME) if os.path.isabs(path) else path
    return path if below.startswith("..") else below


CURRENT: ContextVar[Operation] = ContextVar("laraman_operation")


def current() -> Operation | None:
    """The operation that the calling code runs for, also in tasks and threads that it has started; None outside of every operation.

    It may have ``ended``: what it has started can live longer.
    """
    return CURRENT.get(None)
