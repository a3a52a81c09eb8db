"""Two users at the same time: nothing of one is seen by the other, on one kept connection and on many."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

ROUNDS = 40

APP = """
import asyncio, contextvars, decimal, threading
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from laraman import sandbox

variable = contextvars.ContextVar("variable", default=None)
local = sandbox.local(list)
thread = threading.local()
USER = None   # as one would have written it where every request has the process for itself

def seen(user):
    found = [variable.get(), *local(), decimal.getcontext().prec]
    variable.set(user)
    local().append(user)
    decimal.getcontext().prec = 5
    return found

async def concurrent(request):
    user = request.headers["x-user"]
    before = seen(user)
    for _ in range(3):
        await asyncio.sleep(0)
    body = b""
    async for piece in request.stream():   # a large one makes the server pause reading and resume it
        body += piece
        await asyncio.sleep(0)
    inner = await asyncio.create_task(asyncio.to_thread(lambda: [variable.get(), *local()]))
    return JSONResponse({"before": before, "after": [variable.get(), *local()], "inner": inner, "size": len(body)})

def threaded(request):
    user = request.headers["x-user"]
    before = [*seen(user), getattr(thread, "user", None)]
    thread.user = user
    return JSONResponse({"before": before, "after": [variable.get(), *local()], "inner": [variable.get(), *local()], "size": 0})

async def serial(request):
    global USER
    USER = request.headers["x-user"]
    for _ in range(3):
        await asyncio.sleep(0.001)
    return JSONResponse({"user": USER})

async def session(websocket):
    global USER
    await websocket.accept()
    async for text in websocket.iter_text():
        USER = text
        await asyncio.sleep(0.001)
        await websocket.send_text(USER)

async def two(websocket):   # stops waiting for a message when there is something else
    await websocket.accept()
    left = asyncio.create_task(websocket.receive())
    await asyncio.wait({left}, timeout=0.01)
    left.cancel()
    await websocket.close()

async def flood(websocket):
    await websocket.accept()
    while True:
        await websocket.send_bytes(b"x" * 100_000)

app = Starlette(routes=[
    WebSocketRoute("/flood", flood),
    WebSocketRoute("/two", two),
    Route("/concurrent", concurrent, methods=["POST"]),
    Route("/threaded", threaded, methods=["POST"]),
    Route("/serial", serial, methods=["POST"]),
    WebSocketRoute("/session", session),
])
"""
FILES = {"app.py": APP, "pyproject.toml": '[tool.laraman.sandbox]\nflush = ["app:thread"]\n'}


def request(path: str, user: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nX-User: {user}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    fields = dict(line.split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
    found: dict[str, Any] = json.loads(await reader.readexactly(int(fields[b"content-length"])))
    return found


async def on_one_connection(port: int, path: str, users: list[str], body: bytes) -> list[dict[str, Any]]:
    """All at once, one behind the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE):
            writer.write(b"".join(request(path, user, body) for user in users))
            return [await answer(reader) for _ in users]
    finally:
        writer.close()


async def on_many(port: int, path: str, users: list[str], body: bytes) -> list[dict[str, Any]]:
    """At the same time, each on its own."""
    found = await asyncio.gather(*(on_one_connection(port, path, [user], body) for user in users))
    return [answers[0] for answers in found]


@pytest.mark.parametrize("isolation", ["concurrent", "serial"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_nothing_crosses(server: Callable[..., Server], loop: str, isolation: str) -> None:
    running = server("app:app", "--loop", loop, "--isolation", isolation, files=FILES)
    users = ["alice", "bob"] * ROUNDS
    for way in (on_one_connection, on_many):
        for path, body in (("/concurrent", b""), ("/concurrent", b"x" * 200_000), ("/threaded", b"")):
            before = [None, 28] if path == "/concurrent" else [None, 28, None]
            for user, found in zip(users, asyncio.run(way(running.port, path, users, body)), strict=True):
                assert found == {"before": before, "after": [user, user], "inner": [user, user], "size": len(body)}


def test_serial_keeps_what_is_shared_to_one_at_a_time(server: Callable[..., Server]) -> None:
    running = server("app:app", "--isolation", "serial", files=FILES)
    users = ["alice", "bob"] * ROUNDS
    for way in (on_one_connection, on_many):
        assert [found["user"] for found in asyncio.run(way(running.port, "/serial", users, b""))] == users


def test_under_serial_a_slow_body_and_a_silent_websocket_keep_nobody_waiting(server: Callable[..., Server]) -> None:
    from websockets.asyncio.client import connect

    running = server("app:app", "--isolation", "serial", files=FILES)

    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        async with asyncio.timeout(DEADLINE), connect(f"ws://127.0.0.1:{running.port}/session") as session:
            whole = request("/concurrent", "slow", b"x" * 100)
            writer.write(whole[:-1])
            await session.send("carol")
            assert await session.recv() == "carol"
            for user in ("alice", "bob"):
                assert [found["user"] for found in await on_many(running.port, "/serial", [user], b"")] == [user]
                await session.send(user)
                assert await session.recv() == user
            writer.write(whole[-1:])
            assert (await answer(reader))["after"] == ["slow", "slow"]
        writer.close()

    asyncio.run(main())


def test_under_serial_a_session_may_leave_its_waiting_task_behind(server: Callable[..., Server]) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosedOK

    running = server("app:app", "--isolation", "serial", files=FILES)

    async def main() -> None:
        async with asyncio.timeout(DEADLINE):
            for user in ("alice", "bob"):
                async with connect(f"ws://127.0.0.1:{running.port}/two") as session:
                    with pytest.raises(ConnectionClosedOK):
                        await session.recv()
                assert [found["user"] for found in await on_many(running.port, "/serial", [user] * 3, b"")] == [user] * 3

    asyncio.run(main())
    assert "Exception" not in running.output


def test_under_serial_a_websocket_client_that_does_not_read_keeps_nobody_waiting(server: Callable[..., Server]) -> None:
    from websockets.asyncio.client import connect

    running = server("app:app", "--isolation", "serial", files=FILES)

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), connect(f"ws://127.0.0.1:{running.port}/flood", max_queue=1, compression=None) as session:
            await session.recv()
            assert [found["user"] for found in await on_many(running.port, "/serial", ["alice", "bob"], b"")] == ["alice", "bob"]
            session.transport.abort()

    asyncio.run(main())
