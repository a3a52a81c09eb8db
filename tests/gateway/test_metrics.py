"""Counters and their rates, on a clock of their own."""

from __future__ import annotations

import math

import pytest

from laraman.gateway.metrics import NAMES, Metrics, Reading


def opens(metrics: Metrics) -> Reading:
    return metrics.read()[0]


def test_numbers_are_the_specifications() -> None:
    metrics = Metrics(0.0)
    for number, name in enumerate(NAMES, 1):
        setattr(metrics, name, number * 10)
    assert [(reading.number, reading.total) for reading in metrics.read()] == [(number, number * 10) for number in range(1, 14)]
    assert NAMES.index("messages_over_rate") == 12


def test_counts_are_of_this_moment_and_rates_of_the_last_tick() -> None:
    metrics = Metrics(0.0)
    metrics.opens += 3
    assert opens(metrics) == Reading(1, 3, 0, 0, 0, 0)
    metrics.tick(2.0)
    assert opens(metrics) == Reading(1, 3, 1.5, 1.5, 1.5, 1.5)
    metrics.opens += 1
    assert opens(metrics) == Reading(1, 4, 1.5, 1.5, 1.5, 1.5)


def test_a_steady_stream_is_its_own_average() -> None:
    metrics = Metrics(100.0)
    for step in range(1, 20):
        metrics.opens += 50
        metrics.tick(100.0 + step * 5)
    assert opens(metrics)[2:] == pytest.approx((10.0, 10.0, 10.0, 10.0))


def test_averages_forget_after_their_windows() -> None:
    metrics = Metrics(0.0)
    metrics.opens += 100
    metrics.tick(1.0)
    metrics.tick(61.0)
    mean, *moving = opens(metrics)[2:]
    assert mean == pytest.approx(100 / 61)
    assert moving == pytest.approx([100 * math.exp(-60 / window) for window in (60, 300, 900)])


def test_how_often_it_ticks_does_not_matter() -> None:
    often, seldom = Metrics(0.0), Metrics(0.0)
    for metrics, step in ((often, 1), (seldom, 20)):
        metrics.opens += 7
        metrics.tick(1.0)
        for now in range(1 + step, 62, step):
            metrics.opens += 4 * step
            metrics.tick(float(now))
    assert opens(often) == pytest.approx(opens(seldom))


def test_a_clock_that_stands_still_is_no_division_by_zero() -> None:
    metrics = Metrics(5.0)
    metrics.opens += 1
    metrics.tick(5.0)
    assert opens(metrics) == Reading(1, 1, 0, 0, 0, 0)
