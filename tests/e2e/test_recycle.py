"""Workers that have reached a limit are replaced under load, one slot at a time, and nothing is lost."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import wait_until
from tests.e2e.apps import FILES
from tests.e2e.load import Load
from tests.e2e.tools import get, wait_workers, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tests.conftest import Server

QUIET = ("--no-access-log",)
#: The same application, which keeps 32 KiB of every request.
LEAKY = {
    "app.py": f"""{FILES["app.py"]}
sound = app
kept = []

async def app(scope, receive, send):
    kept.append(b"x" * 32768)
    await sound(scope, receive, send)
"""
}


class Watcher:
    """Looks at `status` all the time: which slots have more than one process, and which nobody serves."""

    def __init__(self, running: Server, count: int) -> None:
        self._running = running
        self._count = count
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looks = 0
        self.replaced: set[int] = set()
        self.wrong: list[list[dict[str, Any]]] = []

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ending.wait(0.01):
            rows = [row for row in self._running.status().get("processes", []) if row["worker"] == "http"]
            if rows:
                self.looks += 1
                self._look(rows)

    def _look(self, rows: list[dict[str, Any]]) -> None:
        crowded = {slot for slot, number in Counter(row["slot"] for row in rows).items() if number > 1}
        served = {row["slot"] for row in rows if row["state"] == "ready"}
        self.replaced |= crowded
        if len(crowded) > 1 or served != set(range(self._count)):
            self.wrong.append(rows)


def reasons(running: Server) -> list[str]:
    """Why workers were replaced, as the log has it."""
    return re.findall(r"Worker http:\d \[\d+\] is replaced: (.*)", running.output)


@pytest.mark.parametrize("close", [False, True], ids=["keep-alive", "connection-per-request"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_leaking_worker_is_replaced_and_no_request_is_lost(server: Callable[..., Server], count: int, close: bool) -> None:
    running = server("app:app", "--workers", str(count), "--max-rss", "64MB", *QUIET, files=LEAKY)
    first = set(workers(running))
    with Watcher(running, count) as watcher, Load(running.port, close=close) as load:
        wait_until(lambda: first.isdisjoint(workers(running)), what="successors of all workers")
        wait_until(lambda: len(load.pids) > count, what="answers of successors")
        load.go_on()
    assert load.failures == []
    assert load.refused == 0
    assert watcher.wrong == []
    assert watcher.replaced == set(range(count))
    assert len(reasons(running)) >= count
    assert all(re.fullmatch(r"\d+\.\d MB of memory, more than max_rss 64\.0 MB", reason) for reason in reasons(running))
    exits = wait_until(lambda: [row["last_exit"] for row in running.status()["processes"] if row["last_exit"]], what="the end of a predecessor")
    assert all(re.fullmatch(r"replaced: \d+\.\d MB of memory, more than max_rss 64\.0 MB", words) for words in exits)
    assert running.status()["server"]["deaths"] == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--max-requests", "300", "--max-requests-jitter", "100"), r"\d+ requests served, of 3\d\d|\d+ requests served, of 400"),
        (("--max-lifetime", "1"), r"\d\.\d s old, its lifetime is (0\.9|1\.0) s"),
    ],
    ids=["requests", "lifetime"],
)
def test_the_other_limits_lose_nothing_either(server: Callable[..., Server], options: tuple[str, ...], reason: str) -> None:
    running = server("app:app", "--workers", "2", *options, *QUIET, files=FILES)
    first = set(workers(running))
    with Watcher(running, 2) as watcher, Load(running.port) as load:
        wait_until(lambda: first.isdisjoint(workers(running)), what="successors of all workers")
        load.go_on()
    assert load.failures == []
    assert load.refused == 0
    assert watcher.wrong == []
    assert reasons(running)
    assert all(re.fullmatch(reason, words) for words in reasons(running)), reasons(running)


def test_a_reload_among_recyclings_ends_and_loses_nothing(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", "--max-requests", "20", *QUIET, files=FILES)
    with Load(running.port) as load:
        for _ in range(3):
            result = running.cli("reload")
            assert result.returncode == 0, result.stderr
            load.go_on()
    assert load.failures == []
    assert load.refused == 0
    assert running.status()["server"]["generation"] == 4


def test_a_successor_that_cannot_start_leaves_the_tired_worker_serving(server: Callable[..., Server]) -> None:
    running = server("app:app", "--max-requests", "5", *QUIET, files=FILES)
    (worker,) = workers(running)
    (running.directory / "app.py").write_text("import no_such_thing\n")
    for _ in range(5):
        assert get(running.port)[0] == 200
    wait_until(lambda: running.output.count("no_such_thing") >= 3, what="three tries")
    status, body = get(running.port)
    assert (status, int(body.split()[0])) == (200, worker)
    (running.directory / "app.py").write_text(FILES["app.py"])
    wait_workers(running, 1, without={worker})
    assert get(running.port)[0] == 200


def test_a_memory_limit_below_what_a_worker_begins_with_replaces_nobody(server: Callable[..., Server]) -> None:
    running = server("app:app", "--max-rss", "1MB", "--max-lifetime", "2", *QUIET, files=FILES)  # it lives for more than one look at its memory
    (worker,) = workers(running)
    wait_workers(running, 1, without={worker})
    assert re.fullmatch(r"\d\.\d s old, its lifetime is (1\.[89]|2\.0) s", reasons(running)[0])
    said = re.findall(r"not replaced for its memory: it has \d+\.\d MB before its first request, and max_rss is 1\.0 MB", running.output)
    assert len(said) == 2, "each worker once"
