"""The limits of a worker: the decision alone, with numbers that are handed in."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.process.exits import rss
from laraman.process.recycle import LIFETIME_SPREAD, Limits, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 2**20


def worker(*, requests: int = 0, exclusive: bool = False, **options: Any) -> Any:
    return SimpleNamespace(name="http", requests=requests, exclusive=exclusive, config=replace(Config(), **options))


def remembering(*sizes: int | None) -> Any:
    """A memory that has these sizes, one after the other, and is not looked at more often."""
    left: Iterator[int | None] = iter(sizes)
    return lambda: next(left)


@pytest.mark.parametrize(
    ("limits", "reached", "reason"),
    [
        (Limits(), (10**9, 10**15, 1e9), ""),
        (Limits(requests=100), (99, None, 0.0), ""),
        (Limits(requests=100), (107, None, 0.0), "107 requests served, of 100"),
        (Limits(rss=500 * MB), (0, 500 * MB, 0.0), ""),
        (Limits(rss=500 * MB), (0, 500 * MB + MB // 2, 0.0), "500.5 MB of memory, more than max_rss 500.0 MB"),
        (Limits(rss=500 * MB), (0, None, 0.0), ""),
        (Limits(lifetime=60.0), (0, None, 59.9), ""),
        (Limits(lifetime=60.0), (0, None, 60.04), "60.0 s old, its lifetime is 60.0 s"),
    ],
)
def test_what_is_reached_and_why(limits: Limits, reached: tuple[int, int | None, float], reason: str) -> None:
    assert limits.reason(*reached) == reason


def test_chance_adds_requests_and_takes_lifetime_off() -> None:
    config = replace(Config(), limit_max_requests=1000, limit_max_requests_jitter=50, max_lifetime=100.0, max_rss=MB)
    drawn = [Limits.draw(config) for _ in range(300)]
    requests = {limits.requests for limits in drawn}
    lifetimes = {limits.lifetime for limits in drawn if limits.lifetime is not None}
    assert {limits.rss for limits in drawn} == {MB}
    assert requests <= set(range(1000, 1051))
    assert len(requests) > 10
    assert all(100.0 * (1 - LIFETIME_SPREAD) <= lifetime <= 100.0 for lifetime in lifetimes)
    assert len(lifetimes) > 100
    assert Limits.draw(Config()) == Limits()
    assert Limits.draw(replace(Config(), limit_max_requests=7)).requests == 7


def test_a_watch_looks_at_the_worker_since_it_was_ready() -> None:
    made = worker(limit_max_requests=5)
    watch = Watch(made, 100.0, remembering())
    assert watch.look(200.0) == ""
    made.requests = 5
    assert watch.look(200.0) == "5 requests served, of 5"
    assert Watch(worker(max_lifetime=10.0), 100.0, remembering()).look(108.9) == ""
    assert Watch(worker(max_lifetime=10.0), 100.0, remembering()).look(110.0).startswith("10.0 s old")


def test_memory_is_looked_at_only_for_its_limit() -> None:
    watch = Watch(worker(max_rss=100 * MB), 0.0, remembering(90 * MB, 95 * MB, 101 * MB))
    assert watch.look(1.0) == ""
    assert watch.look(2.0) == "101.0 MB of memory, more than max_rss 100.0 MB"


@pytest.mark.parametrize(
    ("begins", "why"),
    [(101 * MB, "it has 101.0 MB before its first request"), (None, "this system does not tell its memory")],
)
def test_a_limit_below_what_it_begins_with_is_an_error_once_and_no_limit(caplog: pytest.LogCaptureFixture, begins: int | None, why: str) -> None:
    made = worker(max_rss=100 * MB, limit_max_requests=5)
    watch = Watch(made, 0.0, remembering(begins))
    assert watch.look(1.0) == watch.look(2.0) == ""
    assert [record.getMessage() for record in caplog.records] == [f"Worker http is not replaced for its memory: {why}, and max_rss is 100.0 MB"]
    assert caplog.records[0].levelname == "ERROR"
    made.requests = 5
    assert watch.look(3.0) != "", "the other limits hold"


def test_exclusive_workers_have_no_limits(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(worker(requests=10, exclusive=True, limit_max_requests=5, max_rss=1, max_lifetime=1.0), 0.0, remembering())
    assert watch.look(100.0) == ""
    assert caplog.records == []


def test_the_memory_is_this_process_s_own(caplog: pytest.LogCaptureFixture) -> None:
    have = rss(os.getpid())
    assert have is not None
    assert Watch(worker(max_rss=2 * have), 0.0).look(1.0) == ""
    assert caplog.records == []
    assert Watch(worker(max_rss=have // 2), 0.0).look(1.0) == ""
    assert len(caplog.records) == 1
