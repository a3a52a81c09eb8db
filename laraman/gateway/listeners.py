"""What connects a server with its gateways: imported by the master and by every worker where gateways are configured."""

from __future__ import annotations

from laraman import gateway
from laraman.events import ServerStarting, WorkerStarted, WorkerStarting, WorkerStopping, on

#: Ends at which nobody takes the place of a worker.
_LAST = ("stop", "failed", "orphaned")


@on(ServerStarting)
def add_gateway(event: ServerStarting) -> None:
    """In the master: run the embedded gateway beside the other workers."""
    config = event.server.config
    if config.gateway.embedded:
        event.server.add(gateway.gateway_worker(config))


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
