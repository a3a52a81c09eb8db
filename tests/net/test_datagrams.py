from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.errors import Busy, ConnectionClosed, ConnectionLost, LocalProtocolError, RemoteProtocolError
from laraman.net.datagrams import DatagramConnection, DatagramServer
from laraman.protocols.framing import Datagram, Text
from tests.net.serving import a_worker, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio

Clients = list[socket.socket]


@pytest.fixture
def clients() -> Any:
    made = []
    for _ in range(2):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind(("127.0.0.1", 0))
        client.setblocking(False)
        made.append(client)
    yield made
    for client in made:
        client.close()


@contextlib.asynccontextmanager
async def taking(handler: Any, protocol: Callable[[], Any] = Datagram, **limits: Any) -> AsyncIterator[DatagramServer]:
    worker = a_worker()
    worker.config = replace(Config(), timeout_write=0.2)
    worker.max_connections, worker.max_message = limits.get("max_connections"), limits.get("max_message")
    server = DatagramServer(worker, handler, protocol)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    server.open(sock)
    try:
        yield server
    finally:
        server.close()
        for connection in tuple(worker.connections):
            connection.cancel()
        await until(lambda: not worker.connections)
        assert server.sockets == ()
        assert worker.in_flight == 0


async def received(client: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(client, 65536)


class Upper:
    def __init__(self) -> None:
        self.told: list[str] = []

    async def on_message(self, connection: DatagramConnection, message: bytes) -> None:
        await connection.send(message.upper())

    def on_connect(self, connection: DatagramConnection) -> None:
        self.told.append("connect")

    on_close = on_connect

    def on_error(self, connection: DatagramConnection, error: BaseException) -> None:
        self.told.append(type(error).__name__)


async def test_each_is_answered_where_it_came_from(clients: Clients) -> None:
    handler = Upper()
    async with taking(handler) as server:
        for client, data in zip(clients, (b"a", b"b" * 60000), strict=True):
            client.sendto(data, server.local)
        assert [await received(client) for client in clients] == [b"A", b"B" * 60000]
        clients[0].sendto(b"", server.local)
        assert await received(clients[0]) == b"", "an empty one is one, too"
        await until(lambda: not server.worker.connections)
        assert server.worker.requests == 3
    assert handler.told == []


class Waiting:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.connections: list[DatagramConnection] = []
        self.go = asyncio.Event()

    async def on_message(self, connection: DatagramConnection, message: bytes) -> None:
        self.connections.append(connection)
        await self.go.wait()
        await connection.send(message)


async def test_the_kernel_s_buffer_is_the_queue(clients: Clients) -> None:
    handler = Waiting()
    async with taking(handler, max_connections=2) as server:
        for number in range(6):
            clients[0].sendto(b"%d" % number, server.local)
        await until(lambda: len(handler.connections) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(handler.connections), server.worker.in_flight, len(server.worker.connections)) == (2, 2, 2)
        row = handler.connections[0].row()
        assert (row["protocol"], row["state"], row["peer"]) == ("datagram", "OPEN", f"127.0.0.1:{clients[0].getsockname()[1]}")
        handler.go.set()
        assert sorted([await received(clients[0]) for _ in range(6)]) == [b"%d" % number for number in range(6)]


async def test_at_the_stop_everything_is_taken_and_what_is_handled_is_answered(clients: Clients) -> None:
    handler = Waiting()
    async with taking(handler, max_connections=1) as server:
        for number in range(4):
            clients[0].sendto(b"%d" % number, server.local)
        await until(lambda: handler.connections)
        server.drain()
        server.close()
        assert server.sockets != ()
        handler.go.set()
        assert sorted([await received(clients[0]) for _ in range(4)]) == [b"0", b"1", b"2", b"3"]
        await until(lambda: server.sockets == ())
        with pytest.raises(ConnectionLost, match="the worker has stopped"):
            handler.connections[0].send_nowait(b"late")


class Keeping:
    def __init__(self) -> None:
        self.connections: list[DatagramConnection] = []

    def on_message(self, connection: DatagramConnection, message: bytes) -> None:
        self.connections.append(connection)


async def test_a_kept_one_can_answer_later_until_it_is_closed(clients: Clients) -> None:
    handler = Keeping()
    async with taking(handler) as server:
        clients[0].sendto(b"x", server.local)
        connection = await until(lambda: handler.connections and handler.connections[0])
        assert not server.worker.connections
        connection.data["n"] = 1
        connection.send_nowait(b"1")
        await connection.send(b"2")
        assert [await received(clients[0]), await received(clients[0])] == [b"1", b"2"]
        with pytest.raises(LocalProtocolError, match="70000 bytes are more than a datagram can have"):
            connection.send_nowait(bytes(70000))
        assert (connection.messages_out, connection.bytes_out, connection.bytes_in) == (2, 2, 1)
        connection.close()
        with pytest.raises(ConnectionClosed):
            connection.send_nowait(b"3")


class Full:
    """A socket whose kernel takes nothing for a while."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendto(self, data: bytes, peer: Any) -> int:
        if self.full:
            raise BlockingIOError
        return self._sock.sendto(data, peer)


async def test_a_kernel_that_takes_nothing(clients: Clients) -> None:
    handler = Keeping()
    async with taking(handler) as server:
        clients[0].sendto(b"x", server.local)
        connection = await until(lambda: handler.connections and handler.connections[0])
        full: Any = Full(server.sockets[0])
        server._socket = full
        with pytest.raises(Busy):
            connection.send_nowait(b"1")
        waiting = asyncio.get_running_loop().create_task(connection.send(b"2"))
        await asyncio.sleep(0)
        full.full = False
        await waiting
        assert await received(clients[0]) == b"2"
        assert connection.messages_out == 1


class Lines(Upper):
    def on_message(self, connection: DatagramConnection, message: str) -> None:  # type: ignore[override]
        self.told.append(message)
        if message == "bad":
            raise ValueError(message)


async def test_a_protocol_of_one_s_own_finds_whole_messages_in_each(clients: Clients, caplog: pytest.LogCaptureFixture) -> None:
    handler = Lines()
    async with taking(handler, Text, max_message=20) as server:
        for data in (b"a\nb\n", b"cut off", b"bad\n", b"x" * 21 + b"\n", b"e\n"):
            clients[0].sendto(data, server.local)
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            await until(lambda: "e" in handler.told)
    assert handler.told == ["a", "b", RemoteProtocolError.__name__, "bad", "ValueError", "e"]
    assert "connection ended inside a line" in caplog.text
    assert "A datagram of 22 bytes was dropped: it is larger than the 20 that max_message allows" in caplog.text


async def test_who_sends_without_end_does_not_keep_it_from_stopping() -> None:
    calls = 0

    class Ring:
        """Whoever it answers is itself."""

        def on_message(self, connection: DatagramConnection, message: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls < 100_000:
                client.sendto(message, connection.local)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        async with taking(Ring()) as server:
            client.sendto(b"x", server.local)
            server.drain()
    assert 0 < calls < 100_000
