"""Websockets that a worker has accepted: the request that opens one (RFC 6455 section 4.2), who is let in, and pings.

The handler's ``on_upgrade(connection, upgrade)``, plain or ``async``, decides: it returns None to let the client in, an ``Accept`` to choose a
subprotocol, or an ``Answer``, which is sent in place of the websocket. Then ``on_connect`` is called, and the rest is as with every other connection;
of one that was not let in nothing more is heard.
"""

from __future__ import annotations

import asyncio
import logging
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from laraman.errors import ConnectionClosed, ConnectionLost
from laraman.net.connection import CLOSING
from laraman.net.websocket import WebSocketConnection
from laraman.protocols.http1 import HeadParser
from laraman.protocols.upgrade import Accept, Answer, Upgrade, WebSocketServer
from laraman.protocols.websocket import Ping

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("uvicorn.error")


def websocket_factory(worker: Any, handler: Any) -> Callable[[], AcceptedWebSocket]:
    """What makes the connections of websocket addresses, within the limits of the worker's configuration."""
    config = worker.config
    size = worker.max_message or config.ws_max_size
    heads = HeadParser(max_line=config.limit_request_line, max_fields=config.limit_request_fields)
    opening = Opening(handler)
    return lambda: AcceptedWebSocket(WebSocketServer(size, heads), opening, worker)


class AcceptedWebSocket(WebSocketConnection):
    """One websocket from its request on. ``upgrade`` is that request, once it is open."""

    __slots__ = ("_config", "_heard", "_timer", "upgrade")

    def __init__(self, protocol: WebSocketServer, opening: Opening, worker: Any) -> None:
        super().__init__(protocol, opening, worker, write_timeout=worker.config.timeout_write, write_buffer=worker.write_buffer)
        self.upgrade: Upgrade | None = None
        self._config = worker.config
        self._timer: asyncio.TimerHandle | None = None  # of the opening, then of the pings
        self._heard = 0  # bytes that had come when the last ping was sent

    # The opening -----------------------------------------------------------------------------------------------------------------

    def await_request(self) -> None:
        """The client gets ``timeout_request_header`` seconds to send its request, and the handler to decide."""
        if timeout := self._config.timeout_request_header:
            self._after(timeout, lambda: self.abort(ConnectionLost(f"no websocket within {timeout:g} s")))

    async def open(self, upgrade: Upgrade, handler: Any) -> None:
        """Let ``handler`` decide, answer, and be its connection from then on."""
        answer, data = await self._decide(upgrade, handler)
        if self.error is not None:
            return
        self.messages_in = 0
        self.bytes_out += len(data)
        self.transport.write(data)
        if isinstance(answer, Answer):
            self.error = ConnectionClosed(f"the websocket was refused with {answer.status}")
            self.close_code, self.state = 1006, CLOSING
            self._half_close()
            return
        self.upgrade, self.handler = upgrade, handler
        self.protocol, early = self.protocol.opened()
        self._ping_later()
        try:
            result = handler.on_connect(self) if hasattr(handler, "on_connect") else None
            self.bytes_in -= len(early)
            self.data_received(early)  # its messages wait until we are through
            if isawaitable(result):
                await result
        except Exception as exc:
            self._failed("on_connect", exc)

    async def _decide(self, upgrade: Upgrade, handler: Any) -> tuple[Accept | Answer, bytes]:
        """The answer, and its bytes."""
        answer: Any = upgrade.refusal
        try:
            if answer is None and hasattr(handler, "on_upgrade"):
                answer = handler.on_upgrade(self, upgrade)
                if isawaitable(answer):
                    answer = await answer
            if answer is None or isinstance(answer, Accept):
                answer = Accept(answer.subprotocol if answer is not None else "", self._config.ws_per_message_deflate)
            elif not isinstance(answer, Answer):
                raise TypeError(f"it returned {answer!r}, which is not None, an Accept or an Answer")
            return answer, self.protocol.send(answer)
        except Exception as exc:
            logger.error("%s: on_upgrade raised, the websocket is refused", self, exc_info=exc)
            return Answer(500), self.protocol.send(Answer(500))

    # Time ------------------------------------------------------------------------------------------------------------------------

    def _ping_later(self) -> None:
        config = self._config
        if config.ws_ping_interval:
            self._after(config.ws_ping_interval, self._ping)
        else:
            self._after(0.0, None)

    def _ping(self) -> None:
        """Send one, unless the client still reads what was sent before it, and see what comes."""
        config = self._config
        self._heard = self.bytes_in
        if not self.writing_paused:
            frame = self.protocol.send(Ping())
            self.bytes_out += len(frame)
            self.transport.write(frame)
        if config.ws_ping_timeout:
            self._after(config.ws_ping_timeout, self._expect)
        else:
            self._ping_later()

    def _expect(self) -> None:
        """Whatever has come shows that the client lives. While reading is paused, or it still reads what was sent, its silence is ours."""
        if self.bytes_in != self._heard or self._reading_paused or self.writing_paused:
            config = self._config
            self._after(max(0.0, config.ws_ping_interval - config.ws_ping_timeout), self._ping)
        else:
            self.close(1011, "keepalive ping timeout")

    def _after(self, seconds: float, call: Callable[[], None] | None) -> None:
        """A connection waits for one thing at a time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if call is None else asyncio.get_running_loop().call_later(seconds, call)

    # The end ---------------------------------------------------------------------------------------------------------------------

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with this code and reason. What the stop of the worker closes is told 1012, service restart."""
        super().close(1012 if self._closing_when_idle and code in (1000, 1001) else code, reason)

    def _hang_up(self) -> None:
        self._after(0.0, None)
        if isinstance(self.protocol, WebSocketServer):
            self._half_close()
        else:
            super()._hang_up()

    def _half_close(self) -> None:
        self._after(0.0, None)
        super()._half_close()

    def _discard(self, data: bytes) -> None:
        if not isinstance(self.protocol, WebSocketServer):
            super()._discard(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._after(0.0, None)
        super().connection_lost(exc)


class Opening:
    """The handler of websockets until they are open and become ``handler``'s."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def on_connect(self, connection: AcceptedWebSocket) -> None:
        connection.await_request()

    async def on_message(self, connection: AcceptedWebSocket, upgrade: Upgrade) -> None:
        await connection.open(upgrade, self._handler)
