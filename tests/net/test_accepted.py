from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed as Closed
from websockets.exceptions import InvalidStatus

from laraman.config import Config
from laraman.errors import ConnectionClosed, ConnectionLost, RemoteProtocolError
from laraman.net import websocket as module
from laraman.net.accepted import AcceptedWebSocket, websocket_factory
from laraman.protocols.upgrade import Accept, Answer, Upgrade
from tests.net.serving import Served, a_worker, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

REQUEST = (
    b"GET /there?a=1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
#: A client's empty close frame, and a text of it.
CLOSE = b"\x88\x80\0\0\0\0"
HI = b"\x81\x82\0\0\0\0hi"


class Echo:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_connect(self, connection: AcceptedWebSocket) -> None:
        self.told.append("connect")

    def on_message(self, connection: AcceptedWebSocket, message: str | bytes) -> None:
        self.told.append(message)
        connection.send_nowait(message)

    def on_error(self, connection: AcceptedWebSocket, error: BaseException) -> None:
        self.told.append(type(error))

    def on_close(self, connection: AcceptedWebSocket) -> None:
        self.told.append(("close", connection.close_code, connection.close_reason))


@contextlib.asynccontextmanager
async def accepting(handler: Any, max_message: int | None = None, **options: Any) -> AsyncIterator[Served]:
    worker = a_worker()
    worker.max_message, worker.write_buffer = max_message, None
    worker.config = replace(Config(), **options)
    served = Served(handler, worker, 0)
    factory = websocket_factory(worker, handler)

    def make() -> AcceptedWebSocket:
        served.made.append(factory())
        return served.made[-1]  # type: ignore[return-value]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        await served.close()


def url(served: Served, path: str = "/") -> str:
    return f"ws://127.0.0.1:{served.port}{path}"


async def test_messages_of_both_kinds_and_a_close_from_either_side() -> None:
    handler = Echo()
    async with accepting(handler) as served:
        async with connect(url(served, "/a%20b?c=d")) as client:
            assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
            for message in ("é" * 1000, b"\0\1", ""):
                await client.send(message)
                assert await client.recv() == message
            connection: Any = await served.accepted()
            assert (connection.upgrade.path, connection.upgrade.query) == ("/a b", "c=d")
            assert connection.row()["protocol"] == "websocket"
            await client.close(4001, "enough")
        await until(lambda: handler.told[-1] == ("close", 4001, "enough"))
        assert isinstance(connection.error, ConnectionLost)
        assert (connection.messages_in, connection.messages_out) == (3, 3)
        async with connect(url(served)) as client:
            last: Any = await until(lambda: served.made[-1] if served.made[-1] is not connection and served.made[-1].handler is handler else None)
            last.close(4002, "ours")
            with pytest.raises(Closed) as caught:
                await client.recv()
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4002, "ours")  # type: ignore[union-attr]
        await until(lambda: handler.told[-1] == ("close", 4002, "ours"))
        assert isinstance(last.error, ConnectionClosed)
    assert handler.told[:4] == ["connect", "é" * 1000, b"\0\1", ""]


async def test_compression_is_the_configuration_s() -> None:
    async with accepting(Echo(), ws_per_message_deflate=False) as served, connect(url(served)) as client:
        assert "Sec-WebSocket-Extensions" not in client.response.headers  # type: ignore[union-attr]


class Doorkeeper(Echo):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    async def on_upgrade(self, connection: AcceptedWebSocket, upgrade: Upgrade) -> Any:
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "status"), [(Answer(401, b"who?", ((b"X-Why", b"you"),)), 401), (ValueError("no"), 500), (False, 500), (Accept("not-offered"), 500)]
)
async def test_who_is_refused_is_answered_and_nothing_more_is_heard(answer: Any, status: int) -> None:
    handler = Doorkeeper(answer)
    async with accepting(handler) as served:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url(served)).__aenter__()
        response = caught.value.response
        assert response.status_code == status
        if status == 401:
            assert (response.body, response.headers["X-Why"]) == (b"who?", "you")
        await until(lambda: not served.worker.connections)
    assert handler.told == []


async def test_a_subprotocol_is_chosen() -> None:
    async with accepting(Doorkeeper(Accept("b"))) as served, connect(url(served), subprotocols=["a", "b"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "b"
        await client.send("x")
        assert await client.recv() == "x"


class Greeter(Echo):
    """A dialogue in on_connect: what comes meanwhile is its."""

    async def on_connect(self, connection: AcceptedWebSocket) -> None:  # type: ignore[override]
        await connection.send("name?")
        await connection.send(f"hello {await connection.receive()}")


async def test_what_comes_before_the_answer_is_not_lost() -> None:
    """Clients may not send yet; those that do it are served all the same."""
    handler = Greeter()
    async with accepting(handler) as served:
        reader, writer = await served.connect()
        writer.write(REQUEST + HI + HI)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert await reader.readexactly(7 + 10 + 4) == b"\x81\x05name?\x81\x08hello hi\x81\x02hi"
        connection = await served.accepted()
        assert connection.bytes_in == len(REQUEST + HI + HI)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 405 "),
        (REQUEST.replace(b"Version: 13", b"Version: 12"), b"HTTP/1.1 426 "),
        (REQUEST.replace(b"AAAA==", b"=="), b"HTTP/1.1 400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70000, b"HTTP/1.1 431 "),
    ],
)
async def test_what_is_no_handshake_is_answered(data: bytes, answer: bytes) -> None:
    handler = Echo()
    async with accepting(handler) as served:
        reader, writer = await served.connect()
        writer.write(data)
        assert (await reader.read()).startswith(answer)
        writer.close()
        await until(lambda: not served.worker.connections)
    assert handler.told == []


async def test_who_says_nothing_is_not_waited_for() -> None:
    async with accepting(Echo(), timeout_request_header=0.1) as served:
        reader, _ = await served.connect()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert "no websocket within 0.1 s" in str((await served.accepted()).error)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x81\x05hello", 1002),  # not masked
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that there is not
        (b"\xc1\x81\0\0\0\0x", 1002),  # compressed, which was not agreed on
        (b"\x80\x81\0\0\0\0x", 1002),  # the continuation of nothing
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
        (b"\x82\xff\0\0\0\0\0\x10\0\0\0\0\0\0", 1009),
        (b"\x82\xfe\x10\0\0\0\0\0" + bytes(4096), 1009),
    ],
)
async def test_a_fault_is_told_with_its_code(frames: bytes, code: int) -> None:
    """What came before it is handled, and the peer gets the close, not a reset, though it goes on sending."""
    handler = Echo()
    async with accepting(handler, max_message=1000) as served:
        reader, writer = await served.connect()
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HI)
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.write(frames + bytes(100_000))
        first, length = await reader.readexactly(2)
        assert (first, int.from_bytes((await reader.readexactly(length))[:2], "big")) == (0x88, code)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not served.worker.connections)
        assert [*handler.told[:3], handler.told[3][:2]] == ["connect", "hi", RemoteProtocolError, ("close", code)]


async def test_what_came_together_with_the_close_is_handled_and_its_answers_have_nowhere_to_go(caplog: pytest.LogCaptureFixture) -> None:
    handler = Echo()
    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        async with accepting(handler) as served:
            reader, writer = await served.connect()
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HI + CLOSE)
            assert await reader.read() == b"\x88\x00"
            await until(lambda: handler.told[-1] == ("close", 1005, ""))
    assert handler.told[:2] == ["connect", "hi"]
    assert caplog.text == "", "a client that leaves is no fault of the handler"


class Later(Echo):
    """The same in coroutines, which take their time; nothing is answered."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turns = turns

    async def on_message(self, connection: AcceptedWebSocket, message: str | bytes) -> None:  # type: ignore[override]
        await self._wait()
        self.told.append(message)

    async def on_error(self, connection: AcceptedWebSocket, error: BaseException) -> None:  # type: ignore[override]
        await self._wait()
        self.told.append(type(error))

    async def _wait(self) -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("end", [CLOSE, b"\x81\x05hello"], ids=["close", "fault"])
async def test_coroutines_handle_all_that_came_before_the_end(turns: int, end: bytes) -> None:
    """Whenever they are done: before the transport is gone, or after that."""
    handler = Later(turns)
    async with accepting(handler) as served:
        reader, writer = await served.connect()
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(3 * HI + end)
        await reader.read()
        writer.close()
        await until(lambda: handler.told and isinstance(handler.told[-1], tuple))
    told = [entry for entry in handler.told if entry is not RemoteProtocolError]
    assert told[:4] == ["connect", "hi", "hi", "hi"]
    assert handler.told.count(RemoteProtocolError) == (end != CLOSE)


async def test_who_ends_without_a_word_has_1006() -> None:
    handler = Echo()
    async with accepting(handler) as served:
        reader, writer = await served.connect()
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await until(lambda: handler.told[-1] == ("close", 1006, ""))


async def test_who_does_not_answer_a_close_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_WAIT", 0.1)
    handler = Echo()
    async with accepting(handler) as served:
        reader, writer = await served.connect()
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        connection = await served.accepted()
        connection.close(1008)
        connection.close(1009)
        assert await reader.read() == b"\x88\x02\x03\xf0"
        await until(lambda: handler.told[-1] == ("close", 1008, ""))


async def test_pings_and_a_silent_peer() -> None:
    handler = Echo()
    async with accepting(handler, ws_ping_interval=0.05, ws_ping_timeout=0.2) as served:
        async with connect(url(served)) as client:  # answers them
            connection = await served.accepted()
            await until(lambda: connection.bytes_in > 400)  # some forty pongs later it is still there
            await client.send("x")
            assert await client.recv() == "x"
        reader, writer = await served.connect()
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        received = await reader.read()
        assert received.startswith(b"\x89\x00")
        assert received.endswith(b"\x03\xf3keepalive ping timeout")
        writer.close()
        await until(lambda: handler.told[-1] == ("close", 1011, "keepalive ping timeout"))


async def test_without_pings_there_is_no_timer() -> None:
    async with accepting(Echo(), ws_ping_interval=0.0) as served, connect(url(served)) as client:
        await client.send("x")
        assert await client.recv() == "x"
        assert (await served.accepted())._timer is None  # type: ignore[attr-defined]


class Raising(Echo):
    def on_message(self, connection: AcceptedWebSocket, message: str | bytes) -> None:
        raise ValueError(message)


async def test_a_handler_that_raises_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    handler = Raising()
    async with accepting(handler) as served, connect(url(served)) as client:
        await client.send("x")
        with pytest.raises(Closed) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 1011  # type: ignore[union-attr]
        await until(lambda: handler.told[-1] == ("close", 1011, ""))
    assert handler.told == ["connect", ValueError, ("close", 1011, "")]
    assert "on_message raised" in caplog.text


async def test_the_stop_of_the_worker_is_a_restart_for_clients() -> None:
    async with accepting(Echo()) as served, connect(url(served)) as client:
        await client.send("x")
        assert await client.recv() == "x"
        _, writer = await served.connect()
        await until(lambda: len(served.worker.connections) == 2)
        for connection in tuple(served.worker.connections):
            connection.shutdown()
        with pytest.raises(Closed) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 1012  # type: ignore[union-attr]
        await until(lambda: not served.worker.connections)
        writer.close()
