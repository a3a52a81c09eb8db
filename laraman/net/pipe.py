"""Pipes: what one connection receives is sent on another."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from laraman.errors import ConnectionClosed, ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from laraman.net.connection import Connection


class Pipe:
    """The handler of ``source`` while its messages go to ``target``. What is no message goes to the former ``handler``, as before.

    While ``target`` cannot take more, what comes behind waits at the source, whose reading pauses. The end of either is the end of the other.
    """

    def __init__(self, source: Connection, target: Connection, handler: Any) -> None:
        self.handler = handler
        self._target = target
        self._following = asyncio.get_running_loop().create_task(self._follow(source), name="pipe")

    def __getattr__(self, hook: str) -> Any:
        return getattr(self.handler, hook)

    def on_message(self, source: Connection, message: Any) -> Awaitable[None] | None:
        target = self._target
        if target.error is not None:
            end_as(source, target)
        elif target.writing_paused:
            source.pause()  # at once: a message may be a whole read, and many would wait
            return self._send(source, message)
        else:
            target.send_nowait(message)
        return None

    async def _send(self, source: Connection, message: Any) -> None:
        with contextlib.suppress(ConnectionClosed, ConnectionLost):  # then the source is about to be told
            await self._target.send(message)
        source.resume()

    def on_close(self, source: Connection) -> Any:
        self.close()
        end_as(self._target, source)
        hook = getattr(self.handler, "on_close", None)
        return None if hook is None else hook(source)

    async def _follow(self, source: Connection) -> None:
        await self._target.wait_closed()
        await self._target.wait_idle()  # what it has received may be piped, to the source perhaps
        end_as(source, self._target)

    def close(self) -> None:
        """Pass on nothing more. Either end may live on."""
        self._following.cancel()


def end_as(connection: Connection, other: Connection) -> None:
    """End ``connection`` as the other one has ended: with all that was sent to it, or, where that one was lost, at once."""
    if other.close_code == 1006:
        connection.abort(ConnectionLost(f"it was piped with {other}: {other.error}"))
    else:
        connection.close()
