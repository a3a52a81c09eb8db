"""The embedded gateway: browsers on one side, worker and task connections of business processes on the other. The handler of the worker "gateway"."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from laraman.gateway.browsers import Browsers
from laraman.gateway.business import Business, Session
from laraman.gateway.client import Client
from laraman.gateway.commands import Commands
from laraman.gateway.dispatch import Dispatcher
from laraman.gateway.identity import prefix_of
from laraman.gateway.limits import Limits
from laraman.gateway.metrics import Metrics
from laraman.gateway.registry import Registry
from laraman.gateway.wheel import TICK, Wheel
from laraman.net.connection import CLOSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.config.gateway import GatewayConfig
    from laraman.net.bind import Bind

logger = logging.getLogger("uvicorn.error")

#: Seconds between two updates of the rates in the metrics.
METRICS_PERIOD = 5.0
#: The part of a stop's time in which the workers of the same server, which stop too, may still answer what browsers have said.
WORKERS_PART = 2 / 3
#: Seconds of a stop for the browsers to answer, and for the business side to read; of a shorter deadline, the third part each.
STOP_WAIT = 3.0


class Gateway:
    """The handler of the worker "gateway": wires the parts together, and holds the one timer."""

    registry: Registry
    metrics: Metrics
    dispatcher: Dispatcher
    browsers: Browsers
    business: Business

    def on_start(self, worker: Any) -> None:
        """Raises ConfigError when no uniqId can be made for the task address."""
        config: GatewayConfig = worker.config.gateway
        self._loop: asyncio.AbstractEventLoop = worker.loop
        now = self._loop.time()
        self._wheel = Wheel(now)
        self._metrics_due = now + METRICS_PERIOD
        limits = Limits(config.open_rate, config.message_rate)
        self.registry = Registry()
        self.metrics = Metrics(now)
        self.dispatcher = Dispatcher(self.metrics, self._wheel, config.hold)
        prefix = config.prefix or prefix_of(worker.binds[-1].address)
        self.browsers = Browsers(config, self.registry, self.dispatcher, self.metrics, limits, self._wheel, self._loop, prefix)
        commands = Commands(self.registry, self.browsers, self.metrics, limits)
        self.business = Business(config, commands, self.dispatcher, self.metrics, self._wheel)
        self._timer = self._loop.call_later(TICK, self._tick)
        logger.info("Gateway on %s", ", ".join(str(bind.address) for bind in worker.binds))

    def connection(self, worker: Any, bind: Bind) -> Client | Session:
        scheme = bind.address.scheme
        return self.browsers.client(worker) if scheme == "ws" else self.business.session(worker, scheme)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        now = self._loop.time()
        for connection in self._wheel.advance(now):
            try:
                connection.handler.on_deadline(connection, now)
            except Exception:  # must not cost the others their deadlines
                logger.exception("%s: its deadline raised", connection)
                connection.abort()
        self.browsers.tick(now)
        self.dispatcher.expire(now)
        if now >= self._metrics_due:
            self._metrics_due = now + METRICS_PERIOD
            self.metrics.tick(now)

    # The stop ---------------------------------------------------------------------------------------------------------------------

    async def on_drain(self, worker: Any, deadline: float | None) -> None:
        """Browsers are sent away, what that means for the business side is told there, then its connections are closed.

        When the whole server stops, its workers take no more events but have some at hand: they are waited for, so that their answers arrive.
        """
        if worker.stop_reason == "stop" and worker.config.app:
            left = float("inf") if deadline is None else (deadline - self._loop.time()) * WORKERS_PART
            workers = [connection for connection in worker.connections if isinstance(connection, Session) and connection.extended]
            await self._until(lambda: all(session.state == CLOSED for session in workers), left)
        now = self._loop.time()
        wait = STOP_WAIT if deadline is None else min(STOP_WAIT, max(0.0, deadline - now) / 3)
        clients = [connection for connection in worker.connections if isinstance(connection, Client)]
        self.browsers.stop(clients)
        await self._until(lambda: all(client.state == CLOSED for client in clients), wait)
        self.dispatcher.give_up()
        sessions = [connection for connection in worker.connections if isinstance(connection, Session)]
        await self._until(lambda: not any(session.queue.events for session in sessions), wait)
        for session in sessions:
            session.close(1001)
        await self._until(lambda: not worker.connections, wait)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self._loop.time() + seconds
        while not condition() and self._loop.time() < end:
            await asyncio.sleep(0.01)

    def on_stop(self, worker: Any) -> None:
        self._timer.cancel()
