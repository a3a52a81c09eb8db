from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import tracemalloc
import types
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from laraman import events
from laraman.errors import Busy, ConnectionClosed, ConnectionLost, LocalProtocolError, RemoteProtocolError
from laraman.events import MessageReceived
from laraman.net.connection import CLOSED, OPEN, Connection, keep_alive, name_text
from laraman.net.receiving import MAX_PENDING, MAX_PENDING_SIZE
from laraman.protocols.framing import Frame, Raw, Text
from laraman.sandbox.locals import local
from laraman.sandbox.operation import Operation, current
from laraman.sandbox.surroundings import Sandbox
from tests.net.serving import DEADLINE, a_worker, serving, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.net.conftest import Around

pytestmark = pytest.mark.anyio

marked: ContextVar[str] = ContextVar("marked", default="")


class Recorder:
    """A handler that keeps what it is told; ``answer`` is its on_message."""

    def __init__(self, answer: Callable[[Connection, Any], Any] | None = None) -> None:
        self.seen: list[Any] = []
        self.ended: list[Connection] = []
        self.answer = answer

    def on_connect(self, connection: Connection) -> None:
        self.seen.append("connect")

    def on_message(self, connection: Connection, message: Any) -> Any:
        self.seen.append(message)
        return self.answer(connection, message) if self.answer else None

    def on_close(self, connection: Connection) -> None:
        self.seen.append("close")
        self.ended.append(connection)


async def shout(connection: Connection, message: str) -> None:
    await connection.send(message.upper())


def reset(writer: asyncio.StreamWriter) -> None:
    """End with a RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# Messages -------------------------------------------------------------------------------------------------------------------------


async def test_a_plain_handler_answers_without_a_task() -> None:
    def answer(connection: Connection, message: str) -> None:
        assert connection.running is None
        connection.send_nowait(message.upper())

    async with serving(Recorder(answer)) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\n")
        assert await reader.readexactly(4) == b"A\nB\n"
        connection = await served.accepted()
        assert (connection.messages_in, connection.messages_out, connection.bytes_in, connection.bytes_out) == (2, 2, 4, 4)
        assert served.worker.requests == 2
        writer.close()
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "b", "close"]
        assert not served.worker.connections


async def test_async_handlers_run_one_after_another() -> None:
    running = 0
    order: list[str] = []

    async def answer(connection: Connection, message: str) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.001 if len(order) % 3 else 0)
        order.append(message)
        running -= 1
        await connection.send(message)

    async with serving(Recorder(answer)) as served:
        reader, writer = await served.connect()
        lines = [str(number) for number in range(300)]
        writer.write("".join(f"{line}\n" for line in lines).encode())
        async with asyncio.timeout(DEADLINE):
            for line in lines:
                assert await reader.readline() == f"{line}\n".encode()
        assert order == lines
        assert served.worker.in_flight == 0


async def test_on_connect_is_over_before_the_first_message() -> None:
    class Greeting(Recorder):
        async def on_connect(self, connection: Connection) -> None:  # type: ignore[override]
            self.seen.append("hello " + await connection.receive())
            await connection.send("hello")
            self.seen.append("connected, " + await connection.receive())

    async with serving(Greeting()) as served:
        reader, writer = await served.connect()
        writer.write(b"me\n")
        assert await reader.readline() == b"hello\n"
        writer.write(b"well\nfirst\n")
        await until(lambda: len(served.handler.seen) == 3)
        assert served.handler.seen == ["hello me", "connected, well", "first"]


async def test_receive_ends_with_the_connection_and_has_its_place() -> None:
    class Waiting:
        error: Exception | None = None

        async def on_connect(self, connection: Connection) -> None:
            try:
                await connection.receive()
            except ConnectionLost as exc:
                self.error = exc

    async with serving(Waiting()) as served:
        _, writer = await served.connect()
        connection = await served.accepted()
        writer.close()
        await until(lambda: served.handler.error)
        with pytest.raises(RuntimeError, match="one async handler"):
            await connection.receive()


@pytest.mark.parametrize(("size", "most"), [(8_000, MAX_PENDING * 2), (60_000, MAX_PENDING_SIZE // 30_000), (2_000_000, 3)])
async def test_a_peer_that_sends_faster_than_it_is_served_waits(size: int, most: int) -> None:
    gate = asyncio.Event()

    async def answer(connection: Connection, message: bytes) -> None:
        await gate.wait()

    async with serving(Recorder(answer), Frame) as served:
        _, writer = await served.connect()
        wire = Frame().send(b"x" * size)
        count = max(16, 10_000_000 // size)
        for _ in range(count):
            writer.write(wire)
        connection = await served.accepted()
        await until(lambda: connection.reading_paused)
        await asyncio.sleep(0.1)
        assert connection.messages_in < most
        gate.set()
        await until(lambda: connection.messages_in == count and connection.running is None)
        assert not connection.reading_paused
        assert served.handler.seen.count(b"x" * size) == count


async def test_close_in_a_handler_drops_what_stands_behind() -> None:
    async with serving(Recorder(lambda connection, message: connection.close())) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\nc\n")
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "close"]


async def test_messages_of_a_peer_that_has_gone_are_still_handled() -> None:
    seen: list[str] = []

    async def answer(connection: Connection, message: str) -> None:
        await asyncio.sleep(0.01)
        seen.append(message)
        assert connection in served.worker.connections

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\nc\n")
        await writer.drain()
        await until(lambda: served.made and served.made[0].messages_in == 3)
        reset(writer)
        await until(lambda: served.handler.ended)
        assert seen == ["a", "b", "c"]
        assert served.handler.seen[-1] == "close"


async def test_a_half_closed_peer_gets_its_answers() -> None:
    async def answer(connection: Connection, message: str) -> None:
        await asyncio.sleep(0.02)
        await connection.send(message.upper())

    async with serving(Recorder(answer)) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\n")
        writer.write_eof()
        assert await reader.read() == b"A\nB\n"
        await until(lambda: served.handler.ended)


# Sending --------------------------------------------------------------------------------------------------------------------------


async def stuck(connection: Connection) -> None:
    """Send until the peer's buffers and ours are full."""
    while not connection.writing_paused:
        connection.send_nowait(b"x" * 100_000)


async def test_send_waits_while_the_peer_does_not_read() -> None:
    async with serving(Recorder(), Raw) as served:
        reader, _ = await served.connect(limit=2**14)
        connection = await served.accepted()
        await stuck(connection)
        with pytest.raises(Busy):
            connection.send_nowait(b"y")
        senders = [asyncio.create_task(connection.send(b"y")) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(sender.done() for sender in senders)
        senders[0].cancel()  # one that gives up must not take the others with it
        expected = connection.bytes_out + 2
        received = 0
        async with asyncio.timeout(DEADLINE):
            while received < expected:
                received += len(await reader.read(2**20))
            await asyncio.gather(*senders[1:])
        assert received == connection.bytes_out
        assert senders[0].cancelled()


async def test_senders_do_not_pile_up_in_the_buffer() -> None:
    async with serving(Recorder(), Raw) as served:
        reader, _ = await served.connect(limit=2**14)
        connection = await served.accepted()
        await stuck(connection)
        senders = [asyncio.create_task(connection.send(b"y" * 100_000)) for _ in range(50)]
        most = 0
        async with asyncio.timeout(DEADLINE):
            while not all(sender.done() for sender in senders):
                await reader.read(2**16)
                most = max(most, connection.transport.get_write_buffer_size())
        assert most < 400_000


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    async with serving(Recorder(), Raw, write_timeout=0.2) as served:
        await served.connect(limit=2**14)
        connection = await served.accepted()
        await stuck(connection)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionLost, match=r"read nothing for 0\.2 seconds"):
            await connection.send(b"y")
        assert 0.15 < asyncio.get_running_loop().time() - begun < 2
        await until(lambda: served.handler.ended)
        assert connection.close_code == 1006


async def test_close_does_not_wait_for_a_peer_that_never_reads() -> None:
    async with serving(Recorder(), Raw, write_timeout=0.2) as served:
        await served.connect(limit=2**14)
        connection = await served.accepted()
        await stuck(connection)
        connection.close()
        assert not served.handler.ended
        await until(lambda: served.handler.ended)
        assert isinstance(connection.error, ConnectionClosed)


async def test_a_slow_reader_is_not_cut_off() -> None:
    async with serving(Recorder(), Raw, write_timeout=0.3) as served:
        reader, _ = await served.connect(limit=2**14)
        connection = await served.accepted()
        await stuck(connection)
        connection.send_nowait(b"") if not connection.writing_paused else None
        connection.close()
        received = 0
        async with asyncio.timeout(DEADLINE):
            while data := await reader.read(2**19):
                received += len(data)
                await asyncio.sleep(0.02)
        assert received == connection.bytes_out


async def test_what_the_protocol_refuses_reaches_the_sender() -> None:
    async with serving(Recorder()) as served:
        await served.connect()
        connection = await served.accepted()
        with pytest.raises(LocalProtocolError):
            await connection.send("two\nlines")
        assert connection.error is None
        assert connection.messages_out == 0


async def test_after_the_end_the_error_says_whose_it_was() -> None:
    async with serving(Recorder()) as served:
        _, writer = await served.connect()
        connection = await served.accepted()
        connection.close(1001)
        connection.close()
        with pytest.raises(ConnectionClosed):
            await connection.send("a")
        assert connection.close_code == 1001
        writer.close()
        _, writer = await served.connect()
        await until(lambda: len(served.made) == 2)
        connection = await served.accepted()
        reset(writer)
        await connection.wait_closed()
        with pytest.raises(ConnectionLost) as caught:
            connection.send_nowait("a")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value is not connection.error


class Ponging(Frame):
    """Owes the peer an answer to each ``ping``."""

    def __init__(self) -> None:
        super().__init__()
        self.owed = b""

    def receive_data(self, data: bytes) -> list[bytes]:
        messages = super().receive_data(data)
        self.owed += self.send(b"pong" * 50) * messages.count(b"ping")
        return [message for message in messages if message != b"ping"]

    def data_to_send(self) -> bytes:
        owed, self.owed = self.owed, b""
        return owed


async def test_what_the_protocol_owes_is_sent() -> None:
    async with serving(Recorder(), Ponging) as served:
        reader, writer = await served.connect()
        writer.write(Frame().send(b"ping"))
        assert (await reader.readexactly(8))[4:] == b"pong"
        assert served.handler.seen == ["connect"]


async def test_who_asks_and_does_not_read_is_not_read() -> None:
    async with serving(Recorder(), Ponging, write_timeout=0.3) as served:
        _, writer = await served.connect(limit=2**14)
        writer.write(Frame().send(b"ping") * 50_000)
        connection = await served.accepted()
        await until(lambda: connection.writing_paused)
        assert connection.reading_paused
        assert connection.bytes_in <= 2**18
        await until(lambda: served.handler.ended)


async def test_who_asks_and_reads_late_is_read_on() -> None:
    async with serving(Recorder(), Ponging) as served:
        reader, writer = await served.connect(limit=2**14)
        writer.write(Frame().send(b"ping") * 50_000)
        connection = await served.accepted()
        await until(lambda: connection.writing_paused)
        async with asyncio.timeout(DEADLINE):
            while connection.bytes_in < 50_000 * 8 or connection.reading_paused:
                await reader.read(2**20)


# Held by a plain handler ----------------------------------------------------------------------------------------------------------


async def test_a_plain_handler_can_hold_its_messages_back() -> None:
    async with serving(Recorder(lambda connection, message: connection.pause())) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        connection = await served.accepted()
        await until(lambda: connection.messages_in == 2)
        writer.write(b"c\n")
        assert served.handler.seen == ["connect", "a"]
        assert connection.reading_paused
        connection.resume()
        assert served.handler.seen == ["connect", "a", "b"]
        connection.resume()
        await until(lambda: len(served.handler.seen) == 4)
        connection.resume()
        connection.resume()
        assert not connection.reading_paused
        writer.write(b"d\n")
        await until(lambda: served.handler.seen[-1] == "d")


async def test_what_was_held_is_handled_when_the_connection_is_lost() -> None:
    def answer(connection: Connection, message: str) -> None:
        if message == "a":
            connection.pause()
            connection.transport.abort()

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\nc\n")
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "b", "c", "close"]


async def test_a_connection_that_is_closed_handles_no_more_of_what_was_held() -> None:
    async with serving(Recorder(lambda connection, message: connection.pause())) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        connection = await served.accepted()
        await until(lambda: connection.messages_in == 2)
        connection.close()
        connection.resume()
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "close"]


async def test_an_async_handler_can_hold_what_stands_behind_its_message() -> None:
    async def answer(connection: Connection, message: str) -> None:
        await asyncio.sleep(0)
        if message == "a":
            connection.pause()

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\nc\n")
        connection = await served.accepted()
        await until(lambda: connection.messages_in == 3 and connection.running is None)
        assert served.handler.seen == ["connect", "a"]
        connection.resume()
        await until(lambda: served.handler.seen[-1] == "c" and connection.running is None)
        assert not connection.reading_paused


# Protocols that bound their work --------------------------------------------------------------------------------------------------


class Stepping(Text):
    """One line per call."""

    __slots__ = ("calls", "lines")

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.lines: list[str] = []

    @property
    def more(self) -> bool:
        return bool(self.lines)

    def receive_data(self, data: bytes) -> list[str]:
        self.calls += 1
        self.lines += super().receive_data(data)
        if self.lines and self.lines[0] == "fault":
            raise RemoteProtocolError("fault")
        return [self.lines.pop(0)] if self.lines else []


async def test_a_protocol_that_has_more_is_called_again_a_turn_at_a_time() -> None:
    async with serving(Recorder(), Stepping) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\nc\n")
        connection = await served.accepted()
        await until(lambda: len(served.handler.seen) == 4)
        assert served.handler.seen == ["connect", "a", "b", "c"]
        assert connection.protocol.calls == 3
        assert not connection.reading_paused
        writer.write(b"d\n")
        await until(lambda: served.handler.seen[-1] == "d")


async def test_a_protocol_is_not_asked_for_more_while_messages_wait() -> None:
    gate = asyncio.Event()

    async def answer(connection: Connection, message: str) -> None:
        await gate.wait()

    async with serving(Recorder(answer), Stepping) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\nc\nfault\n")
        connection = await served.accepted()
        await until(lambda: connection.messages_in == 2)
        assert connection.protocol.lines == ["c", "fault"]
        gate.set()
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "b", "c", "close"]


async def test_a_held_connection_s_protocol_is_not_asked_for_more() -> None:
    async with serving(Recorder(lambda connection, message: connection.pause()), Stepping) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        connection = await served.accepted()
        await until(lambda: connection.messages_in == 1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert connection.protocol.lines == ["b"]
        connection.resume()
        await until(lambda: served.handler.seen[-1] == "b")


# Faults ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["on_connect", "on_message", "on_close"])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_handler_that_raises_ends_its_connection_only(hook: str, is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def later() -> None:
        raise ValueError("handler")

    def fail(*arguments: Any) -> Awaitable[None] | None:
        if is_async:
            return later()
        raise ValueError("handler")

    handler = Recorder(shout)
    async with serving(handler) as served:
        neighbour, neighbours_writer = await served.connect()
        await served.accepted()
        setattr(handler, hook, fail)
        reader, writer = await served.connect()
        writer.write(b"b\n")
        if hook == "on_close":
            assert await reader.readline() == b"B\n"
            writer.close()
        else:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        await until(lambda: len(served.worker.connections) == 1)
        handler.on_message = Recorder(shout).on_message  # type: ignore[method-assign]
        neighbours_writer.write(b"still here\n")
        assert await neighbour.readline() == b"STILL HERE\n"
    assert any(record.levelno == logging.ERROR and hook in record.message and record.exc_info for record in caplog.records)


async def test_a_peer_that_goes_away_under_a_handler_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()

    async def answer(connection: Connection, message: str) -> None:
        await gate.wait()
        await connection.send(message)

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\n")
        connection = await served.accepted()
        await until(lambda: connection.running)
        reset(writer)
        await connection.wait_closed()
        gate.set()
        await until(lambda: served.handler.ended)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name == "uvicorn.error"]


async def test_what_the_peer_may_not_send_closes_the_connection() -> None:
    async with serving(Recorder()) as served:
        reader, writer = await served.connect()
        writer.write(b"\xff\n")
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
        connection = served.handler.ended[0]
        assert isinstance(connection.error, ConnectionClosed)
        assert isinstance(connection.error.__cause__, RemoteProtocolError)
        assert connection.close_code == 1007


async def test_an_end_inside_a_message_is_a_fault_of_the_peer() -> None:
    async with serving(Recorder()) as served:
        _, writer = await served.connect()
        writer.write(b"unfinished")
        writer.close()
        await until(lambda: served.handler.ended)
        assert isinstance(served.handler.ended[0].error.__cause__, RemoteProtocolError)


async def test_a_protocol_that_raises_anything_else_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def receive_data(self, data: bytes) -> list[bytes]:
            raise KeyError("bug")

    async with serving(Recorder(), Broken) as served:
        reader, writer = await served.connect()
        writer.write(b"a")
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
        assert served.handler.ended[0].close_code == 1011
    assert "its protocol raised" in caplog.text


# The worker's stop ----------------------------------------------------------------------------------------------------------------


async def test_shutdown_closes_an_idle_connection_at_once_and_a_busy_one_later() -> None:
    gate = asyncio.Event()

    async def answer(connection: Connection, message: str) -> None:
        await gate.wait()
        await connection.send(message)

    async with serving(Recorder(answer)) as served:
        idle_reader, _ = await served.connect()
        idle = await served.accepted()
        reader, writer = await served.connect()
        writer.write(b"a\nb\n")
        busy = await until(lambda: next((made for made in served.made if made.running), None))
        idle.shutdown()
        busy.shutdown()
        assert await idle_reader.read() == b""
        assert busy.state == OPEN
        gate.set()
        assert await reader.read() == b"a\nb\n"
        await until(lambda: busy.state == CLOSED)


async def test_cancel_ends_a_handler() -> None:
    cancelled = asyncio.Event()

    async def answer(connection: Connection, message: str) -> None:
        try:
            await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        connection = await until(lambda: next((made for made in served.made if made.running), None))
        connection.cancel()
        await until(lambda: served.handler.ended)
        assert cancelled.is_set()
        assert served.handler.seen == ["connect", "a", "close"]
        assert served.worker.in_flight == 0


# Operations -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("heard", [False, True])
async def test_nothing_crosses_from_one_message_to_another(is_async: bool, heard: bool, around: Around) -> None:
    """What startup has set is there; what a handler sets is not there for the next message, nor for other connections, nor for the end."""
    seen: list[Any] = []
    operations: list[Operation] = []
    if heard:
        around.listen()

    def note(what: Any) -> None:
        operation: Any = current()
        assert not operation.ended
        operations.append(operation)
        seen.append((what, marked.get(), operation.name))
        marked.set(what)

    class Marking(Recorder):
        def on_connect(self, connection: Connection) -> None:
            note("connect")

        def on_message(self, connection: Connection, message: str) -> Any:
            return self.later(message) if is_async else note(message)

        async def later(self, message: str) -> None:
            note(message)
            await asyncio.sleep(0)
            assert marked.get() == message

        def on_close(self, connection: Connection) -> None:
            note("close")
            super().on_close(connection)

    token = marked.set("startup")
    try:
        async with serving(Marking()) as served:
            marked.set("of the connection")
            _, first = await served.connect()
            first.write(b"a\nb\n")
            await until(lambda: len(seen) == 3)
            _, second = await served.connect()
            second.write(b"c\n")
            await until(lambda: len(seen) == 5)
            first.close()
            await until(lambda: served.handler.ended)
            told = seen.copy()  # before the others are closed
    finally:
        marked.reset(token)
    messages = [(text, "startup", "message str") for text in ("a", "b", "c")]
    assert told == [
        ("connect", "startup", "connection on_connect"),
        *messages[:2],
        ("connect", "startup", "connection on_connect"),
        messages[2],
        ("close", "startup", "connection on_close"),
    ]
    assert all(operation.ended for operation in operations)


async def test_the_events_around_messages_and_their_outcome(around: Around) -> None:
    around.listen()

    async def answer(connection: Connection, message: str) -> None:
        assert connection.worker.in_flight == 1
        around.told.append(message)
        if message == "bad":
            raise ValueError(message)
        await asyncio.sleep(0)
        around.told.append(message)

    async with serving(Recorder(answer)) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\nbad\nc\n")
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
        assert around.told == ["received a", "a", "a", "ok a", "received b", "b", "b", "ok b", "received bad", "bad", "error bad"]
        assert all(event.worker is served.worker for event in around.events)
        assert (served.worker.in_flight, served.worker.sandbox.active) == (0, 0)


async def test_a_plain_handler_waits_for_what_is_done_around_it(around: Around) -> None:
    """Its message runs in a task then, and the next one waits."""
    gate = asyncio.Event()

    async def slowly(event: MessageReceived) -> None:
        await gate.wait()

    def answer(connection: Connection, message: str) -> None:
        around.told.append(f"{message} {connection.running is not None} {connection.worker.in_flight}")
        if message == "bad":
            raise ValueError(message)

    events.on(MessageReceived, slowly)
    around.listen()
    async with serving(Recorder(answer)) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\nbad\n")
        connection = await served.accepted()
        await until(lambda: connection.messages_in == 3)
        assert (served.handler.seen, served.worker.in_flight) == (["connect"], 1)
        gate.set()
        assert await reader.read() == b""
        expected = ["received a", "a True 1", "ok a", "received b", "b True 1", "ok b", "received bad", "bad True 1", "error bad"]
        await until(lambda: served.handler.ended)
        assert around.told == expected
        assert served.worker.in_flight == 0


async def test_who_begins_to_listen_hears_the_next_message(around: Around) -> None:
    async with serving(Recorder(shout)) as served:
        reader, writer = await served.connect()
        for line in (b"a\n", b"b\n"):
            writer.write(line)
            assert await reader.readline() == line.upper()
            around.listen()
        await until(lambda: around.told == ["received b", "ok b"])


@pytest.mark.parametrize("lost", [False, True])
async def test_a_message_that_is_cancelled_is_told_to_be_over(lost: bool, around: Around) -> None:
    """At the deadline of a stop; a connection that is lost does not cancel what it has brought."""
    around.listen()
    closed: list[str] = []
    gate = asyncio.Event()

    class Thing:
        def close(self) -> None:
            closed.append("closed")

    thing = local(Thing)

    async def answer(connection: Connection, message: str) -> None:
        thing()
        await gate.wait()

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        connection = await until(lambda: next((made for made in served.made if made.running and made.messages_in == 2), None))
        await until(lambda: served.handler.seen[-1] == "a")
        if lost:
            reset(writer)
            await connection.wait_closed()
            assert around.told == ["received a"]
        connection.cancel()
        await until(lambda: served.handler.ended)
        assert (around.told, closed) == (["received a", "cancelled a"], ["closed"])
        assert (served.worker.in_flight, served.worker.sandbox.active) == (0, 0)


@pytest.mark.parametrize("how", ["ends at that moment", "cancelled by the loop's end"])
async def test_what_waits_behind_a_message_that_is_cancelled_is_dropped(how: str) -> None:
    """Also where the connection was lost before, which alone drops nothing."""
    gate = asyncio.Event()

    async def answer(connection: Connection, message: str) -> None:
        await gate.wait()

    async with serving(Recorder(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        connection = await until(lambda: next((made for made in served.made if made.messages_in == 2), None))
        reset(writer)
        await connection.wait_closed()
        if how == "ends at that moment":
            gate.set()
            connection.cancel()
        else:
            connection.running.cancel()
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "close"]


async def test_a_message_that_has_just_come_is_cancelled_properly_too(around: Around) -> None:
    around.listen()

    async def answer(connection: Connection, message: str) -> None:
        await asyncio.sleep(DEADLINE)

    class Cancelled(Recorder):
        async def on_connect(self, connection: Connection) -> None:  # type: ignore[override]
            await connection.receive()
            asyncio.get_running_loop().call_soon(connection.cancel)  # right after this, and before the first step of the message

    async with serving(Cancelled(answer)) as served:
        _, writer = await served.connect()
        writer.write(b"a\nb\n")
        await until(lambda: served.handler.ended)
        assert around.told == ["received b", "cancelled b"]
        assert (served.worker.in_flight, served.worker.sandbox.active) == (0, 0)


async def test_locals_are_of_one_message_and_closed_after_it(around: Around) -> None:
    number = iter(range(100))
    told: list[str] = []

    def make() -> Iterator[int]:
        made = next(number)
        yield made
        told.append(f"close {made}")

    counted = local(make)

    async def answer(connection: Connection, message: str) -> None:
        told.append(f"{message} {counted()}")
        await asyncio.sleep(0)
        told.append(f"{message} {counted()}")
        if message == "c":
            raise ValueError(message)

    class Counting(Recorder):
        def on_connect(self, connection: Connection) -> None:
            told.append(f"connect {counted()}")

    async with serving(Counting(answer)) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\nc\n")
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
    assert told == ["connect 0", "close 0", "a 1", "a 1", "close 1", "b 2", "b 2", "close 2", "c 3", "c 3", "close 3"]


async def test_a_handler_whose_own_task_was_cancelled_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(connection: Connection, message: str) -> None:
        task = asyncio.create_task(asyncio.sleep(DEADLINE))
        task.cancel()
        await task

    async with serving(Recorder(answer)) as served:
        reader, writer = await served.connect()
        writer.write(b"a\nb\n")
        assert await reader.read() == b""
        await until(lambda: served.handler.ended)
        assert served.handler.seen == ["connect", "a", "close"]
    assert "on_message raised" in caplog.text


async def test_one_at_a_time_when_that_is_wanted_and_who_waits_lets_others_go_on() -> None:
    told: list[str] = []

    async def answer(connection: Connection, message: str) -> None:
        told.append(f"{message} begins")
        if message == "dialogue":
            message = await connection.receive()
        else:
            await asyncio.sleep(0.01)
        told.append(f"{message} ends")

    handler = Recorder(answer)
    async with serving(handler) as served:
        served.worker.sandbox = Sandbox(types.SimpleNamespace(config=types.SimpleNamespace(isolation="serial")))
        writers = [(await served.connect())[1] for _ in range(3)]
        writers[0].write(b"dialogue\n")
        await until(lambda: told)
        for name, writer in zip("ab", writers[1:], strict=True):
            writer.write(f"{name}1\n{name}2\n".encode())
        await until(lambda: len(told) == 9)
        writers[0].write(b"more\n")
        await until(lambda: told[-1] == "more ends")
    rest = told[1:-1]
    assert [text.partition(" ")[0] for text in rest[::2]] == [text.partition(" ")[0] for text in rest[1::2]]
    assert sorted(rest[::2]) == ["a1 begins", "a2 begins", "b1 begins", "b2 begins"]


async def test_the_connection_to_the_master_has_no_operations(around: Around) -> None:
    around.listen()

    async with serving(Recorder(lambda connection, message: around.told.append(current()))) as served:
        _, writer = await served.connect()
        connection = await served.accepted()
        connection.operates_for = None
        writer.write(b"a\n")
        await until(lambda: around.told)
        assert around.told == [None]


# What it looks like and costs -----------------------------------------------------------------------------------------------------


async def test_row() -> None:
    async with serving(Recorder()) as served:
        _, writer = await served.connect()
        connection = await served.accepted()
        writer.write(b"hi\n")
        await until(lambda: connection.bytes_in)
        row = connection.row()
        host, port = writer.get_extra_info("sockname")
        assert row["peer"] == f"{host}:{port}"
        assert row["local"] == f"127.0.0.1:{served.port}"
        assert 0 <= row["age"] < DEADLINE
        wanted = {"worker": "test", "slot": 0, "direction": "in", "protocol": "text", "state": "OPEN", "bytes_in": 3, "messages_in": 1}
        assert {name: row[name] for name in wanted} == wanted
        assert "in 127.0.0.1" in repr(connection)


@pytest.mark.parametrize(
    ("name", "text"),
    [(("127.0.0.1", 80), "127.0.0.1:80"), (("::1", 80, 0, 0), "[::1]:80"), ("/run/x", "/run/x"), ("", ""), (None, ""), (b"\0x", "\0x")],
)
async def test_names_of_sockets(name: Any, text: str) -> None:
    assert name_text(name) == text


async def test_keep_alive_is_for_tcp() -> None:
    keep_alive(None)
    here, there = socket.socketpair()
    with here, there:
        keep_alive(here)
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    keep_alive(sock)  # closed by now


async def test_an_idle_connection_is_small() -> None:
    class Transport:
        def get_extra_info(self, name: str) -> Any:
            return ("127.0.0.1", 40000) if name != "socket" else None

    handler = Recorder()
    worker = a_worker()
    count = 1000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            Connection(Frame(), handler, worker).connection_made(Transport())
        used = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert used < 1024


async def test_waiting_for_the_end_twice() -> None:
    async with serving(Recorder()) as served:
        _, writer = await served.connect()
        connection = await served.accepted()
        waiting = [asyncio.create_task(connection.wait_closed()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        writer.close()
        async with asyncio.timeout(DEADLINE):
            await waiting[1]
        with contextlib.suppress(asyncio.CancelledError):
            await waiting[0]
        await connection.wait_closed()
