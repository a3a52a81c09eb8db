"""The far end of the example's Link: a custom worker that quotes coffee prices as JSON in length-prefixed frames.

A question ``{"id": 7, "symbol": "HUILA"}`` is answered with ``{"id": 7, "symbol": "HUILA", "price": 5.42}``, or with
``{"id": 7, "error": "..."}``. Once a second every connection is told all prices unasked: ``{"prices": {"HUILA": 5.42, ...}}``.
"""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

from app_example.catalogue import BY_SYMBOL
from laraman.errors import LaramanError

if TYPE_CHECKING:
    from collections.abc import Iterator


def walk(symbol: str) -> Iterator[float]:
    """The price of ``symbol``, step by step: a random walk that is the same in every run."""
    random = Random(symbol)
    price = random.uniform(4, 9)
    while True:
        yield round(price, 2)
        price = max(1.0, price * (1 + random.uniform(-0.02, 0.02)))


class Ticker:
    """The worker's handler. laraman calls the methods below; one instance lives as long as the worker process."""

    def __init__(self) -> None:
        self._walks = {symbol: walk(symbol) for symbol in BY_SYMBOL}
        self._prices = {symbol: next(steps) for symbol, steps in self._walks.items()}

    def on_start(self, worker: Any) -> None:
        worker.tasks.start_soon(self._tick, worker)

    async def on_message(self, connection: Any, message: bytes) -> None:
        question = json.loads(message)
        if question.get("op") == "ping":
            answer: dict[str, Any] = {"op": "pong"}
        elif question.get("symbol") in self._prices:
            answer = {"id": question["id"], "symbol": question["symbol"], "price": self._prices[question["symbol"]]}
        else:
            answer = {"id": question.get("id"), "error": "unknown symbol"}
        await connection.send(json.dumps(answer).encode())

    async def _tick(self, worker: Any) -> None:
        while True:
            await asyncio.sleep(1)
            self._prices = {symbol: next(steps) for symbol, steps in self._walks.items()}
            tick = json.dumps({"prices": self._prices}).encode()
            await asyncio.gather(*(self._tell(connection, tick) for connection in tuple(worker.connections)))

    async def _tell(self, connection: Any, tick: bytes) -> None:
        try:
            async with asyncio.timeout(1):  # a peer that does not read misses ticks; the others do not wait for it
                await connection.send(tick)
        except (LaramanError, TimeoutError):
            pass
