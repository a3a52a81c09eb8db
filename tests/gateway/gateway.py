"""The embedded gateway in the test's own loop, on free ports, and clients for both of its sides.

async with gateway_running(hold=0.5) as gateway:
    peer = await gateway.worker_peer()
    await peer.register()
    async with gateway.browser() as browser: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import types
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect

from laraman.config.gateway import GatewayConfig
from laraman.gateway.business import Session
from laraman.gateway.embedded import gateway_worker
from laraman.gateway.service import Gateway
from laraman.protocols.netsvr import Command, Dialect, Netsvr, Packet
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.net.serving import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

class Peer:
    """A business process's connection: the codec over a plain socket. ``receive`` takes what comes next, whatever it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialect: Dialect = Dialect.D8) -> None:
        self.reader = reader
        self.writer = writer
        self.codec = Netsvr("business", dialect=dialect)
        self.received: list[tuple[Command, Any]] = []
        self.conn_id = ""

    def send(self, command: Command, message: Message | None = None) -> None:
        self.writer.write(self.codec.send(Packet(command, message)))

    async def receive(self) -> tuple[Command, Any]:
        """The next packet. Raises EOFError when the connection has ended."""
        async with asyncio.timeout(DEADLINE):
            while not self.received:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self.received.extend(self.codec.receive_data(data))
        return self.received.pop(0)

    async def ask(self, command: Command, message: Message | None = None) -> Any:
        """The message of the answer, which has to come next."""
        self.send(command, message)
        answer, content = await self.receive()
        assert answer is command, answer
        return content

    async def register(self, events: int = 7, **fields: Any) -> Any:
        answer = await self.ask(Command.REGISTER, pb.RegisterReq(events=events, **fields))
        self.conn_id = answer.conn_id
        return answer

    async def event(self, command: Command) -> Any:
        """The next event, which has to be this one."""
        got, message = await self.receive()
        assert got is command, (got, message)
        return message

    async def silent(self) -> bool:
        """Whether nothing has come by the time in which an answer to something would have."""
        try:
            async with asyncio.timeout(0.15):
                self.received.append(await self.receive())
        except TimeoutError:
            return True
        return False

    async def ended(self) -> bool:
        """Whether the gateway ends the connection, whatever it sends before."""
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                while await self.reader.read(65536):
                    pass
        return True

    def close(self) -> None:
        self.writer.transport.abort()


class Running:
    """A gateway that accepts. ``addresses`` are those of browsers, workers and tasks."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.gateway = Gateway()
        self.worker: Any = gateway_worker(types.SimpleNamespace(gateway=config))  # type: ignore[arg-type]
        self.worker.config = types.SimpleNamespace(gateway=config)
        self._servers: list[asyncio.Server] = []
        self._peers: list[Peer] = []

    async def start(self) -> None:
        loop = self.worker.loop = asyncio.get_running_loop()
        for bind in self.worker.binds:
            bind.open()
        self.gateway.on_start(self.worker)
        for bind in self.worker.binds:
            assert bind.socket is not None
            server = await loop.create_server(functools.partial(self.gateway.connection, self.worker, bind), sock=bind.socket.dup())
            self._servers.append(server)

    async def drain(self, seconds: float = DEADLINE) -> None:
        """Stop as the worker's child does: accept no more, drain, cut what is left."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for bind in self.worker.binds:
            bind.close()
        await self.gateway.on_drain(self.worker, self.worker.loop.time() + seconds)

    async def close(self) -> None:
        for peer in self._peers:
            peer.close()
        await self.drain(0)
        for connection in tuple(self.worker.connections):
            connection.cancel()
        await until(lambda: not self.worker.connections)
        self.gateway.on_stop(self.worker)

    @property
    def addresses(self) -> list[str]:
        return [f"{bind.address.host}:{bind.address.port}" for bind in self.worker.binds]

    @property
    def prefix(self) -> str:
        """What its uniqIds begin with."""
        return f"7f000001{self.worker.binds[-1].address.port:04x}"

    @property
    def uniq_ids(self) -> list[str]:
        return list(self.gateway.registry.entries)

    def clients(self) -> list[Any]:
        return [entry.client for entry in self.gateway.registry.entries.values()]

    def sessions(self) -> list[Session]:
        """The worker connections that are registered, in the order in which they came."""
        found = [connection for connection in self.worker.connections if isinstance(connection, Session) and connection.registered]
        return sorted(found, key=lambda session: session.id)

    def browser(self, path: str = "/", **options: Any) -> connect:
        """``async with gateway.browser() as browser``: a websocket client."""
        return connect(f"ws://{self.addresses[0]}{path}", **{"proxy": None, "close_timeout": DEADLINE, **options})

    async def open_browser(self, path: str = "/", **options: Any) -> ClientConnection:
        """One that the test closes, or the end of the gateway."""
        return await self.browser(path, **options)

    async def raw(self, which: int = 0, **options: Any) -> Peer:
        """A plain connection to one of the addresses."""
        host, _, port = self.addresses[which].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), **options)
        peer = Peer(reader, writer, Dialect.D5 if len(self.addresses) == 2 else Dialect.D8)
        self._peers.append(peer)
        return peer

    async def worker_peer(self, **options: Any) -> Peer:
        return await self.raw(1, **options)

    async def task_peer(self, **options: Any) -> Peer:
        return await self.raw(len(self.addresses) - 1, **options)


@contextlib.asynccontextmanager
async def gateway_running(**options: Any) -> AsyncIterator[Running]:
    """A gateway with these fields of GatewayConfig; at the end nothing of it is left."""
    free = dict.fromkeys(("listen", "worker_addr", "task_addr"), "127.0.0.1:0")
    running = Running(GatewayConfig(**{"embedded": True, **free, **options}))
    await running.start()
    try:
        yield running
    finally:
        await running.close()


def stalled_socket(address: str) -> socket.socket:
    """Connected, with a small receive buffer, for a peer that does not read."""
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    sock.setblocking(False)
    return sock
