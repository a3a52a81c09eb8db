"""The near end of the Link: every HTTP worker asks the ticker its questions over one connection that laraman keeps."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import laraman
from app_example import TICKER
from laraman.errors import LinkDown


class UnknownSymbol(Exception):
    """The ticker does not quote this symbol."""


class Feed:
    """Asks and listens on one Link. Answers find their question by its id, so many questions can be on their way at once."""

    def __init__(self) -> None:
        self.prices: dict[str, float] = {}
        self.link = laraman.link(
            TICKER,
            name="ticker",
            on_message=self._on_message,
            on_down=self._on_down,
            heartbeat=(5, b'{"op": "ping"}'),
            timeout=15,
            overflow="error",
        )
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def price(self, symbol: str, timeout: float = 2.0) -> float:
        """Ask for the price of ``symbol``.

        Raises UnknownSymbol, LinkDown when the ticker is not connected, Busy when too many questions wait, TimeoutError when no
        answer came within ``timeout`` seconds.
        """
        if self.link.state != "UP":
            raise LinkDown("the ticker is not connected")
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self.link.send(json.dumps({"id": number, "symbol": symbol}).encode())
                reply = await answer
        finally:
            del self._waiting[number]
        if "error" in reply:
            raise UnknownSymbol(symbol)
        return float(reply["price"])

    def _on_message(self, link: Any, message: bytes) -> None:
        reply = json.loads(message)
        if "prices" in reply:
            self.prices = reply["prices"]
        answer = self._waiting.get(reply.get("id"))
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _on_down(self, link: Any, error: BaseException | None) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LinkDown("the ticker went away"))


#: One per worker process. Nothing is dialled before the listener in app_example.listeners starts it.
feed = Feed()
