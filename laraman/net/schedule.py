"""When a timer is due: a grid of moments on a clock. Moments are whole microseconds, so that no rounding adds up.

`Every` counts on the machine's monotonic clock, which nobody sets; what is counted between machines is counted on their wall clocks, which have
to agree to less than a period. `Cron` is the wall clock of a time zone. Around the changes of daylight saving time it does what Debian's cron
does: what has a fixed hour and minute runs once, right after the change when its time is skipped, the first time when it comes twice; what has a
star or a step in minute or hour follows the time that passes.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

SECOND = 1_000_000
WALL = "wall"
#: Of the moments that were missed, so many are counted.
MOST_COUNTED = 1000


def wall_now() -> int:
    return time.time_ns() // 1000


def monotonic_now() -> int:
    return time.monotonic_ns() // 1000


@cache
def monotonic_clock() -> str:
    """A name of the monotonic clock since this boot of the machine: at the next one it begins anew."""
    try:
        return f"monotonic-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return "monotonic"


class Every:
    """The multiples of ``seconds`` on the clock, counted from ``origin``. Raises ConfigError."""

    def __init__(self, seconds: float, origin: int = 0, *, wall: bool = False) -> None:
        self.period = round(seconds * SECOND)
        self.clock = WALL if wall else monotonic_clock()
        self.now = wall_now if wall else monotonic_now
        self._origin = origin

    def after(self, moment: int) -> int:
        """The first moment of the grid that is later."""
        return self.latest(moment) + self.period

    def latest(self, now: int) -> int:
        """The last moment of the grid that is not later."""
        return now - (now - self._origin) % self.period

    def between(self, first: int, last: int) -> int:
        """How many there are from ``first``, which is one, until before ``last``."""
        return min((last - first) // self.period, MOST_COUNTED)


class Cron:
    """The moments that a line of crontab(5) means, in the time zone ``tz``, by default that of the machine. Raises ConfigError."""

    clock = WALL

    def __init__(self, line: str, tz: str | tzinfo | None = None) -> None:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise ConfigError(f"cron line {line!r}: laraman.cron needs the extra cron (pip install 'laraman[cron]')") from None
        self.line = line
        self.now = wall_now
        self._zone = _zone(line, tz)
        self._sim: Any = CronSim
        try:
            next(CronSim(line, datetime.now(self._zone)))
        except CronSimError as exc:
            raise ConfigError(f"cron line {line!r}: {_in_words(str(exc), line)}") from None
        except StopIteration:
            raise ConfigError(f"cron line {line!r}: there is no such day") from None

    def after(self, moment: int) -> int:
        """The first moment that is later."""
        return next(found for found in self._moments(moment) if found > moment)  # not so at once in the hour that comes twice

    def latest(self, now: int) -> int:
        """The last moment that is not later."""
        found = next(self._moments(now + 1, back=True))
        # Backwards, a time that a change of the clocks has skipped is found as it is written, not when its turn comes: look from there on.
        for moment in self._moments(found - 1):
            if moment > now:
                return found
            found = moment
        return found

    def between(self, first: int, last: int) -> int:
        """How many there are from ``first``, which is one, until before ``last``."""
        count = 0
        for moment in self._moments(first - 1):
            if moment >= last or count == MOST_COUNTED:
                break
            count += 1
        return count

    def _moments(self, moment: int, back: bool = False) -> Iterator[int]:
        start = datetime.fromtimestamp(moment / SECOND, self._zone)
        for found in self._sim(self.line, start, reverse=back):
            yield round(found.timestamp()) * SECOND


def _zone(line: str, tz: str | tzinfo | None) -> tzinfo:
    if tz is None:
        return _local_zone()
    if not isinstance(tz, str):
        return tz
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a directory
        raise ConfigError(f"cron line {line!r}: there is no time zone {tz!r}") from None


def _local_zone() -> tzinfo:
    """That of the variable TZ, else the machine's, with its changes of daylight saving time; a fixed offset where nothing says which it is."""
    try:
        if name := os.environ.get("TZ", "").removeprefix(":"):
            return ZoneInfo(name)
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file)
    except (ZoneInfoNotFoundError, OSError, ValueError):
        return datetime.now(UTC).astimezone().tzinfo or UTC


_FIELDS = ("second", "minute", "hour", "day-of-month", "month", "day-of-week")


def _in_words(error: str, line: str) -> str:
    """cronsim's word for it, with what is written there."""
    parts = line.split()
    if len(parts) not in (5, 6):
        return f"it has {len(parts)} fields, not 5: minute, hour, day of month, month, day of week (or 6, with the second first)"
    field = error.removeprefix("Bad ")
    if field not in _FIELDS:
        return error
    return f"{parts[_FIELDS.index(field) - (len(parts) == 5)]!r} is no {field.replace('-', ' ')}"
