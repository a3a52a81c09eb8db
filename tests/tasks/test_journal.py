"""The file of deferred tasks: what is in it after everything that can happen to whoever keeps it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from laraman.errors import BootError, Busy
from laraman.tasks import journal as module
from laraman.tasks.journal import FAILED, RUNNING, WAITING, Deferred, Journal, Order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def deferred(id: str, key: str | None = None, due: float = 0.0) -> Deferred:
    return Deferred(id, key, "app:work", b"request", due, 0, 0.0)


def counts(journal: Journal) -> tuple[int, int, int]:
    """Waiting, running, failed; as they are in the file, too."""
    known = {**journal.counts}
    journal.count()
    assert journal.counts == known
    return known[WAITING], known[RUNNING], known[FAILED]


def do(journal: Journal, *calls: tuple[Any, ...]) -> list[Any]:
    return journal.carry_out([Order(method, tuple(arguments)) for method, *arguments in calls])


def take(journal: Journal, count: int = 10, now: float = 1.0) -> list[Deferred]:
    [(taken, _)] = do(journal, (journal.take, count, now))
    return taken  # type: ignore[no-any-return]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal(path, 3)) as made:
        yield made


def test_tasks_are_taken_when_they_are_due_the_oldest_first(journal: Journal) -> None:
    do(journal, (journal.add, deferred("c", due=9.0)), (journal.add, deferred("b", due=0.5)), (journal.add, deferred("a", due=0.2)))
    [(taken, due)] = do(journal, (journal.take, 10, 1.0))
    assert ([each.id for each in taken], due) == (["a", "b"], 9.0)
    assert [each.attempts for each in taken] == [1, 1]
    assert take(journal) == []
    assert counts(journal) == (1, 2, 0)
    do(journal, (journal.done, "a"), (journal.again, "b", 1, 5.0, "it broke"))
    assert counts(journal) == (2, 0, 0)
    assert [(each.id, each.attempts, each.request) for each in take(journal, 1, 6.0)] == [("b", 2, b"request")]


def test_one_that_is_added_again_is_there_once(journal: Journal) -> None:
    assert do(journal, (journal.add, deferred("a")), (journal.add, deferred("a"))) == ["a", "a"]
    assert counts(journal) == (1, 0, 0)


def test_a_key_is_taken_while_its_task_waits_or_runs(journal: Journal) -> None:
    assert do(journal, (journal.add, deferred("a", "k")), (journal.add, deferred("b", "k")), (journal.add, deferred("c", "l"))) == ["a", "a", "c"]
    assert {each.id for each in take(journal)} == {"a", "c"}
    assert do(journal, (journal.add, deferred("d", "k"))) == ["a"]
    do(journal, (journal.done, "a"), (journal.failed, "c", "it broke"))
    assert do(journal, (journal.add, deferred("e", "k")), (journal.add, deferred("f", "l"))) == ["e", "f"]
    assert counts(journal) == (2, 0, 1)


def test_no_more_wait_than_may(journal: Journal) -> None:
    results = do(journal, *((journal.add, deferred(str(number))) for number in range(4)))
    assert results[:3] == ["0", "1", "2"]
    assert isinstance(results[3], Busy)
    take(journal, 1)
    assert do(journal, (journal.add, deferred("3"))) == ["3"]


def test_what_ran_when_it_was_killed_waits_again_and_counts_as_begun(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from laraman.tasks.journal import *; journal = Journal(Path(sys.argv[1]), 9);"
        "add = [Order(journal.add, (Deferred(id, None, 'app:work', b'', 0.0, 0, 0.0),)) for id in 'abc'];"
        "journal.carry_out([*add, Order(journal.take, (1, 1.0))]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], timeout=30).returncode == -9
    with closing(Journal(path, 9)) as journal:
        assert counts(journal) == (3, 0, 0)
        assert {each.id: each.attempts for each in take(journal)} == {"a": 2, "b": 1, "c": 1}


def test_what_ran_when_it_was_closed_was_not_begun(path: Path) -> None:
    with closing(Journal(path, 9)) as journal:
        do(journal, (journal.add, deferred("a")))
        take(journal)
    with closing(Journal(path, 9)) as journal:
        assert [each.attempts for each in take(journal)] == [1]
        do(journal, (journal.done, "a"))
    assert not path.exists()


def test_only_so_many_failures_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    with closing(Journal(path, 9)) as journal:
        for number in range(4):
            do(journal, (journal.add, deferred(str(number), due=number / 10)))
            take(journal)
            do(journal, (journal.failed, str(number), f"error {number}"))
        assert counts(journal) == (0, 0, 2)
        with closing(sqlite3.connect(path)) as looked:
            assert looked.execute("SELECT id, error FROM tasks ORDER BY number").fetchall() == [("2", "error 2"), ("3", "error 3")]


def test_an_error_undoes_the_whole_turn(journal: Journal) -> None:
    def broken() -> None:
        raise sqlite3.OperationalError("disk is full")

    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        do(journal, (journal.add, deferred("a")), (broken,))
    assert counts(journal) == (0, 0, 0)
    assert do(journal, (journal.add, deferred("a"))) == ["a"]


def test_others_may_change_it_meanwhile(journal: Journal, path: Path) -> None:
    do(journal, (journal.add, deferred("a")))
    take(journal)
    do(journal, (journal.failed, "a", "it broke"))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE tasks SET state = 'waiting', attempts = 0, due = 0 WHERE state = 'failed'")
    do(journal, (journal.count,))
    assert counts(journal) == (1, 0, 0)
    assert [each.attempts for each in take(journal)] == [1]


def test_the_file_is_for_us_alone(journal: Journal, path: Path) -> None:
    do(journal, (journal.add, deferred("a")))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("journal.db", "journal.db-wal", "journal.db-shm"), 0o600)


def test_nothing_is_written_into_a_file_that_was_removed(path: Path) -> None:
    with closing(Journal(path, 9)) as journal:
        do(journal, (journal.add, deferred("a")))
        path.unlink()
        with pytest.raises(sqlite3.OperationalError, match="its file has been removed"):
            do(journal, (journal.add, deferred("b")))
        path.write_text("somebody else's")
        with pytest.raises(sqlite3.OperationalError, match="its file has been removed"):
            do(journal, (journal.done, "a"))
        assert not journal.there
    assert path.read_text() == "somebody else's"


def test_a_second_server_is_refused(journal: Journal, path: Path) -> None:
    with pytest.raises(BootError, match="is used by another server"):
        Journal(path, 3)


def test_what_is_no_journal_is_left_as_it_is(path: Path) -> None:
    path.write_text("notes of mine\n" * 100)
    with pytest.raises(BootError, match=r"journal\.db cannot be used: file is not a database"):
        Journal(path, 3)
    assert path.read_text() == "notes of mine\n" * 100
    path.unlink()
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(BootError, match="was written by a newer laraman"):
        Journal(path, 3)
    with pytest.raises(BootError, match=r"cannot be opened: No such file or directory"):
        Journal(path.parent / "there" / "is.none", 3)
    path.unlink()
    os.symlink(path.parent / "elsewhere", path)
    with pytest.raises(BootError, match="cannot be opened"):
        Journal(path, 3)
