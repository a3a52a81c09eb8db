"""The examples that are programs of their own: the text server of four processes, and the desk with its clients in Python and PHP."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE, wait_until
from tests.example import ROOT, Guest, start_example

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server


@pytest.fixture
def desk(server: Callable[..., Server]) -> Server:
    return start_example(server)


def test_the_text_server_greets_with_four_processes(server: Callable[..., Server], free_port: int) -> None:
    running = server("app_example.greeter:workers", "--app-dir", ROOT, environ={"GREETER_PORT": str(free_port)}, ready=True)
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
    assert running.stop() == 0
    assert "Traceback" not in running.output


def test_programs_without_a_loop_reach_browsers_through_the_desk(desk: Server, php: str) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "DESK": "desk.sock", "PYTHONPATH": ROOT}
        return subprocess.run(command, cwd=desk.directory, env=environ, capture_output=True, text=True, timeout=DEADLINE)

    python, page = [sys.executable, "-m", "app_example.say"], [php, f"{ROOT}/app_example/php/say.php"]
    assert os.stat(desk.directory / "desk.sock").st_mode & 0o777 == 0o600
    with Guest(desk, "ada", "huila") as ada, Guest(desk, "bob", "lobby") as bob:
        for command in (python, page):
            result = run(*command, "huila", "der Ofen glüht 长度")
            assert (result.returncode, result.stdout, result.stderr) == (0, "said to 1\n", "")
            said = ada.hear("message")
            assert (said["from"], said["text"], said["via"]) == ("the house", "der Ofen glüht 长度", "desk")
            result = run(*command, "attic", "hello")
            assert (result.returncode, result.stdout, result.stderr) == (1, "", "there is no such room\n")
        bob.say(type="ping")
        bob.hear("pong")  # and has heard nothing of it before
    assert desk.stop() == 0
    for command in (python, page):
        result = run(*command, "huila", "anybody?")
        assert (result.returncode, result.stdout, result.stderr) == (1, "", "desk.sock: No such file or directory\n")
    assert "Traceback" not in desk.output
