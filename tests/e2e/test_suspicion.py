"""What somebody tries who does not believe it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.e2e.apps import FILES
from tests.e2e.load import Load
from tests.e2e.tools import descriptors, get, read_all, read_until, send, send_get, wait_mark, wait_workers, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server


def test_reload_with_everything_open(server: Callable[..., Server]) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "3", files=FILES)
    (worker,) = workers(running)
    with ExitStack() as stack:
        stream = stack.enter_context(send_get(running.port, "/events"))
        read_until(stream, b"data: tick\n\n")
        websocket = stack.enter_context(connect(f"ws://127.0.0.1:{running.port}/"))
        slow = stack.enter_context(send_get(running.port, "/slow?1"))
        wait_mark(running, "slow")
        result = running.cli("reload")
        assert result.returncode == 0, result.stderr
        with pytest.raises(ConnectionClosedError) as closed:
            websocket.recv(DEADLINE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert read_all(slow).endswith(f"{worker} slow".encode())
        assert read_all(stream).endswith(b"\r\n0\r\n\r\n")
    wait_until(lambda: words(running, worker)[-1] == "shutdown")


def test_everything_at_once(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", "--no-access-log", files=FILES)
    commands = ["reload", "reload", "restart", "reload", "status", "connections", "restart"]
    with Load(running.port, connections=4) as load:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "laraman", command],
                cwd=running.directory,
                env=clean_environment({}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in commands
        ]
        os.kill(running.pid, signal.SIGHUP)
        os.kill(running.pid, signal.SIGTTIN)
        os.kill(running.pid, signal.SIGTTOU)
        for process in processes:
            _, errors = process.communicate(timeout=DEADLINE)
            assert process.returncode == 0 or len(errors.splitlines()) == 1, errors
        wait_until(lambda: not running.status()["server"]["rolling"])
        wait_workers(running, 2)
        load.go_on()
    assert load.failures == []
    assert load.refused == 0
    assert "Traceback" not in running.output


def test_a_stop_in_the_middle_of_a_reload(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", files=FILES)
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: "replacing the workers" in running.output)
    assert running.stop() == 0
    assert "Traceback" not in running.output


def test_a_successor_that_is_killed_does_not_end_the_service(server: Callable[..., Server]) -> None:
    dies = "\nif os.path.exists('deadly'):\n    os.remove('deadly')\n    os.kill(os.getpid(), 9)\n"
    running = server("app:app", files={"app.py": FILES["app.py"] + dies})
    (worker,) = workers(running)
    (running.directory / "deadly").touch()
    result = running.cli("reload")
    assert result.returncode == 1
    assert "SIGKILL" in result.stderr
    assert get(running.port) == (200, f"{worker} hello")
    assert running.cli("reload").returncode == 0
    assert workers(running) != [worker]


def test_reloads_and_restarts_leak_no_descriptor(server: Callable[..., Server]) -> None:
    running = server("app:app", files=FILES)
    before = [descriptors(pid) for pid in (running.pid, *workers(running))]
    for verb in ("restart", "reload", "restart", "reload"):
        assert running.cli(verb).returncode == 0
    pids = [running.pid, *workers(running)]
    wait_until(lambda: all(descriptors(pid) <= count for pid, count in zip(pids, before, strict=True)), what="as few descriptors as before")


def test_restart_brings_in_a_new_configuration_and_refuses_a_broken_one(server: Callable[..., Server]) -> None:
    running = server("app:app", files={**FILES, "pyproject.toml": "[tool.laraman]\nworkers = 1\n"})
    project = running.directory / "pyproject.toml"
    with Load(running.port, connections=4) as load:
        project.write_text("[tool.laraman]\nworkers = 'many'\n")
        refused = running.cli("restart")
        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert "many" in line
        project.write_text("[tool.laraman]\nworkers = 2\n")
        assert running.cli("restart").returncode == 0
        before = set(wait_workers(running, 2))
        (running.directory / "app.py").write_text("import no_such_thing\n")
        broken = running.cli("restart")
        assert broken.returncode == 1
        assert "no_such_thing" in broken.stderr
        assert set(workers(running)) == before
        load.go_on()
        (running.directory / "app.py").write_text(FILES["app.py"])
        assert running.cli("restart").returncode == 0
        wait_workers(running, 2, without=before)
        load.go_on()
    assert load.failures == []
    assert load.refused == 0


def test_a_stale_pid_file_is_no_server(server: Callable[..., Server], free_port: int) -> None:
    running = server("app:app", "--port", str(free_port), files=FILES)
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not running.survivors())
    (stale,) = running.directory.glob(".laraman/*/laraman.pid")
    stale.write_text(f"{os.getpid()}\n")  # a pid that is alive, and not a server's
    assert running.cli("status").returncode == 1
    assert running.cli("stop").returncode == 1
    assert running.cli("start", "app:app", "-d", "--port", str(free_port)).returncode == 0
    assert get(free_port)[0] == 200
    assert running.cli("stop").returncode == 0


def test_rotated_logs_are_opened_again(server: Callable[..., Server]) -> None:
    running = server("app:app", "-d", "--port", "0", files=FILES, ready=False)
    assert running.process.wait(DEADLINE) == 0, running.output
    server_status = running.status()["server"]
    port = int(server_status["name"])
    (log,) = running.directory.glob(".laraman/*/laraman.log")
    log.rename(log.with_suffix(".1"))
    os.kill(server_status["pid"], signal.SIGUSR1)
    wait_until(log.exists)

    def logged() -> bool:
        get(port, "/after?rotation=1")
        return '"GET /after?rotation=1 HTTP/1.1" 200' in log.read_text()

    wait_until(logged, what="an access line in the new file")
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_frozen_worker_is_replaced_and_a_frozen_master_blames_nobody(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", "--timeout-worker-healthcheck", "2", files=FILES)
    before = workers(running)
    os.kill(running.pid, signal.SIGSTOP)
    time.sleep(2.5)  # the one wait that is the test: longer than the healthcheck's timeout
    os.kill(running.pid, signal.SIGCONT)
    assert get(running.port)[0] == 200
    assert workers(running) == before
    os.kill(before[0], signal.SIGSTOP)
    wait_workers(running, 2, without={before[0]})
    assert before[1] in workers(running)
    assert re.search(r"hung: no beat for 2\.0 s", running.cli("status").stdout)
    assert running.stop() == 0


def test_nonsense_on_the_sockets_harms_nobody(server: Callable[..., Server]) -> None:
    running = server("app:app", files=FILES)
    (worker,) = workers(running)
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000,
        b"\0" * 70_000,
        b"GET /" + b"a" * 70_000,
    ):
        with send(running.port, data) as sock:
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer
    (path,) = running.directory.glob(".laraman/*/control.sock")
    for data in (b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x06{}", b'\x00\x00\x00\x0d{"op": 7}'):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(DEADLINE)
            control.connect(os.fspath(path))
            control.sendall(data)
            control.shutdown(socket.SHUT_WR)
            read_all(control)
    assert workers(running) == [worker]
    assert get(running.port) == (200, f"{worker} hello")
    assert "Traceback" not in running.output
