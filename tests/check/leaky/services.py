"""What the leaky application has once for all."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool


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
