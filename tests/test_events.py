"""Events: who hears what, in which order, and what a listener that raises may not do."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from laraman import events
from laraman.errors import BootError, ConfigError
from laraman.events import (
    Event,
    OperationTerminated,
    RequestReceived,
    RequestTerminated,
    ServerStarted,
    ServerStarting,
    WorkerError,
    WorkerEvent,
    WorkerExited,
    WorkerStarted,
    WorkerStarting,
    WorkerStopping,
    aemit,
    emit,
    forget,
    listeners,
    on,
)

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    before = list(events._registered)
    events._registered.clear()
    events._cache.clear()
    yield
    events._registered[:] = before
    events._cache.clear()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    """What was logged, without the logger's handlers."""
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(events.logger, "handle", records.append)
    return records


def tell(event: Event) -> None:
    anyio.run(aemit, event)


# Registration ---------------------------------------------------------------------------------------------------------------------


def test_both_forms_register_and_give_the_listener_back() -> None:
    def listener(event: Event) -> None: ...

    assert on(WorkerStarting, listener) is listener
    assert on(WorkerStopping)(listener) is listener
    assert listeners(WorkerStarting) == listeners(WorkerStopping) == (listener,)
    assert listeners(WorkerStarted) == ()


@pytest.mark.parametrize("wrong", ["WorkerStarting", int, None, WorkerStarting(worker=None)])
def test_only_event_types_can_be_listened_to(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="is not an event type"):
        on(wrong)


def test_only_callables_can_listen() -> None:
    with pytest.raises(ConfigError, match="the listener 3 for WorkerStarting cannot be called"):
        on(WorkerStarting, 3)  # type: ignore[call-overload]


def test_listeners_of_a_base_hear_the_derived_in_order_of_registration() -> None:
    heard: list[str] = []
    on(Event, lambda event: heard.append("any"))
    on(RequestTerminated, lambda event: heard.append("request"))
    on(OperationTerminated, lambda event: heard.append("operation"))
    on(RequestReceived, lambda event: heard.append("received"))
    tell(RequestTerminated(worker=None, outcome="ok", scope={}))
    assert heard == ["any", "request", "operation"]


def test_a_listener_registered_later_is_heard_although_the_answer_was_cached() -> None:
    heard: list[Event] = []
    emit(ServerStarted(server=None))
    version = events.version
    on(ServerStarted, heard.append)
    assert events.version > version
    emit(ServerStarted(server=None))
    assert len(heard) == 1


def test_forget_drops_what_these_modules_defined() -> None:
    module = types.ModuleType("some_listeners")
    exec("def gone(event): ...\nclass C:\n  def method(self, event): ...\nbound = C().method", vars(module))

    def stays(event: Event) -> None: ...

    for listener in (module.gone, stays, module.bound):
        on(WorkerStarting, listener)
    listeners(WorkerStarting)
    forget(["some_listeners", "never_imported"])
    assert listeners(WorkerStarting) == (stays,)


def test_forget_drops_what_these_modules_registered_whoever_defined_it() -> None:
    """The module will register it again when it is imported afresh; a library's function would then run twice."""
    module = types.ModuleType("some_listeners")
    source = "import functools, laraman.events as e\ne.on(e.WorkerStarting, print)\ne.on(e.WorkerStarting)(functools.partial(print, 1))"
    exec(source, vars(module))
    assert len(listeners(WorkerStarting)) == 2
    forget(["some_listeners"])
    assert listeners(WorkerStarting) == ()


def test_events_are_frozen_and_take_keywords_only() -> None:
    event = WorkerStarting(worker=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.worker = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        WorkerStarting(1)  # type: ignore[call-arg]
    for kind in (ServerStarting, WorkerStarting, WorkerError, RequestTerminated):
        assert not hasattr(object.__new__(kind), "__dict__"), kind


# Delivery -------------------------------------------------------------------------------------------------------------------------


def test_sync_and_async_listeners_run_one_after_another() -> None:
    heard: list[str] = []

    @on(WorkerStarting)
    async def first(event: WorkerStarting) -> None:
        await anyio.sleep(0.001)
        heard.append(f"first {event.worker}")

    on(WorkerStarting, lambda event: heard.append("second"))
    tell(WorkerStarting(worker="w"))
    assert heard == ["first w", "second"]


def test_a_listener_that_raises_is_reported_by_name_and_the_others_still_hear(reported: list[logging.LogRecord]) -> None:
    heard: list[Any] = []

    @on(WorkerStopping)
    def broken(event: WorkerStopping) -> None:
        raise ValueError("why")

    on(WorkerStopping, heard.append)
    on(WorkerError, heard.append)
    tell(WorkerStopping(worker="w"))
    error, event = heard
    assert isinstance(event, WorkerStopping)
    assert error.worker == "w"
    assert str(error.error) == "why"
    name = f"{__name__}.{broken.__qualname__}"
    assert error.listener == name
    assert [record.getMessage() for record in reported] == [f"Listener {name} for WorkerStopping raised"]
    assert reported[0].exc_info is not None


def test_an_error_about_an_error_does_not_go_round(reported: list[logging.LogRecord]) -> None:
    def broken(event: WorkerEvent) -> None:
        raise ValueError("again")

    on(WorkerStopping, broken)
    on(WorkerError, broken)
    tell(WorkerStopping(worker=None))
    assert len(reported) == 2


def test_an_error_in_an_operation_is_told_as_well(reported: list[logging.LogRecord]) -> None:
    heard: list[WorkerError] = []
    on(RequestReceived, lambda event: 1 / 0)
    on(WorkerError, heard.append)
    tell(RequestReceived(worker="w", scope={}))
    assert [(error.worker, type(error.error)) for error in heard] == [("w", ZeroDivisionError)]
    assert len(reported) == 1


@pytest.mark.parametrize("refusal", [ConfigError("no"), BootError("no")])
def test_a_starting_listener_can_refuse_the_start(refusal: Exception) -> None:
    def refuse(event: Event) -> None:
        raise refusal

    on(ServerStarting, refuse)
    on(WorkerStarting, refuse)
    with pytest.raises(type(refusal)):
        emit(ServerStarting(server=None))
    with pytest.raises(type(refusal)):
        tell(WorkerStarting(worker=None))


def test_nothing_else_can_refuse_anything(reported: list[logging.LogRecord]) -> None:
    def refuse(event: Event) -> None:
        raise BootError("no")

    on(ServerStarted, refuse)
    on(WorkerStopping, refuse)
    emit(ServerStarted(server=None))
    tell(WorkerStopping(worker=None))
    assert len(reported) == 2


def test_an_async_listener_in_the_master_is_reported(reported: list[logging.LogRecord]) -> None:
    ran: list[Event] = []

    @on(WorkerExited)
    async def listener(event: WorkerExited) -> None:
        ran.append(event)

    emit(WorkerExited(server=None, process=None, reason="signal 9"))
    assert not ran
    assert reported[0].exc_info is not None
    assert "which has no event loop" in str(reported[0].exc_info[1])


def test_an_async_listener_for_server_starting_refuses_the_start() -> None:
    @on(ServerStarting)
    async def listener(event: ServerStarting) -> None: ...

    with pytest.raises(ConfigError, match="make the listener a plain function"):
        emit(ServerStarting(server=None))


def test_cancellation_goes_through() -> None:
    @on(WorkerStopping)
    async def slow(event: WorkerStopping) -> None:
        await anyio.sleep_forever()

    async def main() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await aemit(WorkerStopping(worker=None))
        return scope.cancelled_caught

    assert anyio.run(main)


def test_events_need_no_asyncio() -> None:
    assert "asyncio" not in vars(sys.modules["laraman.events"])
