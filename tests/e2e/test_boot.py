"""A start that cannot work says why in one clear line, with the right exit code, in the foreground and as a daemon."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.e2e.apps import FILES
from tests.e2e.tools import get, marks, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

FAILED_STARTUP = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})
"""
REFUSING = """
import laraman

@laraman.on(laraman.ServerStarting)
def refuse(event):
    raise laraman.ConfigError("the secret is not set")
"""
CONTROLLED_EXIT = "raise SystemExit('I do not want to')\n"


class Case(NamedTuple):
    """``code`` and a part of the one line that a start with these arguments and files ends with."""

    arguments: tuple[str, ...]
    files: dict[str, str]
    code: int
    text: str


CASES = {
    "no-app": Case((), {}, 2, "no application: name it"),
    "no-such-module": Case(("nowhere:app",), {}, 3, 'Error loading ASGI app. Could not import module "nowhere".'),
    "no-such-attribute": Case(("app:nothing",), FILES, 3, 'Error loading ASGI app. Attribute "nothing" not found in module "app".'),
    "no-import-string": Case(("app.app",), FILES, 3, 'Import string "app.app" must be in format "<module>:<attribute>".'),
    "not-callable": Case(("app:app",), {"app.py": "app = 5\n"}, 3, "not callable, but int"),
    "syntax-error": Case(("app:app",), {"app.py": "def app(:\n"}, 3, 'Importing module "app" failed: SyntaxError: invalid syntax'),
    "missing-dependency": Case(("app:app",), {"app.py": "import no_such_library\n"}, 3, "No module named 'no_such_library'"),
    "exits-while-imported": Case(("app:app",), {"app.py": CONTROLLED_EXIT}, 3, "SystemExit: I do not want to"),
    "startup-failed": Case(("app:app",), {"app.py": FAILED_STARTUP}, 3, "the database is away"),
    "bad-option": Case(("app:app", "--wrokers", "2"), FILES, 2, "did you mean"),
    "bad-value": Case(("app:app", "--workers", "many"), FILES, 2, "many"),
    "bad-port": Case(("app:app", "--port", "70000"), FILES, 2, "70000"),
    "no-such-address": Case(("app:app", "--host", "192.0.2.1"), FILES, 3, "cannot listen on http://192.0.2.1:"),
    "invalid-pyproject": Case(("app:app",), {**FILES, "pyproject.toml": "[tool.laraman\n"}, 2, "pyproject.toml"),
    "unknown-key-in-pyproject": Case(("app:app",), {**FILES, "pyproject.toml": "[tool.laraman]\nwrokers = 2\n"}, 2, "wrokers"),
    "wrong-type-in-pyproject": Case(("app:app",), {**FILES, "pyproject.toml": "[tool.laraman]\nworkers = [2]\n"}, 2, "workers"),
    "no-such-listener": Case(("app:app", "--listener", "nowhere"), FILES, 2, "nowhere"),
    "listener-refuses": Case(("app:app", "--listener", "refuse"), {**FILES, "refuse.py": REFUSING}, 2, "the secret is not set"),
}


def start(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "laraman", "start", *arguments],
        cwd=directory,
        env=clean_environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What stderr says, without the course of events, the traceback of the user's module and what uvicorn says too when startup fails."""
    records: list[list[str]] = []
    for line in result.stderr.splitlines():
        if line.startswith(("INFO:", "WARNING:", "ERROR:", "CRITICAL:", "laraman:", "Error")) or not records:
            records.append([line])
        else:
            records[-1].append(line)
    single = [lines[0] for lines in records if len(lines) == 1 and not lines[0].startswith("INFO:")]
    if any("Application startup failed. Exiting." in line for line in single):
        return single[-1:]
    return single


#: Those that are found out at different times: by the command, before the fork, in the master and in a worker.
AS_DAEMON = ("no-app", "bad-option", "invalid-pyproject", "no-such-listener", "listener-refuses", "no-such-module", "startup-failed")


@pytest.mark.fork
@pytest.mark.parametrize(
    ("case", "daemon"),
    [
        *(pytest.param(case, False, id=name) for name, case in CASES.items()),
        *(pytest.param(CASES[name], True, id=f"{name}-daemon") for name in AS_DAEMON),
    ],
)
def test_one_clear_line_and_the_exit_code(tmp_path: Path, case: Case, daemon: bool) -> None:
    for name, text in case.files.items():
        (tmp_path / name).write_text(text)
    port = () if "--port" in case.arguments else ("--port", "0")
    result = start(tmp_path, *case.arguments, *port, *(("-d",) if daemon else ()))
    assert result.returncode == case.code, result.stderr
    lines = complaints(result)
    assert len(lines) == 1, result.stderr
    assert case.text in lines[0]
    assert [path.name for path in tmp_path.glob(".laraman/*/*") if path.name != "laraman.log"] == []


@pytest.mark.fork
@pytest.mark.parametrize("daemon", [False, True], ids=["foreground", "daemon"])
def test_busy_port(tmp_path: Path, daemon: bool) -> None:
    (tmp_path / "app.py").write_text(FILES["app.py"])
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = start(tmp_path, "app:app", "--port", port, *(("-d",) if daemon else ()))
    assert result.returncode == 3
    (line,) = complaints(result)
    assert f"cannot listen on http://127.0.0.1:{port}: Address already in use" in line


@pytest.mark.fork
def test_unreadable_pyproject(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FILES["app.py"])
    (tmp_path / "pyproject.toml").mkdir()  # unreadable for root too
    result = start(tmp_path, "app:app", "--port", "0")
    assert result.returncode == 2
    (line,) = complaints(result)
    assert "pyproject.toml" in line


@pytest.mark.parametrize(("words", "text"), [(["strat"], "did you mean"), (["stop", "now"], "now"), (["status", "--nope"], "--nope")])
def test_unknown_words(tmp_path: Path, words: list[str], text: str) -> None:
    result = subprocess.run([sys.executable, "-m", "laraman", *words], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert text in line


@pytest.mark.parametrize("verb", ["status", "connections", "reload", "restart", "stop"])
def test_verbs_without_a_server(tmp_path: Path, verb: str) -> None:
    result = subprocess.run([sys.executable, "-m", "laraman", verb], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "not running" in line


RAISING = """
import laraman

@laraman.on(laraman.ServerStarting)
@laraman.on(laraman.WorkerStarting)
@laraman.on(laraman.WorkerStarted)
@laraman.on(laraman.RequestReceived)
@laraman.on(laraman.RequestHandled)
@laraman.on(laraman.RequestTerminated)
@laraman.on(laraman.WorkerStopping)
@laraman.on(laraman.WorkerExited)
@laraman.on(laraman.ServerStopping)
def clumsy(event):
    raise RuntimeError(f"oops in {type(event).__name__}")
"""


def test_a_listener_that_raises_is_named_and_changes_nothing(server: Callable[..., Server]) -> None:
    running = server("app:app", "--listener", "broken", "--listener", "hooks", files={**FILES, "broken.py": RAISING})
    (worker,) = workers(running)
    assert get(running.port) == (200, f"{worker} hello")
    assert running.stop() == 0
    output = running.output
    for kind in ("ServerStarting", "WorkerStarting", "WorkerStarted", "RequestReceived", "RequestHandled", "RequestTerminated"):
        assert f"Listener broken.clumsy for {kind} raised" in output
        assert f"RuntimeError: oops in {kind}" in output
    for kind in ("WorkerStopping", "WorkerExited", "ServerStopping"):
        assert f"RuntimeError: oops in {kind}" in output
    assert [word for pid, word in marks(running) if pid == worker and word != "WorkerError"] == [
        "WorkerStarting",
        "startup",
        "WorkerStarted",
        "RequestReceived",
        "RequestHandled",
        "RequestTerminated",
        "WorkerStopping",
        "shutdown",
    ]


def test_a_worker_that_is_killed_while_it_boots_is_started_again(server: Callable[..., Server]) -> None:
    slow = FILES["app.py"] + "\nif not os.path.exists('second'):\n    open('second', 'w').close()\n    os.kill(os.getpid(), 9)\n"
    running = server("app:app", files={**FILES, "app.py": slow})
    assert get(running.port)[0] == 200
    assert running.status()["processes"][0]["restarts"] == 1


def test_a_crash_loop_later_leaves_the_sibling_serving(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", files=FILES)
    first, second = workers(running)
    (running.directory / "app.py").write_text("raise RuntimeError('broken meanwhile')\n")
    subprocess.run(["kill", "-9", str(first)], check=True)
    wait_until(lambda: "broken meanwhile" in running.output, what="the failed replacement")
    assert get(running.port) == (200, f"{second} hello")
    wait_until(lambda: any("broken meanwhile" in (row["last_exit"] or "") for row in running.status()["processes"]))
    (running.directory / "app.py").write_text(FILES["app.py"])
    wait_until(lambda: len(workers(running)) == 2, what="two workers again")
    assert running.stop() == 0
