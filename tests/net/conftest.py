from __future__ import annotations

from typing import Any

import pytest

from laraman import events
from laraman.events import MessageReceived, MessageTerminated


class Around:
    """What is told around messages from ``listen`` on, of one worker or all of them: a test may have both ends of a connection."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.events: list[Any] = []

    def listen(self, worker: Any = None) -> None:
        self._worker = worker
        events.on(MessageReceived, self._hear)
        events.on(MessageTerminated, self._hear)

    def _hear(self, event: Any) -> None:
        if self._worker is not None and event.worker is not self._worker:
            return
        self.events.append(event)
        self.told.append(f"{getattr(event, 'outcome', 'received')} {event.message}")


@pytest.fixture(autouse=True)
def _alone(alone: None) -> None:
    """Every test here."""


@pytest.fixture
def around() -> Around:
    return Around()
