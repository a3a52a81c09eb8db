from __future__ import annotations

import enum
import itertools
from functools import cached_property

from pydantic import BaseModel


class State(enum.Enum):
    OPEN = "open"
    SHIPPED = "shipped"


class Order(BaseModel):
    item: str
    count: int = 1
    state: State = State.OPEN


class Shop:
    """A singleton that becomes ready bit by bit."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] | None = None
        self.numbers = itertools.count()

    @cached_property
    def catalogue(self) -> tuple[str, ...]:
        return ("tea", "coffee")

    @property
    def orders(self) -> dict[str, Order]:
        if self._orders is None:
            self._orders = {item: Order(item=item) for item in self.catalogue}
        return self._orders


shop = Shop()
