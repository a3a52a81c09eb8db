"""Requests that are finished while the server stops still have their tasks performed, and what they defer and say arrives."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

APP = """
import asyncio, os
import laraman
from laraman import channel

@laraman.task
def double(number):
    return 2 * number

@laraman.task
def dies():
    os._exit(1)

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    open("begun", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    answers = []
    for work in (laraman.submit(dies), laraman.submit(double, 4), laraman.defer(double, 5, delay=3600), channel.publish("a.b", 6)):
        try:
            answers.append(repr(await work))
        except Exception as exc:
            answers.append(f"{type(exc).__name__}: {exc}")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": "\\n".join(answers).encode()})
"""


@pytest.mark.parametrize("graceful", [False, True], ids=["a signal", "stop -g"])
def test_what_the_others_use_ends_last(server: Callable[..., Server], graceful: bool) -> None:
    running = server("app:app", "--task-workers", "1", files={"app.py": APP})
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(httpx.get, running.url, timeout=DEADLINE)
        wait_until((running.directory / "begun").exists, what="the request")
        if graceful:
            thread_of_stop = ThreadPoolExecutor(1).submit(running.cli, "stop", "-g")
        else:
            running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any(row["state"] == "stopping" for row in running.processes("http")), what="the stop")
        (running.directory / "go").touch()
        died, doubled, deferred, published = answer.result().text.split("\n")
    assert died.startswith("ConnectionLost")
    assert doubled == "8"
    assert len(deferred) == 34, deferred
    assert published == "None"
    assert running.process.wait(DEADLINE) == 0
    if graceful:
        assert thread_of_stop.result().returncode == 0
    assert not list(running.directory.glob(".laraman/*/*.sock"))
    assert len(list(running.directory.glob(".laraman/*/journal.db"))) == 1
