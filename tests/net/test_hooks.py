"""What a connection tells its handler of besides messages, and what it keeps for it."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from laraman.errors import ConnectionClosed, ConnectionLost, RemoteProtocolError
from laraman.protocols.framing import Frame, Raw
from laraman.sandbox.operation import current
from tests.net.serving import DEADLINE, serving, until
from tests.net.test_connection import Recorder, stuck

if TYPE_CHECKING:
    from laraman.net.connection import Connection

pytestmark = pytest.mark.anyio

marked: ContextVar[str] = ContextVar("marked", default="")


class Faulty(Recorder):
    """Says of what it is told what it is, and whether the connection is still open."""

    def on_error(self, connection: Connection, exc: Exception) -> Any:
        self.seen.append((type(exc), connection.error is None))
        if connection.error is None:
            connection.send_nowait(b"sorry")


class FaultyLater(Recorder):
    async def on_error(self, connection: Connection, exc: Exception) -> None:
        await asyncio.sleep(0)
        self.seen.append((type(exc), connection.error is None))
        await connection.send(b"sorry")


def refuse(connection: Connection, message: bytes) -> None:
    raise ValueError(message)


async def refuse_later(connection: Connection, message: bytes) -> None:
    await asyncio.sleep(0)
    raise ValueError(message)


@pytest.mark.parametrize("answer", [refuse, refuse_later])
async def test_what_a_handler_raises_is_told_and_may_be_answered(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Faulty(answer), Frame) as served:
        reader, writer = await served.connect()
        other, _ = await served.connect()
        writer.write(Frame().send(b"a") + Frame().send(b"b"))
        assert await reader.read() == Frame().send(b"sorry")
        await until(lambda: served.handler.ended)
        assert [entry for entry in served.handler.seen if entry != "connect"] == [b"a", (ValueError, True), "close"]
        assert served.made[0].close_code == 1011
        assert served.made[1].error is None
        assert not other.at_eof()
    assert "on_message raised, the connection is closed" in caplog.text


async def test_what_a_handler_raises_may_be_told_to_a_coroutine() -> None:
    async with serving(FaultyLater(refuse), Frame) as served:
        reader, writer = await served.connect()
        writer.write(Frame().send(b"a") + Frame().send(b"b"))
        assert await reader.read() == Frame().send(b"sorry")
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", b"a", (ValueError, True), "close"]
        assert served.made[0].close_code == 1011
        assert not served.worker.in_flight


async def test_while_a_coroutine_is_told_nothing_more_is_received() -> None:
    gate = asyncio.Event()

    class Waiting(Recorder):
        async def on_error(self, connection: Connection, exc: Exception) -> None:
            self.seen.append(type(exc))
            with pytest.raises(ConnectionLost):
                await connection.receive()
            await gate.wait()
            await connection.send(b"sorry")

    async with serving(Waiting(), Frame) as served:
        reader, writer = await served.connect()
        for _ in range(20):
            writer.write(b"GET / HTTP/1.1\r\n")
            await asyncio.sleep(0.005)
        await until(lambda: RemoteProtocolError in served.handler.seen)
        gate.set()
        assert await reader.read() == Frame().send(b"sorry")
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", RemoteProtocolError, "close"]


async def test_what_the_peer_broke_is_told() -> None:
    async with serving(Faulty(), Frame) as served:
        reader, writer = await served.connect()
        writer.write(b"GET / HTTP/1.1\r\n")  # as a length, it is too much
        assert await reader.read() == Frame().send(b"sorry")
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", (RemoteProtocolError, True), "close"]
        assert served.made[0].close_code == 1009


async def test_what_the_peer_broke_is_told_when_what_runs_is_over() -> None:
    gate = asyncio.Event()

    async def answer(connection: Connection, message: bytes) -> None:
        await gate.wait()
        with pytest.raises(ConnectionClosed):
            await connection.send(b"too late")

    async with serving(Faulty(answer), Frame) as served:
        reader, writer = await served.connect()
        writer.write(Frame().send(b"a"))
        await until(lambda: served.made and served.made[0].running)
        writer.write(b"\xff" * 4)
        assert await reader.read() == b""
        gate.set()
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", b"a", (RemoteProtocolError, False), "close"]


async def test_a_fault_of_on_error_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Hopeless(Recorder):
        def on_error(self, connection: Connection, exc: Exception) -> None:
            raise KeyError("again")

        def on_close(self, connection: Connection) -> None:
            super().on_close(connection)
            raise KeyError("and again")

    async with serving(Hopeless(refuse), Frame) as served:
        reader, writer = await served.connect()
        writer.write(Frame().send(b"a"))
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", b"a", "close"]
    assert "on_error raised" in caplog.text
    assert "on_close raised" in caplog.text


# The peer that does not read ------------------------------------------------------------------------------------------------------


class Watching(Recorder):
    def on_buffer_full(self, connection: Connection) -> None:
        marked.set("full")
        self.seen.append(("full", connection.writing_paused, repr(current())))

    async def on_drained(self, connection: Connection) -> None:
        assert marked.get() == ""
        await asyncio.sleep(0)
        self.seen.append(("drained", connection.writing_paused, repr(current())))


async def test_a_full_buffer_and_its_end_are_told_while_a_handler_waits() -> None:
    async def answer(connection: Connection, message: bytes) -> None:
        await stuck(connection)
        await connection.send(b"more")
        handler.seen.append("sent")

    handler = Watching(answer)
    async with serving(handler, Raw) as served:
        reader, writer = await served.connect(limit=2**14)
        writer.write(b"go")
        full = ("full", True, "<Operation connection on_buffer_full>")
        await until(lambda: full in handler.seen)
        assert "sent" not in handler.seen
        async with asyncio.timeout(DEADLINE):
            while "sent" not in handler.seen or len(handler.seen) < 5:
                await reader.read(2**20)
        assert handler.seen[:3] == ["connect", b"go", full]
        assert sorted(handler.seen[3:], key=str) == [("drained", False, "<Operation connection on_drained>"), "sent"]


async def test_what_on_buffer_full_raises_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Hasty(Faulty):
        def on_buffer_full(self, connection: Connection) -> None:
            raise ValueError("no patience")

    async with serving(Hasty(), Raw, write_timeout=0.2) as served:
        await served.connect(limit=2**14)
        connection = await served.accepted()
        await stuck(connection)
        await until(lambda: served.handler.ended)
        assert served.handler.seen[1] == (ValueError, True)
        assert connection.close_code == 1011


@pytest.mark.parametrize(("size", "least", "most"), [(None, 2**16, 2**17), (2**20, 2**20, 2**21), (0, 1, 2**14)])
async def test_how_much_may_wait_can_be_said(size: int | None, least: int, most: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with serving(Recorder(), Raw, write_buffer=size) as served:
        await served.connect(limit=2**14)
        connection = await served.accepted()
        while not connection.writing_paused:
            connection.send_nowait(b"x" * 8192)
        assert least <= connection.transport.get_write_buffer_size() <= most


# Its own ---------------------------------------------------------------------------------------------------------------------------


async def test_data_is_the_connections_own() -> None:
    def count(connection: Connection, message: bytes) -> None:
        connection.data["count"] = connection.data.get("count", 0) + 1
        connection.send_nowait(str(connection.data["count"]).encode())

    async with serving(Recorder(count), Frame) as served:
        for wanted in (b"12", b"12"):
            reader, writer = await served.connect()
            writer.write(Frame().send(b"x") * 2)
            assert (await reader.readexactly(10))[4::5] == wanted
        assert served.made[0].data is not served.made[1].data
