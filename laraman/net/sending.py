"""The sending half of a connection: messages become bytes, and a peer that does not read makes senders wait, and is cut off in the end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from laraman.errors import Busy, ConnectionClosed, ConnectionLost

logger = logging.getLogger("uvicorn.error")

#: Seconds without progress after which a peer that does not read is cut off.
WRITE_TIMEOUT = 60.0


class Sending(asyncio.Protocol):
    """Sends on ``transport`` what ``protocol`` makes of messages, until there is an ``error``."""

    __slots__ = (
        "_drained",
        "_owes",
        "_stall",
        "_write_timeout",
        "bytes_out",
        "error",
        "messages_out",
        "protocol",
        "transport",
        "writing_paused",
    )

    def __init__(self, protocol: Any, write_timeout: float) -> None:
        self.protocol = protocol
        self.transport: Any = None
        self.error: ConnectionClosed | ConnectionLost | None = None
        self.bytes_out = self.messages_out = 0
        self.writing_paused = False
        self._owes = hasattr(protocol, "data_to_send")
        self._drained: asyncio.Future[None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._write_timeout = write_timeout

    async def send(self, message: Any) -> None:
        """Send one message; while the peer does not read, wait first.

        Raises LocalProtocolError when the protocol does not allow the message, ConnectionClosed or ConnectionLost when the connection
        has ended, which is also what a peer causes that reads nothing for ``write_timeout`` seconds.
        """
        if self.writing_paused:
            await self.writable()
        self.send_nowait(message)

    def send_nowait(self, message: Any) -> None:
        """Send one message, for handlers that are plain functions. Raises what ``send`` does, and Busy where it would wait."""
        if self.error is not None:
            raise self._copied_error()
        if self.writing_paused:
            raise Busy("the peer does not read what was sent before")
        data = self.protocol.send(message)
        self.bytes_out += len(data)
        self.messages_out += 1
        self.transport.write(data)

    async def writable(self) -> None:
        """Return once ``send_nowait`` is not Busy; the peer has to read from now on. The connection may have ended meanwhile."""
        while self.writing_paused and self.error is None:
            self._watch_writing()
            await self.drained()

    async def drained(self) -> None:
        """Return once the peer has read enough for more to be written, or the connection is gone."""
        while self.writing_paused:
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def abort(self, error: ConnectionLost | None = None) -> None:
        """Close at once; what was not sent is dropped. ``error`` is what is found to be wrong with the connection, if that is why."""
        raise NotImplementedError

    # The transport's side --------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        wake(self._drained)

    def _write_owed(self) -> bool:
        """Write what the protocol owes the peer. Whether there was something."""
        if not self._owes or not (owed := self.protocol.data_to_send()):
            return False
        self.bytes_out += len(owed)
        self.transport.write(owed)
        return True

    def _watch_writing(self) -> None:
        """From now on the peer has to read. One timer goes round while there is something to read, none otherwise."""
        if self._stall is None and self.transport is not None and self.transport.get_write_buffer_size():
            self._stall = asyncio.get_running_loop().call_later(self._write_timeout, self._check_writing, self._bytes_flushed())

    def _bytes_flushed(self) -> int:
        return self.bytes_out - int(self.transport.get_write_buffer_size())

    def _check_writing(self, flushed_before: int) -> None:
        self._stall = None
        if self._bytes_flushed() == flushed_before and self.transport.get_write_buffer_size():
            error = ConnectionLost(f"the peer has read nothing for {self._write_timeout:g} seconds")
            logger.warning("%s: %s, the connection is closed", self, error)
            self.abort(error)
        else:
            self._watch_writing()

    def _end_writing(self) -> None:
        """The transport is gone: nobody waits any more."""
        self.writing_paused = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        wake(self._drained)

    def _copied_error(self) -> ConnectionClosed | ConnectionLost:
        """``error`` again, as an instance of its own: one that is raised many times collects tracebacks."""
        assert self.error is not None
        error = type(self.error)(*self.error.args)
        error.__cause__ = self.error.__cause__
        return error


def wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
