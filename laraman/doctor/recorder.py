"""The application under examination, with a wrapper that writes down what it is given. Both servers import this module as if it were the application.

``LARAMAN_DOCTOR`` is a JSON object: the application's options, and the ``file`` to write to, a line of JSON for each thing.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from laraman.asgi.app import load_app
from laraman.check.requests import from_routes
from laraman.config import Config

if TYPE_CHECKING:
    from laraman.asgi.app import Message, Receive, Scope, Send

#: The environment variable.
ORDER = "LARAMAN_DOCTOR"

_order = json.loads(os.environ[ORDER])
_inner = load_app(Config(app=_order["app"], factory=_order["factory"], app_dir=_order["app_dir"], interface=_order["interface"]))


def _write(**line: Any) -> None:
    with open(_order["file"], "a") as file:
        file.write(json.dumps(line) + "\n")


def shown(value: Any) -> Any:
    """The value as JSON in which types can be told apart."""
    if isinstance(value, bytes):
        return f"bytes {value.decode('latin-1')}"
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [shown(item) for item in value]}
    if isinstance(value, dict):
        return {str(key): shown(item) for key, item in value.items()}
    return value if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__


def _websockets(app: Any) -> list[str]:
    """The websocket routes without parameters of a Starlette application."""
    routes = getattr(app, "routes", None)
    found = routes if isinstance(routes, list) else []
    return [route.path for route in found if "WebSocketRoute" in type(route).__name__ and "{" not in route.path]


_write(
    openapi=getattr(_inner, "openapi_url", None),
    routes=[request.path for request in from_routes(_inner)[0]],
    websockets=_websockets(_inner),
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application's ``__call__``."""
    if scope["type"] != "lifespan":
        _write(scope=shown({key: value for key, value in scope.items() if key != "state"}), state=sorted(scope.get("state", ())))
        await _inner(scope, receive, send)
        return

    async def told(message: Message) -> None:
        _write(startup=message["type"])
        await send(message)

    try:
        await _inner(scope, receive, told)
    except BaseException:
        _write(startup="not supported")
        raise
