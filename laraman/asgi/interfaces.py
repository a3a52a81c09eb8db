"""``--interface``: which of the three an application speaks, and ASGI 2 and WSGI made ASGI 3.

    asgi3   await app(scope, receive, send)
    asgi2   await app(scope)(receive, send)
    wsgi    app(environ, start_response), in a thread; never detected, as in uvicorn

Detection is uvicorn's where that is certain: a class is of ASGI 3 when its instances can be awaited, a coroutine function and an object with an
asynchronous ``__call__`` are. What uvicorn takes for ASGI 2 because it is none of these (``functools.partial``, a bound method, a decorated
function) is asked for its arguments. The master may import this, so asyncio comes with WSGI.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from laraman.errors import BootError

if TYPE_CHECKING:
    from laraman.asgi.app import ASGIApp, Receive, Scope, Send

#: The arguments of an application of each.
_ARGUMENTS = {"asgi3": ("scope", "receive", "send"), "asgi2": ("scope",), "wsgi": ("environ", "start_response")}


class ASGI2Middleware:
    """An ASGI 2 application as one of ASGI 3."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["asgi"] = {**scope["asgi"], "version": "2.0"}
        await self.app(scope)(receive, send)


def as_asgi3(app: Any, interface: str, name: str) -> ASGIApp:
    """``app`` behind what makes ASGI 3 of its ``interface``. Raises BootError, calling it ``name``, where that is not its interface."""
    found = _detect(app, name) if interface == "auto" else interface
    if found not in _ARGUMENTS:
        raise BootError(f'Error loading ASGI app. "{name}" is no application where the interface is {found}: laraman start runs Workers.')
    if not accepts(app, len(_ARGUMENTS[found])):
        raise BootError(f'Error loading ASGI app. "{name}" does not take ({", ".join(_ARGUMENTS[found])}), as the interface {found} asks for.')
    if found == "wsgi":
        return _wsgi(app)
    return ASGI2Middleware(app) if found == "asgi2" else app


def _detect(app: Any, name: str) -> str:
    if inspect.isclass(app):
        return "asgi3" if hasattr(app, "__await__") else "asgi2"
    if accepts(app, 3):
        return "asgi3"
    if accepts(app, 1) and not inspect.iscoroutinefunction(app):
        return "asgi2"
    if accepts(app, 2):
        raise BootError(f'Error loading ASGI app. "{name}" takes two arguments, as WSGI applications do: those need --interface wsgi.')
    raise BootError(f'Error loading ASGI app. "{name}" takes neither (scope, receive, send) nor, as a factory, nothing.')


def is_factory(found: Any) -> bool:
    """Whether it can be called without arguments, which no application can. One of any arguments is an application, unless it is a class."""
    if not accepts(found, 0):
        return False
    if inspect.isclass(found):
        return True
    return all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in inspect.signature(found).parameters.values())


def accepts(function: Any, count: int) -> bool:
    """Whether it can be called with so many positional arguments. Asking the signature runs nothing, calling it to find out would."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # compiled, without a signature; nobody writes a factory in C
        return count > 0
    return True


def _wsgi(app: Any) -> ASGIApp:
    try:
        from laraman.asgi.wsgi import WSGIMiddleware
    except ModuleNotFoundError as exc:
        if exc.name != "a2wsgi":
            raise
        raise BootError("The interface wsgi needs a package that is not installed: pip install 'laraman[wsgi]'") from None
    return WSGIMiddleware(app)
