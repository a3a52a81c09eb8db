from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from laraman.net.connection import Connection
from laraman.protocols.framing import Raw
from tests.net.serving import DEADLINE, Served, serving, until
from tests.net.test_connection import Recorder, reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


async def pour_for_ever(connection: Connection) -> None:
    while True:
        await connection.send(b"x" * 100_000)


class Relay(Recorder):
    """Pipes what it accepts to a connection that it dials, and back."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.dialled: list[Connection] = []

    async def on_connect(self, connection: Connection) -> None:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        _, other = await loop.create_connection(lambda: Connection(Raw(), None, None, "out"), "127.0.0.1", self.port)
        self.dialled.append(other)
        connection.pipe(other)
        other.pipe(connection)


@asynccontextmanager
async def relayed(handler: Any) -> AsyncIterator[tuple[Served, Served]]:
    """A server with this handler, and a relay in front of it."""
    async with serving(handler, Raw) as behind:
        async with serving(Relay(behind.port), Raw) as relay:
            yield relay, behind
        await until(lambda: all(connection.transport.is_closing() for connection in relay.handler.dialled))


async def test_what_one_end_sends_the_other_gets() -> None:
    async with relayed(Recorder(lambda connection, message: connection.send_nowait(message.upper()))) as (relay, behind):
        reader, writer = await relay.connect()
        writer.write(b"before it is dialled")
        assert await reader.readexactly(20) == b"BEFORE IT IS DIALLED"
        writer.write(b"and later")
        assert await reader.readexactly(9) == b"AND LATER"
        writer.close()
        await until(lambda: behind.handler.ended and relay.handler.ended)
        assert relay.handler.seen == ["close"]
        assert not relay.worker.connections


async def test_all_of_it_arrives_before_the_end_does() -> None:
    total = 8_000_000

    async def pour(connection: Connection, message: bytes) -> None:
        for _ in range(total // 100_000):
            await connection.send(b"x" * 100_000)
        connection.close()

    async with relayed(Recorder(pour)) as (relay, _):
        reader, writer = await relay.connect(limit=2**16)
        writer.write(b"go")
        received = most = 0
        async with asyncio.timeout(DEADLINE):
            while data := await reader.read(2**18):
                received += len(data)
                most = max(most, sum(connection.transport.get_write_buffer_size() for connection in relay.worker.connections))
        assert received == total
        assert most < 1_000_000


async def test_who_does_not_read_is_not_read_for() -> None:
    async with relayed(Recorder()) as (relay, behind):
        reader, _ = await relay.connect(limit=2**14)
        await until(lambda: relay.handler.dialled and behind.made)
        (source,), sender = relay.handler.dialled, await behind.accepted()
        pouring = asyncio.create_task(pour_for_ever(sender))
        await until(lambda: source.running is not None and source.reading_paused and sender.writing_paused)
        pouring.cancel()
        assert source.messages_in - relay.made[0].messages_out <= 1
        expected = sender.bytes_out
        received = 0
        async with asyncio.timeout(DEADLINE):
            while received < expected:
                received += len(await reader.read(2**20))


async def test_a_connection_that_is_lost_is_lost_at_the_other_end() -> None:
    async with relayed(Recorder()) as (relay, behind):
        _, writer = await relay.connect()
        await until(lambda: relay.handler.dialled)
        reset(writer)
        await until(lambda: behind.handler.ended)
        assert "was piped with" in str(relay.handler.dialled[0].error)
        reader, writer = await relay.connect()
        await until(lambda: len(behind.made) == 2)
        (await behind.accepted()).abort()
        assert await reader.read() == b""


async def test_another_pipe_takes_the_place_of_one() -> None:
    async with serving(Recorder(), Raw) as ends, serving(Recorder(), Raw) as served:
        first, _ = await ends.connect()
        second, _ = await ends.connect()
        await until(lambda: len(ends.made) == 2)
        _, writer = await served.connect()
        source = await served.accepted()
        source.pipe(ends.made[0])
        source.pipe(ends.made[1])
        writer.write(b"to the second")
        assert await second.readexactly(13) == b"to the second"
        ends.made[0].close()
        assert await first.read() == b""
        await asyncio.sleep(0)
        assert source.error is None
        ends.made[1].close()
        await until(lambda: served.handler.ended)
