"""Fixtures that start the real server, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import pytest

from laraman import events
from laraman.errors import ConnectionLost
from laraman.process.control import request
from laraman.sandbox.locals import Local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytest_plugins = ["pytester"]

T = TypeVar("T")

#: Seconds after which a wait gives up. Generous: only what is broken gets there.
DEADLINE = 30.0


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Tests that await run on both loops, unless their directory or file says otherwise."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def _nothing_stays_wrapped() -> Iterator[None]:
    """What a worker that lived in this process has wrapped is put back when it is over; otherwise its resets run in other tests."""
    names = (anyio.to_thread.run_sync, ThreadPoolExecutor.submit)
    yield
    assert (anyio.to_thread.run_sync, ThreadPoolExecutor.submit) == names


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """What a test configures is not for the next: levels differ, and handlers write to what has been captured and closed."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    before = [(logger.handlers[:], logger.level, logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


@pytest.fixture
def alone() -> Iterator[None]:
    """No listeners and locals but those of this test: applications that others have imported may have registered some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "_registered", [])
        patch.setattr(Local, "count", 0)
        events.changed()
        yield
    events.changed()


def wait_until(condition: Callable[[], T], timeout: float = DEADLINE, what: str = "the condition") -> T:
    """Ask until the answer is true, and return it. Fails the test after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout:g} s"
        time.sleep(0.02)
    return answer


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would configure a server by accident."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LARAMAN_", "UVICORN_", "WEB_CONCURRENCY", "FORWARDED_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without configuration from outside."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(clean_environment({})):
        monkeypatch.delenv(name)
    return tmp_path


class Server:
    """One ``laraman start`` in a directory of its own, and the commands a user would type there."""

    def __init__(self, directory: Path, arguments: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self.directory = directory
        self.environ = clean_environment({"TMPDIR": str(directory.parent), **environ})  # where a state directory may be that does not fit here
        self.gateway = 0  # the port for browsers, in tests that start one
        self._log = directory / "output.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "laraman", "start", *arguments],
                cwd=directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its session tells its processes from others
            )

    @property
    def pid(self) -> int:
        """Of the master."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything it has written to stdout and stderr."""
        return self._log.read_text(errors="replace")

    def cli(self, *arguments: str, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
        """Run ``laraman <arguments>`` beside it."""
        return subprocess.run(
            [sys.executable, "-m", "laraman", *arguments],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def status(self) -> dict[str, Any]:
        """The answer of ``laraman status --json``; empty when nothing answers. Where the socket is plain to see, without the command."""
        sockets = list(self.directory.glob(".laraman/*/control.sock"))
        if len(sockets) == 1:
            try:
                return request(sockets[0], {"op": "status"}, DEADLINE)
            except ConnectionLost:
                return {}
        result = self.cli("status", "--json")
        return json.loads(result.stdout) if result.returncode == 0 else {}

    def processes(self, worker: str = "http") -> list[dict[str, Any]]:
        return [row for row in self.status().get("processes", []) if row["worker"] == worker]

    def connections(self) -> list[dict[str, Any]]:
        """The rows of ``laraman connections --json``."""
        result = self.cli("connections", "--json")
        assert result.returncode == 0, result.stderr
        rows: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
        return rows

    @property
    def port(self) -> int:
        """Of its first address, asked once."""
        if not hasattr(self, "_port"):
            self._port = int(self.status()["server"]["addresses"][0].rpartition(":")[2].strip("/"))
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, timeout: float = DEADLINE) -> None:
        """Until every process is READY. Fails with the server's output when it ends instead."""

        def ready() -> bool:
            assert self.process.poll() is None, f"exited with {self.process.returncode} instead of starting:\n{self.output}"
            status = self.status()
            return bool(status.get("processes")) and all(row["state"].upper() == "READY" for row in status["processes"])

        try:
            wait_until(ready, timeout, "readiness")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.output}") from None

    def stop(self, signum: int = signal.SIGTERM, timeout: float = DEADLINE) -> int:
        """Send the signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(timeout)

    def survivors(self) -> dict[int, str]:
        """Its processes that are alive, by pid: those of its session and, for daemons, those that work in its directory."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (command := self._own(entry)):
                found[int(entry.name)] = command
        return found

    def _own(self, entry: Path) -> str:
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state == "Z" or not (int(session) == self.pid or Path(os.readlink(entry / "cwd")) == self.directory):
                return ""
            return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "?"
        except OSError:  # it has just ended
            return ""

    def close(self) -> None:
        """Stop it, and fail when a process of it is left: a supervisor that leaks processes is broken whatever else works."""
        try:
            if self.process.poll() is not None and self.survivors():  # a daemon: the command that started it is over
                self.cli("stop")
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(DEADLINE)
            raise AssertionError(f"SIGTERM did not end it within {DEADLINE:g} s:\n{self.output}") from None
        finally:
            left = self._kill_survivors()
        assert not left, f"left behind: {left}\n{self.output}"

    def _kill_survivors(self) -> dict[int, str]:
        """Workers notice the death of their master within 2 s; what lives after 3 s is killed and returned."""
        deadline = time.monotonic() + 3
        while (left := self.survivors()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


@contextlib.contextmanager
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """What the fixtures below give, and the end of all servers that were started."""
    started: list[Server] = []

    def start(*arguments: str, files: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None, ready: bool = True) -> Server:
        directory = tmp_path_factory.mktemp("srv").resolve()  # short: a unix socket's path has to fit
        for name, text in (files or {}).items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        listens = {"--port", "--uds", "--fd", "--bind"} & {argument.partition("=")[0] for argument in arguments}
        running = Server(directory, (*arguments, *(() if listens else ("--port", "0"))), environ or {})
        started.append(running)
        if ready:
            running.wait_ready()
        return running

    yield start
    problems = []
    for running in started:
        try:
            running.close()
        except AssertionError as exc:
            problems.append(str(exc))
    if problems:
        pytest.fail("\n".join(problems))


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers: ``server("app:app", "--workers", "2", files={"app.py": "..."})`` returns one that is ready.

    It listens on a free port of 127.0.0.1 unless the arguments say otherwise. ``environ`` adds environment variables; with
    ``ready=False`` nothing is waited for. A test with ``-d`` passes that too, and its daemon is found by its directory.
    """
    with starting(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """The same, for all tests of a module."""
    with starting(tmp_path_factory) as start:
        yield start


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    return free_ports(1)[0]


def find_tool(name: str, package: str = "") -> str:
    """The path of a program of Debian's ``package``. Where it is not installed a user's test is skipped, and CI's fails."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")  # where Debian has nats-server
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed")
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install {package or name})")
    return path


@pytest.fixture(scope="session")
def wrk() -> str:
    return find_tool("wrk")


@pytest.fixture(scope="session")
def php() -> str:
    return find_tool("php", "php-cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"server", "shared_server"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.fork)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The count of the contract's rows. Here, because with several processes the one that writes the summary collects no tests."""
    passed = {report.nodeid for report in terminalreporter.stats.get("passed", ()) if "/test_contract.py::test_row[" in report.nodeid}
    if not passed:
        return
    from tests.contract.table import SAME
    from tests.contract.test_contract import ROWS

    different = [row for row in ROWS if row.differs]
    undone = sum(row.back is SAME for row in different)
    terminalreporter.write_line(
        f"contract with uvicorn: {len(ROWS)} rows, {len(passed)} asked and as listed; {len(ROWS) - len(different)} the same, "
        f"{len(different)} different on purpose ({undone} of these the same with an option)"
    )
