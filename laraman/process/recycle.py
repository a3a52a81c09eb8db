"""When a worker has served long enough: after so many requests, with so much memory, at such an age. A fresh process takes its slot then.

What the process holds meanwhile goes with it, so a leak that nobody has found costs memory up to a limit instead of the machine. The worker only
asks for its successor; in which order workers are replaced is `reconcile`'s to decide, and each serves until its successor is READY.
"""

from __future__ import annotations

import logging
import os
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from laraman.process.exits import rss

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.config import Config
    from laraman.process.worker import Worker

logger = logging.getLogger("uvicorn.error")

#: The part of ``max_lifetime`` that is taken off at random, at most: workers that began together are not to go together.
LIFETIME_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may reach: a number of requests or messages, bytes of resident memory, seconds since it was ready. None is no limit."""

    requests: int | None = None
    rss: int | None = None
    lifetime: float | None = None

    @classmethod
    def draw(cls, config: Config) -> Limits:
        """The configured limits with this process's share of chance."""
        requests = config.limit_max_requests
        if requests is not None:
            requests += random.randint(0, config.limit_max_requests_jitter)
        lifetime = config.max_lifetime
        if lifetime is not None:
            lifetime *= 1 - random.uniform(0, LIFETIME_SPREAD)
        return cls(requests, config.max_rss, lifetime)

    def reason(self, requests: int, rss: int | None, age: float) -> str:
        """Why a process that has reached this is to be replaced, in words; empty when it is not. ``rss`` None: nobody knows."""
        if self.requests is not None and requests >= self.requests:
            return f"{requests} requests served, of {self.requests}"
        if self.rss is not None and rss is not None and rss > self.rss:
            return f"{_megabytes(rss)} of memory, more than max_rss {_megabytes(self.rss)}"
        if self.lifetime is not None and age >= self.lifetime:
            return f"{age:.1f} s old, its lifetime is {self.lifetime:.1f} s"
        return ""


class Watch:
    """Looks at the limits of the worker of this process, from when it is ready, at the loop's time ``now``.

    Exclusive workers have none: nobody serves between one and its successor, so each time every client of a gateway would be thrown out, and
    what a gateway holds is bounded by its own limits.
    """

    def __init__(self, worker: Worker, now: float, memory: Callable[[], int | None] = lambda: rss(os.getpid())) -> None:
        self._worker = worker
        self._ready_at = now
        self._memory = memory
        self._limits = Limits() if worker.exclusive else self._attainable(Limits.draw(worker.config))

    def _attainable(self, limits: Limits) -> Limits:
        """Without a memory limit that cannot be kept: the successor of a worker that begins above it would be above it too, for ever."""
        if limits.rss is None:
            return limits
        begins = self._memory()
        if begins is not None and begins <= limits.rss:
            return limits
        have = "this system does not tell its memory" if begins is None else f"it has {_megabytes(begins)} before its first request"
        logger.error("Worker %s is not replaced for its memory: %s, and max_rss is %s", self._worker.name, have, _megabytes(limits.rss))
        return replace(limits, rss=None)

    def look(self, now: float) -> str:
        """Why this process is to be replaced; empty as long as it is not."""
        limits = self._limits
        if limits == _NONE:
            return ""
        return limits.reason(self._worker.requests, self._memory() if limits.rss is not None else None, now - self._ready_at)


_NONE = Limits()


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MB"
