"""One operation's surroundings: a request, a websocket session, a message starts from the worker's warm state and leaves nothing for the next.

    from laraman import sandbox

    cart = sandbox.local(Cart)          # each operation has its own: cart()
    sandbox.resettable(prices)          # prices.reset() after each operation
    sandbox.current()                   # the operation that this code runs for

What is safe while operations overlap: what ``local`` makes, always. What ``flush`` empties, if it may be empty at any time. What ``restore`` puts
back is shared, so that happens when no operation is in flight, or after each of them under ``--isolation serial``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laraman.sandbox.locals import Local as Local
    from laraman.sandbox.locals import local as local
    from laraman.sandbox.operation import Operation as Operation
    from laraman.sandbox.operation import current as current
    from laraman.sandbox.reset import Resettable as Resettable
    from laraman.sandbox.reset import resettable as resettable
    from laraman.sandbox.surroundings import Sandbox as Sandbox

#: Imported when they are asked for: a listener module that the master imports may use them, and the master stays free of asyncio.
_MODULES = {
    "Local": "laraman.sandbox.locals",
    "Operation": "laraman.sandbox.operation",
    "Resettable": "laraman.sandbox.reset",
    "Sandbox": "laraman.sandbox.surroundings",
    "current": "laraman.sandbox.operation",
    "local": "laraman.sandbox.locals",
    "resettable": "laraman.sandbox.reset",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        module = import_module(_MODULES[name])
        return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'laraman.sandbox' has no attribute {name!r}")
