"""laraman: the resident application server for Python. These are its public names; nothing else is.

Each is imported when it is first asked for, because the master imports this package too and must stay free of asyncio.
``LinkDown`` is the event; the error of that name, which ``Link.send`` raises, is ``laraman.errors.LinkDown``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laraman import channel, errors, events
    from laraman.asgi.server import Server
    from laraman.asgi.settings import Config
    from laraman.channel import lock, table
    from laraman.cli import main
    from laraman.config import VERSION as __version__
    from laraman.errors import (
        BootError,
        Busy,
        ConfigError,
        ConnectionClosed,
        ConnectionLost,
        IllegalTransition,
        LaramanError,
        LocalProtocolError,
        Pollution,
        ProtocolError,
        RemoteProtocolError,
        TaskError,
    )
    from laraman.events import (
        Event,
        LinkDown,
        LinkUp,
        MessageReceived,
        MessageTerminated,
        OperationTerminated,
        RequestHandled,
        RequestReceived,
        RequestTerminated,
        ServerStarted,
        ServerStarting,
        ServerStopping,
        TaskReceived,
        TaskTerminated,
        TickReceived,
        TickTerminated,
        WorkerError,
        WorkerExited,
        WorkerStarted,
        WorkerStarting,
        WorkerStopping,
        aemit,
        emit,
        on,
    )
    from laraman.net.consumer import supervise
    from laraman.net.link import Backoff, Link, link
    from laraman.net.outbound import connect
    from laraman.net.timer import after, cron, every
    from laraman.process.worker import Worker
    from laraman.running import run, run_workers
    from laraman.tasks.calling import concurrently, map, submit
    from laraman.tasks.declared import progress, task
    from laraman.tasks.defer import defer

__all__ = [
    "Backoff",
    "BootError",
    "Busy",
    "Config",
    "ConfigError",
    "ConnectionClosed",
    "ConnectionLost",
    "Event",
    "IllegalTransition",
    "LaramanError",
    "Link",
    "LinkDown",
    "LinkUp",
    "LocalProtocolError",
    "MessageReceived",
    "MessageTerminated",
    "OperationTerminated",
    "Pollution",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestHandled",
    "RequestReceived",
    "RequestTerminated",
    "Server",
    "ServerStarted",
    "ServerStarting",
    "ServerStopping",
    "TaskError",
    "TaskReceived",
    "TaskTerminated",
    "TickReceived",
    "TickTerminated",
    "Worker",
    "WorkerError",
    "WorkerExited",
    "WorkerStarted",
    "WorkerStarting",
    "WorkerStopping",
    "__version__",
    "aemit",
    "after",
    "channel",
    "concurrently",
    "connect",
    "cron",
    "defer",
    "emit",
    "errors",
    "events",
    "every",
    "link",
    "lock",
    "main",
    "map",
    "on",
    "progress",
    "run",
    "run_workers",
    "submit",
    "supervise",
    "table",
    "task",
]

#: Asked in this order for a name. Those that need asyncio are the last, so only the names that they alone have bring it in.
_MODULES = (
    *("laraman.events", "laraman.errors", "laraman.process.worker", "laraman.asgi.settings", "laraman.running", "laraman.cli"),
    *("laraman.net.timer", "laraman.net.consumer", "laraman.tasks.declared"),
    *("laraman.net.link", "laraman.net.outbound", "laraman.asgi.server", "laraman.tasks.calling", "laraman.tasks.defer"),
)


def __getattr__(name: str) -> Any:
    if name in ("channel", "errors", "events"):
        return import_module(f"laraman.{name}")
    if name in ("lock", "table"):  # whose other names are for ``laraman.channel``
        return getattr(import_module("laraman.channel"), name)
    if name == "__version__":
        return import_module("laraman.config").VERSION
    if name in __all__:
        for path in _MODULES:
            module = import_module(path)
            if name in vars(module):
                return globals().setdefault(name, vars(module)[name])
    raise AttributeError(f"module 'laraman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
