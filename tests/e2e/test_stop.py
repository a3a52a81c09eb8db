"""Every way to stop: within the deadline, with everything told and nothing cut off that could finish."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.conftest import DEADLINE, wait_until
from tests.e2e.apps import FILES
from tests.e2e.tools import get, read_all, read_until, send, send_get, wait_mark, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

#: Its shutdown takes its time, and nothing of it is to be interrupted.
STUBBORN = """
import asyncio

async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    print("started", flush=True)
    await receive()
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
"""
SLOW_POST = b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n"


def stop_command(server: Server) -> None:
    result = server.cli("stop")
    assert result.returncode == 0, result.stderr


def terminate(server: Server) -> None:
    server.process.terminate()


def press_ctrl_c(server: Server) -> None:
    os.killpg(server.pid, signal.SIGINT)


@pytest.mark.parametrize("how", [stop_command, terminate, press_ctrl_c])
def test_stop_with_everything_open(server: Callable[..., Server], how: Callable[[Server], None]) -> None:
    deadline = 4.0
    running = server("app:app", "--listener", "hooks", "--timeout-graceful-shutdown", str(deadline), files=FILES)
    (worker,) = workers(running)
    with ExitStack() as stack:
        stream = stack.enter_context(send_get(running.port, "/events"))
        read_until(stream, b"data: tick\n\n")
        socket = stack.enter_context(connect(f"ws://127.0.0.1:{running.port}/"))
        socket.send("there?")
        assert socket.recv(DEADLINE) == "there?"
        post = stack.enter_context(send(running.port, SLOW_POST + b"some"))
        wait_mark(running, "upload")
        slow = stack.enter_context(send_get(running.port, "/slow?1.5"))
        wait_mark(running, "slow")
        begun = time.monotonic()
        dribbling = threading.Thread(target=_dribble, args=(post, begun + deadline), daemon=True)
        dribbling.start()
        how(running)
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(DEADLINE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        answer = read_all(slow)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(f"{worker} slow".encode())
        assert read_all(stream).endswith(b"\r\n0\r\n\r\n")  # a complete chunked body
        assert running.process.wait(DEADLINE) == 0
        took = time.monotonic() - begun
        dribbling.join()
    assert 1.0 < took < deadline + 1.0
    told = words(running, worker)
    assert [word for word in told if word in ("WorkerStopping", "shutdown")] == ["WorkerStopping", "shutdown"]
    assert "stream-over" in told
    assert "websocket-over 1012" in told
    assert words(running, running.pid) == ["ServerStarting", "ServerStarted", "ServerStopping", "WorkerExited"]
    assert "Traceback" not in running.output


def _dribble(sock: object, until: float) -> None:
    """A client on a very slow line."""
    while time.monotonic() < until:
        try:
            sock.send(b".")  # type: ignore[attr-defined]
        except OSError:
            return
        time.sleep(0.1)


def test_idle_server_stops_at_once(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", files=FILES)
    with send_get(running.port, "/") as idle:  # a keep-alive connection with nothing under way
        read_until(idle, b"hello")
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 4.0
        assert read_all(idle) == b""


def quit_signal(server: Server) -> None:
    server.process.send_signal(signal.SIGQUIT)


def stop_gracefully(server: Server) -> None:
    result = server.cli("stop", "-g")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("how", [quit_signal, stop_gracefully])
def test_graceful_stop_has_no_deadline(server: Callable[..., Server], how: Callable[[Server], None]) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "0.3", files=FILES)
    with send_get(running.port, "/slow?1.5") as slow:
        wait_mark(running, "slow")
        how(running)
        assert read_all(slow).endswith(b" slow")
    assert running.process.wait(DEADLINE) == 0


def test_a_stop_cuts_a_graceful_stop_short(server: Callable[..., Server]) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "0.3", files=FILES)
    with send_get(running.port, "/slow?60") as slow:
        worker = wait_mark(running, "slow")
        running.process.send_signal(signal.SIGQUIT)
        wait_until(lambda: running.status()["server"]["state"] == "stopping")
        begun = time.monotonic()
        stop_command(running)
        assert time.monotonic() - begun < 10
        assert b"200 OK" not in read_all(slow)
    assert running.process.wait(DEADLINE) == 0
    assert words(running, worker) == ["startup", "slow", "shutdown"]


def test_a_request_that_does_not_end_is_cut_at_the_deadline(server: Callable[..., Server]) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "0.5", files=FILES)
    with send_get(running.port, "/slow?60") as slow:
        worker = wait_mark(running, "slow")
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 10
        answer = read_all(slow)
        assert not answer.startswith(b"HTTP/1.1 2")
    assert words(running, worker) == ["startup", "slow", "shutdown"]


def test_a_second_ctrl_c_ends_at_once(server: Callable[..., Server]) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "30", files=FILES)
    with send_get(running.port, "/slow?60"):
        wait_mark(running, "slow")
        press_ctrl_c(running)
        wait_until(lambda: running.status()["server"]["state"] == "stopping")
        begun = time.monotonic()
        press_ctrl_c(running)
        running.process.wait(DEADLINE)
        assert time.monotonic() - begun < 10
    assert "running requests are cut off" in running.output
    assert "Application shutdown complete." in running.output


def test_a_third_ctrl_c_kills(server: Callable[..., Server]) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "30", files={"app.py": STUBBORN})
    wait_until(lambda: "started" in running.output)
    for state in ("Waiting for application shutdown.", "cut off", "killing what is left"):
        press_ctrl_c(running)
        wait_until(lambda state=state: state in running.output)
    running.process.wait(DEADLINE)
    assert "Application shutdown complete." not in running.output


def test_a_terminated_worker_finishes_its_requests_and_is_replaced(server: Callable[..., Server]) -> None:
    running = server("app:app", files=FILES)
    (worker,) = workers(running)
    with send_get(running.port, "/slow?1") as slow:
        wait_mark(running, "slow")
        os.kill(worker, signal.SIGTERM)
        assert read_all(slow).endswith(b" slow")
    (successor,) = wait_until(lambda: [pid for pid in workers(running) if pid != worker])
    assert get(running.port) == (200, f"{successor} hello")
    wait_until(lambda: words(running, worker) == ["startup", "slow", "shutdown"])
