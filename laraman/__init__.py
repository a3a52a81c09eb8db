"""laraman: the resident application server for Python. These are its public names; nothing else is.

Each is imported when it is first asked for, because the master imports this package too and must stay free of asyncio.
``LinkDown`` is the event; the error of that name, which ``Link.send`` raises, is ``laraman.errors.LinkDown``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laraman import errors, events
    from laraman.config import VERSION as __version__
    from laraman.config import Config
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
    from laraman.net.link import Backoff, Link, link
    from laraman.process.worker import Worker

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
    "ServerStarted",
    "ServerStarting",
    "ServerStopping",
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
    "emit",
    "errors",
    "events",
    "link",
    "on",
]

#: Asked in this order for a name. The one that needs asyncio is the last, so only the names that it alone has bring it in.
_MODULES = ("laraman.events", "laraman.errors", "laraman.config", "laraman.process.worker", "laraman.net.link")


def __getattr__(name: str) -> Any:
    if name in ("errors", "events"):
        return import_module(f"laraman.{name}")
    if name in __all__:
        wanted = "VERSION" if name == "__version__" else name
        for module in map(import_module, _MODULES):
            if wanted in vars(module):
                return globals().setdefault(name, vars(module)[wanted])
    raise AttributeError(f"module 'laraman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
