from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Settings:
    title: str = "Orders"
    page: int = 20


@lru_cache
def settings() -> Settings:
    return Settings()


@lru_cache(maxsize=64)
def price(item: str) -> int:
    return len(item)
