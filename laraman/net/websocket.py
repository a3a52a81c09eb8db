"""Connections whose protocol is websocket messages, accepted or dialled: what the closing handshake adds (RFC 6455 section 7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from laraman.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError
from laraman.net.connection import CLOSING, Connection
from laraman.protocols.websocket import Close

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that the peer gets to answer a close.
CLOSE_WAIT = 2.0


class WebSocketConnection(Connection):
    """One open websocket. Handlers are given ``str`` and ``bytes``, never a ``Close``: that ends the connection.

    ``close(code, reason)`` sends a close frame, and the transport ends when the peer has answered it, or after CLOSE_WAIT seconds. When the peer
    closes, ``error`` says so, ``close_code`` and ``close_reason`` are its: 1005 for no code, 1006 when the connection ended without a close. What it
    sent before is handled.
    ``protocol`` is a ``laraman.protocols.websocket.WebSocket``, or has its ``closed``, ``close_sent``, ``faulty`` and ``more``.
    """

    __slots__ = ("_farewell", "close_reason")

    _farewell: asyncio.TimerHandle | None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._farewell = None
        self.close_reason = ""

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.error is None:
            self.close_reason = reason
        super().close(code)

    def _deliver(self, messages: Sequence[Any]) -> None:
        if self.protocol.close_sent:
            for message in messages:
                self._deliver_last(message)
        else:
            self._handle_messages(messages)

    def _deliver_last(self, message: Any) -> None:
        """One of those that came together with the peer's close: the answer to that is on its way, so nothing can be sent any more. They are
        handled when the transport is gone, as what waits is."""
        if message.__class__ is Close:
            self.messages_in -= 1
            self._closed_by_peer(message)
        elif self.error is None:
            if self._pending is None:
                self._pending = deque()
            self._pending.append(message)

    def _closed_by_peer(self, close: Close) -> None:
        if self.error is not None:
            return
        self.close_reason = close.reason
        what = f"{close.code} {close.reason}".rstrip()
        if self.protocol.faulty:
            waiting = self._pending
            self._refuse(RemoteProtocolError(what, close_code=close.code))
            if self._verdict is not None:  # on_error runs, but nothing can be sent any more
                self._pass_verdict()
            self._pending = waiting
            return
        self.error = ConnectionLost(f"the peer has closed the websocket: {what}")
        self.close_code, self.state = close.code, CLOSING
        self.transport.close()
        self._watch_writing()

    def _half_close(self) -> None:
        """Send no more, but read: a close with unread input would be a reset, which discards what was sent last."""
        if not self.transport.can_write_eof():
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.write_eof()
            self._await_end()

    def _await_end(self) -> None:
        """The peer gets CLOSE_WAIT seconds for its part."""
        self._reading_paused = 0
        self.transport.resume_reading()
        if self._farewell is None:
            self._farewell = asyncio.get_running_loop().call_later(CLOSE_WAIT, self.transport.close)

    def _hang_up(self) -> None:
        protocol = self.protocol
        if protocol.faulty:
            self._half_close()
            return
        with contextlib.suppress(LocalProtocolError):  # it is not open yet, or the code is none that may be sent
            if not protocol.close_sent:
                data = protocol.send(Close(self.close_code, self.close_reason))
                self.bytes_out += len(data)
                self.transport.write(data)
        if protocol.closed or not protocol.close_sent or self.transport.is_closing():
            self.transport.close()
        else:
            self._await_end()

    def _discard(self, data: bytes) -> None:
        """Look for the peer's answer to our close in what it still sends."""
        if self._farewell is None or self.protocol.closed:
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
