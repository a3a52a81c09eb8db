"""A NetBus as a worker has it, in the test's own loop."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio

from laraman.config.gateway import GatewayConfig
from laraman.gateway import NetBus
from laraman.net.link import current_worker
from laraman.process.tasks import Tasks
from laraman.sandbox.surroundings import Sandbox
from tests.net.serving import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def elsewhere(**fields: Any) -> GatewayConfig:
    """One gateway that is not embedded, with short waits."""
    return GatewayConfig(**{"worker_addr": "", "task_addr": "", "send_receive_timeout": 1.0, "connect_timeout": 1.0, **fields})


def config(*gateways: GatewayConfig, **fields: Any) -> GatewayConfig:
    """What a server has that talks to these."""
    return GatewayConfig(netsvr=gateways, **fields)


class InWorker:
    def __init__(self, bus: NetBus, worker: Any) -> None:
        self.bus = bus
        self.worker = worker
        self.left = False

    async def leave(self, replaced: bool = False) -> None:
        """As a worker that is told to stop: no more events, then what has come is handled."""
        self.left = True
        await self.bus.unregister(replaced)
        await until(lambda: not self.worker.in_flight)


@contextlib.asynccontextmanager
async def in_worker(settings: GatewayConfig, *, name: str = "http", slot: int = 0, isolation: str = "concurrent") -> AsyncIterator[InWorker]:
    """A bus that is registered for events; at the end it leaves, and nothing of it is left."""
    worker: Any = SimpleNamespace(name=name, slot=slot, in_flight=0, links=set(), tasks=None, config=SimpleNamespace(isolation=isolation))
    worker.sandbox = Sandbox(worker)
    token = current_worker.set(worker)
    try:
        async with anyio.create_task_group() as group:
            worker.tasks = Tasks(group)
            bus = NetBus()
            bus.start(settings, worker)
            await bus.register(worker)
            here = InWorker(bus, worker)
            yield here
            if not here.left:
                await here.leave()
            group.cancel_scope.cancel()
    finally:
        current_worker.reset(token)
    assert (worker.in_flight, worker.links) == (0, set())
