"""Grids of moments, and what a crontab's line means when the clocks are changed."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from laraman.errors import ConfigError
from laraman.net.schedule import SECOND, Cron, Every

BERLIN = ZoneInfo("Europe/Berlin")


def at(*parts: int, fold: int = 0) -> int:
    return round(datetime(*parts, tzinfo=BERLIN, fold=fold).timestamp()) * SECOND  # type: ignore[misc,arg-type]


def shown(moment: int) -> str:
    return datetime.fromtimestamp(moment / SECOND, BERLIN).strftime("%m-%d %H:%M %Z")


@pytest.mark.parametrize(("seconds", "origin"), [(0.1, 0), (1 / 3, 12345), (86400, 7)])
def test_a_grid_of_periods_does_not_drift(seconds: float, origin: int) -> None:
    grid = Every(seconds, origin)
    first = grid.after(origin)
    assert first == origin + grid.period
    moment = first
    for _ in range(1000):
        moment = grid.after(moment)
    assert moment == first + 1000 * grid.period
    assert grid.latest(moment) == moment
    assert grid.latest(moment - 1) == moment - grid.period
    assert grid.after(moment - 1) == moment
    assert grid.between(first, moment) == 1000
    assert grid.between(moment, moment) == 0


@pytest.mark.parametrize(
    ("line", "since", "expected"),
    [
        # Spring: 02:00 to 03:00 does not exist on 29 March. What is fixed runs once, right after.
        ("30 2 * * *", (2026, 3, 28, 3, 0), ["03-29 03:00 CEST", "03-30 02:30 CEST"]),
        ("*/30 * * * *", (2026, 3, 29, 1, 0), ["03-29 01:30 CET", "03-29 03:00 CEST", "03-29 03:30 CEST"]),
        # Autumn: 02:00 to 03:00 comes twice on 25 October. What is fixed runs once, the first time.
        ("30 2 * * *", (2026, 10, 25, 0, 0), ["10-25 02:30 CEST", "10-26 02:30 CET"]),
        ("*/30 * * * *", (2026, 10, 25, 2, 0), ["10-25 02:30 CEST", "10-25 02:00 CET", "10-25 02:30 CET", "10-25 03:00 CET"]),
        ("0 9 * * mon-fri", (2026, 11, 20, 9, 0), ["11-23 09:00 CET", "11-24 09:00 CET"]),
    ],
)
def test_cron_when_the_clocks_are_changed(line: str, since: tuple[int, ...], expected: list[str]) -> None:
    cron = Cron(line, "Europe/Berlin")
    moment, before, seen = at(*since), 0, []
    while len(seen) < len(expected):
        before, moment = moment, cron.after(moment)
        assert moment > before
        assert cron.latest(moment) == cron.latest(moment + 1) == moment
        assert cron.latest(moment - 1) < moment
        seen.append(shown(moment))
    assert seen == expected


def test_cron_in_the_hour_that_comes_twice_is_not_due_again() -> None:
    cron = Cron("30 2 * * *", BERLIN)
    second_time = at(2026, 10, 25, 2, 15, fold=1)
    assert shown(cron.after(second_time)) == "10-26 02:30 CET"
    assert shown(cron.latest(second_time)) == "10-25 02:30 CEST"


def test_what_cron_has_missed_is_counted() -> None:
    cron = Cron("0 * * * *", BERLIN)
    assert cron.between(at(2026, 1, 1, 1, 0), at(2026, 1, 1, 5, 0)) == 4
    assert cron.between(at(2020, 1, 1, 1, 0), at(2026, 1, 1, 5, 0)) == 1000


def test_the_time_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert shown(Cron("30 2 * * *").after(at(2026, 6, 1, 0, 0))) == "06-01 02:30 CEST"
    monkeypatch.setenv("TZ", "No/Where")  # what cannot be understood is UTC for the C library too
    Cron("30 2 * * *")


@pytest.mark.parametrize(
    ("line", "tz", "error"),
    [
        ("61 * * * *", None, "cron line '61 * * * *': '61' is no minute"),
        ("* 24 * * *", None, "cron line '* 24 * * *': '24' is no hour"),
        ("* * * * 8", None, "cron line '* * * * 8': '8' is no day of week"),
        ("*/0 * * * *", None, "cron line '*/0 * * * *': '*/0' is no minute"),
        ("x * * * * *", None, "cron line 'x * * * * *': 'x' is no second"),
        ("0 0 30 2 *", None, "cron line '0 0 30 2 *': '30' is no day of month"),
        ("* * *", None, "cron line '* * *': it has 3 fields, not 5: minute, hour, day of month, month, day of week (or 6, with the second first)"),
        ("* * * * *", "Mars/Base", "cron line '* * * * *': there is no time zone 'Mars/Base'"),
        ("* * * * *", "../x", "cron line '* * * * *': there is no time zone '../x'"),
    ],
)
def test_a_wrong_line_is_refused_with_what_is_wrong(line: str, tz: str | None, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Cron(line, tz)
    assert str(raised.value) == error
