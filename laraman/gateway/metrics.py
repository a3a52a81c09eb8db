"""What a gateway has done so far, and how fast (spec section 12.2). No clock: ``now`` is passed in, in monotonic seconds."""

from __future__ import annotations

import math
from typing import NamedTuple

#: The metrics in the order of their numbers, from 1 on.
NAMES = (
    "opens",
    "closes",
    "heartbeats",  # of browsers: texts and pings
    "forwarded",  # frames to business processes: opens, messages, closes
    "forwarded_bytes",  # with headers
    "sent",  # messages handed to browsers' connections
    "sent_bytes",  # with websocket headers
    "opens_refused",
    "messages_refused",  # by the gateway's own limit
    "not_forwarded",  # frames that no business process got
    "not_sent",  # messages that a browser was too slow for
    "not_sent_bytes",
    "messages_over_rate",  # dropped by a limit per connection: none here, such a browser is read more slowly
)
#: The windows of the moving averages, in seconds.
WINDOWS = (60.0, 300.0, 900.0)


class Reading(NamedTuple):
    """One metric. Rates are events per second: since the start, and over the last 1, 5 and 15 minutes."""

    number: int
    total: int
    mean_rate: float
    rate1: float
    rate5: float
    rate15: float


class Metrics:
    """Thirteen counters, which the gateway counts up itself (``metrics.opens += 1``), and their rates, which ``tick`` works out.

    The moving averages decay exponentially, as in Unix load averages; ticks may come at any interval, every five seconds is usual.
    """

    opens: int
    closes: int
    heartbeats: int
    forwarded: int
    forwarded_bytes: int
    sent: int
    sent_bytes: int
    opens_refused: int
    messages_refused: int
    not_forwarded: int
    not_sent: int
    not_sent_bytes: int
    messages_over_rate: int

    __slots__ = (*NAMES, "_at", "_counted", "_rates", "_started")

    def __init__(self, now: float) -> None:
        for name in NAMES:
            setattr(self, name, 0)
        self._started = self._at = now
        self._counted = [0] * len(NAMES)
        self._rates = [(0.0, 0.0, 0.0, 0.0)] * len(NAMES)  # mean, then one for each window

    def tick(self, now: float) -> None:
        """Brings the rates up to date. A first tick sets the moving averages to what it finds."""
        elapsed = now - self._at
        if elapsed <= 0:
            return
        weights = [1.0 if self._at == self._started else 1 - math.exp(-elapsed / window) for window in WINDOWS]
        for index, name in enumerate(NAMES):
            count = getattr(self, name)
            current = (count - self._counted[index]) / elapsed
            one, five, fifteen = (rate + weight * (current - rate) for rate, weight in zip(self._rates[index][1:], weights, strict=True))
            self._rates[index] = (count / (now - self._started), one, five, fifteen)
            self._counted[index] = count
        self._at = now

    def read(self) -> list[Reading]:
        """Every metric: counts of this moment, rates of the last tick."""
        return [Reading(number, getattr(self, name), *self._rates[number - 1]) for number, name in enumerate(NAMES, 1)]
