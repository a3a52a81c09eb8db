"""--preload and applications, operators and kernels that do not mean well."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.conftest import wait_until
from tests.e2e.apps import APP
from tests.e2e.load import Load
from tests.e2e.test_preload import start, templates
from tests.e2e.tools import children, descriptors, get, marks, wait_workers, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

# Applications ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nasty",
    [
        "class Lazy:\n    @property\n    def __class__(self): raise RuntimeError('too early')\nlazy = Lazy()",
        "import types\nclass Module(types.ModuleType):\n    @property\n    def __dict__(self): raise RuntimeError('too early')\n"
        "import sys; sys.modules['odd'] = Module('odd')\nimport socket; held = socket.socketpair()",
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "import sys; sys.stdout.close()",
        "import sys; sys.stdout = None",
        "import sys; sys.stdout = open('/dev/full', 'w'); print('hello')",
        "import os; os.close(0)",
        "import asyncio\nclass Odd(asyncio.SelectorEventLoop):\n    def is_closed(self): raise RuntimeError('odd')\nodd = Odd()",
        "import socket; held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "import asyncio; asyncio.run(asyncio.sleep(0))",
        "import subprocess; subprocess.run(['true'], check=True); child = os.fork()\nif not child: os._exit(0)",
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)]",
        "import threading\ndef busy():\n    import socket\n    while True: socket.socket().close()\n"
        "[threading.Thread(target=busy, daemon=True).start() for _ in range(3)]",
        "import gc; gc.disable()",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "import os; os.register_at_fork(before=lambda: 1/0, after_in_child=lambda: 1/0)",
        "print('x' * 100000)",
    ],
)
def test_import(server: Callable[..., Server], nasty: str) -> None:
    running = start(server, "--workers", "2", files={"app.py": f"{APP}\n{nasty}\n"}, ready=False)
    running.wait_ready(8)
    (template,), pids = templates(running), workers(running)
    os.kill(pids[0], signal.SIGKILL)
    wait_workers(running, 2, without={pids[0]})
    assert templates(running) == [template]
    assert get(running.port)[0] == 200
    assert running.stop(timeout=6) == 0
    assert "could not be forked" not in running.output


# Zombies and descriptors ----------------------------------------------------------------------------------------------------------

#: Lets a process end whose parent is gone by then, while the template forks.
ORPHANS = """
import subprocess
def leave():
    mark("orphan " + subprocess.check_output(["sh", "-c", "sleep 0.3 >/dev/null 2>&1 & echo $!"], text=True).strip())
os.register_at_fork(before=leave)
"""
#: Kills the template when it is in the middle of a fork, once it is told to.
SUICIDE = """
template = os.getpid()
def kill():
    if os.path.exists("now"):
        os.unlink("now")
        os.kill(template, 9)
        mark("killed")
        time.sleep(0.3)
os.register_at_fork(after_in_child=kill)
"""


def family(running: Server) -> bool:
    """Whether the master's children are those that it knows of, and alive."""
    found = children(running.pid)
    return set(found) == {row["pid"] for row in running.status()["processes"]} and "Z" not in found.values()


def test_an_orphan_that_appears_during_a_fork_does_not_stay_a_zombie(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2", files={"app.py": APP + ORPHANS}, ready=False)
    orphans = wait_until(lambda: [int(word.split()[1]) for _, word in marks(running) if word.startswith("orphan")], what="an orphan")
    wait_until(lambda: orphans[0] in children(running.pid), what="its adoption")
    running.wait_ready()
    wait_until(lambda: family(running), 5, "the end of the orphans")


@pytest.mark.parametrize("restart", [False, True])
def test_a_template_killed_in_the_middle_of_a_fork_leaves_no_zombie(server: Callable[..., Server], restart: bool) -> None:
    running = start(server, "--workers", "2", files={"app.py": APP + SUICIDE})
    pids = workers(running)
    (running.directory / "now").touch()
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: [word for _, word in marks(running) if word == "killed"])
    if restart:
        assert running.cli("restart").returncode == 0
    wait_until(lambda: family(running) and len(wait_workers(running, 2, without={pids[0]})) == 2, 10, "a family without zombies")


def test_fifty_kills_leave_no_zombie_and_no_descriptor(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "5")
    (template,) = templates(running)
    counted = [descriptors(pid) for pid in (running.pid, template, workers(running)[0])]
    killed: set[int] = set()
    with Load(running.port, connections=2) as load:
        while len(killed) < 50:
            pids = wait_workers(running, 5, without=killed)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed.update(pids)
        wait_workers(running, 5, without=killed)
        load.go_on()
    assert family(running)
    wait_until(lambda: descriptors(running.pid) <= counted[0], what="as few descriptors as before in the master")
    assert descriptors(template) <= counted[1]
    wait_until(lambda: all(descriptors(pid) <= counted[2] for pid in workers(running)), what="as few in the workers")
    assert {row["last_exit"] for row in running.processes()} == {"killed by SIGKILL"}
