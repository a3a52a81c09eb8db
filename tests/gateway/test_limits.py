"""The gateway-wide limits, on a clock of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.gateway.limits import Bucket, Limits


def taken(bucket: Bucket, now: float, tries: int = 100) -> int:
    return sum(bucket.take(now) for _ in range(tries))


def test_starts_with_a_full_burst() -> None:
    assert taken(Bucket(10), 1000.0) == 10


def test_fills_at_its_rate() -> None:
    bucket = Bucket(10)
    assert [taken(bucket, now) for now in (0.0, 0.05, 0.1, 0.6)] == [10, 0, 1, 5]


def test_holds_a_burst_at_most() -> None:
    bucket = Bucket(10)
    assert [taken(bucket, now) for now in (0.0, 3600.0)] == [10, 10]


def test_a_rate_of_0_is_no_limit() -> None:
    assert taken(Bucket(0), 0.0, 1000) == 1000


@given(st.integers(1, 50), st.lists(st.floats(0, 1), max_size=200))
def test_never_more_than_the_burst_and_what_flowed_in(rate: int, pauses: list[float]) -> None:
    bucket = Bucket(rate)
    now = 0.0
    allowed = int(bucket.take(now))
    for pause in pauses:
        now += pause
        allowed += bucket.take(now)
    assert allowed <= rate + now * rate + 1e-6
    assert allowed >= min(len(pauses) + 1, rate)


@pytest.mark.parametrize(
    ("given_rates", "change", "expected"),
    [
        ((10_000, 50_000), (0, 0), (10_000, 50_000)),  # vector limit.read
        ((10_000, 50_000), (123, -5), (123, 50_000)),  # vector limit.write
        ((0, 3), (50, 7), (0, 7)),  # vector limit.disabled: what is off stays off
    ],
)
def test_changes(given_rates: tuple[int, int], change: tuple[int, int], expected: tuple[int, int]) -> None:
    limits = Limits(*given_rates)
    limits.change(*change)
    assert (limits.on_open.rate, limits.on_message.rate) == expected


def test_a_new_rate_leaves_the_burst() -> None:
    limits = Limits(on_message=10)
    limits.change(0, 100)
    bucket = limits.on_message
    assert [taken(bucket, now) for now in (0.0, 0.05, 60.0)] == [10, 5, 10]
