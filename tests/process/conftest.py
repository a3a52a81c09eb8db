"""Starts ``serve.py`` and leaves nothing of it behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.process import control
from laraman.process.state import find_instances
from tests.conftest import DEADLINE, clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[2]


class Served:
    """One running ``serve.py``."""

    def __init__(self, directory: Path, spec: dict[str, Any]) -> None:
        self.directory = directory
        self.log = directory / "output.txt"
        self.spec = spec
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(REPOSITORY / "tests/process/serve.py"), json.dumps(spec)],
                cwd=directory,
                env=clean_environment({"PYTHONPATH": str(REPOSITORY)}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def control(self) -> Path:
        (found,) = find_instances(str(self.directory / "state"))
        return found.control

    def request(self, op: str, timeout: float = DEADLINE, **fields: Any) -> dict[str, Any]:
        return control.request(self.control, {"op": op, **fields}, timeout)

    def restart(self) -> dict[str, Any]:
        return control.restart(self.control, DEADLINE)

    def server(self) -> dict[str, Any]:
        found: dict[str, Any] = self.request("status")["server"]
        return found

    def processes(self, worker: str = "http") -> list[dict[str, Any]]:
        return [row for row in self.request("status")["processes"] if row["worker"] == worker]

    def pids(self, worker: str = "http") -> set[int]:
        return {row["pid"] for row in self.processes(worker)}

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output
        if not find_instances(str(self.directory / "state")):
            return False
        try:
            answer = self.request("status")
        except Exception:  # the lock is there a moment before the socket
            return False
        rows = answer["processes"]
        return answer["server"]["state"] == "running" and bool(rows) and all(row["state"] == "ready" for row in rows)

    def wait_ready(self) -> None:
        wait_until(self.is_ready, what=f"readiness\n{self.output}")

    def port(self, index: int = 0) -> int:
        return int(self.server()["addresses"][index].rpartition(":")[2])

    def behave(self, how: str) -> None:
        (self.directory / "behaviour").write_text(how)

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.kill(number)
        return self.process.wait(DEADLINE)

    def survivors(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and Path(os.readlink(entry / "cwd")) == self.directory:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 3
        while (left := self.survivors()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"left behind: {left}\n{self.output}"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``serve(*workers, behaviour=..., ready=True, listeners=[...], max_failures=..., **config)`` starts a server that is ready."""
    started: list[Served] = []

    def start(*workers: dict[str, Any], behaviour: str = "good", ready: bool = True, **rest: Any) -> Served:
        directory = (tmp_path / str(len(started))).resolve()
        directory.mkdir()
        (directory / "behaviour").write_text(behaviour)
        spec: dict[str, Any] = {name: rest.pop(name) for name in ("listeners", "max_failures", "argv") if name in rest}
        spec["config"] = {"state_dir": str(directory / "state"), **rest}
        spec["workers"] = list(workers) or [{"name": "http", "address": "http://127.0.0.1:0", "count": 2}]
        served = Served(directory, spec)
        started.append(served)
        if ready:
            served.wait_ready()
        return served

    yield start
    for served in started:
        served.close()
