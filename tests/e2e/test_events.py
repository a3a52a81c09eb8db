"""Lifecycle events around real processes: their order, each once, whatever ends the worker."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE, wait_until
from tests.e2e.apps import FILES
from tests.e2e.tools import get, marks, wait_workers, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

REQUEST = ["RequestReceived", "RequestHandled", "RequestTerminated"]
LIFE = ["WorkerStarting", "startup", "WorkerStarted", *REQUEST, "WorkerStopping", "shutdown"]


def stop(server: Server, worker: int) -> None:
    assert server.cli("stop").returncode == 0


def stop_gracefully(server: Server, worker: int) -> None:
    assert server.cli("stop", "-g").returncode == 0


def press_ctrl_c(server: Server, worker: int) -> None:
    os.killpg(server.pid, signal.SIGINT)


def press_ctrl_backslash(server: Server, worker: int) -> None:
    os.killpg(server.pid, signal.SIGQUIT)


def reload(server: Server, worker: int) -> None:
    assert server.cli("reload").returncode == 0


def restart(server: Server, worker: int) -> None:
    assert server.cli("restart").returncode == 0


def hang_up(server: Server, worker: int) -> None:
    os.kill(server.pid, signal.SIGHUP)


def terminate(server: Server, worker: int) -> None:
    os.kill(worker, signal.SIGTERM)


@pytest.mark.parametrize("end", [stop, stop_gracefully, press_ctrl_c, press_ctrl_backslash, reload, restart, hang_up, terminate])
def test_every_end_tells_everything_once(server: Callable[..., Server], end: Callable[[Server, int], None]) -> None:
    running = server("app:app", "--listener", "hooks", files=FILES)
    (worker,) = workers(running)
    assert get(running.port)[0] == 200
    end(running, worker)
    wait_until(lambda: words(running, worker)[-1:] == ["shutdown"], what="the worker's end")
    assert words(running, worker) == LIFE
    if end not in (stop, stop_gracefully, press_ctrl_c, press_ctrl_backslash):
        (successor,) = wait_workers(running, 1, without={worker})
        wait_until(lambda: "WorkerStarted" in words(running, successor))
        assert words(running, successor) == ["WorkerStarting", "startup", "WorkerStarted"]
        running.process.terminate()
    assert running.process.wait(DEADLINE) == 0
    starts = 2 if end is restart else 1  # the master that has executed itself anew starts anew
    told = words(running, running.pid)
    assert (told.count("ServerStarting"), told.count("ServerStarted"), told.count("ServerStopping")) == (starts, starts, 1)
    assert told.count("WorkerExited") == len({pid for pid, word in marks(running) if word == "startup"})


def test_a_recycled_worker_is_told_too(server: Callable[..., Server]) -> None:
    running = server("app:app", "--listener", "hooks", "--limit-max-requests", "1", files=FILES)
    (worker,) = workers(running)
    assert get(running.port)[0] == 200
    wait_workers(running, 1, without={worker})
    assert words(running, worker) == LIFE


def test_reload_brings_in_new_listener_code_and_no_listener_twice(server: Callable[..., Server]) -> None:
    running = server("app:app", "--listener", "hooks", files=FILES)
    (worker,) = workers(running)
    (running.directory / "hooks.py").write_text(FILES["hooks.py"].replace("type(event).__name__", "'new ' + type(event).__name__"))
    reload(running, worker)
    (successor,) = wait_workers(running, 1, without={worker})
    assert get(running.port)[0] == 200
    expected = ["new WorkerStarting", "startup", "new WorkerStarted", *(f"new {word}" for word in REQUEST)]
    wait_until(lambda: len(words(running, successor)) >= len(expected))
    assert words(running, successor) == expected


def test_reload_with_a_broken_listener_module_keeps_the_old_workers(server: Callable[..., Server]) -> None:
    running = server("app:app", "--listener", "hooks", files=FILES)
    before = workers(running)
    (running.directory / "hooks.py").write_text("raise RuntimeError('half a thought')\n")
    result = running.cli("reload")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "half a thought" in line
    assert workers(running) == before
    assert get(running.port)[0] == 200
    (running.directory / "hooks.py").write_text(FILES["hooks.py"])
    reload(running, before[0])


ASYNC_HOOKS = """
import asyncio
import laraman
from hooks import mark

@laraman.on(laraman.WorkerStarting)
async def slowly(event):
    await asyncio.sleep(0.05)
    mark("prepared")
    event.worker.tasks.start_soon(consume)

async def consume():
    mark("consuming")
    try:
        await asyncio.sleep(3600)
    finally:
        mark("consumed")

@laraman.on(laraman.RequestReceived)
async def change(event):
    event.scope["path"] = "/"
    raise ValueError("not today")
"""


def test_asynchronous_listeners_and_their_tasks(server: Callable[..., Server]) -> None:
    running = server("app:app", "--listener", "consumer", files={**FILES, "consumer.py": ASYNC_HOOKS})
    (worker,) = workers(running)
    assert get(running.port, "/slow?60") == (200, f"{worker} hello")  # it may change the scope, its error changes nothing
    assert running.stop() == 0
    told = words(running, worker)
    assert told.index("WorkerStarting") < told.index("prepared") < told.index("startup")
    assert told.index("WorkerStopping") < told.index("consumed") < told.index("shutdown")
    assert told.count("consuming") == told.count("consumed") == told.count("WorkerError") == 1


def test_server_starting_may_add_workers(server: Callable[..., Server], free_port: int) -> None:
    adding = f"""
import laraman

@laraman.on(laraman.ServerStarting)
def add(event):
    event.server.add(laraman.Worker("upper", "text://127.0.0.1:{free_port}", count=2, handler="upper:Upper"))
"""
    handler = """
class Upper:
    async def on_message(self, connection, message):
        await connection.send(message.upper())
"""
    running = server("app:app", "--listener", "adding", files={**FILES, "adding.py": adding, "upper.py": handler})
    import socket

    for verb in ("", "reload", "restart"):
        if verb:
            assert running.cli(verb).returncode == 0
        with socket.create_connection(("127.0.0.1", free_port), timeout=DEADLINE) as sock:
            sock.sendall(b"hello\n")
            assert sock.recv(100) == b"HELLO\n"
            rows = [row for row in running.connections() if row["worker"] == "upper"]
            assert [(row["protocol"], row["messages_in"], row["messages_out"]) for row in rows] == [("text", 1, 1)]
    assert len(running.processes("upper")) == 2
    assert running.stop() == 0
