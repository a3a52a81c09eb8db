"""Programs that are servers: what ends them, what they are told of it, and whom they serve under. With uvicorn and laraman where both can."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import DEADLINE, clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fork
both = pytest.mark.parametrize("library", ["uvicorn", "laraman"])

APP = """
import asyncio, os
from helper import VALUE
state = {"closed": False}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive(); await send({"type": "lifespan.startup.complete"})
        await receive(); print("lifespan is over", flush=True); await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{VALUE} {scope['scheme']} {os.getpid()}".encode()})
"""
#: One stream that ends when sse-starlette hears that its server stops, and says so.
STREAM = """
import asyncio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

async def events():
    try:
        while True:
            yield {"data": "tick"}
            await asyncio.sleep(0.05)
    finally:
        print("stream is over", flush=True)

async def stream(request):
    return EventSourceResponse(events())

app = Starlette(routes=[Route("/", stream)])
"""
RUN = """
import {library}
from app import app
if __name__ == "__main__":
    {library}.run({app}, port=0{options})
    print("run is over", flush=True)
"""
#: Is slow to start.
SLOW = """
import asyncio
async def app(scope, receive, send):
    await receive()
    await asyncio.sleep(1)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""
FAILING = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""
#: What older releases of sse-starlette do.
PATCHING = """
from uvicorn.main import Server
original = Server.handle_exit
def handle_exit(*arguments):
    print("told", flush=True)
    original(*arguments)
Server.handle_exit = handle_exit
"""


class Program:
    """A Python program in a directory of its own."""

    def __init__(self, directory: Path, arguments: list[str], files: dict[str, str]) -> None:
        self.directory = directory
        for name, text in {"helper.py": "VALUE = 1\n", "app.py": APP, **files}.items():
            (directory / name).write_text(text)
        self._log = directory / "output.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=directory,
                env=clean_environment({"HOME": str(directory)}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def says(self, text: str, count: int = 1) -> str:
        """Wait until it has said so; its output so far."""

        def said() -> bool:
            assert self.process.poll() is None or self.output.count(text) >= count, f"ended with {self.process.poll()}:\n{self.output}"
            return self.output.count(text) >= count

        wait_until(said, what=f"{text!r} in the output")
        return self.output

    @property
    def port(self) -> int:
        line = next(line for line in self.says("running on").splitlines() if "running on" in line)
        return int(line.partition("://127.0.0.1:")[2].split()[0])

    def get(self, **headers: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", headers=headers)
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            return str(response.read().decode())

    def listen(self) -> socket.socket:
        """A client of the stream, which has begun."""
        client = socket.create_connection(("127.0.0.1", self.port), DEADLINE)
        client.settimeout(DEADLINE)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"tick" not in received:
            received += client.recv(4096)
        return client

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self.process.wait(DEADLINE)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """``program("code")`` runs it; ``program("-m", "gunicorn", ...)`` runs a module."""
    started: list[Program] = []

    def start(*arguments: str, **files: str) -> Program:
        if len(arguments) == 1:
            (tmp_path / "main.py").write_text(arguments[0])
            arguments = ("main.py",)
        started.append(Program(tmp_path, list(arguments), {name.replace("_py", ".py"): text for name, text in files.items()}))
        return started[-1]

    yield start
    for running in started:
        running.close()


def run_with(library: str, app: str = "app", options: str = "") -> str:
    return RUN.format(library=library, app=app, options=options)


# Alone ----------------------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("number", "code", "goes_on"), [(signal.SIGTERM, -signal.SIGTERM, False), (signal.SIGINT, 0, True)], ids=["TERM", "INT"])
def test_what_ends_a_program(program: Any, library: str, number: int, code: int, goes_on: bool) -> None:
    running = program(run_with(library))
    assert running.get() == f"1 http {running.process.pid}"
    assert running.end(number) == code
    assert ("lifespan is over" in running.output, "run is over" in running.output) == (True, goes_on)
    assert "Traceback" not in running.output


def test_the_end_of_its_terminal_ends_it_in_order(program: Any) -> None:
    running = program(run_with("laraman"))
    running.says("running on")
    assert running.end(signal.SIGHUP) == -signal.SIGHUP
    assert "lifespan is over" in running.output


@both
def test_streams_of_sse_starlette_end_with_the_server(program: Any, library: str) -> None:
    running = program(run_with(library, options=", timeout_graceful_shutdown=100"), app_py=STREAM)
    with running.listen() as client:
        assert running.end() == -signal.SIGTERM
        while client.recv(4096):
            pass
    assert "stream is over" in running.output
    assert "Cancel" not in running.output


@both
def test_workers_need_an_import_string(program: Any, library: str) -> None:
    running = program(run_with(library, options=", workers=2"))
    assert running.process.wait(DEADLINE) == 3
    assert "You must pass the application as an import string to enable 'reload' or 'workers'." in running.output


@both
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)], ids=["TERM", "INT"])
def test_a_signal_while_it_starts(program: Any, library: str, number: int, code: int) -> None:
    running = program(run_with(library), app_py=SLOW)
    running.says("Waiting for application startup.")
    assert running.end(number) == code


# With a master --------------------------------------------------------------------------------------------------------------------


@both
def test_a_program_with_workers(program: Any, library: str) -> None:
    running = program(run_with(library, "'app:app'", ", workers=2, headers=[('x-name', 'value')]"))
    running.says("Application startup complete.", 2)
    assert running.get().startswith("1 http ")
    assert running.end() == 0
    assert running.output.count("lifespan is over") == 2
    assert "run is over" in running.output


SUPERVISED = """
import {library}
from {supervisors} import {supervisor}
if __name__ == "__main__":
    config = {library}.Config("app:app", port=0, workers=2)
    {supervisor}(config, sockets=[config.bind_socket()]).run()
"""


@pytest.mark.parametrize(
    ("library", "supervisors", "supervisor"), [("uvicorn", "uvicorn.supervisors", "Multiprocess"), ("laraman", "laraman.running", "Supervisor")]
)
def test_a_program_with_a_run_of_its_own(program: Any, library: str, supervisors: str, supervisor: str) -> None:
    """As nicegui has one."""
    running = program(SUPERVISED.format(library=library, supervisors=supervisors, supervisor=supervisor))
    running.says("Application startup complete.", 2)
    assert running.get().startswith("1 http ")
    assert running.end() == 0
    assert running.output.count("lifespan is over") == 2


def test_a_program_is_restarted(program: Any) -> None:
    running = program(run_with("laraman", "'app:app'", ", workers=2, name='it'"))
    running.says("Application startup complete.", 2)
    (running.directory / "helper.py").write_text("VALUE = 'new'\n")
    restart = subprocess.run([sys.executable, "-m", "laraman", "restart", "--name", "it"], cwd=running.directory, capture_output=True, text=True)
    assert restart.returncode == 0, restart.stderr + running.output
    assert running.get().startswith("new http ")
    assert running.end() == 0


def test_what_a_program_had_imported_is_new_after_a_reload(program: Any) -> None:
    running = program(run_with("laraman", "'app:app'", ", workers=2"))
    running.says("Application startup complete.", 2)
    before = running.get()
    (running.directory / "helper.py").write_text("VALUE = 'two'\n")
    running.process.send_signal(signal.SIGHUP)
    running.says("Finished server process", 2)
    after = running.get()
    assert (before.split()[0], after.split()[0]) == ("1", "two")
    assert running.end() == 0


def test_workers_that_cannot_start(program: Any) -> None:
    running = program(run_with("laraman", "'app:nothing'", ", workers=2"))
    assert running.process.wait(DEADLINE) == 3
    assert 'Attribute "nothing" not found in module "app".' in running.output
    assert "run is over" not in running.output


@pytest.mark.parametrize("how", ["stop", "reload", "TERM"])
def test_streams_end_when_the_master_says_so(server: Any, how: str) -> None:
    running = server("app:app", "--timeout-graceful-shutdown", "100", files={"app.py": STREAM})
    with socket.create_connection(("127.0.0.1", running.port), DEADLINE) as client:
        client.settimeout(DEADLINE)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"tick" not in received:
            received += client.recv(4096)
        if how == "TERM":
            assert running.stop() == 0
        else:
            assert running.cli(how).returncode == 0  # no signal reaches the worker
        while client.recv(4096):
            pass
        wait_until(lambda: "stream is over" in running.output)
    assert "Cancel" not in running.output


def test_who_has_patched_uvicorn_hears_of_a_stop(server: Any) -> None:
    running = server("app:app", files={"app.py": PATCHING + APP, "helper.py": "VALUE = 1\n"})
    assert running.stop() == 0
    assert running.output.count("told") == 1


# Under gunicorn -------------------------------------------------------------------------------------------------------------------

GUNICORN = ("-m", "gunicorn", "-k", "laraman.workers.LaramanWorker", "-b", "127.0.0.1:0", "--no-control-socket", "--access-logfile", "-")


class Gunicorn:
    """gunicorn says where it listens in words of its own."""

    def __init__(self, running: Program) -> None:
        self.running = running
        line = next(line for line in running.says("Listening at: http").splitlines() if "Listening at" in line)
        self.url = line.partition("Listening at: ")[2].split()[0]

    def get(self, **headers: str) -> str:
        with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=DEADLINE) as response:
            return str(response.read().decode())


def test_under_gunicorn(program: Any) -> None:
    running = program(*GUNICORN, "--max-requests", "2", "--graceful-timeout", "5", "app:app")
    gunicorn = Gunicorn(running)
    first = gunicorn.get(**{"X-Forwarded-Proto": "https"})
    assert first.startswith("1 https ")
    assert gunicorn.get() == first.replace("https", "http")
    running.says("Maximum request limit of 2 exceeded.")
    running.says("Application startup complete.", 2)
    assert gunicorn.get().split()[2] != first.split()[2]
    assert running.end() == 0
    assert running.output.count("lifespan is over") == 2
    assert running.output.count('"GET / HTTP/1.1" 200') == 3
    assert "was sent SIG" not in running.output
    assert "exited with code" not in running.output


def test_gunicorn_ends_its_worker_quickly(program: Any) -> None:
    running = program(*GUNICORN, "--graceful-timeout", "60", "app:app", app_py=STREAM)
    gunicorn = Gunicorn(running)
    with urllib.request.urlopen(gunicorn.url, timeout=DEADLINE) as response:
        assert b"tick" in response.readline()
        assert running.end(signal.SIGINT) == 0
    assert "was sent SIG" not in running.output


def test_a_worker_does_not_survive_gunicorn(program: Any) -> None:
    running = program(*GUNICORN, "app:app")
    pid = int(Gunicorn(running).get().split()[2])
    running.process.kill()
    running.process.wait(DEADLINE)
    wait_until(lambda: "lifespan is over" in running.output)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def test_gunicorn_hears_that_the_application_cannot_start(program: Any) -> None:
    running = program(*GUNICORN, "app:app", app_py=FAILING)
    assert running.process.wait(DEADLINE) == 3
    assert "no database" in running.output


TIMED = """
import os
import laraman

laraman.every(0.1, lambda: print(f"[{os.getpid()} each]", flush=True))
laraman.every(0.1, lambda: print(f"[{os.getpid()} once]", flush=True), singleton=True)

async def app(scope, receive, send):
    pass
"""


def test_a_timer_runs_once_for_all_workers_of_gunicorn(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    running = program(*GUNICORN, "-w", "2", "app:app", app_py=TIMED)

    def who(word: str) -> set[str]:
        return set(re.findall(rf"\[(\d+) {word}\]", running.output))

    wait_until(lambda: len(who("each")) == 2 and running.output.count("once]") > 5)
    (holder,) = who("once")
    os.kill(int(holder), signal.SIGKILL)
    wait_until(lambda: who("once") - {holder})
    assert running.end() == 0
