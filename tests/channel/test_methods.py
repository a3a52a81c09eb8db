"""Methods as operations of their worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from laraman import events
from laraman.channel.methods import Methods, result_of
from laraman.errors import Busy, RemoteProtocolError, TaskError
from laraman.events import TaskReceived, TaskTerminated
from laraman.net.encoding import decode, encode, encode_call
from laraman.sandbox.operation import current
from tests.net.serving import a_worker, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    told: list[str] = []
    monkeypatch.setattr(events, "_registered", [])
    events.on(TaskReceived, lambda event: told.append(f"received {event.task}"))
    events.on(TaskTerminated, lambda event: told.append(f"{event.outcome} {event.task}"))
    yield told
    monkeypatch.undo()
    events.changed()


async def answer(methods: Methods, function: Callable[..., Any] | None, *args: Any, timeout: float = 10.0, **kwargs: Any) -> Any:
    replied: list[bytes] = []
    methods.called(function, "method", encode_call(args, kwargs, timeout), replied.append)
    await until(lambda: replied)
    return result_of(replied[0])


async def plain(number: int) -> str:
    await asyncio.sleep(0)
    return f"{number} in {current().name}"  # type: ignore[union-attr]


async def test_each_is_a_task_of_the_worker(told: list[str]) -> None:
    worker = a_worker()
    methods = Methods(worker)
    assert await answer(methods, plain, 7) == "7 in task method"
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        await answer(methods, lambda: 1 / 0)
    await until(lambda: len(told) == 4)
    assert told == ["received method", "ok method", "received method", "error method"]
    assert (worker.in_flight, methods._running) == (0, set())


async def test_without_listeners_a_plain_one_answers_there_and_then(alone: None) -> None:
    replied: list[bytes] = []
    assert Methods(a_worker()).called(lambda: current().name, "method", encode_call((), {}, 1.0), replied.append) is None  # type: ignore[union-attr]
    assert [result_of(each) for each in replied] == ["task method"]


async def test_while_one_is_answered_the_worker_drains() -> None:
    worker = a_worker()
    methods = Methods(worker)
    replied: list[bytes] = []
    cancel = methods.called(lambda: asyncio.sleep(60), "method", encode_call((), {}, 60.0), replied.append)
    await until(lambda: worker.in_flight == 1)
    assert cancel is not None
    cancel()
    await until(lambda: not methods._running)
    assert (worker.in_flight, replied) == (0, [])


async def test_what_is_no_call_and_what_is_no_answer() -> None:
    methods = Methods(None)
    for payload in (b"", b"\xc1", encode([]), encode([[], {}, "soon"]), encode(7)):
        replied: list[bytes] = []
        methods.called(lambda: 1, "method", payload, replied.append)
        assert decode(replied[0])[0] == 1
    with pytest.raises(TaskError, match="LookupError: there is no method 'method'"):
        await answer(methods, None)
    for wrong in (b"", encode(7), encode([3, ""]), encode([1, 2, 3, 4])):
        with pytest.raises(RemoteProtocolError):
            result_of(wrong)
    with pytest.raises(Busy, match="much"):
        result_of(encode([2, "much"]))


async def test_a_result_that_is_too_large_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.net.encoding.MAX_PAYLOAD", 1000)
    with pytest.raises(TaskError, match="result of method"):
        await answer(Methods(None), lambda: "x" * 2000)
    with pytest.raises(TaskError, match="result of method"):
        await answer(Methods(None), lambda: "x" * 996)
