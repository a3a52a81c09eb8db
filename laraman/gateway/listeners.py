"""What connects a server with its gateways: imported by the master and by every worker where gateways are configured."""

from __future__ import annotations

import logging

from laraman import gateway
from laraman.events import ServerStarted, ServerStarting, WorkerStarted, WorkerStarting, WorkerStopping, on

logger = logging.getLogger("uvicorn.error")

#: Ends at which nobody takes the place of a worker.
_LAST = ("stop", "failed", "orphaned")


@on(ServerStarting)
def add_gateway(event: ServerStarting) -> None:
    """In the master: run the embedded gateway beside the other workers."""
    config = event.server.config
    if config.gateway.embedded:
        event.server.add(gateway.gateway_worker(config))


@on(ServerStarted)
def check_names(event: ServerStarted) -> None:
    """In the master: browsers' messages that are meant for nobody's name would go nowhere, and nothing would say so."""
    wanted = {name for one in event.server.config.gateway.gateways for name in one.workers}
    for name in sorted(wanted - event.server.workers.keys()):
        logger.warning("[tool.laraman.gateway] workers: there is no worker called %r", name)


@on(WorkerStarting)
async def start_bus(event: WorkerStarting) -> None:
    """Before the application starts, which may want to push already."""
    gateway.bus.start(event.worker.config.gateway, event.worker)


@on(WorkerStarted)
async def register(event: WorkerStarted) -> None:
    """Before the worker counts as ready: on a reload its predecessor leaves then."""
    await gateway.bus.register(event.worker)


@on(WorkerStopping)
async def unregister(event: WorkerStopping) -> None:
    """First of all: what has come already is handled while the worker drains."""
    await gateway.bus.unregister(replaced=event.worker.stop_reason not in _LAST)
