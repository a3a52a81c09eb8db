"""What happens around the application: named by ``listeners`` in pyproject.toml, imported by laraman.

The master imports this module too, to add the ticker before it forks. The master runs no event loop and no application code, so
what needs either is imported inside the listeners that run in the workers.
"""

from __future__ import annotations

import laraman
from app_example import DESK, TICKER
from laraman import ServerStarting, Worker, WorkerStarting, WorkerStopping


@laraman.on(ServerStarting)
def add_ticker(event: ServerStarting) -> None:
    """In the master: run the ticker beside the HTTP workers, under the same supervision."""
    event.server.add(Worker("ticker", TICKER, count=1, handler="app_example.ticker:Ticker"))


@laraman.on(ServerStarting)
def add_desk(event: ServerStarting) -> None:
    """In the master: a unix socket at which programs of this user can ask for something. It needs the gateway to do it."""
    if event.server.config.gateway.enabled:
        event.server.add(Worker("desk", f"request+unix://{DESK}", handler="app_example.desk:handle", mode="0600"))


@laraman.on(WorkerStarting)
async def connect(event: WorkerStarting) -> None:
    """In each HTTP worker: keep a connection to the ticker for as long as the worker lives, and tell the chat's page where the gateway is."""
    if event.worker.name == "http":
        from app_example.feed import feed
        from app_example.main import app

        event.worker.tasks.start_soon(feed.link.run)
        if event.worker.config.gateway.embedded:
            app.state.gateway_port = event.worker.config.gateway.listen.rpartition(":")[2]


@laraman.on(WorkerStopping)
async def end_streams(event: WorkerStopping) -> None:
    """Told before anything is drained: open event streams end themselves."""
    if event.worker.name == "http":
        from app_example.streams import closing

        closing.set()
