"""``--log-level trace``: every message between server and application, in uvicorn's lines and under its logger ``uvicorn.asgi``."""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING, Any

from laraman.log import TRACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laraman.asgi.app import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("uvicorn.asgi")

#: What may be long or secret, and what stands for it.
_HIDDEN = {"body": "<{} bytes>", "bytes": "<{} bytes>", "text": "<{} chars>", "headers": "<...>"}


def traced(app: ASGIApp) -> ASGIApp:
    """The application, whose messages are logged if that level is."""
    if not logger.isEnabledFor(TRACE):
        return app
    numbers = count(1)

    async def application(scope: Scope, receive: Receive, send: Send) -> Any:
        client = scope.get("client")
        who = f"{client[0]}:{client[1]} - ASGI" if client else "ASGI"
        number = next(numbers)

        def trace(what: str, *message: Any) -> None:
            logger.log(TRACE, f"%s [%d] {what}", who, number, *message)

        async def receiving() -> Message:
            message = await receive()
            trace("Receive %s", _shown(message))
            return message

        async def sending(message: Message) -> None:
            trace("Send %s", _shown(message))
            await send(message)

        trace("Started scope=%s", _shown(scope))
        try:
            result = await app(scope, receiving, sending)
        except BaseException:
            trace("Raised exception")
            raise
        trace("Completed")
        return result

    return application


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    hidden = {key: text.format(len(message[key])) for key, text in _HIDDEN.items() if message.get(key) is not None}
    return {**message, **hidden}
