"""Nothing is lost while the server changes under load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE, wait_until
from tests.e2e.apps import FILES
from tests.e2e.load import Load
from tests.e2e.tools import wait_workers, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

QUIET = ("--no-access-log", "--log-level", "warning")


@pytest.mark.parametrize("close", [False, True], ids=["keep-alive", "connection-per-request"])
def test_reload_and_restart_lose_nothing(server: Callable[..., Server], close: bool) -> None:
    running = server("app:app", "--workers", "2", *QUIET, files=FILES)
    first = set(workers(running))
    with Load(running.port, close=close) as load:
        for verb in ("reload", "restart", "reload", "restart"):
            before = set(workers(running))
            result = running.cli(verb)
            assert result.returncode == 0, result.stderr
            wait_workers(running, 2, without=before)
            load.go_on()
    assert load.failures == []
    assert load.refused == 0
    assert len(load.pids) > 5  # the generations took turns
    assert first.isdisjoint(workers(running))


def test_wrk_sees_no_error_across_reload_and_restart(server: Callable[..., Server], wrk: str) -> None:
    running = server("app:app", "--workers", "2", *QUIET, files=FILES)
    with subprocess.Popen([wrk, "-t1", "-c16", "-d600", running.url], stdout=subprocess.PIPE, text=True) as load:
        try:
            for verb in ("reload", "restart"):
                result = running.cli(verb)
                assert result.returncode == 0, result.stderr
        finally:
            load.send_signal(signal.SIGINT)  # it stops, and says what it has seen
        output, _ = load.communicate()
    assert load.returncode == 0
    counted = re.search(r"(\d+) requests in", output)
    assert counted is not None
    assert int(counted[1]) > 1000, output
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output


def test_killed_workers_take_only_their_own_connections(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", *QUIET, files=FILES)
    killed: list[int] = []
    kills: list[float] = []
    with Load(running.port) as load:
        for pid in workers(running):
            kills.append(time.monotonic())
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            wait_workers(running, 2, without=set(killed))
            load.go_on()
    # A connection that nobody has answered on yet may have been the killed worker's too, but only at that time.
    strange = [
        failure
        for failure in load.failures
        if failure.pid not in killed and (failure.pid is not None or not any(0 <= failure.at - kill < 1 for kill in kills))
    ]
    assert strange == []
    assert len(load.failures) <= 2 * 8
    assert load.refused == 0


def test_signals_that_scale_and_reload_lose_nothing(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", "--no-access-log", files=FILES)
    with Load(running.port) as load:
        os.kill(running.pid, signal.SIGTTIN)
        wait_workers(running, 3)
        load.go_on()
        os.kill(running.pid, signal.SIGTTOU)
        wait_workers(running, 2)
        os.kill(running.pid, signal.SIGTTOU)
        wait_workers(running, 1)
        os.kill(running.pid, signal.SIGTTOU)  # the last one stays
        wait_until(lambda: running.output.count("runs 1 times") == 2, what="the second SIGTTOU")
        os.kill(running.pid, signal.SIGTTIN)
        before = set(wait_workers(running, 2))
        load.go_on()
        os.kill(running.pid, signal.SIGHUP)
        wait_workers(running, 2, without=before)
        load.go_on()
    assert load.failures == []
    assert load.refused == 0


@pytest.mark.parametrize("close", [False, True], ids=["keep-alive", "connection-per-request"])
def test_stop_answers_every_connection_that_was_made(server: Callable[..., Server], close: bool) -> None:
    running = server("app:app", "--workers", "2", *QUIET, files=FILES)
    with Load(running.port, connections=16, close=close) as load:
        result = running.cli("stop")
        assert result.returncode == 0, result.stderr
        wait_until(lambda: load.refused, what="a refused connection")
    assert load.failures == []
    assert running.process.wait(DEADLINE) == 0


def test_reload_to_broken_code_keeps_serving(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", *QUIET, files=FILES)
    before = workers(running)
    with Load(running.port) as load:
        (running.directory / "app.py").write_text("import no_such_thing\n")
        result = running.cli("reload")
        assert result.returncode == 1
        assert "no_such_thing" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        load.go_on()
        assert workers(running) == before
        assert "no_such_thing" in running.status()["server"]["last_roll_error"]
        (running.directory / "app.py").write_text(FILES["app.py"].replace('"hello"', '"fixed"'))
        result = running.cli("reload")
        assert result.returncode == 0, result.stderr
        wait_workers(running, 2, without=set(before))
        load.go_on()
    assert load.failures == []
