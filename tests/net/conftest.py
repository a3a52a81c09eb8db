from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from laraman import events
from laraman.events import MessageReceived, MessageTerminated
from laraman.sandbox.locals import Local

if TYPE_CHECKING:
    from collections.abc import Iterator


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
def _alone() -> Iterator[None]:
    """No listeners and locals but those of this test: applications that others have imported may have registered some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "_registered", [])
        patch.setattr(Local, "count", 0)
        events.changed()
        yield
    events.changed()


@pytest.fixture
def around() -> Around:
    return Around()
