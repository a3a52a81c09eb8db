"""Task workers of a server with an application: who calls is another process of it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

WORK = """
import os, pathlib
import laraman

kept = []

@laraman.task
def greet(name):
    return f"hello {name} {os.getpid()}"

@laraman.task
def leak():
    kept.append(bytearray(1024))
    return os.getpid()

@laraman.task
def stuck():
    pathlib.Path("stuck.pid").write_text(str(os.getpid()))
    return len(str(7 ** 10_000_000))
"""
LISTEN = """
import laraman

def mark(event):
    with open("events.txt", "a") as file:
        file.write(f"{type(event).__name__} {event.task} {getattr(event, 'outcome', '')}\\n")

laraman.on(laraman.TaskReceived, mark)
laraman.on(laraman.TaskTerminated, mark)
"""
APP = """
import json, laraman, work
from laraman.errors import LaramanError

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    _, name, *args = scope["path"].split("/")
    try:
        answer = await laraman.submit(getattr(work, name), *args)
    except LaramanError as exc:
        answer = f"{type(exc).__name__}: {exc}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(answer).encode()})
"""
FILES = {"app.py": APP, "work.py": WORK, "listen.py": LISTEN}


def ask(running: Server, path: str) -> str:
    return httpx.get(f"{running.url}/{path}", timeout=DEADLINE).text


def pids(running: Server) -> set[int]:
    return {row["pid"] for row in running.processes("task") if row["state"] == "ready"}


@pytest.mark.fork
def test_an_application_with_task_workers(server: Callable[..., Server]) -> None:
    """One server for all of it: results, events, recycling, a reload with new code, and a caller that is killed."""
    running = server("app:app", "--task-workers", "1", "--max-requests", "20", "--listener", "listen", files=FILES)
    hello, name, pid = ask(running, "greet/you").split()
    assert (hello, name, {int(pid)}) == ("hello", "you", pids(running))
    events = wait_until(lambda: (running.directory / "events.txt").read_text().splitlines())
    assert events == ["TaskReceived work:greet ", "TaskTerminated work:greet ok"]

    seen = {ask(running, "leak") for _ in range(60)}
    wait_until(lambda: pids(running) and int(pid) not in pids(running))
    assert all(answer.isdecimal() for answer in seen)

    (running.directory / "work.py").write_text(WORK.replace("hello", "good day"))
    assert running.cli("reload").returncode == 0
    assert ask(running, "greet/you").startswith("good day you")

    def hang() -> None:
        with suppress(httpx.HTTPError):
            ask(running, "stuck")

    threading.Thread(target=hang, daemon=True).start()
    stuck = int(wait_until(lambda: (running.directory / "stuck.pid").exists() and (running.directory / "stuck.pid").read_text()))
    os.kill(running.processes("http")[0]["pid"], signal.SIGKILL)
    wait_until(lambda: running.processes("http") and stuck not in pids(running) and pids(running))
    wait_until(lambda: "killed by SIGIO (its task was given up)" in running.output)
    running.wait_ready()
    assert ask(running, "greet/you").startswith("good day you")


@pytest.mark.fork
def test_a_server_without(server: Callable[..., Server]) -> None:
    running = server("app:app", files=FILES)
    assert ask(running, "greet/you") == (
        "ConfigError: this server has no task workers: start it with --task-workers 2 (or task_workers = 2 in [tool.laraman])"
    )
