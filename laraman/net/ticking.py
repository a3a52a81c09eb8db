"""A timer in a worker."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import anyio

from laraman.net.resident import Resident
from laraman.net.schedule import SECOND
from laraman.sandbox.operation import TICK

if TYPE_CHECKING:
    from laraman.net.timer import Timer

logger = logging.getLogger("uvicorn.error")

#: Seconds between two looks at a clock: somebody may set it.
LOOK = 30.0
#: A clock that was set back by more than so many seconds was wrong before; Debian's cron has the same limit.
WRONG = 3 * 3600


class Ticking(Resident):
    declared: Timer

    def __init__(self, timer: Timer, worker: Any) -> None:
        super().__init__(timer, worker)
        self.ticks = self.missed = self.errors = 0
        self._schedule = timer.schedule()
        #: The moment that was begun last.
        self._begun = self._schedule.now()
        self._scope: anyio.CancelScope | None = None  # while it runs
        self._ticking = self._ending = False

    def wind_up(self) -> None:
        self._ending = True
        if self._scope is not None and not self._ticking:
            self._scope.cancel()

    cancel = wind_up

    async def run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if self.lease is None:
                    await self._tick_on()
                elif not self._ending:
                    await self.lease.while_held(self._tick_on)
        finally:
            self.declared.ended(self)

    async def _tick_on(self) -> bool:
        """Until there is nothing more to do; False when the lease turns out to be somebody else's."""
        await self._remember()
        while not self._ending:
            moment, missed = await self._due()
            self._ticking = True
            try:
                if not await self._note(moment):
                    logger.warning("Timer %s: somebody else has begun what was due here", self.declared.name)
                    return False
                self.missed += missed
                await self._tick()
            finally:
                self._ticking = False
            if self.declared.once:
                break
        return True

    async def _remember(self) -> None:
        """Go on where the last holder of the lease was; a first one begins now, and says so."""
        if self.lease is None:
            return
        clock, _, moment = (await self.lease.noted()).partition(" ")
        if clock == self._schedule.clock and moment.isdecimal():
            self._begun = int(moment)
        else:
            await self._note(self._schedule.now())

    async def _note(self, moment: int) -> bool:
        self._begun = moment
        return self.lease is None or await self.lease.note(f"{self._schedule.clock} {moment}")

    async def _due(self) -> tuple[int, int]:
        """Wait until it is due; the moment, and how many before it were missed."""
        schedule = self._schedule
        later = round(random.random() * self.declared.jitter * SECOND)
        while True:
            now = schedule.now()
            if self._begun - now > WRONG * SECOND:
                self._begun = now
            due = schedule.after(self._begun)
            if now >= due + later:
                moment = schedule.latest(now)
                return moment, schedule.between(due, moment)
            await anyio.sleep(min((due + later - now) / SECOND, LOOK))

    async def _tick(self) -> None:
        self.ticks += 1
        try:
            await self.worker.sandbox.run(self.declared.function, kind=TICK, subject=self.declared.name)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed()  # it cancelled itself
        except Exception:
            self._failed()

    def _failed(self) -> None:
        self.errors += 1
        logger.exception("Timer %s raised", self.declared.name)

    def row(self) -> dict[str, Any]:
        """``next`` is in seconds from now, less than 0 while it waits for its lease; None while it runs."""
        left = None if self._ticking else (self._schedule.after(self._begun) - self._schedule.now()) / SECOND
        counts = {"ticks": self.ticks, "missed": self.missed, "errors": self.errors}
        return {"name": self.declared.name, "when": str(self.declared), "next": left, **counts}
