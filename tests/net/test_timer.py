"""Timers and consumers in a worker of the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import laraman
from laraman import events
from laraman.errors import ConfigError
from laraman.events import TickTerminated, WorkerStarted, WorkerStarting, aemit
from laraman.net import consumer, ticking, timer
from laraman.net.current import current_worker
from laraman.net.schedule import SECOND, Cron, wall_now
from laraman.process.tasks import Tasks
from laraman.sandbox.operation import current
from laraman.sandbox.surroundings import Sandbox
from tests.net.serving import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("around")]

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="")


class Here(SimpleNamespace):
    """As much of a Worker as residents need."""

    __hash__ = object.__hash__

    def __init__(self, group: Any, **fields: Any) -> None:
        loop = asyncio.get_running_loop()
        words: dict[str, Any] = {"name": "http", "main": True, "slot": 0, "colleagues": ("http", "other"), "leases": None, **fields}
        super().__init__(loop=loop, tasks=Tasks(group), residents=set(), running=True, stopping=False, in_flight=0, **words)
        self.config = SimpleNamespace(cluster="")

    async def start(self) -> None:
        """Tell what a worker's boot tells."""
        await aemit(WorkerStarting(worker=self))
        await aemit(WorkerStarted(worker=self))

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in (resident.row() for resident in self.residents)}


@contextlib.asynccontextmanager
async def a_worker(**fields: Any) -> AsyncIterator[Here]:
    """Its code runs in it; at the end nothing of it is left."""
    async with anyio.create_task_group() as group:
        worker = Here(group, **fields)
        token = current_worker.set(worker)
        worker.sandbox = Sandbox(worker)
        try:
            yield worker
        finally:
            current_worker.reset(token)
            worker.stopping = True
            await asyncio.sleep(0)  # what was just declared is on its way
            group.cancel_scope.cancel()
    assert not worker.residents
    assert not worker.in_flight


async def test_calls_do_not_overlap_and_what_passes_meanwhile_is_missed() -> None:
    running, most, ends = 0, 0, 0

    async def slow() -> None:
        nonlocal running, most, ends
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.12)
        running -= 1
        ends += 1

    async with a_worker() as worker:
        laraman.every(0.02, slow, name="slow")
        await until(lambda: ends == 3)
        row = worker.rows()["slow"]
        assert most == 1
        assert row["missed"] >= 2 * 4  # of the five that are due while one runs, the last is made up for
        assert row["ticks"] <= 4


async def test_a_grid_is_kept_whatever_calls_take(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    async def note(self: Any, moment: int) -> bool:
        begun.append(moment)
        self._begun = moment
        return True

    monkeypatch.setattr(ticking.Ticking, "_note", note)
    async with a_worker():
        laraman.every(0.02, lambda: asyncio.sleep(0.013), jitter=0.005)
        await until(lambda: len(begun) == 10)
    assert {(after - before) % 20_000 for before, after in pairwise(begun)} == {0}
    assert begun == sorted(set(begun))


async def test_what_a_call_raises_is_logged_and_the_timer_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    outcomes: list[tuple[str, str]] = []
    events.on(TickTerminated, lambda event: outcomes.append((event.tick, event.outcome)))

    async def wrong() -> None:
        calls.append("wrong")
        raise (ValueError, asyncio.CancelledError)[len(calls) % 2]("on purpose")

    async with a_worker() as worker:
        laraman.every(0.005, wrong, name="wrong")
        await until(lambda: len(outcomes) >= 4)
        assert worker.rows()["wrong"]["errors"] >= 3
    assert set(outcomes) == {("wrong", "error"), ("wrong", "cancelled")}
    assert caplog.text.count("Timer wrong raised") >= 3


async def test_a_call_is_an_operation_in_the_surroundings_of_startup() -> None:
    seen: list[tuple[str, str]] = []

    def look() -> None:
        operation = current()
        assert operation is not None
        seen.append((operation.name, mark.get()))

    async def request() -> None:
        mark.set("of a request")
        laraman.after(0.001, look, name="look")
        threading.Thread(target=contextvars.copy_context().run, args=(laraman.after, 0.001, look), kwargs={"name": "thread"}).start()

    mark.set("of startup")
    async with a_worker() as worker:
        await worker.sandbox.run(request)
        await until(lambda: len(seen) == 2)
    assert sorted(seen) == [("tick look", "of startup"), ("tick thread", "of startup")]


async def test_what_is_cancelled_or_winds_up_finishes_its_call_and_begins_no_other() -> None:
    told: list[str] = []

    async def slow() -> None:
        told.append("begun")
        await asyncio.sleep(0.05)
        told.append("ended")

    async with a_worker() as worker:
        timers = [laraman.every(0.01, slow), laraman.every(0.01, slow, singleton=True), laraman.every(3600, slow), laraman.after(3600, slow)]
        await until(lambda: told.count("begun") == 2)
        timers[0].cancel()
        timers[2].cancel()
        for resident in tuple(worker.residents):
            resident.wind_up()
        await until(lambda: not worker.residents)
    assert told == ["begun", "begun", "ended", "ended"]


async def test_declared_at_import_it_runs_where_it_belongs_and_once() -> None:
    calls: list[str] = []
    declare = "\n".join(
        [
            "import laraman",
            "def f(): calls.append(__name__)",
            "laraman.every(0.005, f, name='here')",
            "laraman.every(0.005, f, name='one', singleton=True)",
            "laraman.every(0.005, f, name='there', worker='other')",
            "@laraman.cron('* * * * * *', name='cron')",
            "def g(): ...",
        ]
    )
    for module in ("mod", "__main__"):  # a program that names itself as the application
        exec(declare, {"__name__": module, "calls": calls})
    async with a_worker() as worker, a_worker(slot=1) as second, a_worker(name="other", main=False) as other:
        for started in (worker, second, other):
            await started.start()
        await until(lambda: calls)
        assert sorted(resident.declared.name for resident in worker.residents) == ["cron", "here", "one"]
        assert sorted(second.rows()) == ["cron", "here"]
        assert sorted(other.rows()) == ["there"]
    # Imported afresh, it counts once, and what is no longer declared is gone.
    events.forget(["mod", "__main__"])
    exec("import laraman\nlaraman.every(60, print, name='new')", {"__name__": "mod"})
    async with a_worker() as worker:
        await worker.start()
        assert list(worker.rows()) == ["new"]


async def test_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    offset = 0
    line = Cron("0 0 * * *", "UTC")
    day = 86400 * SECOND
    line.now = lambda: 1000 * day + offset
    calls: list[int] = []
    monkeypatch.setattr(ticking, "LOOK", 0.005)
    async with a_worker():
        timer.Timer(lambda: calls.append(line.now() // day), line, registrar=__name__)
        for days, expected in ((1, [1001]), (4, [1001, 1004]), (3.99, [1001, 1004]), (2, [1001, 1004]), (3, [1001, 1004, 1003])):
            offset = round(days * day)
            await asyncio.sleep(0.05)  # nothing is to happen in some of them
            await until(lambda expected=expected: calls == expected)


async def test_a_consumer_is_started_again_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[str] = []

    async def feed() -> None:
        runs.append("run")
        if len(runs) % 2:
            raise OSError("the peer is gone")

    async with a_worker() as worker:
        handle = laraman.supervise("feed", feed, backoff=laraman.Backoff(base=0.01, cap=0.01))
        assert isinstance(handle, consumer.Consumer)
        await until(lambda: len(runs) >= 4)
        row = worker.rows()["feed"]
        assert (row["protocol"], row["worker"], row["failures"] >= 2) == ("consumer", "http", True)
        handle.cancel()
        await until(lambda: not worker.residents)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "Consumer feed ended and is started again: the peer is gone"
    ]


@pytest.mark.parametrize(
    ("declare", "error"),
    [
        (lambda: laraman.every(0, print), "timer builtins.print: 0 is not a number of seconds from 0.001 on"),
        (lambda: laraman.every(float("nan"), print), "is not a number of seconds"),
        (lambda: laraman.every(1, print, jitter=1), "a jitter of 1 s is not less than the period"),
        (lambda: laraman.every(1, "x"), "'x' cannot be called"),
        (lambda: laraman.every(1, print, singleton="host"), "once per 'host' is none of worker, server, cluster"),
        (lambda: laraman.every(1, print, singleton="cluster"), "name the cluster's store with --cluster"),
        (lambda: laraman.cron("* * * *", print), "it has 4 fields"),
        (lambda: laraman.supervise("x", print, scope="all"), "once per 'all' is none of"),
    ],
)
async def test_what_cannot_be_is_refused_where_it_is_declared(declare: Any, error: str) -> None:
    async with a_worker():
        with pytest.raises(ConfigError, match=error.replace(".", r"\.")):
            declare()


async def test_two_that_run_once_under_one_name_are_refused() -> None:
    for function in (print, len):
        laraman.every(60, function, name="x", singleton=True)
    async with a_worker() as worker:
        with pytest.raises(ConfigError, match="two timers that run once per server are called 'x'"):
            await worker.start()
        for resident in tuple(worker.residents):
            resident.declared.ended(resident)


def test_now_is_a_number_of_microseconds() -> None:
    assert wall_now() > 1_700_000_000 * SECOND
