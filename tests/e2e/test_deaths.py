"""Whoever dies, nothing is left behind and the service comes back."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import wait_until
from tests.e2e.apps import FILES
from tests.e2e.load import Load
from tests.e2e.tools import children, descriptors, get, send_get, wait_mark, wait_workers, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server


@pytest.mark.parametrize("busy", ["", "/spin", "/nap", "/slow?60", "/events"])
def test_nothing_survives_the_master(server: Callable[..., Server], busy: str) -> None:
    running = server("app:app", "--workers", "2", files=FILES)
    pids = workers(running)
    with ExitStack() as stack:
        if busy and busy != "/events":
            stack.enter_context(send_get(running.port, busy))
            wait_mark(running, busy.strip("/").partition("?")[0])
        elif busy:
            stack.enter_context(send_get(running.port, busy)).recv(1000)
        running.process.kill()
        died = time.monotonic()
        running.process.wait()
        wait_until(lambda: not running.survivors(), what="the end of every worker")
        assert time.monotonic() - died < 6  # a drain of 0.5 s, and 1.5 s; the looking takes its time on a loaded machine
    if not busy:
        assert all(words(running, pid) == ["startup", "shutdown"] for pid in pids)


def test_fifty_kills_leave_no_zombie_and_no_descriptor(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "5", "--no-access-log", files=FILES)
    before = descriptors(running.pid)
    killed: set[int] = set()
    with Load(running.port, connections=2) as load:
        while len(killed) < 50:
            pids = wait_workers(running, 5, without=killed)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed.update(pids)
        wait_workers(running, 5, without=killed)
        load.go_on()
    assert set(children(running.pid)) == set(workers(running))
    assert "Z" not in children(running.pid).values()
    wait_until(lambda: descriptors(running.pid) <= before, what="as few descriptors as before")
    assert sum(row["restarts"] for row in running.status()["processes"]) == 50
    assert {row["last_exit"] for row in running.status()["processes"]} == {"killed by SIGKILL"}
    assert get(running.port)[0] == 200
    assert running.stop() == 0


def test_a_hung_worker_is_explained_and_replaced(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", "--timeout-worker-healthcheck", "2", files=FILES)
    with Load(running.port, connections=4) as load, send_get(running.port, "/spin"):
        hung = wait_mark(running, "spin")
        (other,) = (pid for pid in workers(running) if pid != hung)
        (successor,) = set(wait_workers(running, 2, without={hung})) - {other}
        load.go_on()
        # Of the load only what had been accepted by the hung worker is lost.
        assert {failure.pid for failure in load.failures} <= {hung, None}
        assert other in load.pids
    rows = {row["pid"]: row for row in running.status()["processes"]}
    assert re.fullmatch(r"hung: no beat for 2\.0 s, at .*/app\.py:\d+ in spin_for_ever", rows[successor]["last_exit"])
    assert rows[other]["last_exit"] is None
    assert re.search(r'Stack of worker http:\d \[\d+\].*File ".*/app\.py", line \d+ in spin_for_ever', running.output, re.DOTALL)
    shown = running.cli("status")
    assert "spin_for_ever" in shown.stdout


def test_a_worker_that_crashes_again_and_again_ends_the_server(server: Callable[..., Server]) -> None:
    files = {"app.py": "import os, asyncio\nasync def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        os._exit(7)\n"}
    running = server("app:app", files=files, ready=False)
    assert running.process.wait(30) == 3
    assert "exit code 7" in running.output.splitlines()[-1]
