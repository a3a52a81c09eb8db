"""The process's own channel, in servers of several workers, as an application has it."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

APP = '''
import asyncio
import os

from fastapi import FastAPI, Request, WebSocket

import laraman
from laraman import channel

app = FastAPI()


@channel.method
def who():
    return os.getpid()


@channel.method
async def fail(text):
    await asyncio.sleep(0)
    raise ValueError(text)


@app.get("/who")
async def everybody():
    return {"all": await channel.call_all("http", "who"), "any": await channel.call("http", "who"), "me": os.getpid()}


@app.get("/slot/{slot}")
async def one(slot: int):
    try:
        return await channel.call(f"http[{slot}]", "who")
    except Exception as exc:
        return repr(exc)


@app.get("/fail")
async def fails():
    try:
        await channel.call("http", "fail", "of mine")
    except laraman.TaskError as exc:
        return {"type": exc.type, "message": exc.message, "traceback": exc.traceback}


@app.get("/hits")
async def hits():
    async with laraman.lock("hits"):
        return await laraman.table("hits").increment("all")


@app.get("/put/{number}")
async def put(number: int):
    return await channel.put("numbers", number)


@app.get("/get")
async def get():
    job = await channel.get("numbers", timeout=10)
    return [job.data, await job.ack()]


@app.websocket("/chat/{room}")
async def chat(websocket: WebSocket, room: str):
    await websocket.accept()
    await channel.fan_out(websocket, f"chat.{room}")
'''


def ask(server: Server, path: str) -> Any:
    response = httpx.get(f"http://127.0.0.1:{server.port}{path}", timeout=20)
    assert response.status_code == 200, (response.text, server.output)
    return response.json()


@pytest.fixture
def served(server: Callable[..., Server]) -> Server:
    return server("app:app", "--workers", "2", files={"app.py": APP})


def test_processes_of_a_server_reach_each_other(served: Server) -> None:
    pids = {row["slot"]: row["pid"] for row in served.processes()}
    wait_until(lambda: len(ask(served, "/who")["all"]) == 2, what="both processes to be known")
    who = ask(served, "/who")
    assert (who["all"], who["any"] in who["all"]) == ([pids[0], pids[1]], True)
    assert [ask(served, "/slot/0"), ask(served, "/slot/1")] == [pids[0], pids[1]]
    assert ask(served, "/slot/7") == "LinkDown('no process of http[7] is connected')"
    failed = ask(served, "/fail")
    assert (failed["type"], failed["message"]) == ("ValueError", "of mine")
    assert 'in fail\n    raise ValueError(text)' in failed["traceback"]
    assert [ask(served, "/hits") for _ in range(4)] == [1, 2, 3, 4]

    links = [row for row in served.connections() if row["name"] == "hub"]
    assert {(row["worker"], row["slot"], row["direction"], row["state"]) for row in links} == {("http", slot, "out", "UP") for slot in (0, 1)}


def test_under_serial_isolation_a_request_may_call_what_waits_for_its_turn(server: Callable[..., Server]) -> None:
    served = server("app:app", "--isolation", "serial", files={"app.py": APP})
    (pid,) = (row["pid"] for row in served.processes())
    assert ask(served, "/slot/0") == pid
    assert ask(served, "/who") == {"all": [pid], "any": pid, "me": pid}


def test_what_was_put_survives_the_hub_and_everybody_is_back(served: Server) -> None:
    wait_until(lambda: len(ask(served, "/who")["all"]) == 2, what="both processes to be known")
    for number in range(3):
        ask(served, f"/put/{number}")
    (hub,) = served.processes("hub")
    os.kill(hub["pid"], signal.SIGKILL)
    ask(served, "/put/3")
    assert sorted(ask(served, "/get") for _ in range(4)) == [[number, True] for number in range(4)]
    wait_until(lambda: len(ask(served, "/who")["all"]) == 2, what="both processes to be known again")


def test_websockets_of_all_workers_hear_each_other(served: Server) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(f"ws://127.0.0.1:{served.port}/chat/one")) for _ in range(8)]
        other = stack.enter_context(connect(f"ws://127.0.0.1:{served.port}/chat/two"))
        wait_until(lambda: all(row["connections_in"] for row in served.processes()), what="clients in both processes")
        for number, client in enumerate(clients):
            for text in (f"hello from {number}", b"\x00\x01"):
                client.send(text)
                assert [each.recv(timeout=20) for each in clients] == [text] * 8
        other.send("end")
        assert other.recv(timeout=20) == "end"
    wait_until(lambda: not any(row["connections_in"] for row in served.processes()), what="the clients to be gone")
    assert "Traceback" not in served.output
