"""Lanes: order for one client, side by side for different ones, under limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from laraman import events, gateway
from laraman.events import MessageReceived, MessageTerminated, OperationTerminated, WorkerError
from laraman.gateway.lanes import Lanes
from laraman.sandbox.locals import Local, local
from laraman.sandbox.operation import Operation, current
from laraman.sandbox.surroundings import Sandbox
from tests.net.serving import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio

marked: ContextVar[str] = ContextVar("marked", default="")


@pytest.fixture(params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    events.forget([__name__])


@contextlib.asynccontextmanager
async def lanes(concurrency: int = 256, timeout: float = 60.0, backlog: int = 1024) -> AsyncIterator[tuple[Lanes, Any]]:
    """As in a worker; at the end nothing is being handled."""
    worker = SimpleNamespace(name="http", in_flight=0)
    worker.sandbox = Sandbox(worker)
    made = Lanes(worker, concurrency, timeout, backlog)
    async with anyio.create_task_group() as group:
        group.start_soon(made.run)
        yield made, worker
        group.cancel_scope.cancel()
    assert worker.in_flight == 0


def message(uniq_id: str, text: str = "") -> gateway.Message:
    return gateway.Message(uniq_id=uniq_id, data=text.encode())


class Slow:
    """A handler that takes until it is let go."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.done: list[str] = []
        self.most = 0
        self.gates: dict[str, asyncio.Event] = {}
        self.open = False

    async def __call__(self, message: gateway.Message) -> None:
        self.running.append(message.text)
        self.most = max(self.most, len(self.running))
        try:
            if not self.open:
                await self.gates.setdefault(message.text, asyncio.Event()).wait()
            self.done.append(message.text)
        finally:
            self.running.remove(message.text)

    def let_go(self, *texts: str) -> None:
        for text in texts or tuple(self.gates):
            self.gates[text].set()
        self.open = not texts


async def test_one_client_in_order_others_at_the_same_time() -> None:
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes() as (made, worker):
        for text in ("a1", "b1", "a2", "a3", "b2"):
            assert made.put(message(text[0], text)) is None
        await until(lambda: len(slow.running) == 2)
        assert (slow.running, made.waiting, worker.in_flight) == (["a1", "b1"], 3, 5)
        slow.let_go("b1")
        await until(lambda: slow.running == ["a1", "b2"])
        slow.let_go()
        await until(lambda: not worker.in_flight)
        assert [text for text in slow.done if text[0] == "a"] == ["a1", "a2", "a3"]
        assert made.waiting == 0


async def test_opens_messages_and_closes_of_a_client_are_one_lane() -> None:
    seen: list[str] = []

    @gateway.on_open
    async def opened(event: gateway.Opened) -> None:
        await anyio.sleep(0.01)
        seen.append("open")

    @gateway.on_message
    async def received(event: gateway.Message) -> None:
        await anyio.sleep(0.005)
        seen.append(event.text)

    @gateway.on_close
    def closed(event: gateway.Closed) -> None:
        seen.append("close")

    async with lanes() as (made, worker):
        for event in (gateway.Opened(uniq_id="a"), message("a", "1"), message("a", "2"), gateway.Closed(uniq_id="a")):
            made.put(event)
        await until(lambda: not worker.in_flight)
    assert seen == ["open", "1", "2", "close"]


async def test_no_more_at_once_than_the_limit() -> None:
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes(concurrency=3) as (made, worker):
        for number in range(10):
            made.put(message(str(number % 5), str(number)))
        await until(lambda: len(slow.running) == 3)
        slow.let_go()
        await until(lambda: not worker.in_flight)
    assert slow.most == 3
    assert sorted(slow.done) == sorted(map(str, range(10)))
    assert [slow.done.index(str(number)) < slow.done.index(str(number + 5)) for number in range(5)] == [True] * 5


async def test_a_busy_client_does_not_keep_others_waiting_for_ever() -> None:
    seen: list[str] = []
    events.on(gateway.Message, lambda event: seen.append(event.text))
    async with lanes(concurrency=1) as (made, worker):
        for text in ("a1", "a2", "a3", "b1"):
            made.put(message(text[0], text))
        await until(lambda: not worker.in_flight)
    assert seen.index("b1") < seen.index("a3")


async def test_when_too_much_waits_the_caller_waits() -> None:
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes(concurrency=1, backlog=4) as (made, worker):
        waits = [made.put(message("a", str(number))) for number in range(5)]
        assert waits[:4] == [None] * 4
        full = waits[4]
        assert full is not None
        waiting = asyncio.ensure_future(full)
        for number in range(2):  # half of the backlog has to go
            await until(lambda number=number: slow.running == [str(number)])  # type: ignore[misc]
            assert not waiting.done()
            slow.let_go(str(number))
        await waiting
        slow.let_go()
        await until(lambda: not worker.in_flight)


async def test_every_message_has_a_context_of_its_own() -> None:
    seen: list[str] = []

    @gateway.on_message
    async def receive(event: gateway.Message) -> None:
        seen.append(marked.get())
        marked.set(event.text)

    marked.set("from the start")
    async with lanes() as (made, worker):
        marked.set("of the link")
        for text in ("1", "2"):
            made.put(message("a", text))
        await until(lambda: not worker.in_flight)
    assert seen == ["from the start"] * 2


async def test_every_message_is_an_operation_with_instances_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Local, "count", 0)
    seen: list[str] = []
    operations: list[Operation] = []
    numbers = iter(range(10))

    def make() -> Iterator[int]:
        number = next(numbers)
        yield number
        seen.append(f"close {number}")

    numbered = local(make)

    @gateway.on_message
    def first(event: gateway.Message) -> None:
        operation = current()
        assert operation is not None
        assert operation.subject is event
        assert not operation.ended
        operations.append(operation)
        seen.append(f"{operation.name} {numbered()}")

    @gateway.on_message
    async def second(event: gateway.Message) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(f"{event.text} {numbered()}")
        if event.text == "bad":
            raise ValueError(event.text)

    async with lanes() as (made, worker):
        for text in ("good", "bad"):
            made.put(message("a", text))
        await until(lambda: not worker.in_flight)
        assert worker.sandbox.active == 0
    assert seen == ["message Message 0", "good 0", "close 0", "message Message 1", "bad 1", "close 1"]
    assert all(operation.ended for operation in operations)


async def test_who_begins_to_listen_hears_the_next_message() -> None:
    outcomes: list[str] = []
    gateway.on_message(lambda event: None)
    async with lanes() as (made, worker):
        made.put(message("a"))
        await until(lambda: not worker.in_flight)
        events.on(MessageTerminated, lambda event: outcomes.append(event.outcome))
        made.put(message("a"))
        await until(lambda: not worker.in_flight)
    assert outcomes == ["ok"]


async def test_what_takes_too_long_around_the_handlers_is_cancelled_too(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def slow(event: MessageReceived) -> None:
        await anyio.sleep_forever()

    events.on(MessageReceived, slow)
    gateway.on_message(lambda event: seen.append(event.text))
    async with lanes(timeout=0.05) as (made, worker):
        made.put(message("a", "1"))
        await until(lambda: not worker.in_flight)
    assert seen == []
    assert caplog.text.count("took longer than 0.05 s") == 1


async def test_the_events_around_a_message() -> None:
    seen: list[Any] = []
    for kind in (MessageReceived, OperationTerminated, WorkerError):
        events.on(kind, lambda event: seen.append((type(event), getattr(event, "outcome", None), event.worker)))

    @gateway.on_message
    async def receive(event: gateway.Message) -> None:
        assert event.text == "good"

    async with lanes() as (made, worker):
        for text in ("good", "bad"):
            made.put(message("a", text))
        await until(lambda: not worker.in_flight)
    assert seen == [
        (MessageReceived, None, worker),
        (MessageTerminated, "ok", worker),
        (MessageReceived, None, worker),
        (WorkerError, None, worker),
        (MessageTerminated, "error", worker),
    ]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_what_a_handler_raises_is_logged_with_its_name_and_stays_there(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    @gateway.on_message
    async def fail(event: gateway.Message) -> None:
        raise error

    @gateway.on_message
    def other(event: gateway.Message) -> None:
        seen.append(event.text)

    async with lanes() as (made, worker):
        for text in ("1", "2"):
            made.put(message("a", text))
        await until(lambda: not worker.in_flight)
    assert seen == ["1", "2"]
    assert caplog.text.count("fail for Message raised") == 2


async def test_a_handler_that_takes_too_long_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[str] = []
    events.on(MessageTerminated, lambda event: outcomes.append(event.outcome))
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes(timeout=0.05) as (made, worker):
        for text in ("a1", "b1", "a2"):
            made.put(message(text[0], text))
        await until(lambda: slow.running == ["a2"])
        slow.let_go("a2")
        await until(lambda: not worker.in_flight)
    assert slow.done == ["a2"]
    assert sorted(outcomes) == ["error", "error", "ok"]
    assert caplog.text.count("took longer than 0.05 s") == 2


async def test_a_handler_that_will_not_be_cancelled_is_cancelled_again() -> None:
    cancelled = 0

    @gateway.on_message
    async def stubborn(event: gateway.Message) -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                cancelled += 1

    async with lanes(timeout=0.02) as (made, worker):
        made.put(message("a"))
        await until(lambda: not worker.in_flight)
    assert cancelled == 3


async def test_without_a_limit_a_handler_may_take_its_time() -> None:
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes(timeout=0) as (made, worker):
        made.put(message("a", "1"))
        await until(lambda: slow.running)
        slow.let_go()
        await until(lambda: not worker.in_flight)
    assert slow.done == ["1"]


async def test_the_end_cancels_what_is_handled_and_drops_what_waits() -> None:
    outcomes: list[str] = []
    events.on(MessageTerminated, lambda event: outcomes.append(event.outcome))
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes(concurrency=2) as (made, worker):
        for text in ("a1", "a2", "b1", "c1"):
            made.put(message(text[0], text))
        await until(lambda: len(slow.running) == 2)
        made.put(message("d", "d1"))
    assert (slow.done, outcomes, worker.in_flight) == ([], ["cancelled"] * 2, 0)


async def test_a_message_that_has_just_come_ends_properly_too() -> None:
    outcomes: list[str] = []
    events.on(MessageTerminated, lambda event: outcomes.append(event.outcome))
    slow = Slow()
    events.on(gateway.Message, slow)
    async with lanes() as (made, _):
        made.put(message("a", "a1"))
    assert outcomes == ["cancelled"]


async def test_what_nobody_listens_to_costs_no_task() -> None:
    async with lanes() as (made, worker):
        assert made.put(message("a")) is None
        assert worker.in_flight == 0


async def test_a_reload_of_the_handlers_changes_what_is_called(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    handler: Callable[[gateway.Message], None] = lambda event: seen.append("old")  # noqa: E731
    gateway.on_message(handler)
    async with lanes() as (made, worker):
        made.put(message("a"))
        await until(lambda: not worker.in_flight)
        events.forget([__name__])
        gateway.on_message(lambda event: seen.append("new"))
        made.put(message("a"))
        await until(lambda: not worker.in_flight)
    assert (seen, caplog.records) == (["old", "new"], [record for record in caplog.records if record.levelno < logging.WARNING])
