"""One connection of a link: its handler, and what is different about it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from laraman.net.outbound import Dialled, DialledWebSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.connection import Connection
    from laraman.net.link import Link

logger = logging.getLogger("uvicorn.error")


class Session:
    """The handler of one connection of a link: holds its messages back until the link is UP, and hands them over in order."""

    def __init__(self, link: Link, previous: Connection | None) -> None:
        """``previous`` is the connection before, while its messages are still handled."""
        self.link = link
        self._previous = previous
        self.greeted = asyncio.Event()

    async def on_connect(self, connection: Connection) -> None:
        await self.greeted.wait()
        if self._previous is not None:
            try:
                await self._previous.wait_idle()
            except asyncio.CancelledError:  # the link ends, and with it what all of its connections have brought
                self._previous.cancel()
                raise
        if self.link.operates:
            connection.operates_for = self.link.worker  # only now: waiting was none of its operations

    @property
    def on_message(self) -> Callable[[Connection, Any], Any] | None:
        return None if self.link.on_message is None else self._receive

    def _receive(self, connection: Connection, message: Any) -> Any:
        assert self.link.on_message is not None
        return self.link.on_message(self.link, message)


class _Tolerant:
    """What a handler raises does not end the connection."""

    __slots__ = ()

    handler: Session

    def _failed(self, hook: str, exc: BaseException) -> None:
        link = self.handler.link
        logger.error("Link %s: %r raised", link.name, link.on_message, exc_info=exc)


class Kept(_Tolerant, Dialled):
    __slots__ = ()


class KeptWebSocket(_Tolerant, DialledWebSocket):
    __slots__ = ()
