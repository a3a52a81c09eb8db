"""The hub in the test's own loop, which can be killed and started again, and its clients."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

from laraman import channel
from laraman.channel.hub.service import Hub
from laraman.net.address import parse_address
from tests.net.serving import until

if TYPE_CHECKING:
    from pathlib import Path

    from laraman.channel.interface import Channel
    from laraman.net.bind import Bind


class AHub:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "hub.sock"
        self.url = f"unix://{self.path}"
        self.clients: list[Channel] = []

    async def start(self, jobs: int = 50) -> None:
        loop = asyncio.get_running_loop()
        worker = types.SimpleNamespace(name="hub", slot=0, connections=set(), links=set(), requests=0, in_flight=0, loop=loop, stop_reason="")
        worker.config = types.SimpleNamespace(channel_queue=jobs, timeout_write=60.0)
        worker.binds = [types.SimpleNamespace(address=parse_address(self.url))]
        worker.state_path = str(self.path.parent)
        self.worker: Any = worker
        self.hub = Hub()
        self.hub.on_start(worker)
        bind: Bind = worker.binds[0]
        self.path.unlink(missing_ok=True)
        self.server = await loop.create_unix_server(lambda: self.hub.connection(worker, bind), str(self.path))

    async def kill(self) -> None:
        self.server.close()
        for connection in tuple(self.worker.connections):
            connection.abort()
        await until(lambda: not self.worker.connections)
        self.hub.on_stop(self.worker)
        await asyncio.sleep(0)

    def client(self, **options: Any) -> Channel:
        """A channel by way of it, which is closed at the end."""
        self.clients.append(channel.connect(self.url, **options))
        return self.clients[-1]

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        await self.kill()
