"""Connections whose protocol is websocket messages, accepted or dialled: what the closing handshake adds (RFC 6455 section 7)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from laraman.errors import ConnectionClosed, ConnectionLost, LocalProtocolError
from laraman.net.connection import CLOSING, Connection
from laraman.protocols.websocket import Close

logger = logging.getLogger("uvicorn.error")

#: Seconds that the peer gets to answer a close.
CLOSE_WAIT = 2.0


class WebSocketConnection(Connection):
    """One open websocket. Handlers are given ``str`` and ``bytes``, never a ``Close``: that ends the connection.

    ``close(code)`` sends a close frame, and the transport ends when the peer has answered it, or after CLOSE_WAIT seconds. When the peer closes,
    ``error`` says so and ``close_code`` is its code: 1005 for none, 1006 when the connection ended without a close. What it sent before is handled.
    ``protocol`` is a ``laraman.protocols.websocket.WebSocket``, or has its ``closed``, ``close_sent``, ``faulty`` and ``more``.
    """

    __slots__ = ("_farewell",)

    _farewell: asyncio.TimerHandle | None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._farewell = None

    def _deliver(self, message: Any) -> None:
        if message.__class__ is Close:
            self._closed_by_peer(message)
        else:
            Connection._deliver(self, message)

    def _closed_by_peer(self, close: Close) -> None:
        """The answer to it is on its way. What waits to be handled is handled when the transport is gone."""
        if self.error is None:
            self.error = _reason(close, self.protocol.faulty)
            self.close_code = close.code
            self.state = CLOSING
            if self.protocol.faulty:
                logger.warning("%s: %s", self, self.error)
        if self.transport is not None:
            self.transport.close()
            self._watch_writing()

    def _hang_up(self) -> None:
        protocol = self.protocol
        with contextlib.suppress(LocalProtocolError):  # it is not open yet, or the code is none that may be sent
            if not protocol.close_sent:
                data = protocol.send(Close(self.close_code))
                self.bytes_out += len(data)
                self.transport.write(data)
        if protocol.closed or not protocol.close_sent or self.transport.is_closing():
            self.transport.close()
        elif self._farewell is None:
            self._reading_paused = 0
            self.transport.resume_reading()
            self._farewell = asyncio.get_running_loop().call_later(CLOSE_WAIT, self.transport.close)

    def _discard(self, data: bytes) -> None:
        """Look for the peer's answer to our close in what it still sends."""
        if self._farewell is None:
            return
        try:
            self.protocol.receive_data(data)
        except Exception:
            self.transport.close()
            return
        if self.protocol.closed:
            self.transport.close()
        elif self.protocol.more:
            asyncio.get_running_loop().call_soon(self._discard, b"")

    def eof_received(self) -> bool | None:
        """It is the end of both directions, with a close frame before it or without."""
        self._watch_writing()
        return None

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None
        if self.error is None:
            self.error = ConnectionLost(f"the connection was lost: {exc}" if exc else "the connection ended without a close of the websocket")
            self.error.__cause__ = exc
            self.close_code = 1006
        super().connection_lost(exc)


def _reason(close: Close, faulty: bool) -> ConnectionClosed | ConnectionLost:
    what = f"{close.code} {close.reason}".rstrip()
    return ConnectionClosed(f"closed because of what the peer sent: {what}") if faulty else ConnectionLost(f"the peer has closed the websocket: {what}")
