"""The examples that are programs of their own: the text server of four processes, and the desk with its clients in Python and PHP."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE, find_tool, wait_until
from tests.example import ROOT, Guest, start_example

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server


def command(part: str) -> str:
    """The line of docs/examples.md in which this occurs."""
    [line] = [line for line in (Path(ROOT) / "docs/examples.md").read_text().splitlines() if part in line and not line.startswith(("[", "("))]
    return line


@pytest.fixture
def desk(server: Callable[..., Server]) -> Server:
    return start_example(server)


def test_the_text_server_greets_with_four_processes(server: Callable[..., Server], free_port: int) -> None:
    running = server("app_example.greeter:workers", "--app-dir", ROOT, environ={"GREETER_PORT": str(free_port)})
    assert len(running.processes("greeter")) == 4
    wait_until(lambda: len(re.findall(r"^Worker greeter [0-3] started$", running.output, re.MULTILINE)) == 4, what="four start lines")
    for number in range(8):
        with socket.create_connection(("127.0.0.1", free_port), DEADLINE) as client, client.makefile("rw") as lines:
            for name in (f"world {number}", "Ünïcode"):
                lines.write(f"{name}\n")
                lines.flush()
                assert lines.readline() == f"Hello, {name}!\n"
            port = client.getsockname()[1]
        wait_until(lambda port=port: f"New connection from 127.0.0.1:{port}\n" in running.output, what="the connect line")
    pipe = command("socat").replace("8888", str(free_port))
    find_tool("socat")
    assert subprocess.run(["sh", "-c", pipe], capture_output=True, text=True, timeout=DEADLINE).stdout == "Hello, world!\n"
    assert running.stop() == 0
    assert "Traceback" not in running.output


def test_programs_without_a_loop_reach_browsers_through_the_desk(desk: Server, php: str) -> None:
    def run(line: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "DESK": "desk.sock", "PYTHONPATH": ROOT}
        line = re.sub(r"^python ", f"{sys.executable} ", re.sub(r"^php ", f"{php} {ROOT}/", line))
        return subprocess.run(["sh", "-c", line], cwd=desk.directory, env=environ, capture_output=True, text=True, timeout=DEADLINE)

    python, page, shell = command("app_example.say huila"), command("php app_example/php/say.php"), command("laraman.ipc_client")
    assert os.stat(desk.directory / "desk.sock").st_mode & 0o777 == 0o600
    with Guest(desk, "ada", "huila") as ada, Guest(desk, "bob", "lobby") as bob:
        for line, answer in ((python, "said to 1\n"), (page, "said to 1\n"), (shell, '{"res": "ok", "people": 1}\n')):
            result = run(line.replace("the oven is free", "der Ofen ist frei 长度"))
            assert (result.returncode, result.stdout, result.stderr) == (0, answer, "")
            said = ada.hear("message")
            assert (said["from"], said["text"], said["via"]) == ("the house", "der Ofen ist frei 长度", "desk")
        for line in (python, page):
            result = run(line.replace("huila", "attic"))
            assert (result.returncode, result.stdout, result.stderr) == (1, "", "there is no such room\n")
        bob.say(type="ping")
        assert bob.hear("pong", "message")["type"] == "pong"  # and has heard nothing of it
    assert desk.stop() == 0
    for line in (python, page, shell):
        result = run(line)
        assert (result.returncode, result.stdout, result.stderr) == (1, "", "desk.sock: No such file or directory\n")
    assert "Traceback" not in desk.output


def test_upload_workers_are_answered_by_task_workers(server: Callable[..., Server]) -> None:
    """Seed 000's second part: two upload workers, four task workers, a job and its answer every second."""
    running = server("app_example.uploads:workers", "--app-dir", ROOT, "--task-workers", "4")
    pids = {name: {row["pid"] for row in running.processes(name)} for name in ("upload", "task")}
    assert [len(pids["upload"]), len(pids["task"])] == [2, 4]

    def answers() -> dict[int, int]:
        """How often each upload worker was answered."""
        found = re.findall(r"^Upload worker (\d+) was answered by task worker (\d+)$", running.output, re.MULTILINE)
        assert {int(task) for _, task in found} <= pids["task"]
        return Counter(int(upload) for upload, _ in found)

    wait_until(lambda: [answers().get(pid, 0) >= 2 for pid in pids["upload"]] == [True, True], what="two answers for each")
    for pid in pids["upload"]:
        assert re.search(rf"^Task worker \d+ received 'Upload message of {pid}'$", running.output, re.MULTILINE)
    assert "got no answer" not in running.output
