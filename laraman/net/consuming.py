"""A consumer in a worker."""

from __future__ import annotations

import asyncio
import logging
import os
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import anyio

from laraman.net.link import Backoff
from laraman.net.resident import Resident

if TYPE_CHECKING:
    from laraman.net.consumer import Consumer

logger = logging.getLogger("uvicorn.error")


#: A run of so many seconds was none that failed: what cannot connect may take a while to say so.
STEADY = 10.0


class Consuming(Resident):
    declared: Consumer
    connected = True

    def __init__(self, consumer: Consumer, worker: Any) -> None:
        super().__init__(consumer, worker)
        #: WAITING for its lease, UP while its function runs, DOWN in the pause after that.
        self.state = "DOWN" if self.lease is None else "WAITING"
        self.failures = 0
        self.error: BaseException | None = None
        self._since = worker.loop.time()
        self._backoff = consumer.backoff or Backoff()
        self._scope: anyio.CancelScope | None = None  # while it runs

    def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if self.lease is None:
                    await self._keep()
                else:
                    await self.lease.while_held(self._keep)
        finally:
            self.declared.ended(self)

    async def _keep(self) -> bool:
        try:
            while True:
                self._to("UP")
                await self._consume()
                if self.worker.loop.time() - self._since > max(STEADY, self._backoff.ceiling(self.failures)):
                    self.failures = 0
                self._tell()
                self._to("DOWN")
                await anyio.sleep(self._backoff.delay(self.failures))
                self.failures += 1
        finally:
            self._to("WAITING")

    def _to(self, state: str) -> None:
        self.state = state
        self._since = self.worker.loop.time()

    async def _consume(self) -> None:
        """Once, until it ends; ``error`` is why."""
        self.error = None
        try:
            result = self.declared.function()
            if not isawaitable(result):
                raise TypeError(f"{self.declared.function!r} is no coroutine function")
            await result
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.error = exc  # it cancelled itself
        except Exception as exc:
            self.error = exc

    def _tell(self) -> None:
        """Of the first in a row; the others are of no news."""
        level = logging.DEBUG if self.failures else logging.WARNING
        reason = "it returned" if self.error is None else str(self.error) or type(self.error).__name__
        logger.log(level, "Consumer %s ended and is started again: %s", self.declared.name, reason, exc_info=self.error)

    def row(self) -> dict[str, Any]:
        """What ``laraman connections`` shows. What its client sends and receives is not known; ``age`` is in seconds since ``state`` changed."""
        worker = self.worker
        return {
            "pid": os.getpid(),
            "worker": worker.name,
            "slot": worker.slot,
            "direction": "out",
            "protocol": "consumer",
            "local": "",
            "peer": "",
            "state": self.state,
            **dict.fromkeys(("bytes_in", "bytes_out", "messages_in", "messages_out")),
            "age": round(worker.loop.time() - self._since, 3),
            "name": self.declared.name,
            "scope": self.declared.scope,
            "failures": self.failures,
            "error": None if self.error is None else str(self.error) or type(self.error).__name__,
        }
