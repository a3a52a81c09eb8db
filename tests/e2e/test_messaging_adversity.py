"""What can be wrong with the channel and with tasks, in one server that goes on: nobody but who did it notices, and everybody is told in one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from laraman import channel
from laraman.errors import Busy
from laraman.protocols.hub import MAX_FRAME_SIZE, Op
from tests.channel.hub.dialogue import Dialogue
from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

APP = '''
import os

from fastapi import FastAPI

import laraman
import work
from laraman import channel

app = FastAPI()
VALUES = {"object": object(), "set": {1}, "large": b"x" * (8 * 1024 * 1024), "deep": [{"a": (1, lambda: 1)}], "fine": "fine"}


@channel.method
def give(name, *data):
    return VALUES[name]


async def outcome(asked):
    try:
        return {"result": await asked}
    except (laraman.LaramanError, TimeoutError) as exc:
        return {"error": type(exc).__name__, "text": str(exc)}


@app.get("/publish/{name}")
async def publish(name: str):
    return await outcome(channel.publish("news.one", VALUES[name]))


@app.get("/put/{name}")
async def put(name: str):
    return await outcome(channel.put("jobs", VALUES[name], timeout=20))


@app.get("/call/{name}")
async def call(name: str):
    return await outcome(channel.call("http", "give", "fine", VALUES[name], timeout=20))


@app.get("/answer/{name}")
async def answer(name: str):
    return await outcome(channel.call("http", "give", name, timeout=20))


@app.get("/task/{name}")
async def task(name: str, argument: str = "fine", timeout: float | None = None):
    return await outcome(laraman.submit(getattr(work, name), VALUES[argument], timeout=timeout))
'''
WORK = """
import os, sys
import laraman

@laraman.task
def same(value):
    return value

@laraman.task
def unsendable(value):
    return {"answer": [object()]}

@laraman.task
def dies(value):
    os.kill(os.getpid(), 9)

@laraman.task
def leaves(value):
    os._exit(0)

@laraman.task
def exits(value):
    sys.exit(3)

@laraman.task
def blocks(value):
    while True:
        pass
"""
#: Subscribes, says so, and prints what it gets, and how many it has not got.
SUBSCRIBER = """
import asyncio, sys
from laraman import channel

async def main():
    async with channel.connect(sys.argv[1]) as there, there.subscribe("news.>", queue=1_000_000) as subscription:
        print("ready", flush=True)
        count = 0
        async for message in subscription:
            if message.data == "end":
                break
            count += 1
        print(count, subscription.dropped, flush=True)

asyncio.run(main())
"""
FILES = {"app.py": APP, "work.py": WORK}


def ask(served: Server, path: str) -> dict[str, Any]:
    response = httpx.get(f"{served.url}{path}", timeout=DEADLINE)
    assert response.status_code == 200, (response.text, served.output)
    answer: dict[str, Any] = response.json()
    return answer


def hub_of(served: Server) -> Path:
    [path] = [entry.parent for entry in served.directory.glob(".laraman/*/control.sock")]
    return path / "hub.sock"


@pytest.fixture(scope="module")
def served(shared_server: Callable[..., Server]) -> Server:
    running = shared_server("app:app", "--workers", "2", "--task-workers", "2", files=FILES)
    wait_until(lambda: ask(running, "/call/fine").get("result") == "fine", what="the channel")
    return running


@pytest.fixture(autouse=True)
def _nobody_else_notices(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test with the shared server has done, messages, calls and tasks go on, and no process of it but task workers was replaced."""
    if "served" not in request.fixturenames:
        yield
        return
    served: Server = request.getfixturevalue("served")
    before = {(row["worker"], row["slot"]): row["pid"] for row in served.status()["processes"] if row["worker"] != "task"}
    yield
    assert ask(served, "/call/fine") == ask(served, "/answer/fine") == ask(served, "/task/same") == {"result": "fine"}
    assert before == {(row["worker"], row["slot"]): row["pid"] for row in served.status()["processes"] if row["worker"] != "task"}
    assert "Traceback" not in served.output


# What cannot be encoded, or is too large ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["publish", "put", "call", "answer", "task"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("object", " is <object objec"),
        ("set", "{1}"),
        ("deep", "[0]['a'][1] is <function <l"),
        ("large", "bytes when encoded, more than the 8388608 that a message may have"),
    ],
)
def test_what_cannot_be_sent_is_named_where_it_is_asked(served: Server, way: str, name: str, says: str) -> None:
    answer = ask(served, f"/task/same?argument={name}" if way == "task" else f"/{way}/{name}")
    assert (answer.get("error"), says in answer.get("text", "")) == ("TaskError" if way == "answer" else "LocalProtocolError", True), answer
    assert "\n" not in answer["text"]


def test_what_a_task_returns_is_named(served: Server) -> None:
    answer = ask(served, "/task/unsendable")
    assert answer["error"] == "TaskError"
    assert "the result of work:unsendable['answer'][0] is <object objec" in answer["text"]


# What is no client ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "why"),
    [
        ("hub", b"\0\0\0\7\xff\0\0\0\1\0\0", "before hello"),
        ("hub", b"GET / HTTP/1.1\r\n\r\n", "is larger than"),
        ("hub", (MAX_FRAME_SIZE + 1).to_bytes(4, "big") + bytes(7), "is larger than"),
        ("task", b"\xff" * 64, ""),  # anybody could fill the log: at level debug
    ],
)
def test_who_says_what_is_not_understood_is_sent_away_and_it_is_told_why(served: Server, name: str, said: bytes, why: str) -> None:
    output = len(served.output)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(DEADLINE)
        stranger.connect(str(hub_of(served).with_name(f"{name}.sock")))
        stranger.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    if why:
        wait_until(lambda: why in served.output[output:], what=f"{why!r} in {served.output[output:]!r}")
        assert len(served.output[output:].strip().splitlines()) == 1


def test_a_client_that_asks_for_what_there_is_not_is_told_and_stays(served: Server) -> None:
    with contextlib.closing(Dialogue(hub_of(served))) as client:
        client.socket.sendall(b"\0\0\0\7\xff\0\0\0\5\0\0")
        op, id, _, text = client.hear()
        assert (op, id, text) == (Op.ERROR, 5, b"there is no op 255")
        assert client.put("strange", b"1")


# Who does not read ---------------------------------------------------------------------------------------------------------------------


def test_a_subscriber_that_stands_still_is_not_noticed_and_learns_what_it_has_missed(served: Server) -> None:
    """It is stopped while more is published than the hub keeps for it (32 MiB); another one gets all of it."""
    url, many = f"unix://{hub_of(served)}", 1000
    still, quick = (
        subprocess.Popen([sys.executable, "-c", SUBSCRIBER, url], env=served.environ, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        for program in (still, quick):
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        still.send_signal(signal.SIGSTOP)

        async def flood() -> None:
            async with channel.connect(url) as there:
                for _ in range(many):
                    await there.publish("news.large", b"x" * 65536)
                await there.publish("news.end", "end")
                await there.table("flood").get("sent")  # all of it has been sent

        asyncio.run(flood())
        assert quick.communicate(timeout=DEADLINE)[0] == f"{many} 0\n"
        still.send_signal(signal.SIGCONT)
        got, dropped = map(int, still.communicate(timeout=DEADLINE)[0].split())
        assert got + dropped == many
        assert dropped > 300
        assert got > 300
    finally:
        for program in (still, quick):
            program.kill()
            program.wait(DEADLINE)


# Task workers that end -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("dies", "ConnectionLost", "task work:dies: the process that ran it has ended"),
        ("leaves", "ConnectionLost", "task work:leaves: the process that ran it has ended"),
        ("exits", "TaskError", "SystemExit: 3"),
        ("blocks", "TimeoutError", "task work:blocks took longer than 0.3 s"),
    ],
)
def test_a_task_that_ends_its_worker_or_never_ends_is_told_and_another_worker_is_there(served: Server, name: str, error: str, text: str) -> None:
    before = {row["pid"] for row in served.processes("task")}
    answer = ask(served, f"/task/{name}{'?timeout=0.3' if name == 'blocks' else ''}")
    assert answer["error"] == error
    assert text in answer["text"]

    def replaced() -> bool:
        rows = served.processes("task")
        return [row["state"] for row in rows] == ["ready"] * 2 and len(before - {row["pid"] for row in rows}) == (name != "exits")

    wait_until(replaced, what="two task workers")
    assert [ask(served, "/task/same") for _ in range(6)] == [{"result": "fine"}] * 6


# Servers that are killed ---------------------------------------------------------------------------------------------------------------


def test_a_hub_that_is_killed_while_its_queue_is_full_has_all_of_it(server: Callable[..., Server]) -> None:
    served = server("app:app", "--channel-queue", "500", files=FILES)

    def pid() -> int:
        return next((row["pid"] for row in served.processes("hub") if row["state"] == "ready"), 0)

    async def fill_kill_and_empty() -> None:
        async with channel.connect(f"unix://{hub_of(served)}") as there:
            ids = [await there.put("full", number) for number in range(500)]
            assert (await asyncio.to_thread(ask, served, "/put/fine"))["result"]
            with pytest.raises(Busy):
                await there.put("full", 500)
            killed = await asyncio.to_thread(wait_until, pid)
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(Busy):
                await there.put("full", 500, timeout=DEADLINE)
            got = []
            async with there.work("full", prefetch=50) as jobs:
                async for job in jobs:
                    got.append((job.data, job.id))
                    assert await job.ack()
                    if len(got) == 500:
                        break
            assert got == list(enumerate(ids))
            with pytest.raises(TimeoutError):
                await there.get("full", timeout=0.1)

    asyncio.run(fill_kill_and_empty())


def test_a_reload_interrupts_no_call(server: Callable[..., Server]) -> None:
    """Neither what is being answered nor what comes meanwhile: a process that is replaced takes no more calls, and finishes those it has."""
    code = """
import asyncio
from laraman import channel

async def app(scope, receive, send):
    raise NotImplementedError

@channel.method
async def echo(value):
    await asyncio.sleep(0.02)
    return value
"""
    running = server("app:app", "--workers", "2", "--lifespan", "off", files={"app.py": code})

    async def call(caller: channel.Channel, first: int, over: asyncio.Event) -> int:
        count = 0
        while not over.is_set():
            member = ("http", "http[0]", "http[1]")[count % 3]
            assert await caller.call(member, "echo", first + count, timeout=DEADLINE) == first + count
            count += 1
        return count

    def reload() -> None:
        before = {row["pid"] for row in running.processes()}
        assert running.cli("reload").returncode == 0
        assert not before & {row["pid"] for row in running.processes()}

    async def both() -> None:
        over = asyncio.Event()
        async with channel.connect(f"unix://{hub_of(running)}") as caller:
            callers = [asyncio.create_task(call(caller, number * 1_000_000, over)) for number in range(40)]
            for _ in range(3):
                await asyncio.to_thread(reload)
            over.set()
            assert all(count > 1 for count in await asyncio.gather(*callers))

    asyncio.run(both())
