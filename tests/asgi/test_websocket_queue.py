"""What waits for an application that does not receive, and what is said of a session: lines, and an end that comes twice."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.asgi.service import serve
from tests.asgi.test_websocket import HANDSHAKE, Recorder, close_frame, echo, frame, open_raw, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("queue", "size", "most"), [(1, 10, 3), (4, 10, 6), (32, 10, 34), (32, 40_000, 4)])
async def test_reading_pauses_when_as_many_messages_wait_as_may(queue: int, size: int, most: int) -> None:
    """Or 64 KiB of them: a queue of many small messages is none of many large ones."""
    recorder = Recorder()
    recorder.go_on.clear()
    async with serve(recorder, ws_max_queue=queue) as server:
        client = await open_raw(server)
        (connection,) = server.worker.connections
        sent = 0
        while not connection.reading_paused and sent < 2 * most:  # one read each
            client.write(frame(0x82, bytes(size)))
            sent += 1
            await until(lambda wanted=sent: connection.messages_in == wanted or connection.reading_paused)
        assert connection.reading_paused
        assert min(queue, 2) <= connection.messages_in <= most
        client.write(frame(0x81, b"last") + close_frame(1000))
        recorder.go_on.set()
        assert await recorder.disconnect() == {"code": 1000, "reason": ""}
        assert [len(message["bytes"]) for message in recorder.messages[:-2]] == [size] * sent
        assert recorder.messages[-2]["text"] == "last"
        client.close()


async def session(server: Any, handshake: bytes, *more: bytes) -> None:
    client = await server.connect()
    client.write(handshake)
    await client.read_until(b"\r\n\r\n")
    for data in more:
        client.write(data)
    await client.read_all()
    client.close()
    await until(lambda: not server.worker.connections)


async def test_lines_with_uvicorns_arguments(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/accept":
            await send({"type": "websocket.accept"})
            await receive()
        elif scope["path"] == "/403":
            await send({"type": "websocket.close"})
        elif scope["path"] == "/401":
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no"})
        else:
            raise ValueError

    async with serve(app) as server:
        for path, *more in ((b"/accept", close_frame(1000)), (b"/403",), (b"/401",), (b"/500",)):
            await session(server, (HANDSHAKE % b"").replace(b"/chat", path), *more)
        await session(server, (HANDSHAKE % b"").replace(b"Version: 13", b"Version: 12"))
        records = [record for record in caplog.records if record.levelno == logging.INFO]
    client = next(iter(records[0].args))  # type: ignore[arg-type]
    assert str(client).startswith("127.0.0.1:")
    assert [(record.msg, record.args and record.args[-2:]) for record in records] == [  # type: ignore[index]
        ('%s - "WebSocket %s" [accepted]', (client, "/accept?q=1")),
        ("connection open", ()),
        ("connection closed", ()),
        ('%s - "WebSocket %s" 403', (records[3].args[0], "/403?q=1")),  # type: ignore[index]
        ("connection rejected (%d %s)", (403, "Forbidden")),
        ('%s - "WebSocket %s" %d', ("/401?q=1", 401)),
        ("connection rejected (%d %s)", (401, "Unauthorized")),
        ("connection rejected (%d %s)", (500, "Internal Server Error")),
        ("connection rejected (%d %s)", (426, "Upgrade Required")),
    ]
    assert {record.name for record in caplog.records} == {"uvicorn.error"}


@pytest.mark.parametrize("late", [False, True])
async def test_closing_what_the_client_has_closed_is_no_error(late: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Applications close in a ``finally``."""
    raised: list[BaseException] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            if late:
                await until(lambda: not server.worker.connections)
            for kind in ("websocket.send", "websocket.close", "websocket.close"):
                try:
                    await send({"type": kind, "text": "x"})
                except OSError as exc:
                    raised.append(exc)

    async with serve(app) as server:
        await session(server, HANDSHAKE % b"", close_frame(1001))
        await asyncio.sleep(0)
        await until(lambda: not server.service.running)
    assert len(raised) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
