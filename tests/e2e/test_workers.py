"""Workers of a user's own: a program of them, those that pyproject.toml declares, and what reload, restart, a death and a limit do to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.e2e.tools import get, marks, wait_mark

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

HANDLERS = """
import os

def mark(word):
    with open("marks.txt", "a") as file:
        file.write(f"{os.getpid()} {word}\\n")

class Echo:
    WORD = "one"

    def on_start(self, worker):
        self.worker = worker
        mark(f"start {worker.name} {worker.slot} {worker.main} {self.WORD}")

    async def on_reload(self, worker):
        mark(f"reload {worker.name}")

    async def on_message(self, connection, message):
        await connection.send(f"{self.WORD} {message} {self.worker.config.timeout_write:g}")

class Bytes(Echo):
    async def on_message(self, connection, data):
        await connection.send(b"bytes %d\\n" % self.worker.config.timeout_write)

class Failing(Echo):
    def on_reload(self, worker):
        mark("failing")
        raise OSError("on purpose")
"""
PROGRAM = """
from laraman import Worker
from handlers import Echo, Failing

workers = [
    Worker("echo", "text://127.0.0.1:0", count=2, handler="handlers:Echo", timeout_write=7),
    Worker("alone", handler="handlers:Failing", exclusive=True),
    Worker("fixed", handler=Echo),
]
"""


def ask(port: int, text: str) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock, sock.makefile("rw") as lines:
        lines.write(f"{text}\n")
        lines.flush()
        return lines.readline().strip()


def pids(running: Server, worker: str) -> set[int]:
    return {row["pid"] for row in running.processes(worker) if row["state"] == "ready"}


def words(running: Server) -> list[str]:
    return [word for _, word in marks(running)]


def test_a_program_of_workers(server: Callable[..., Server], free_port: int) -> None:
    program = PROGRAM.replace("127.0.0.1:0", f"127.0.0.1:{free_port}")
    running = server("program:workers", files={"handlers.py": HANDLERS, "program.py": program})
    echo, alone, fixed = pids(running, "echo"), pids(running, "alone"), pids(running, "fixed")
    assert sorted(words(running)) == [f"start {text} one" for text in ("alone 0 False", "echo 0 True", "echo 1 True", "fixed 0 False")]
    assert ask(running.port, "hello") == "one hello 7"
    assert {Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b" \0").decode() for pid in echo} == {
        f"laraman: echo {slot} text://127.0.0.1:{running.port}" for slot in (0, 1)
    }
    assert running.status()["server"]["name"] == str(running.port)
    shown = running.cli("status").stdout
    assert f"  program:workers  text://127.0.0.1:{running.port}  up " in shown
    assert [line.split()[:2] for line in shown.splitlines()[3:]] == [["echo", "0"], ["echo", "1"], ["alone", "0"], ["fixed", "0"]]

    # A reload brings new code, and is told to everybody whom it leaves alone, too.
    (running.directory / "handlers.py").write_text(HANDLERS.replace('"one"', '"second"'))  # of another length: compiled files know times in seconds
    answer = running.cli("reload")
    assert (answer.returncode, answer.stderr) == (0, "laraman: not reloadable, because the handler is no import string: fixed\n")
    assert not pids(running, "echo") & echo
    assert (pids(running, "alone"), pids(running, "fixed")) == (alone, fixed)
    assert ask(running.port, "hello") == "second hello 7"
    wait_mark(running, "failing")
    wait_until(lambda: sorted(word for word in words(running) if word.startswith("reload")) == ["reload echo", "reload echo", "reload fixed"])
    wait_until(lambda: "Worker alone: on_reload raised" in running.output)

    # Code that is broken changes nothing.
    (running.directory / "handlers.py").write_text("1 / 0")
    before = pids(running, "echo")
    answer = running.cli("reload")
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "the new echo workers cannot start: ZeroDivisionError" in answer.stderr
    (running.directory / "handlers.py").write_text(HANDLERS.replace('"one"', '"three"'))

    # A death is made up for.
    dead = min(before)
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: len(now := pids(running, "echo")) == 2 and dead not in now)

    # A restart is refused while the program is no program, and takes over what it declares anew.
    for text, says in ((program + "1 / 0\n", "ZeroDivisionError"), ("workers = [", "names no Workers any more, or its module cannot be read")):
        (running.directory / "program.py").write_text(text)
        answer = running.cli("restart")
        assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
        assert says in answer.stderr
        assert len(pids(running, "echo")) == 2
        assert ask(running.port, "hello").endswith("hello 7")
    changes = {"timeout_write=7": "timeout_write=8", "exclusive=True": "count=2", "text://": "tcp://", "handlers:Echo": "handlers:Bytes"}
    for old, new in changes.items():
        program = program.replace(old, new)
    (running.directory / "program.py").write_text(program)
    answer = running.cli("restart")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert len(pids(running, "alone")) == 2
    assert ask(running.port, "hello") == "bytes 8", "another protocol at the same address"
    assert running.stop() == 0


def test_workers_that_pyproject_declares(server: Callable[..., Server]) -> None:
    app = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"app"})
"""
    table = '[tool.laraman.workers.echo]\naddress = ["text://127.0.0.1:0"]\nhandler = "handlers:Echo"\nlimit_max_requests = 3\ntimeout_write = 7\n'
    running = server("app:app", files={"app.py": app, "handlers.py": HANDLERS, "pyproject.toml": table})
    addresses = running.status()["server"]["addresses"]
    port = int(addresses[1].rpartition(":")[2])
    assert get(running.port) == (200, "app")
    assert words(running) == ["start echo 0 False one"]
    before = pids(running, "echo")
    assert [ask(port, "hello") for _ in range(3)] == ["one hello 7"] * 3
    wait_until(lambda: (now := pids(running, "echo")) and not now & before, what="a successor: its limit is its own")
    assert ask(port, "hello") == "one hello 7"
    assert len(running.processes("http")) == 1
    assert running.processes("http")[0]["generation"] == 1


def test_a_program_that_runs_its_workers(tmp_path: Path) -> None:
    def run(text: str) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(text)
        return subprocess.Popen(
            [sys.executable, "program.py"], cwd=tmp_path, env=clean_environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    declared = "import laraman\nfrom handlers import mark\n"
    (tmp_path / "handlers.py").write_text(HANDLERS)
    main = f"""{declared}
class Idle:
    def on_start(self, worker):
        mark(worker.name)

if __name__ == "__main__":
    laraman.run_workers(laraman.Worker("idle", handler="program:Idle"), laraman.Worker("other", handler=Idle), log_level="warning")
"""
    with run(main) as program:
        path = tmp_path / "marks.txt"
        wait_until(lambda: path.exists() and sorted(line.split()[1] for line in path.read_text().splitlines()) == ["idle", "other"])
        assert [found.name for found in (tmp_path / ".laraman").iterdir() if found.is_dir()] == ["idle"]
        program.terminate()
        assert program.communicate(timeout=DEADLINE) == ("", None)
        assert program.returncode == 0
    for call, code, says in (
        ("laraman.run_workers()", 2, "there are no Workers to run"),
        ('laraman.run_workers(laraman.Worker("a"), laraman.Worker("a"))', 2, "two workers are called 'a'"),
        ('laraman.run_workers(laraman.Worker("a", handler="program:X"))', 2, "run_workers is called while the program is imported by a worker"),
    ):
        with run(f"{declared}{call}\n") as program:
            output, _ = program.communicate(timeout=DEADLINE)
            assert program.returncode == code
            assert says in output
            assert "Traceback" not in output
