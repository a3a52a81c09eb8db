"""--preload and what operators do: daemons, unix sockets, signals, mistakes in reloads, restarts that switch it on and off."""

from __future__ import annotations

import os
import re
import signal
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE, wait_until
from tests.e2e.apps import HOOKS
from tests.e2e.load import Load
from tests.e2e.test_preload import FILES, imports, rewrite, start, templates, wait_template
from tests.e2e.tools import children, get, marks, wait_workers, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server


def configured(server: Callable[..., Server], preload: bool, *arguments: str) -> Server:
    """A server whose configuration file says whether it preloads."""
    pyproject = f"[tool.laraman]\npreload = {str(preload).lower()}\n"
    files = {**FILES, "hooks.py": HOOKS, "pyproject.toml": pyproject}
    return server("app:app", "--workers", "2", "--no-access-log", *arguments, files=files)


def configure(running: Server, preload: bool) -> None:
    (running.directory / "pyproject.toml").write_text(f"[tool.laraman]\npreload = {str(preload).lower()}\n")


def kill(running: Server, *pids: int) -> list[int]:
    """Kill these and wait for what takes their places."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return wait_workers(running, 2, without={*pids})


def family_of(running: Server, size: int) -> bool:
    return len(children(running.pid)) == size


def memory(pid: int) -> int:
    """KiB of resident memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


# Daemons and unix sockets ---------------------------------------------------------------------------------------------------------


def test_a_daemon_and_all_of_its_own_end_with_it(server: Callable[..., Server]) -> None:
    running = start(server, "-d", "--workers", "2", ready=False)
    assert running.process.wait(DEADLINE) == 0, running.output
    (template,) = templates(running)
    before = kill(running, workers(running)[0])
    assert running.cli("restart").returncode == 0
    wait_workers(running, 2, without={*before})
    wait_template(running, without=template)
    assert get(running.port)[0] == 200
    os.kill(running.status()["server"]["pid"], signal.SIGKILL)
    wait_until(lambda: not running.survivors(), 3, "the end of everybody")


def test_a_daemon_that_cannot_be_imported_says_it_in_a_line(server: Callable[..., Server]) -> None:
    running = start(server, "-d", files={"app.py": "import nothing_like_this"}, ready=False)
    assert running.process.wait(DEADLINE) == 3
    (line,) = running.output.splitlines()
    assert line.startswith("--preload: the template of worker http could not start: ")
    assert "No module named 'nothing_like_this'" in line


def test_a_unix_socket_is_handed_on(server: Callable[..., Server]) -> None:
    running = start(server, "--uds", "app.sock", "--workers", "2")
    path = running.directory / "app.sock"
    (template,) = templates(running)
    before = kill(running, workers(running)[0])
    assert running.cli("restart").returncode == 0
    wait_workers(running, 2, without={*before})
    wait_template(running, without=template)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert running.stop() == 0
    assert not path.exists()


# Signals --------------------------------------------------------------------------------------------------------------------------


def test_a_stopped_template_is_replaced_and_nobody_notices(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2", "--timeout-worker-healthcheck", "1")
    pids, (template,) = workers(running), templates(running)
    with Load(running.port, connections=4) as load:
        os.kill(template, signal.SIGSTOP)
        wait_template(running, without=template)
        load.go_on()
    assert (load.failures, load.refused) == ([], 0)
    assert workers(running) == pids


def test_a_stopped_template_ends_with_its_master(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    os.kill(templates(running)[0], signal.SIGSTOP)
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not running.survivors(), 2.5, "the end of everybody")


def test_signals_for_the_master_do_not_end_a_template(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    (template,) = templates(running)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(template, number)
    kill(running, workers(running)[0])
    assert templates(running) == [template]


# Mistakes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong"),
    [('VERSION = "one"', "VERSION = "), ('f"lifespan.{kind}.complete"', '"lifespan.startup.failed", "message": "no database"')],
    ids=["import", "startup"],
)
@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_after_a_failed_reload_a_dead_worker_comes_back_with_the_old_code(server: Callable[..., Server], verb: str, right: str, wrong: str) -> None:
    running = start(server, "--workers", "2")
    before, (template,) = workers(running), templates(running)
    rewrite(running, right, wrong)
    assert running.cli(verb).returncode == 1
    wait_until(lambda: templates(running) == [template], what="the old template alone")
    assert workers(running) == before
    kill(running, *before)
    rewrite(running, wrong, right)
    assert running.cli("reload").returncode == 0
    wait_template(running, without=template)
    assert get(running.port)[0] == 200


def test_a_template_that_cannot_be_had_is_tried_ever_more_rarely_while_workers_serve(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2", files={"app.py": f"{FILES['app.py']}\nif os.path.exists('die'):\n    os._exit(7)\n"})
    pids, (template,) = workers(running), templates(running)
    (running.directory / "die").touch()
    with Load(running.port, connections=4) as load:
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: running.output.count("exit code 7") >= 5)
        load.go_on()
        assert (load.failures, load.refused) == ([], 0)
    assert workers(running) == pids
    (running.directory / "die").unlink()
    wait_template(running, without=template)
    kill(running, pids[0])


# Again and again ------------------------------------------------------------------------------------------------------------------


def test_ten_reloads_leave_nothing_behind(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    sizes = []
    with Load(running.port, connections=4) as load:
        for _ in range(10):
            result = running.cli("reload")
            assert result.returncode == 0, result.stderr
            sizes.append(memory(running.pid))
        load.go_on()
    assert (load.failures, load.refused) == ([], 0)
    assert set(children(running.pid)) == {*templates(running), *workers(running)}
    assert len(imports(running)) == 11
    assert sizes[-1] - sizes[1] < 1024, sizes


# Switched by a restart ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [True, False])
def test_a_restart_switches_it(server: Callable[..., Server], preload: bool) -> None:
    running = configured(server, preload)
    with Load(running.port, connections=4) as load:
        for switched in (not preload, preload):
            before = workers(running)
            configure(running, switched)
            result = running.cli("restart")
            assert result.returncode == 0, result.stderr
            wait_workers(running, 2, without={*before})
            wait_until(partial(family_of, running, 2 + switched))
            assert len(templates(running)) == switched
            load.go_on()
    assert (load.failures, load.refused) == ([], 0)


@pytest.mark.parametrize("preload", [True, False])
def test_a_refused_restart_that_would_switch_it_leaves_no_slot_empty(server: Callable[..., Server], preload: bool) -> None:
    running = configured(server, preload, "--listener", "hooks")
    before = workers(running)
    (running.directory / "hooks.py").write_text("import nothing_like_this")
    configure(running, not preload)
    result = running.cli("restart")
    assert result.returncode == 1
    assert "nothing_like_this" in result.stderr
    assert workers(running) == before
    (running.directory / "hooks.py").write_text(HOOKS)
    before = kill(running, before[0])
    result = running.cli("restart")
    assert result.returncode == 0, result.stderr
    wait_workers(running, 2, without={*before})
    wait_until(lambda: len(templates(running)) == (not preload))


def test_a_restart_to_what_cannot_be_imported_keeps_what_serves(server: Callable[..., Server]) -> None:
    running = configured(server, False)
    before = workers(running)
    rewrite(running, 'VERSION = "one"', "VERSION = ")
    configure(running, True)
    result = running.cli("restart")
    assert result.returncode == 1
    assert "SyntaxError" in result.stderr
    assert workers(running) == before
    rewrite(running, "VERSION = ", 'VERSION = "two"')
    assert running.cli("reload").returncode == 0
    wait_workers(running, 2, without={*before})
    assert get(running.port, "/version")[1].endswith("two")
    assert not [word for pid, word in marks(running) if word == "imported" and pid in workers(running)]
