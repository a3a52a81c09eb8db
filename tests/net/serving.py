"""A listening socket in the test's own loop whose connections are laraman's, and waiting without sleeping for luck."""

from __future__ import annotations

import asyncio
import contextlib
import types
from typing import TYPE_CHECKING, Any

from laraman.net.connection import Connection
from laraman.protocols.framing import Text
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: Seconds after which a test gives up: far more than any of them needs.
DEADLINE = 10.0


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until ``condition()`` is true, and return what it is."""
    async with asyncio.timeout(DEADLINE):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


def a_worker() -> Any:
    worker = types.SimpleNamespace(name="test", slot=0, connections=set(), links=set(), requests=0, in_flight=0)
    worker.sandbox = Sandbox(worker)
    return worker


class Served:
    def __init__(self, handler: Any, worker: Any, port: int) -> None:
        self.handler = handler
        self.worker = worker
        self.port = port
        self.made: list[Connection] = []
        self._clients: list[asyncio.StreamWriter] = []

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client; it is closed at the end if the test does not do it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self._clients.append(writer)
        return reader, writer

    async def close(self) -> None:
        for connection in tuple(self.worker.connections):
            connection.cancel()
        for writer in self._clients:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await until(lambda: not self.worker.connections)

    async def accepted(self) -> Connection:
        """The connection that was accepted last."""
        connection: Connection = await until(lambda: self.made and self.made[-1].transport and self.made[-1])
        return connection


@contextlib.asynccontextmanager
async def serving(handler: Any, protocol: Callable[[], Any] = Text, port: int = 0, **options: Any) -> AsyncIterator[Served]:
    """Accept connections for ``handler``; at the end none of them is left."""
    loop = asyncio.get_running_loop()
    worker = a_worker()
    served = Served(handler, worker, port)

    def make() -> Connection:
        connection = Connection(protocol(), handler, worker, **options)
        served.made.append(connection)
        return connection

    server = await loop.create_server(make, "127.0.0.1", port)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        if isinstance(loop, asyncio.SelectorEventLoop):  # it would drop what it has accepted in the turn in which it is closed
            for sock in server.sockets:
                loop.remove_reader(sock.fileno())
            for _ in range(3):
                await asyncio.sleep(0)
        server.close()
        await served.close()
