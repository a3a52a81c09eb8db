"""--reload: from a save to the new code, whatever the save was, and whatever the old code is doing."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import wait_until
from tests.e2e.apps import APP, HOOKS
from tests.e2e.tools import get, read_all, read_until, send, send_get, wait_workers, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

#: Answers what it was saved as.
SAVED = '''
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"TEXT"})
'''
#: Nobody finds watchfiles where this was run first.
HIDING = "import sys\nsys.modules['watchfiles'] = None\n"
WATCHERS = pytest.mark.parametrize("watcher", ["WatchFiles", "StatReload"])


def start(server: Callable[..., Server], *arguments: str, watcher: str = "WatchFiles", files: dict[str, str] | None = None, **rest: Any) -> Server:
    files = {"app.py": SAVED.replace("TEXT", "first"), **(files or {})}
    if watcher == "StatReload":
        files["hiding/sitecustomize.py"], rest["environ"] = HIDING, {"PYTHONPATH": "hiding"}
    return server("app:app", "--reload", "--no-access-log", *arguments, files=files, **rest)


def save(running: Server, text: str, name: str = "app.py") -> None:
    (running.directory / name).write_text(text)


def answer(running: Server) -> str:
    """What it answers now; "" while nobody does."""
    try:
        return get(running.port)[1]
    except (OSError, http.client.HTTPException):
        return ""


def wait_answer(running: Server, text: str) -> None:
    wait_until(lambda: answer(running) == text, what=f"the answer {text!r}")


def wait_said(running: Server, text: str, times: int = 1) -> None:
    wait_until(lambda: running.output.count(text) == times, what=f"{text!r}, {times} times,")


def wait_calm(running: Server) -> None:
    wait_until(lambda: not running.status()["server"]["rolling"] and len(running.processes()) == 1, what="the end of the reload")


# Saves ----------------------------------------------------------------------------------------------------------------------------


@WATCHERS
def test_a_day_of_work(server: Callable[..., Server], watcher: str) -> None:
    running = start(server, watcher=watcher)
    lines = [re.sub(r"\d{2,}", "N", line.partition(":")[2].strip()) for line in running.output.splitlines()]
    directory = re.sub(r"\d{2,}", "N", str(running.directory))
    assert lines[:3] == [
        f"Will watch for changes in these directories: ['{directory}']",
        "Laraman running on http://N.0.0.1:N (Press CTRL+C to quit)",
        f"Started reloader process [N] using {watcher}",
    ]
    detected = f"WARNING:  {watcher} detected changes in "

    save(running, SAVED.replace("TEXT", "saved"))
    wait_answer(running, "saved")
    assert f"{detected}'app.py'. Reloading...\n" in running.output

    # An editor that writes beside and renames, and a file that is older than what it replaces.
    save(running, SAVED.replace("TEXT", "moved"), "app.py.tmp")
    os.utime(running.directory / "app.py.tmp", (1, 1))
    os.rename(running.directory / "app.py.tmp", running.directory / "app.py")
    wait_answer(running, "moved")

    (running.directory / "shop" / "deep").mkdir(parents=True)
    save(running, "TEXT = b'in a new directory'", "shop/deep/text.py")
    save(running, SAVED.replace('b"TEXT"', "TEXT") + "from shop.deep.text import TEXT\n")
    wait_answer(running, "in a new directory")
    save(running, "TEXT = b'changed there'", "shop/deep/text.py")
    wait_answer(running, "changed there")

    # A package that comes with all its files, from elsewhere.
    shutil.copytree(running.directory / "shop", running.directory.parent / f"{running.directory.name}-shop")
    save(running, "TEXT = b'arrived'", f"../{running.directory.name}-shop/deep/text.py")
    save(running, SAVED.replace('b"TEXT"', "TEXT") + "try:\n    from arrived.deep.text import TEXT\nexcept ImportError:\n    TEXT = b'not yet'\n")
    wait_answer(running, "not yet")
    wait_calm(running)
    os.rename(running.directory.parent / f"{running.directory.name}-shop", running.directory / "arrived")
    wait_answer(running, "arrived")
    wait_calm(running)
    (running.directory / "arrived" / "deep" / "text.py").unlink()
    wait_answer(running, "not yet")

    wait_calm(running)
    before, said = workers(running), running.output.count(detected)
    for name in (".hidden.py", "page.html", "app.pyc", "~app.py"):
        save(running, "", name)
    save(running, "# the last change\n" + SAVED.replace("TEXT", "last"))
    wait_answer(running, "last")
    assert running.output.count(detected) == said + 1, "only the last one was a reason"
    assert wait_workers(running, 1, without=set(before))

    assert running.stop() == 0
    assert running.output.rstrip().endswith(f"Stopping reloader process [{running.pid}]")


def test_what_is_watched_is_said_by_options(server: Callable[..., Server]) -> None:
    files = {"src/app.py": SAVED.replace("TEXT", "first"), "page.html": "", "src/page.html": "", "src/generated/a.py": ""}
    options = "--app-dir src --reload-dir src --reload-include *.html --reload-exclude src/generated --reload-delay 0.1"
    running = start(server, *options.split(), files=files)
    assert f"Will watch for changes in these directories: ['{running.directory}/src']" in running.output
    save(running, "x = 1", "outside.py")
    save(running, "x = 1", "page.html")
    save(running, "x = 1", "src/generated/a.py")
    save(running, "new", "src/page.html")
    wait_said(running, "detected changes in 'src/page.html'. Reloading...")
    assert running.output.count("detected changes") == 1


@WATCHERS
def test_links_lead_to_what_is_watched(server: Callable[..., Server], watcher: str, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    code = SAVED.replace('b"TEXT"', "TEXT") + "from linked import ONE\nfrom library.two import TWO\nTEXT = ONE + TWO\n"
    running = start(server, watcher=watcher, ready=False)
    for name, text in {"linked.py": "ONE = b'1'", "library/two.py": "TWO = b'2'"}.items():
        (tmp_path / name).write_text(text)
    for name in ("linked.py", "library", "nowhere.py"):
        (running.directory / name).symlink_to(tmp_path / name)
    (running.directory / "loop").symlink_to(running.directory)
    running.wait_ready()
    save(running, code)
    wait_answer(running, "12")
    (tmp_path / "library" / "two.py").write_text("TWO = b'-two'")
    wait_answer(running, "1-two")
    for text in ("one", "uno"):
        (tmp_path / "new.py").write_text(f"ONE = b'{text}'")
        os.rename(tmp_path / "new.py", tmp_path / "linked.py")
        wait_answer(running, f"{text}-two")


@WATCHERS
def test_what_is_saved_together_is_one_reload(server: Callable[..., Server], watcher: str) -> None:
    running = start(server, watcher=watcher, files={f"m{number}.py": "" for number in range(60)})
    (before,) = workers(running)
    for number in range(60):
        save(running, "x = 1", f"m{number}.py")
    save(running, SAVED.replace("TEXT", "all"))
    wait_answer(running, "all")
    wait_workers(running, 1, without={before})
    assert running.output.count("detected changes") == 1
    assert "'m1.py', 'm10.py', 'm11.py', 'm12.py', 'm13.py', 'm14.py', 'm15.py', 'm16.py', 51 more. Reloading..." in running.output
    assert running.processes()[0]["generation"] == 2


def test_saves_within_a_second_are_told_apart(server: Callable[..., Server]) -> None:
    """Python's bytecode knows the second of a save and its size only."""
    files = {"shown.py": "TEXT = b'1'\n", "app.py": "from shown import TEXT\n" + SAVED.replace('b"TEXT"', "TEXT")}
    running = start(server, files=files, environ={"PYTHONDONTWRITEBYTECODE": ""})
    second = (int(time.time()) + 3600) * 1_000_000_000  # of one that will not pass meanwhile
    for number in range(2, 6):
        save(running, f"TEXT = b'{number}'\n", "new.tmp")
        os.utime(running.directory / "new.tmp", ns=(second, second + number))
        (running.directory / "new.tmp").rename(running.directory / "shown.py")
        wait_answer(running, str(number))
    assert not list(running.directory.glob("__pycache__/shown.*"))
    os.utime(running.directory / "app.py", (1, 1))
    wait_until(lambda: list(running.directory.glob("__pycache__/app.*")), what="bytecode of what was saved long ago")


def test_a_save_during_a_reload_leads_to_another(server: Callable[..., Server]) -> None:
    running = start(server)
    slow = "import pathlib, time\npathlib.Path('importing').touch()\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    save(running, slow + SAVED.replace("TEXT", "slow"))
    wait_until((running.directory / "importing").exists, what="the slow import")
    assert answer(running) == "first", "the old code serves meanwhile"
    save(running, SAVED.replace("TEXT", "second"))
    wait_answer(running, "second")  # the slow one holds nobody up
    save(running, "", "go")
    wait_calm(running)
    assert answer(running) == "second"


# Code that does not start ---------------------------------------------------------------------------------------------------------

SYNTAX, EXIT, DEATH = "def app(:\n", "import sys\nsys.exit('no')\n", "import os\nos._exit(0)\n"
LIFESPAN = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""


@pytest.mark.parametrize("arguments", [(), ("--preload",)])
def test_the_server_outlives_code_that_does_not_start(server: Callable[..., Server], arguments: tuple[str, ...]) -> None:
    running = start(server, *arguments, files={"app.py": SYNTAX}, ready=False)
    failed, stays = "failed, the next change starts it again", "could not start, the old ones stay"
    wait_said(running, failed)
    assert running.output.count("SyntaxError: invalid syntax") == 2, "the traceback, and the master's line"
    for times, (source, why) in enumerate([(EXIT, "SystemExit: no"), (DEATH, "exit code 0"), (LIFESPAN, "no database")], 2):
        save(running, source)
        wait_said(running, failed, times)
        assert why in running.output
    assert workers(running) == []
    early = send_get(running.port, "/")  # before anybody can answer
    save(running, SAVED.replace("TEXT", "works"))
    assert read_until(early, b"works").endswith(b"works")
    early.close()
    wait_calm(running)

    (first,) = workers(running)
    for times, source in enumerate([SYNTAX, EXIT, DEATH, LIFESPAN], 1):
        save(running, source)
        wait_said(running, stays, times)
        assert answer(running) == "works"
    assert workers(running) == [first], "nothing was tried again"
    save(running, SAVED.replace("TEXT", "again"))
    wait_answer(running, "again")
    wait_workers(running, 1, without={first})
    assert running.output.count(failed) == 4
    assert running.output.count(stays) == 4


def test_one_that_dies_later_comes_back_at_once_or_with_a_save(server: Callable[..., Server]) -> None:
    running = start(server)
    (first,) = workers(running)
    os.kill(first, signal.SIGSEGV)
    (second,) = wait_workers(running, 1, without={first})
    save(running, SYNTAX)
    wait_said(running, "could not start, the old ones stay")
    os.kill(second, signal.SIGKILL)
    wait_said(running, "failed, the next change starts it again")  # what is there now cannot start
    assert workers(running) == []
    save(running, SAVED.replace("TEXT", "back"))
    wait_answer(running, "back")


def test_a_daemon_that_cannot_start_says_so(server: Callable[..., Server]) -> None:
    command = server("app:app", "--reload", "-d", files={"app.py": SYNTAX}, ready=False)
    assert command.process.wait(30) == 3
    assert "SyntaxError" in command.output


# What the old code is doing -------------------------------------------------------------------------------------------------------

#: Beside the usual application: a stream that never listens.
DEAF = '''
_app = app
async def app(scope, receive, send):
    if scope.get("path") != "/deaf":
        return await _app(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"data: tick\\n\\n", "more_body": True})
        await asyncio.sleep(0.05)
'''


def test_streams_and_websockets_do_not_hold_it_up(server: Callable[..., Server]) -> None:
    running = start(server, files={"app.py": APP + DEAF})
    (before,) = workers(running)
    upgrade = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    websocket = send(running.port, upgrade + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
    read_until(websocket, b"\r\n\r\n")
    stream, deaf = send_get(running.port, "/events"), send_get(running.port, "/deaf")
    for sock in (stream, deaf):
        assert b"tick" in read_until(sock, b"tick")
    save(running, APP + DEAF + "# changed\n")
    wait_until(lambda: get(running.port)[1].split()[0] != str(before), what="the new code")
    assert read_all(stream).endswith(b"0\r\n\r\n"), "told, and ended well"
    assert read_all(websocket).startswith(b"\x88\x02\x03\xf4"), "1012"
    read_all(deaf)
    wait_workers(running, 1, without={before})
    assert {"stream-over", "websocket-over 1012", "shutdown"} <= set(words(running, before))
    for sock in (stream, deaf, websocket):
        sock.close()


def test_whoever_stands_in_a_debugger_is_left_alone(server: Callable[..., Server]) -> None:
    blocking = SAVED.replace("TEXT", "went on").replace("    await send", "    import time; time.sleep(2)\n    await send", 1)
    running = start(server, "--timeout-worker-healthcheck", "0.5", files={"app.py": blocking})
    before = workers(running)
    assert get(running.port) == (200, "went on")
    assert workers(running) == before


# Company --------------------------------------------------------------------------------------------------------------------------


def test_gateways_stay_and_listeners_are_new(server: Callable[..., Server], free_port: int) -> None:
    files = {"app.py": APP, "hooks.py": HOOKS}
    running = start(server, "--listener", "hooks", "--gateway", f"127.0.0.1:{free_port}", files=files)
    (before,) = workers(running)
    lasting = {name: running.processes(name)[0]["pid"] for name in ("watch", "gateway", "http-template")}
    save(running, HOOKS + "\nfrom app import mark\nmark('new hooks')\n", "hooks.py")
    (after,) = wait_workers(running, 1, without={before})
    assert "new hooks" in words(running, after)
    assert {name: running.processes(name)[0]["pid"] for name in lasting} == lasting

    save(running, "def broken(:\n", "hooks.py")
    wait_said(running, "could not start, the old ones stay")
    assert workers(running) == [after]
    save(running, HOOKS, "hooks.py")
    (last,) = wait_workers(running, 1, without={after})

    # Whoever ends a watcher gets another.
    os.kill(lasting["watch"], signal.SIGKILL)
    wait_until(lambda: [row["state"] for row in running.processes("watch") if row["pid"] != lasting["watch"]] == ["ready"], what="a new watcher")
    save(running, APP + "\n")
    wait_workers(running, 1, without={last})


def test_a_template_with_the_application_is_renewed(server: Callable[..., Server]) -> None:
    running = start(server, "--preload")
    template = running.processes("http-template")[0]["pid"]
    save(running, SAVED.replace("TEXT", "second"))
    wait_answer(running, "second")
    wait_calm(running)
    wait_until(lambda: [row["pid"] != template for row in running.processes("http-template")] == [True], what="one new template")


def test_restart_goes_on_watching(server: Callable[..., Server]) -> None:
    running = start(server)
    (before,) = workers(running)
    assert running.cli("restart").returncode == 0
    wait_workers(running, 1, without={before})
    wait_until(lambda: all(row["state"] == "ready" for row in running.status()["processes"]), what="readiness")
    save(running, SAVED.replace("TEXT", "second"))
    wait_answer(running, "second")
