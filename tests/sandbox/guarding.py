"""What the tests of the guard share: operations, and a guard that leaves the process of the tests as it was."""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any

import pytest

from laraman.sandbox.guard import Guard, audit
from laraman.sandbox.guard.watches import WATCHES
from laraman.sandbox.operation import CURRENT, REQUEST, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("uvicorn.error")


def request(path: str = "/orders", endpoint: Any = None) -> Operation:
    return Operation(REQUEST, {"type": "http", "method": "GET", "path": path, "endpoint": endpoint})


def run_in(operation: Operation | None, function: Callable[[], Any]) -> Any:
    """As code of that operation, or of none, does it."""
    context = contextvars.copy_context()
    if operation is not None:
        context.run(CURRENT.set, operation)
    return context.run(function)


def end(guard: Guard, operation: Operation) -> None:
    """What the Sandbox does when an operation is over."""
    if guard.every:
        guard.look(operation)
    operation.ended = True
    guard.since.append(operation.trace)
    if len(guard.since) >= guard.due:
        guard.reached()


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the server has logged."""
    handler = Lines()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def make(lines: Lines) -> Iterator[Callable[..., Guard]]:
    """``make("warn")`` is a guard that has started."""
    before = [(watch, watch.read()) for watch in WATCHES]

    def make(mode: Any, **options: Any) -> Guard:
        guard = Guard(mode)
        guard.start(**options)
        return guard

    yield make
    audit.deafen()
    for watch, value in before:
        if watch.read() != value:
            watch.restore(value)
