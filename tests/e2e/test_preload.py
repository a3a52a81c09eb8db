"""--preload: one import for all workers of a generation, and everything else as without it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import wait_until
from tests.e2e.apps import APP, HOOKS
from tests.e2e.load import Load
from tests.e2e.tools import children, get, marks, wait_workers, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

#: The usual application; each import of it is marked.
FILES = {"app.py": f'{APP}\nVERSION = "one"\nmark("imported")\n', "hooks.py": HOOKS}
#: Answers its pid and what it was imported as.
VERSION = '''
    elif scope["path"] == "/version":
        await answer(send, VERSION)
    else:'''
FILES["app.py"] = FILES["app.py"].replace("\n    else:", VERSION)


def start(server: Callable[..., Server], *arguments: str, **rest: object) -> Server:
    return server("app:app", "--preload", "--no-access-log", *arguments, **{"files": FILES, **rest})


def imports(running: Server) -> list[int]:
    """The pids of the processes that have imported the application, in order."""
    return [pid for pid, word in marks(running) if word == "imported"]


def templates(running: Server, state: str = "ready") -> list[int]:
    return [row["pid"] for row in running.processes("http-template") if row["state"] == state]


def wait_template(running: Server, *, without: int) -> int:
    """The one template that is READY and is not that one, and nothing else of its kind."""

    def there() -> int:
        rows = running.processes("http-template")
        return rows[0]["pid"] if len(rows) == 1 and rows[0]["state"] == "ready" and rows[0]["pid"] != without else 0

    return wait_until(there, what="a new template")


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def inodes(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(entry))
    return {target for target in found if target.startswith("socket:")}


def rewrite(running: Server, old: str, new: str) -> None:
    path = running.directory / "app.py"
    path.write_text(path.read_text().replace(old, new))
    shutil.rmtree(running.directory / "__pycache__", ignore_errors=True)  # it would do for what is saved in the same second with the same size


# Birth ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_one_import_serves_all_workers(server: Callable[..., Server], loop: str) -> None:
    running = start(server, "--workers", "3", "--loop", loop, "--listener", "hooks")
    (template,) = templates(running)
    pids = workers(running)
    assert imports(running) == [template]
    assert set(children(running.pid)) == {template, *pids}, "each is the master's own child, and nobody else is"
    assert {int(get(running.port)[1].split()[0]) for _ in range(30)} <= set(pids)
    assert words(running, template) == ["imported"], "nothing starts in it"
    assert all(words(running, pid)[:3] == ["WorkerStarting", "startup", "WorkerStarted"] for pid in pids)
    assert re.search(rf"http-template +0 +{template} +ready +1 ", running.cli("status").stdout)
    assert all(row["pid"] in pids for row in running.connections())
    assert "no answer" not in running.cli("connections").stderr
    assert running.stop() == 0
    assert all(words(running, pid)[-1] == "shutdown" for pid in pids)


def test_the_template_holds_no_port_open(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    listening = inodes(running.pid) & inodes(workers(running)[0])
    assert len(listening) == 1
    assert not listening & inodes(templates(running)[0])
    assert len(inodes(templates(running)[0])) == 1, "its channel and nothing of its children's"
    assert not inodes(templates(running)[0]) & inodes(workers(running)[1]), "and nothing of it in them"


def test_what_a_fork_does_not_carry_over_is_named(server: Callable[..., Server]) -> None:
    app = f"""{APP}
import socket, threading
class Pool: pass
pool = Pool()
pool.connections = [socket.create_server(("127.0.0.1", 0))]
loop = asyncio.new_event_loop()
def poll():
    while True:
        time.sleep(60)
threading.Thread(target=poll, name="poller", daemon=True).start()
"""
    running = start(server, files={"app.py": app})
    warnings = [line for line in running.output.splitlines() if "Preload:" in line]
    assert len(warnings) == 3
    assert re.search(r"the thread 'poller' \(.*/app\.py:\d+ in poll\) does not run in the workers", running.output)
    assert re.search(r"the socket at 127\.0\.0\.1:\d+ \(app\.pool\.connections\[0\]\) is one and the same in all workers", running.output)
    assert re.search(r"the event loop \w+ \(app\.loop\) does not run in the workers", running.output)


def test_random_numbers_differ(server: Callable[..., Server]) -> None:
    files = {"app.py": f'{FILES["app.py"]}\nimport random\n'.replace("answer(send, VERSION)", "answer(send, str(random.random()))")}
    running = start(server, "--workers", "2", files=files)
    drawn: dict[str, str] = {}

    def both() -> bool:
        pid, number = get(running.port, "/version")[1].split()
        drawn.setdefault(pid, number)
        return len(drawn) == 2

    wait_until(both)
    assert len(set(drawn.values())) == 2


@pytest.mark.parametrize("guard", ["warn", "strict"])
def test_workers_import_nothing_for_themselves(server: Callable[..., Server], guard: str) -> None:
    app = FILES["app.py"].replace("answer(send, VERSION)", 'answer(send, " ".join(sorted(sys.modules.keys() - shared)))')
    app += "import sys\nshared = set()\nos.register_at_fork(before=lambda: shared.update(sys.modules))\n"
    running = start(server, "--guard", guard, files={"app.py": app})
    assert get(running.port, "/version")[1].split()[1:] == []


@pytest.mark.parametrize(
    ("app", "code", "text"),
    [
        ("import nothing_like_this", 3, "No module named 'nothing_like_this'"),
        ("app = 7", 3, '"app:app" is not callable, but int'),
        ("import asyncio; loop = asyncio.get_running_loop()", 3, "no running event loop (--preload imports the application where no event loop runs"),
        ("raise SystemExit(5)", 3, "SystemExit: 5"),
        ("import os; os._exit(9)", 3, "exit code 9"),
    ],
)
def test_an_application_that_cannot_be_imported_ends_the_start(server: Callable[..., Server], app: str, code: int, text: str) -> None:
    running = start(server, "--workers", "2", files={"app.py": app}, ready=False)
    assert running.process.wait(30) == code
    last = running.output.splitlines()[-1]
    assert re.search(r"--preload: the template of worker http (could not start|keeps failing): ", last)
    assert text in last


def test_a_startup_that_fails_ends_the_start(server: Callable[..., Server]) -> None:
    app = "async def app(scope, receive, send):\n    await receive()\n    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n"
    running = start(server, files={"app.py": app}, ready=False)
    assert running.process.wait(30) == 3
    assert "Worker http:0 could not start: Application startup failed: no database" in running.output.splitlines()[-1]


# Reload and restart ---------------------------------------------------------------------------------------------------------------


def test_a_reload_imports_the_new_code_once_and_loses_nothing(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "3")
    before, (template,) = set(workers(running)), templates(running)
    rewrite(running, '"one"', '"two"')
    with Load(running.port, connections=4) as load:
        result = running.cli("reload")
        assert result.returncode == 0, result.stderr
        load.go_on()
        assert (load.failures, load.refused) == ([], 0)
    wait_workers(running, 3, without=before)
    new = wait_template(running, without=template)
    assert imports(running) == [template, new]
    assert is_gone(template)
    assert get(running.port, "/version")[1].endswith("two")
    assert {row["generation"] for row in running.status()["processes"]} == {2}


def test_a_reload_with_a_mistake_in_it_changes_nothing(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    before = running.status()["processes"]
    rewrite(running, 'VERSION = "one"', "VERSION = ")
    result = running.cli("reload")
    assert result.returncode == 1
    assert "the new http-template workers cannot start" in result.stderr
    assert "SyntaxError" in result.stderr
    after = running.status()["processes"]
    assert [row["pid"] for row in after] == [row["pid"] for row in before]
    assert {row["generation"] for row in after} == {1}
    assert running.status()["server"]["rolling"] is False
    killed = workers(running)[0]
    os.kill(killed, signal.SIGKILL)
    wait_workers(running, 2, without={killed})
    assert get(running.port, "/version")[1].endswith("one"), "the old template forks on"
    rewrite(running, "VERSION = ", 'VERSION = "three"')
    assert running.cli("reload").returncode == 0
    assert get(running.port, "/version")[1].endswith("three")


def test_a_reload_whose_workers_cannot_start_keeps_the_old_ones(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    before = workers(running)
    rewrite(running, 'f"lifespan.{kind}.complete"', '"lifespan.startup.failed", "message": "no database"')
    result = running.cli("reload")
    assert result.returncode == 1
    assert "no database" in result.stderr
    assert workers(running) == before


def test_a_restart_takes_the_template_over_and_replaces_it(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    before, (template,) = set(workers(running)), templates(running)
    with Load(running.port, connections=4) as load:
        result = running.cli("restart")
        assert result.returncode == 0, result.stderr
        wait_workers(running, 2, without=before)
        load.go_on()
        assert (load.failures, load.refused) == ([], 0)
    new = wait_template(running, without=template)
    assert imports(running) == [template, new]
    assert set(children(running.pid)) == {new, *workers(running)}
    assert "Z" not in children(running.pid).values()


# Deaths ---------------------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_forked_anew_without_an_import(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "3")
    killed: set[int] = set()
    with Load(running.port, connections=2) as load:
        for _ in range(5):
            pids = wait_workers(running, 3, without=killed)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed.update(pids)
        pids = wait_workers(running, 3, without=killed)
        load.go_on()
    assert imports(running) == templates(running)
    assert set(children(running.pid)) == {*templates(running), *pids}
    assert "Z" not in children(running.pid).values()
    assert sum(row["restarts"] for row in running.status()["processes"]) == 15
    assert running.stop() == 0


def test_workers_outlive_their_template(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    pids, (template,) = workers(running), templates(running)
    with Load(running.port, connections=4) as load:
        os.kill(template, signal.SIGKILL)
        new = wait_template(running, without=template)
        load.go_on()
        assert (load.failures, load.refused) == ([], 0)
    assert workers(running) == pids
    os.kill(pids[0], signal.SIGKILL)
    wait_workers(running, 2, without={pids[0]})
    assert imports(running) == [template, new]


def test_a_worker_waits_for_the_template_when_both_die(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    pids, (template,) = workers(running), templates(running)
    for pid in (template, *pids):
        os.kill(pid, signal.SIGKILL)
    new = wait_template(running, without=template)
    assert len(wait_workers(running, 2, without={*pids})) == 2
    assert imports(running) == [template, new]
    assert get(running.port)[0] == 200


def test_a_template_that_does_not_fork_is_replaced(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    pids, (template,) = workers(running), templates(running)
    os.kill(template, signal.SIGSTOP)
    os.kill(pids[0], signal.SIGKILL)
    wait_template(running, without=template)
    wait_workers(running, 2, without={pids[0]})
    assert "Worker http:0 could not be forked: its template does not answer" in running.output
    assert "hung: no fork within 2.0 s" in running.output
    assert is_gone(template)


def test_nothing_survives_the_master(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "2")
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not running.survivors(), 2.5, what="the end of everybody")


def test_a_template_whose_master_dies_during_the_import_ends(server: Callable[..., Server]) -> None:
    running = start(server, files={"app.py": f'{APP}\nmark("sleeping")\ntime.sleep(60)\n'}, ready=False)
    wait_until(lambda: marks(running), what="the import")
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not running.survivors(), 2.5, what="the end of everybody")


def test_what_an_application_leaves_running_is_not_the_masters(server: Callable[..., Server]) -> None:
    leave = 'subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], text=True)'
    app = FILES["app.py"].replace("answer(send, VERSION)", f"answer(send, {leave})")
    running = start(server, files={"app.py": f"import subprocess\n{app}"})
    orphan = int(get(running.port, "/version")[1].split()[1])
    try:
        parent = int(Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent not in (running.pid, *workers(running), *templates(running))
    finally:
        os.kill(orphan, signal.SIGKILL)


# Count and stop -------------------------------------------------------------------------------------------------------------------


def test_scaling_forks_from_the_template(server: Callable[..., Server]) -> None:
    running = start(server, "--workers", "1")
    os.kill(running.pid, signal.SIGTTIN)
    wait_workers(running, 2)
    os.kill(running.pid, signal.SIGTTOU)
    wait_workers(running, 1)
    assert imports(running) == templates(running)


@pytest.mark.parametrize("close", [False, True])
def test_a_stop_under_load_loses_nothing(server: Callable[..., Server], close: bool) -> None:
    running = start(server, "--workers", "2")
    with Load(running.port, connections=8, close=close) as load:
        assert running.stop() == 0
    assert [failure for failure in load.failures if failure.answers == 0 or not failure.what.startswith("EOF after b''")] == []
    assert "did not stop in time" not in running.output


def test_a_stop_during_the_import_does_not_wait_for_it(server: Callable[..., Server]) -> None:
    running = start(server, files={"app.py": f'{APP}\nmark("sleeping")\ntime.sleep(600)\n'}, ready=False)
    wait_until(lambda: marks(running), what="the import")
    assert running.stop(timeout=8) == 0


def test_log_files_are_opened_anew_in_what_is_forked_later(server: Callable[..., Server]) -> None:
    running = start(server, "--log-file", "server.log")
    log = running.directory / "server.log"
    log.rename(running.directory / "old.log")
    os.kill(running.pid, signal.SIGUSR1)
    wait_until(log.exists)
    (killed,) = workers(running)
    os.kill(killed, signal.SIGKILL)
    (pid,) = wait_workers(running, 1, without={killed})
    wait_until(lambda: f"Started server process [{pid}]" in log.read_text(), what="the new worker's line in the new file")
