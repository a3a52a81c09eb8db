"""Turns: under serial isolation one operation of a worker runs at a time, in the order in which they asked."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laraman.sandbox.operation import Operation


class Turns:
    """Who has the turn, and who waits for it. A turn is an operation's, not a task's: each of its tasks may take it back or give it away."""

    def __init__(self) -> None:
        self.holder: Operation | None = None
        self._waiting: OrderedDict[Operation, asyncio.Future[None]] = OrderedDict()

    async def take(self, operation: Operation) -> None:
        """Return when it is the operation's turn. Cancelled or not, it has to be given back, and it stays asked for until then."""
        if self.holder is None:
            self.holder = operation
        if self.holder is operation:
            return
        granted = self._waiting.get(operation)
        if granted is None:
            granted = self._waiting[operation] = asyncio.get_running_loop().create_future()
        await asyncio.shield(granted)  # several tasks may wait, and one that stops waiting must not stop the others

    def give(self, operation: Operation) -> None:
        """The operation wants no turn any more, whether it has it or waits for it: the next one has it."""
        self._waiting.pop(operation, None)
        if self.holder is operation:
            self.holder = None
            if self._waiting:
                self.holder, granted = self._waiting.popitem(last=False)
                granted.set_result(None)
