"""The journal of deferred tasks: a SQLite file, so that what was deferred outlives every process and the machine's power.

    WAITING     deferred, or to be tried again    its time has come and a place is free -> RUNNING
    RUNNING     given to a task worker            done -> forgotten; failed -> WAITING, later; failed too often -> FAILED
    FAILED      kept for somebody to look at, with what it raised last

What was RUNNING when the journal was opened is WAITING: whoever ran it is gone, and nobody knows how far it came. Other programs may look into the
file meanwhile, and change what is in it; it is looked at anew every few seconds.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple

from laraman.errors import BootError, Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WAITING, RUNNING, FAILED = "waiting", "running", "failed"

#: Tasks that have failed and are kept: the latest so many.
KEPT = 10_000
#: Seconds to wait for another program that has locked the file.
LOCK_SECONDS = 5.0
#: What is in the file; a newer laraman may have another number.
FORMAT = 1

_TABLES = f"""
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT,
    task TEXT NOT NULL,
    request BLOB NOT NULL,
    state TEXT NOT NULL,
    due REAL NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL,
    deferred REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_state ON tasks (state, due, number);
CREATE UNIQUE INDEX IF NOT EXISTS by_key ON tasks (key) WHERE key IS NOT NULL AND state != '{FAILED}';
PRAGMA user_version = {FORMAT};
"""


class Deferred(NamedTuple):
    """A task that is to be run: ``task`` is its name, ``request`` what a task worker is sent, ``due`` and ``deferred`` are Unix times.

    ``attempts`` counts how often it was begun, ``key`` is what it must not be waiting or running twice under.
    """

    id: str
    key: str | None
    task: str
    request: bytes
    due: float
    attempts: int
    deferred: float


_FIELDS = ", ".join(Deferred._fields)
_ADD = f"INSERT INTO tasks ({_FIELDS}, state, error) VALUES ({', '.join('?' * len(Deferred._fields))}, '{WAITING}', '')"


class Order(NamedTuple):
    """One call of a method of the journal."""

    method: Callable[..., Any]
    arguments: tuple[Any, ...]


class Journal:
    """The file at ``path``, which is made (0600) if it is not there. ``limit`` bounds how many tasks may wait. In one thread at a time.

    ``counts`` says how many are in which state. Raises BootError for what is no journal, cannot be had, or is another server's.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.counts = dict.fromkeys((WAITING, RUNNING, FAILED), 0)
        self._limit = limit
        try:
            # Its lock says that it is ours. SQLite's own locks do not know it; they would end if this descriptor were closed before the database is.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise BootError(f"the journal {path} cannot be opened: {exc.strerror}") from None
        try:
            self._open()
        except BaseException:
            os.close(self._file)
            raise

    def _open(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        except BlockingIOError:
            raise BootError(f"the journal {self.path} is used by another server") from None
        except sqlite3.Error as exc:
            raise BootError(f"the journal {self.path} cannot be opened: {exc}") from None
        try:
            self._prepare()
        except sqlite3.Error as exc:
            self._database.close()
            raise BootError(f"the journal {self.path} cannot be used: {exc}") from None
        except BootError:
            self._database.close()
            raise

    def _prepare(self) -> None:
        database = self._database
        [found] = database.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise BootError(f"the journal {self.path} was written by a newer laraman")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_TABLES)
        database.execute("UPDATE tasks SET state = ? WHERE state = ?", (WAITING, RUNNING))
        self.count()

    @property
    def there(self) -> bool:
        """Whether the file still is where it was."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            return False

    def count(self) -> None:
        """Count anew."""
        self.counts = dict.fromkeys(self.counts, 0)
        self.counts.update(self._database.execute("SELECT state, count(*) FROM tasks GROUP BY state"))

    def carry_out(self, orders: Sequence[Order]) -> list[Any]:
        """All of them, or none, in one transaction, which is on disk when this returns: what each returns, or the Busy that it raises.

        Raises sqlite3.Error, also when the file has been removed: nobody would ever find what was written into it.
        """
        if not self.there:
            raise sqlite3.OperationalError("its file has been removed")
        self._database.execute("BEGIN IMMEDIATE")
        try:
            results = [_result(order) for order in orders]
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self.count()
            raise
        return results

    # Orders ----------------------------------------------------------------------------------------------------------------------

    def add(self, deferred: Deferred) -> str:
        """Its id, or that of the one with its key which waits or runs. Once, if it is added again. Raises Busy."""
        query = "SELECT id FROM tasks WHERE id = ? UNION ALL SELECT id FROM tasks WHERE key = ? AND state != ?"
        found = self._database.execute(query, (deferred.id, deferred.key, FAILED)).fetchone()
        if found is not None:
            return str(found[0])
        if self.counts[WAITING] >= self._limit:
            raise Busy(f"{self._limit} deferred tasks wait already")
        self._database.execute(_ADD, deferred)
        self.counts[WAITING] += 1
        return deferred.id

    def take(self, count: int, now: float) -> tuple[list[Deferred], float | None]:
        """Up to ``count`` tasks that are due, whose next attempt begins with this; and when the next one is due that waits."""
        query = f"SELECT {_FIELDS} FROM tasks WHERE state = ? AND due <= ? ORDER BY due, number LIMIT ?"
        rows = [Deferred(*row) for row in self._database.execute(query, (WAITING, now, count))]
        taken = [row._replace(attempts=row.attempts + 1) for row in rows]
        begun = [(RUNNING, row.attempts, row.id) for row in taken]
        self._database.executemany("UPDATE tasks SET state = ?, attempts = ? WHERE id = ?", begun)
        self._moved(WAITING, RUNNING, len(taken))
        [due] = self._database.execute("SELECT min(due) FROM tasks WHERE state = ?", (WAITING,)).fetchone()
        return taken, due

    def done(self, id: str) -> None:
        self.counts[RUNNING] -= self._database.execute("DELETE FROM tasks WHERE id = ?", (id,)).rowcount

    def again(self, id: str, attempts: int, due: float, error: str) -> None:
        """It waits until it is ``due``, as one that was begun so often."""
        self._database.execute("UPDATE tasks SET state = ?, attempts = ?, due = ?, error = ? WHERE id = ?", (WAITING, attempts, due, error, id))
        self._moved(RUNNING, WAITING, 1)

    def failed(self, id: str, error: str) -> None:
        """For good."""
        self._database.execute("UPDATE tasks SET state = ?, error = ? WHERE id = ?", (FAILED, error, id))
        self._moved(RUNNING, FAILED, 1)
        oldest = "SELECT number FROM tasks WHERE state = ? ORDER BY due DESC, number DESC LIMIT -1 OFFSET ?"
        self.counts[FAILED] -= self._database.execute(f"DELETE FROM tasks WHERE number IN ({oldest})", (FAILED, KEPT)).rowcount

    def _moved(self, before: str, after: str, count: int) -> None:
        self.counts[before] -= count
        self.counts[after] += count

    def close(self) -> None:
        """What still runs is given up, and was not begun as far as the next one is concerned. Where no task is left, no file is."""
        try:
            self._database.execute("UPDATE tasks SET state = ?, attempts = attempts - 1 WHERE state = ?", (WAITING, RUNNING))
            self.count()
        finally:
            self._database.close()
            if self.there and not any(self.counts.values()):
                self.path.unlink(missing_ok=True)
            os.close(self._file)


def _result(order: Order) -> Any:
    try:
        return order.method(*order.arguments)
    except Busy as exc:
        return exc
