"""Deferred tasks, in a real server, through everything that may happen to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import laraman
from laraman.errors import ConfigError
from laraman.testing import inline_tasks
from tests.conftest import DEADLINE, Server, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORK = """
import os, time
import laraman

def write(line):
    with open("done.txt", "a") as file:
        file.write(line + "\\n")

@laraman.task
def note(word):
    write(word)

@laraman.task
async def slow(word):
    import asyncio
    write(f"begin {word}")
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    write(word)

@laraman.task
def fails(word):
    write(word)
    raise ValueError(f"no {word} today")

@laraman.task
def kills(word):
    write(word)
    os.kill(os.getpid(), 9)
"""
APP = """
import json, laraman, work
from laraman.errors import LaramanError

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    body = (await receive())["body"]
    name, args, options = json.loads(body)
    try:
        answer = await laraman.defer(getattr(work, name), *args, **options)
    except LaramanError as exc:
        answer = f"{type(exc).__name__}: {exc}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""


noted: list[str] = []


@laraman.task
def note(word: str) -> None:
    noted.append(word)


class Deferring:
    """A server whose requests defer."""

    def __init__(self, start: Callable[..., Server], *arguments: str) -> None:
        self.server = start("app:app", "--task-workers", "2", "--workers", "2", *arguments, files={"app.py": APP, "work.py": WORK})

    def defer(self, name: str, *args: Any, **options: Any) -> str:
        answer: str = httpx.post(self.server.url, json=[name, args, options], timeout=DEADLINE, verify=False).json()
        return answer

    @property
    def done(self) -> list[str]:
        path = self.server.directory / "done.txt"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    @property
    def go(self) -> Path:
        return self.server.directory / "go"

    @property
    def file(self) -> Path:
        [found] = self.server.directory.glob(".laraman/*/journal.db")
        return found

    def rows(self) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.file)) as database:
            return database.execute("SELECT task, state, attempts FROM tasks ORDER BY number").fetchall()

    def shown(self) -> dict[str, Any]:
        [row] = [row for row in self.server.connections() if row.get("name") == "deferred tasks"]
        return row


@pytest.fixture(scope="module")
def shared(shared_server: Callable[..., Server]) -> Deferring:
    return Deferring(shared_server, "--journal-attempts", "2", "--journal-queue", "50")


def test_a_task_is_run_later_and_forgotten(shared: Deferring) -> None:
    assert len(shared.defer("note", "now")) == 32
    shared.defer("note", "later", delay=0.5)
    wait_until(lambda: "later" in shared.done, what="both tasks")
    assert shared.done.index("now") < shared.done.index("later")
    wait_until(lambda: ("work:note", "waiting", 0) not in shared.rows() and not shared.shown()["running"], what="an empty journal")


def test_a_key_defers_once(shared: Deferring) -> None:
    ids = {shared.defer("note", "once", key="k", delay=1) for _ in range(5)}
    assert len(ids) == 1
    wait_until(lambda: "once" in shared.done, what="the task")
    wait_until(lambda: shared.defer("note", "twice", key="k") not in ids, what="its key")
    wait_until(lambda: "twice" in shared.done, what="the second task")
    assert shared.done.count("once") == 1


@pytest.mark.parametrize(("name", "error"), [("fails", "ValueError: no fish today"), ("kills", "the process that ran it has ended")])
def test_what_fails_too_often_is_kept(shared: Deferring, name: str, error: str) -> None:
    id = shared.defer(name, "fish")
    row = (f"work:{name}", "failed", 2)
    wait_until(lambda: row in shared.rows(), what="the failure")
    with closing(sqlite3.connect(shared.file)) as database:
        [kept] = database.execute("SELECT error FROM tasks WHERE id = ?", (id,)).fetchone()
    assert error in kept
    assert f"Deferred task work:{name} ({id}) failed, attempt 1 of 2" in shared.server.output
    assert f"Deferred task work:{name} ({id}) has failed and is kept in " in shared.server.output
    wait_until(lambda: shared.shown()["failures"] == [row[1] for row in shared.rows()].count("failed"), what="it in laraman connections")


@pytest.mark.parametrize(
    ("name", "args", "options", "error"),
    [
        ("write", ["x"], {}, "ConfigError: work:write is no task: declare it with @laraman.task"),
        ("note", ["x"], {"delay": -1}, "ConfigError: work:note: a delay is a number of seconds, not -1"),
        ("note", ["x"], {"delay": "soon"}, "ConfigError: work:note: a delay is a number of seconds, not 'soon'"),
        ("note", ["x"], {"key": ""}, "ConfigError: work:note: a key is a text of 1 to 200 characters, not ''"),
        ("note", [2**64], {}, "LocalProtocolError: args[0] is 18446744073709551616, which has more than 64 bits"),
    ],
)
def test_what_cannot_be_deferred_is_said(shared: Deferring, name: str, args: list[Any], options: dict[str, Any], error: str) -> None:
    assert shared.defer(name, *args, **options) == error


def test_where_tasks_are_inline_it_is_run_at_once() -> None:
    async def main() -> str:
        return await laraman.defer(note, "cake", key="k", delay=60)

    noted.clear()
    with inline_tasks():
        assert len(asyncio.run(main())) == 32
    assert noted == ["cake"]
    with pytest.raises(ConfigError, match="deferred tasks need a server with task workers: --task-workers"):
        asyncio.run(main())


def test_a_file_that_cannot_be_had_refuses_the_start(place: Path) -> None:
    command = [sys.executable, "-m", "laraman", "start", "work:app", "--port", "0", "--task-workers", "1", "--journal", "nowhere/journal.db"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (result.returncode, result.stderr) == (2, "laraman: journal: no file can be made at nowhere/journal.db\n")


def test_no_more_wait_than_may_and_the_file_can_be_changed_by_hand(shared: Deferring) -> None:
    answers = [shared.defer("note", f"bulk {number}", delay=3600) for number in range(51)]
    assert answers[-1] == "Busy: 50 deferred tasks wait already"
    with closing(sqlite3.connect(shared.file)) as database, database:
        database.execute("UPDATE tasks SET due = 0 WHERE state = 'waiting'")
        database.execute("DELETE FROM tasks WHERE state = 'failed'")
    wait_until(lambda: sum(line.startswith("bulk") for line in shared.done) == sum(len(answer) == 32 for answer in answers), what="all of them")
    wait_until(lambda: not shared.shown()["failures"], what="that the failures are forgotten")


def test_one_process_feeds_them(shared: Deferring) -> None:
    shared.defer("note", "one")
    assert len(shared.server.processes("journal")) == 1
    row = shared.shown()
    assert (row["worker"], row["protocol"], row["state"], row["peer"]) == ("journal", "sqlite", "UP", str(shared.file))


def test_a_killed_journal_loses_nothing(shared: Deferring) -> None:
    shared.defer("note", "early")
    [row] = shared.server.processes("journal")
    words = [f"survivor {number}" for number in range(20)]
    for number, word in enumerate(words):
        if number == 10:
            os.kill(row["pid"], signal.SIGKILL)
        assert len(shared.defer("note", word)) == 32
    wait_until(lambda: {*words} <= {*shared.done}, what="all of them")


def test_it_survives_that_everything_is_killed(server: Callable[..., Server]) -> None:
    first = Deferring(server)
    ids = [first.defer("slow", f"{number}") for number in range(3)]
    assert len(set(ids)) == 3
    wait_until(lambda: "begin 0" in first.done, what="the first task")
    for pid in (first.server.pid, *first.server.survivors()):
        os.kill(pid, signal.SIGKILL)
    first.server.process.wait(DEADLINE)
    wait_until(lambda: not first.server.survivors(), what="the end of everything")
    again = Server(first.server.directory, ("app:app", "--task-workers", "2", "--port", str(first.server.port), "--name", first.file.parent.name), {})
    try:
        again.wait_ready()
        first.go.touch()
        wait_until(lambda: {"0", "1", "2"} <= {*first.done}, what="all of them")
        assert [line for line in first.done if line != "begin 0"].count("0") == 1
    finally:
        assert again.stop() == 0
        again.close()
    assert not list(first.server.directory.glob(".laraman/*/journal.db*"))


def test_a_restart_that_waits_for_a_task_takes_others_meanwhile(server: Callable[..., Server]) -> None:
    running = Deferring(server)
    running.defer("slow", "long")
    wait_until(lambda: running.done == ["begin long"], what="the task")
    before = {row["pid"] for row in running.server.processes()}
    command = [sys.executable, "-m", "laraman", "restart"]
    restart = subprocess.Popen(command, cwd=running.server.directory, env=running.server.environ, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: before.isdisjoint(row["pid"] or 0 for row in running.server.processes() or [{"pid": min(before)}]), what="the successors")
        assert len(running.defer("note", "short")) == 32
        assert running.done == ["begin long"]
    finally:
        running.go.touch()
        assert restart.wait(DEADLINE) == 0
    wait_until(lambda: "short" in running.done, what="the other one")
    assert running.done == ["begin long", "long", "short"]


def test_a_journal_that_is_removed_is_made_anew_and_until_then_nothing_is_taken(server: Callable[..., Server]) -> None:
    running = Deferring(server)
    running.defer("note", "lost", delay=3600)
    for path in running.server.directory.glob(".laraman/*/journal.db*"):
        path.unlink()
    answer = running.defer("note", "refused", delay=3600)
    taken = len(answer) == 32  # by the next journal: the one before may have seen by itself that the file is gone
    assert taken or answer == "LaramanError: the journal cannot be written: its file has been removed"
    wait_until(lambda: len(running.defer("note", "kept", key="once", delay=3600)) == 32, what="the next journal")
    assert len(running.rows()) == 1 + taken


def test_a_deploy_interrupts_nothing(server: Callable[..., Server]) -> None:
    running = Deferring(server)
    running.defer("slow", "through the reload")
    wait_until(lambda: running.done == ["begin through the reload"], what="the task")
    running.go.touch()
    assert running.server.cli("reload").returncode == 0
    wait_until(lambda: "through the reload" in running.done, what="its end")
    running.defer("note", "after the restart", delay=1)
    assert running.server.cli("restart").returncode == 0
    wait_until(lambda: "after the restart" in running.done, what="the task of before")
    assert running.done == ["begin through the reload", "through the reload", "after the restart"]
    assert len(running.server.processes("journal")) == 1
