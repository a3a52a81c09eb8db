"""Daemon mode, asked the way a user does: what does the command print, when does it return, with which code?"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.process import control, daemon
from laraman.process.state import alive
from tests.conftest import clean_environment, wait_until
from tests.process.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fork


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    def run(behaviour: str = "good", workers: list[dict[str, Any]] | None = None, **config: Any) -> subprocess.CompletedProcess[str]:
        (tmp_path / "behaviour").write_text(behaviour)
        spec = {
            "config": {"state_dir": str(tmp_path / "state"), "daemon": True, **config},
            "workers": workers or [{"name": "http", "address": "http://127.0.0.1:0", "count": 2}],
        }
        return subprocess.run(
            [sys.executable, "-W", "error", str(REPOSITORY / "tests/process/serve.py"), json.dumps(spec)],
            cwd=tmp_path,
            env=clean_environment({"PYTHONPATH": str(REPOSITORY)}),
            capture_output=True,
            text=True,
            timeout=30,
        )

    yield run
    if pid := alive(tmp_path / "state"):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(tmp_path / "state"))


def test_it_returns_when_ready_and_says_where(start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    state = tmp_path / "state"
    result = start()
    status = control.request(state, {"op": "status"}, 5)
    pid = status["server"]["pid"]
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"Laraman running on {status['server']['addresses'][0]} [{pid}]\n"
    assert [row["state"] for row in status["processes"]] == ["ready", "ready"]
    assert os.getsid(pid) not in (pid, os.getsid(0)), "in a session of its own, which it does not lead"
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    assert Path(f"/proc/{pid}/fd/1").readlink() == state / "laraman.log"
    assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()


def test_files_are_for_the_owner_only(start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    start()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    leases = modes.pop("laraman.leases")  # for workers of whatever user, who have its descriptor: nobody else gets past the directory above
    assert leases == 0o777
    assert modes == {"laraman.pid": 0o600, "control.sock": 0o600, "laraman.log": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_its_output_is_reopened_and_it_restarts_and_stops(start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    state = tmp_path / "state"
    start()
    before = control.request(state, {"op": "status"}, 5)
    if sys.platform == "linux":
        ways = [Path(f"/proc/{before['server']['pid']}/fdinfo/{number}").read_text().split("flags:")[1].split()[0] for number in range(3)]
        assert [int(way, 8) & os.O_ACCMODE for way in ways] == [os.O_RDONLY, os.O_WRONLY, os.O_WRONLY]
    (state / "laraman.log").rename(state / "rotated.log")
    assert control.request(state, {"op": "reopen"}, 5)["ok"]
    for _ in range(2):
        assert control.restart(state, 10) == {"op": "restart", "ok": True}
    after = control.request(state, {"op": "status"}, 5)
    assert after["server"]["pid"] == before["server"]["pid"]
    assert after["server"]["addresses"] == before["server"]["addresses"]
    assert "Restarted parent process" in (state / "laraman.log").read_text()
    assert control.request(state, {"op": "stop"}, 5)["ok"]
    assert control.wait_gone(state, 10)
    assert sorted(path.name for path in state.iterdir()) == ["laraman.log", "rotated.log"]


def test_an_output_that_cannot_be_reopened_goes_on_in_the_old_file(
    start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """As for a worker that is another user than the master: nobody ends because of that."""
    state, logs = tmp_path / "state", tmp_path / "logs"
    logs.mkdir()
    real = {"kind": "real", "name": "idle", "handler": "tests.process.serve:Idle", "count": 2}
    start(log_file=str(logs / "x.log"), workers=[real])
    before = [row["pid"] for row in control.request(state, {"op": "status"}, 5)["processes"]]
    logs.rename(tmp_path / "moved")
    assert control.request(state, {"op": "reopen"}, 5)["ok"]
    told = f"ERROR:    Cannot reopen the output file {logs / 'x.log'}: No such file or directory; it goes to the old one until a reload\n"
    wait_until(lambda: (tmp_path / "moved/x.log").read_text().count(told) == 3)
    # An order later, what a fault in the one before would have ended is over.
    assert control.request(state, {"op": "reopen"}, 5)["ok"]
    wait_until(lambda: (tmp_path / "moved/x.log").read_text().count(told) == 6)
    assert [row["pid"] for row in control.request(state, {"op": "status"}, 5)["processes"]] == before


@pytest.mark.parametrize(("behaviour", "code"), [("fail3", 3), ("fail2", 2)])
def test_a_start_that_fails_is_told_in_the_foreground(
    start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, behaviour: str, code: int
) -> None:
    result = start(behaviour)
    assert result.returncode == code
    assert "could not start: it does not work" in result.stderr
    assert result.stderr.count("\n") == 1
    assert control.wait_gone(tmp_path / "state", 10)


def test_a_busy_port_is_told_once(start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    start()
    result = start()
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert "already running with pid" in result.stderr


def test_the_foreground_gives_up_on_a_daemon_that_says_nothing() -> None:
    reader, writer = os.pipe()
    code, text = daemon._await(reader, 0.05)
    assert (code, "not ready after" in text) == (3, True)
    os.close(writer)
    reader, writer = os.pipe()
    os.close(writer)
    assert daemon._await(reader, 5) == (3, "the server ended before it was ready")


def test_the_message_is_told_once_and_a_foreground_that_left_is_no_error() -> None:
    reader, writer = os.pipe()
    notify = daemon.Notify(writer)
    notify(3, "x" * 100_000)
    notify(0, "never told")
    code, text = daemon._await(reader, 5)
    assert (code, set(text)) == (3, {"x"})
    reader, writer = os.pipe()
    os.close(reader)
    daemon.Notify(writer)(0, "nobody listens")
