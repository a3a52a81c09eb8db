"""What the surroundings of an operation cost: against a plain task, in one process, in turns.

    python -m benchmarks.sandbox

Each line is the best of many rounds, in microseconds for one operation, and what it is more than a plain task in a copy of the context: what
every server pays that isolates its requests.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import types
from typing import TYPE_CHECKING, Any

from laraman import sandbox
from laraman.config import Config
from laraman.sandbox.operation import TASK, Operation
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS, ROUNDS = 2_000, 60


async def work() -> None: ...


class Surroundings:
    """The ways to run ``work``. All are tasks that are awaited."""

    def __init__(self, locals_used: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.base = contextvars.copy_context()
        self.box = Sandbox(types.SimpleNamespace(config=Config(), name="http", in_flight=0))
        self.locals = [sandbox.local(object) for _ in range(locals_used)]

        self.wrapper = self.box.wrapper(TASK)  # as callers do, who ask again when something has changed

    def plain(self) -> asyncio.Task[None]:
        return self.loop.create_task(self._call(), context=self.base.copy())

    async def _call(self) -> None:
        try:
            await work()
        finally:
            pass

    def sandboxed(self) -> asyncio.Task[None]:
        operation = Operation(TASK, "work")
        return self.loop.create_task(self._run(operation), context=self.box.context(operation))

    async def _run(self, operation: Operation) -> None:
        try:
            await (work() if self.wrapper is None else self.wrapper(operation, self._use))
        finally:
            self.box.ended(operation)

    async def _use(self) -> None:
        for local in self.locals:
            local()


async def best(ways: dict[str, Callable[[], asyncio.Task[None]]]) -> dict[str, float]:
    """Microseconds of the best round of each, taken in turns."""
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.perf_counter()
            for _ in range(OPERATIONS):
                await way()
            found[name] = min(found[name], (time.perf_counter() - begun) / OPERATIONS * 1e6)
    return found


async def main() -> None:
    nothing = Surroundings(0)
    found = await best({"a plain task": nothing.plain, "nothing registered": nothing.sandboxed})
    found |= await best({"three locals": Surroundings(3).sandboxed})
    for name, value in found.items():
        print(f"{name:<20} {value:6.2f} us  {value - found['a plain task']:+6.2f}")


def run(factory: Any) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


if __name__ == "__main__":
    import uvloop

    run(uvloop.new_event_loop)
