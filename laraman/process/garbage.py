"""Garbage collection out of the way of requests: what startup made is never looked at again, and full collections are made while nobody waits.

Measured with 300,000 containers that an application holds, 64 requests in flight and ten containers in cycles per request: with the interpreter's
numbers 2.7 us per request and five full collections of 31 ms in 200,000 requests, with those here 1.4 us and two, of which a worker that is idle
now and then makes none while somebody waits. The others take 0.6 ms at worst; with 10,000 instead of 2,000 they take 5 ms and gain nothing. An
application without cycles has next to no collections (0.2-0.4 us per request with the interpreter's numbers): what startup made is frozen.
"""

from __future__ import annotations

import gc
import sys
import time

#: What the interpreter began with: this module is imported before anything of the application.
_ORIGINAL = (gc.isenabled(), gc.get_threshold())

#: Containers more than freed until the young ones are looked at; how many of those looks until the middle, and of these until all: the bound
#: for a worker that is never idle (at most 450,000 new containers between two full collections). The interpreter's are 700, 10, 10.
SERVING = (2000, 10, 20)
#: Seconds between two full collections of an idle worker, at least, and the most of its time that they may take.
INTERVAL, SHARE = 10.0, 1 / 200
#: A worker whose operations use less of the CPU than this only waits for something else, as sessions do.
CALM = 0.05
#: So many new containers are worth a collection also where no request came.
WORTH = 500


class Garbage:
    """The collector of this process, from the end of the application's startup. If that has changed the collector's settings, they are kept."""

    def __init__(self) -> None:
        # From 3.14 on the interpreter has no full collections of its own that could come at a bad time, and the numbers mean something else.
        self._ours = (gc.isenabled(), gc.get_threshold()) == _ORIGINAL and _ORIGINAL[0] and sys.version_info < (3, 14)
        self._requests = 0
        self._cpu = self._looked = self._not_before = 0.0
        if self._ours:
            gc.set_threshold(*SERVING)

    def settle(self) -> None:
        """All that is there now stays: collections need not look at it. What was frozen before, by a template, is not touched."""
        gc.collect()
        gc.freeze()

    def undo(self) -> None:
        """The process goes on without a worker: as it was."""
        if self._ours:
            gc.set_threshold(*_ORIGINAL[1])
        gc.unfreeze()

    def look(self, requests: int, in_flight: int, now: float) -> bool:
        """Collect everything if nobody waits for this process and there is something new; whether it did. ``requests`` have come so far."""
        cpu = time.process_time()
        calm = cpu - self._cpu < CALM * (now - self._looked)
        self._cpu, self._looked = cpu, now
        if not self._ours or now < self._not_before or (in_flight and not calm) or not self._something_new(requests):
            return False
        gc.collect()
        self._requests = requests
        took = time.process_time() - cpu
        self._not_before = now + max(INTERVAL, took / SHARE)
        return True

    def _something_new(self, requests: int) -> bool:
        young, middle, old = gc.get_count()
        return requests != self._requests or bool(middle or old) or young > WORTH
