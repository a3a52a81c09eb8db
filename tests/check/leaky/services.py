"""What the leaky application has once for all."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Basket:
    def __init__(self) -> None:
        self.owner = ""
        self.items: dict[str, int] = {}

    def belong(self, user: str) -> None:
        self.owner = user  # leak 4


basket = Basket()
per_thread = threading.local()
tenant: ContextVar[str] = ContextVar("tenant")
settings: ContextVar[dict[str, str]] = ContextVar("settings")
engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=0)
#: Done when the application ends. What is to happen then is kept where no name leads to.
ending: asyncio.Future[None] | None = None


def at_the_end(call: Callable[[], object]) -> None:
    assert ending is not None
    ending.add_done_callback(lambda _: call())
