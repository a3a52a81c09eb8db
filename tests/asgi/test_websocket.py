"""WebSocket sessions over real sockets, on asyncio and on uvloop: with the ``websockets`` client, and with frames made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import resource
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from laraman.asgi import websocket as module
from laraman.asgi.websocket import ClientDisconnected
from tests.asgi.service import DEADLINE, Client, Server, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET /chat?q=1 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


def frame(first: int, payload: bytes = b"") -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + b"\0\0\0\0" + payload


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(0x88, struct.pack("!H", code) + reason)


async def read_frame(client: Client) -> tuple[int, bytes]:
    async with asyncio.timeout(DEADLINE):
        first, size = await client.reader.readexactly(2)
        if size > 125:
            size = int.from_bytes(await client.reader.readexactly(2 if size == 126 else 8), "big")
        return first, await client.reader.readexactly(size)


async def open_raw(server: Server, fields: bytes = b"", early: bytes = b"") -> Client:
    client = await server.connect()
    client.write(HANDSHAKE % fields + early)
    head = await client.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"), head
    return client


def opening(server: Server, **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{server.port}/chat?q=1", proxy=None, **options)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Recorder:
    """Accepts, and keeps what it receives until the disconnect."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.ended = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.accepted = asyncio.Event()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        try:
            await receive()
            await send({"type": "websocket.accept"})
            self.accepted.set()
            await self.go_on.wait()
            while not self.messages or self.messages[-1]["type"] != "websocket.disconnect":
                self.messages.append(await receive())
            assert await receive() == self.messages[-1]
        finally:
            self.ended.set()

    async def disconnect(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            await self.ended.wait()
        return {key: value for key, value in self.messages[-1].items() if key != "type"}


# The handshake ------------------------------------------------------------------------------------------------------------------------


async def test_the_scope() -> None:
    scopes = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        scope["state"]["changed"] = True
        await send({"type": "websocket.accept"})

    async with serve(app, root_path="/root") as server:
        server.service.state["shared"] = 1
        async with opening(server, subprotocols=["one", "two"], additional_headers={"X-Name": "value"}) as client:
            local = client.local_address
            await client.wait_closed()
        assert server.service.state == {"shared": 1}
    (scope,) = scopes
    headers = dict(scope.pop("headers"))
    assert headers[b"x-name"] == b"value"
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/root/chat",
        "raw_path": b"/root/chat",
        "query_string": b"q=1",
        "root_path": "/root",
        "client": local,
        "server": ("127.0.0.1", server.port),
        "subprotocols": ["one", "two"],
        "state": {"shared": 1, "changed": True},
        "extensions": {"websocket.http.response": {}},
    }


async def test_accept_with_subprotocol_and_headers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept", "subprotocol": "two", "headers": [(b"X-One", b"1"), (b"x-one", b"2"), (b"Server", b"mine")]})

    async with serve(app, header=("X-Default: yes",)) as server, opening(server, subprotocols=["one", "two"]) as client:
        assert client.subprotocol == "two"
        assert client.response is not None
        headers = client.response.headers
        assert headers.get_all("x-one") == ["1", "2"]
        assert headers.get_all("server") == ["mine"]
        assert headers["x-default"] == "yes"
        assert headers["date"]
        assert headers["sec-websocket-extensions"] == "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"
        host, port = client.local_address[:2]
    assert f'{host}:{port} - "WebSocket /chat?q=1" [accepted]' in caplog.messages


async def test_compression_can_be_switched_off_and_bad_offers_are_ignored() -> None:
    async with serve(echo, ws_per_message_deflate=False) as server, opening(server) as client:
        assert client.response is not None
        assert "sec-websocket-extensions" not in client.response.headers
    async with serve(echo) as server:
        raw = await open_raw(server, b"Sec-WebSocket-Extensions: permessage-deflate; nonsense=;;\r\n")
        raw.write(frame(0x81, b"hi"))
        assert await read_frame(raw) == (0x81, b"hi")
        raw.close()


@pytest.mark.parametrize(
    ("old", "new", "status", "field"),
    [
        (b"Version: 13", b"Version: 12", 426, (b"sec-websocket-version", b"13")),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426, (b"upgrade", b"websocket")),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZQ==", 400, (b"connection", b"close")),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"not base64", 400, (b"connection", b"close")),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"", 400, (b"connection", b"close")),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 400, (b"connection", b"close")),
    ],
)
async def test_handshakes_that_are_refused(old: bytes, new: bytes, status: int, field: tuple[bytes, bytes]) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        raise AssertionError("never called")

    async with serve(app) as server:
        client = await server.connect()
        client.write((HANDSHAKE % b"").replace(old, new))
        got, fields, _ = await client.read_response()
        assert got == status
        assert fields[field[0]] == field[1]
        assert await client.read_all() == b""
        client.close()
        assert server.worker.in_flight == 0


async def test_what_comes_before_the_accept_is_kept() -> None:
    gate = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await gate.wait()
        await echo(scope, receive, send)

    async with serve(app) as server:
        client = await server.connect()
        client.write(HANDSHAKE % b"" + frame(0x81, b"one"))
        await until(lambda: server.worker.connections and server.service.running)
        big = os.urandom(300_000)
        client.write(frame(0x82, big))
        await until(lambda: next(iter(server.worker.connections)).bytes_in > module.MAX_EARLY)
        gate.set()
        await client.read_until(b"\r\n\r\n")
        assert await read_frame(client) == (0x81, b"one")
        assert await read_frame(client) == (0x82, big)
        client.close()


async def test_closing_before_accepting_is_a_403(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})
        seen.append(await receive())
        with pytest.raises(RuntimeError, match=r"^Unexpected ASGI message 'websocket.accept', after sending 'websocket.close'\.$"):
            await send({"type": "websocket.accept"})

    async with serve(app) as server:
        client = await server.connect()
        client.write(HANDSHAKE % b"")
        status, fields, body = await client.read_response()
        assert (status, body) == (403, b"")
        assert (fields[b"connection"], fields[b"content-length"], fields[b"server"]) == (b"close", b"0", b"laraman")
        assert fields[b"date"]
        client.close()
    assert seen == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    assert caplog.messages[0].endswith('- "WebSocket /chat?q=1" 403')
    assert caplog.messages[1:2] == ["connection rejected (403 Forbidden)"]


async def deny(send: Send, status: int, *bodies: bytes, headers: Any = ()) -> None:
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    for index, body in enumerate(bodies):
        await send({"type": "websocket.http.response.body", "body": body, "more_body": index + 1 < len(bodies)})


@pytest.mark.parametrize(
    ("status", "bodies", "headers", "length"),
    [
        (401, (b"log in",), [(b"x-why", b"because"), (b"connection", b"keep-alive")], b"6"),
        (401, (b"log", b" in"), [], None),
        (404, (b"log", b" in"), [(b"Content-Length", b"6")], b"6"),
        (599, (b"",), [], b"0"),
        (204, (b"never sent",), [(b"content-length", b"10")], None),
    ],
)
async def test_a_denial_response(status: int, bodies: tuple[bytes, ...], headers: Any, length: bytes | None) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await deny(send, status, *bodies, headers=headers)

    async with serve(app) as server:
        answer = await server.ask(HANDSHAKE % b"")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert head.lower().count(b"connection: close") == head.lower().count(b"connection:") == 1
        assert (b"content-length: %b" % length in head.lower()) if length else (b"content-length" not in head)
        assert body == (b"" if status == 204 else b"".join(bodies))


async def test_denial_as_a_client_sees_it() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await deny(send, 418, b"tea", b"pot")

    async with serve(app) as server:
        with pytest.raises(InvalidStatus) as caught:
            await opening(server)
        assert caught.value.response.status_code == 418
        assert caught.value.response.body == b"teapot"


@pytest.mark.parametrize(
    ("sends", "error", "answer"),
    [
        ([{"type": "websocket.send", "text": "x"}], "Expected ASGI message 'websocket.accept', 'websocket.close' or ", 500),
        ([{"type": "websocket.accept", "subprotocol": "not offered"}], "The client has not offered the subprotocol 'not offered'.", 500),
        ([{"type": "websocket.accept", "headers": [(b"x", b"a\r\nb: c")]}], "Invalid HTTP header value.", 500),
        ([{"type": "websocket.accept", "headers": [(b"x y", b"a")]}], "Invalid HTTP header name.", 500),
        ([{"type": "websocket.accept", "headers": [(b"Upgrade", b"a")]}], "The server sends 'Upgrade' itself", 500),
        ([{"type": "websocket.http.response.start", "status": 600}], "Invalid HTTP status code '600' in response.", 500),
        ([{"type": "websocket.http.response.start", "status": 400, "headers": [(b"x", b"\0")]}], "Invalid HTTP header value.", 500),
        (
            [{"type": "websocket.http.response.start", "status": 400}, {"type": "websocket.accept"}],
            "Expected ASGI message 'websocket.http.response.body' but got 'websocket.accept'.",
            500,
        ),
        (
            [
                {"type": "websocket.http.response.start", "status": 400, "headers": [(b"content-length", b"2")]},
                {"type": "websocket.http.response.body", "body": b"long"},
            ],
            "Response content longer than Content-Length",
            500,
        ),
        ([{"type": "websocket.accept"}, {"type": "websocket.accept"}], "Expected ASGI message 'websocket.send' or 'websocket.close', but got", 101),
        ([{"type": "websocket.accept"}, {"type": "websocket.send"}], "A 'websocket.send' needs bytes in 'bytes' or a str in 'text'.", 101),
        ([{"type": "websocket.accept"}, {"type": "websocket.close", "code": 999}], "Invalid 'websocket.close': 999 is not a close code.", 101),
        (
            [{"type": "websocket.accept"}, {"type": "websocket.close"}, {"type": "websocket.send", "text": "x"}],
            "Unexpected ASGI message 'websocket.send', after sending 'websocket.close'.",
            101,
        ),
    ],
)
async def test_messages_out_of_order_or_wrong(caplog: pytest.LogCaptureFixture, sends: list[dict[str, Any]], error: str, answer: int) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        for message in sends:
            await send(message)

    async with serve(app) as server:
        client = await server.connect()
        client.write(HANDSHAKE % b"")
        head = await client.read_until(b"\r\n\r\n")
        assert int(head.split()[1]) == answer
        client.close()
    assert "Exception in ASGI application\n" in caplog.messages
    assert error in caplog.text


async def test_an_application_that_returns_or_raises_before_accepting(caplog: pytest.LogCaptureFixture) -> None:
    async def returns(scope: Any, receive: Receive, send: Send) -> None:
        await receive()

    async def raises(scope: Any, receive: Receive, send: Send) -> None:
        raise ValueError("a bug")

    for app, line in ((returns, "ASGI callable returned without completing handshake."), (raises, "Exception in ASGI application\n")):
        async with serve(app) as server:
            client = await server.connect()
            client.write(HANDSHAKE % b"")
            status, fields, body = await client.read_response()
            assert (status, body, fields[b"connection"]) == (500, b"Internal Server Error", b"close")
            client.close()
        assert line in caplog.messages


# Messages -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_echo(compression: Any) -> None:
    async with serve(echo) as server, opening(server, compression=compression, max_size=None) as client:
        for message in ("", "grüße", "x" * 100_000, b"", bytes(200), os.urandom(70_000), b"\xff" * 3_000_000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["frag", "ments"])
        assert await client.recv() == "fragments"
        assert await (await client.ping(b"payload")) >= 0


async def test_many_messages_in_few_reads_and_many_in_flight() -> None:
    count = 20_000
    async with serve(echo) as server:
        client = await open_raw(server)
        sending = asyncio.create_task(_send_all(client, b"".join(frame(0x81, b"%d" % number) for number in range(count))))
        for number in range(count):
            assert await read_frame(client) == (0x81, b"%d" % number)
        await sending
        client.close()


async def _send_all(client: Client, data: bytes) -> None:
    client.write(data)
    await client.writer.drain()


async def test_a_message_can_be_any_kind_of_bytes() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": bytearray(b"one"), "text": None})
        await send({"type": "websocket.send", "bytes": memoryview(b"two")})
        await send({"type": "websocket.send", "bytes": None, "text": "three"})

    async with serve(app) as server, opening(server) as client:
        assert [message async for message in client] == [b"one", b"two", "three"]


async def test_a_cancelled_receive_loses_nothing() -> None:
    got: list[Any] = []
    cancelled = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(3):
            task = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            task.cancel()
        cancelled.set()
        both = await asyncio.gather(receive(), receive())
        got.extend(message["text"] for message in both)

    async with serve(app) as server, opening(server) as client:
        await cancelled.wait()
        await client.send("one")
        await client.send("two")
        await client.wait_closed()
    assert sorted(got) == ["one", "two"]


async def test_each_session_has_its_own_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        variable.set("session")
        await send({"type": "websocket.accept"})

    async with serve(app) as server:
        for _ in range(2):
            async with opening(server) as client:
                await client.wait_closed()
    assert seen == ["unset", "unset"]


async def test_reading_pauses_while_the_application_does_not_receive() -> None:
    recorder = Recorder()
    recorder.go_on.clear()
    async with serve(recorder) as server:
        client = await open_raw(server)
        (connection,) = server.worker.connections
        total = 64 * 1_000_000
        sending = asyncio.create_task(_send_all(client, frame(0x82, bytes(1_000_000)) * 64))
        await until(lambda: connection.reading_paused)
        before = -1
        while before != connection.bytes_in:  # nothing more comes once it is paused
            before = connection.bytes_in
            await asyncio.sleep(0.05)
        assert before < 4_000_000
        recorder.go_on.set()
        await sending
        client.write(close_frame(1000))
        assert await recorder.disconnect() == {"code": 1000, "reason": ""}
        assert sum(len(message.get("bytes", b"")) for message in recorder.messages) == total
        client.close()


@pytest.mark.parametrize("waiting", [1, 2])
async def test_sending_waits_for_a_client_that_does_not_read(waiting: int) -> None:
    sent = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        for _ in range(100):
            await send({"type": "websocket.send", "bytes": bytes(1_000_000)})
            sent.append(1)

    async with serve(app) as server:
        # A second message that waits is a reason to hold frames back for one write, and not to hold them all.
        client = await open_raw(server, early=frame(0x81, b"x") * waiting)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = server.worker.connections
        await until(lambda: connection.writing_paused)
        before = -1
        while before != len(sent):
            before = len(sent)
            await asyncio.sleep(0.05)
        assert before < 50
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            assert len((await read_frame(client))[1]) == 1_000_000
        client.close()


async def test_a_client_that_never_reads_is_cut_off() -> None:
    outcome = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(1_000_000)})
        except ClientDisconnected as exc:
            outcome.append(exc)

    async with serve(app, timeout_write=0.2) as server:
        client = await open_raw(server)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: outcome)
        client.close()
    assert isinstance(outcome[0], OSError)


async def test_pings_without_reading_the_pongs_cost_no_memory() -> None:
    async with serve(echo) as server:
        client = await open_raw(server)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = server.worker.connections
        sending = asyncio.create_task(_send_all(client, frame(0x89, bytes(125)) * 100_000))
        await until(lambda: connection.writing_paused)
        await asyncio.sleep(0.1)
        assert connection.transport.get_write_buffer_size() < 1_000_000
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(100_000):
            await read_frame(client)
        await sending
        client.close()


# Ends ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "gone"), (3000, "grün"), (4999, "x" * 100)])
async def test_the_clients_close(code: int, reason: str) -> None:
    recorder = Recorder()
    async with serve(recorder) as server:
        client = await open_raw(server)
        client.write(frame(0x81, b"last") + close_frame(code, reason.encode()))
        assert await read_frame(client) == (0x88, struct.pack("!H", code) + reason.encode())
        assert await client.read_all() == b""
        assert recorder.messages[0] == {"type": "websocket.receive", "text": "last"}
        assert await recorder.disconnect() == {"code": code, "reason": reason}
        client.close()
        await until(lambda: not server.worker.connections)


async def test_a_close_without_a_code_is_1005() -> None:
    recorder = Recorder()
    async with serve(recorder) as server:
        client = await open_raw(server)
        client.write(frame(0x88))
        assert await read_frame(client) == (0x88, b"")
        assert await recorder.disconnect() == {"code": 1005, "reason": ""}
        client.close()


@pytest.mark.parametrize("abort", [False, True])
async def test_a_connection_lost_after_the_handshake_is_1005(abort: bool) -> None:
    recorder = Recorder()
    async with serve(recorder) as server:
        client = await open_raw(server)
        client.writer.transport.abort() if abort else client.close()
        assert await recorder.disconnect() == {"code": 1005, "reason": ""}


async def test_a_connection_lost_before_the_handshake_is_1006() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        seen.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.accept"})
        seen.append("raised")

    async with serve(app) as server:
        client = await server.connect()
        client.write(HANDSHAKE % b"")
        await until(lambda: server.service.running)
        client.close()
        await until(lambda: len(seen) == 2)
    assert seen[0] == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


async def test_sending_to_a_client_that_has_left(caplog: pytest.LogCaptureFixture) -> None:
    raised: list[BaseException] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        await receive()
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as exc:
            raised.append(exc)
            raise

    async with serve(app) as server:
        client = await open_raw(server)
        client.write(close_frame(1001))
        await read_frame(client)
        client.close()
        await until(lambda: raised)
    assert type(raised[0]) is ClientDisconnected
    assert not caplog.records  # and that is no error of the application's


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        ({}, struct.pack("!H", 1000)),
        ({"code": 4000, "reason": "enough"}, struct.pack("!H", 4000) + b"enough"),
        ({"code": 1001, "reason": None}, struct.pack("!H", 1001)),
        ({"code": 4001, "reason": "ü" * 100}, struct.pack("!H", 4001) + "ü".encode() * 61),
    ],
)
async def test_the_applications_close(message: dict[str, Any], payload: bytes) -> None:
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", **message})
        seen.append(await receive())

    async with serve(app) as server:
        client = await open_raw(server)
        assert await read_frame(client) == (0x88, payload)
        client.write(frame(0x81, b"crossed on the way") * 200 + frame(0x88, payload))
        assert await client.read_all() == b""
        client.close()
        await until(lambda: not server.worker.connections)
    assert seen == [{"type": "websocket.disconnect", "code": message.get("code", 1000), "reason": message.get("reason") or ""}]


async def test_a_close_that_is_not_answered_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.2)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    async with serve(app, timeout_write=0.4) as server:
        client = await open_raw(server)
        await read_frame(client)
        assert server.worker.connections
        with contextlib.suppress(ConnectionError):
            await client.read_all()
        client.close()
        await until(lambda: not server.worker.connections)


async def test_the_session_ends_with_the_application() -> None:
    async def returns(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def raises(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise ValueError("a bug")

    for app, code in ((returns, 1000), (raises, 1011)):
        async with serve(app) as server:
            async with opening(server) as client:
                with pytest.raises(ConnectionClosed) as caught:
                    await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == code
            await until(lambda: not server.worker.connections)
            assert server.worker.in_flight == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x81, b"\xff"), 1007),
        (frame(0x82, bytes(1001)), 1009),
        (frame(0x02, bytes(600)) * 1 + frame(0x80, bytes(600)), 1009),
        (b"\x81\x01x", 1002),
        (frame(0xF1, b"x"), 1002),
        (close_frame(1005), 1002),
    ],
)
async def test_faults_of_the_client(data: bytes, code: int) -> None:
    recorder = Recorder()
    async with serve(recorder, ws_max_size=1000) as server:
        client = await open_raw(server)
        # Much more behind it: the close frame must arrive nevertheless, and not be lost to a reset.
        client.write(data + bytes(1_000_000))
        first, payload = await read_frame(client)
        assert (first, payload[:2]) == (0x88, struct.pack("!H", code))
        assert await client.read_all() == b""
        assert (await recorder.disconnect())["code"] == code
        client.close()
        await until(lambda: not server.worker.connections)


async def test_the_workers_stop_closes_with_1012_at_once() -> None:
    recorder = Recorder()
    async with serve(recorder) as server, opening(server) as client:
        await recorder.accepted.wait()
        (connection,) = server.worker.connections
        connection.shutdown()
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
        assert await recorder.disconnect() == {"code": 1012, "reason": ""}
        await until(lambda: not server.worker.connections)


async def test_the_workers_stop_before_the_accept() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        seen.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.accept"})
        seen.append(None)

    async with serve(app) as server:
        client = await server.connect()
        client.write(HANDSHAKE % b"")
        await until(lambda: server.service.running)
        (connection,) = server.worker.connections
        connection.shutdown()
        assert (await client.read_response())[0] == 503
        client.close()
        await until(lambda: len(seen) == 2)
    assert seen[0] == {"type": "websocket.disconnect", "code": 1012, "reason": ""}


async def test_the_deadline_of_the_stop_cancels() -> None:
    outcome = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    async with serve(app) as server:
        client = await open_raw(server)
        (connection,) = server.worker.connections
        connection.cancel()
        await until(lambda: not server.service.running)
        client.close()
    assert outcome == ["cancelled"]


# Pings --------------------------------------------------------------------------------------------------------------------------------

FAST = {"timeout_write": 0.4, "ws_ping_interval": 0.1, "ws_ping_timeout": 0.2}


async def test_a_client_without_pongs_is_closed_with_1011() -> None:
    recorder = Recorder()
    async with serve(recorder, **FAST) as server:
        client = await open_raw(server)
        frames = [await read_frame(client)]
        while frames[-1][0] != 0x88:
            frames.append(await read_frame(client))
        assert frames[0] == (0x89, b"")
        assert frames[-1][1] == struct.pack("!H", 1011) + b"keepalive ping timeout"
        assert await recorder.disconnect() == {"code": 1011, "reason": "keepalive ping timeout"}
        client.close()


async def test_a_client_with_pongs_stays() -> None:
    async with serve(echo, **FAST) as server:
        client = await open_raw(server)
        for _ in range(8):
            assert await read_frame(client) == (0x89, b"")
            client.write(frame(0x8A))
        client.write(frame(0x81, b"alive"))
        while (got := await read_frame(client)) == (0x89, b""):
            client.write(frame(0x8A))
        assert got == (0x81, b"alive")
        client.close()


async def test_an_application_that_is_slow_to_receive_is_no_dead_client() -> None:
    recorder = Recorder()
    recorder.go_on.clear()
    async with serve(recorder, **FAST, ws_max_queue=1) as server:
        client = await open_raw(server)
        (connection,) = server.worker.connections
        for _ in range(2):
            client.write(frame(0x82, bytes(100)))
            await until(lambda: connection.messages_in or connection.reading_paused)
        client.write(frame(0x82, bytes(100)))
        await until(lambda: connection.reading_paused)
        await asyncio.sleep(0.6)
        recorder.go_on.set()
        client.write(close_frame(1000))
        assert await recorder.disconnect() == {"code": 1000, "reason": ""}
        client.close()


# Bombs --------------------------------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """One GiB of zeros in a frame of one MiB."""
    compressor = zlib.compressobj(9, wbits=-12)
    first, again = (compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    return frame(0xC2, (first + again * 1023)[:-4])


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """The longest that the loop was busy, in seconds of CPU: what other processes take does not count."""
    worst = [0.0]

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            worst[0] = max(worst[0], time.thread_time() - before)

    watching = asyncio.create_task(watch())
    try:
        yield worst
    finally:
        watching.cancel()


async def test_a_bomb_costs_neither_memory_nor_a_blocked_loop() -> None:
    recorder = Recorder()
    data = bomb()
    async with serve(recorder) as server:
        client = await open_raw(server, DEFLATE)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with lag() as worst:
            client.write(data)
            first, payload = await read_frame(client)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert (first, payload[:2]) == (0x88, struct.pack("!H", 1009))
        assert (await recorder.disconnect())["code"] == 1009
        assert grown < 64 * 1024  # KiB; ws_max_size is 16 MiB, and this process is the client as well
        assert worst[0] < 0.2  # some ms on a quiet machine, 0.9 s when inflated at once
        client.close()


async def test_a_message_of_the_largest_size_is_taken_in_steps() -> None:
    compressor = zlib.compressobj(9, wbits=-12)
    data = frame(0xC2, compressor.compress(bytes(16 * 1024 * 1024)) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4])
    recorder = Recorder()
    async with serve(recorder) as server:
        client = await open_raw(server, DEFLATE)
        async with lag() as worst:
            client.write(data + close_frame(1000))
            assert await recorder.disconnect() == {"code": 1000, "reason": ""}
        assert len(recorder.messages[0]["bytes"]) == 16 * 1024 * 1024
        assert worst[0] < 0.1
        client.close()
