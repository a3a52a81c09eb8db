"""What is done around an operation: the events, the locals, the turns; in order, and whatever ends it."""

from __future__ import annotations

import asyncio
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laraman import events, sandbox
from laraman.config import Config
from laraman.events import OperationTerminated, TaskReceived, TaskTerminated, TickReceived, TickTerminated
from laraman.sandbox import surroundings
from laraman.sandbox.locals import Local
from laraman.sandbox.operation import LINK_MESSAGE, TASK, TICK, Operation, current
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Worker(types.SimpleNamespace):
    def __init__(self, **options: Any) -> None:
        super().__init__(config=replace(Config(), **options), name="http", in_flight=0, reasons=[])

    def retire(self, reason: str = "") -> None:
        self.reasons.append(reason)


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Listeners and locals of this test, and of nobody else."""
    monkeypatch.setattr(events, "_registered", [])
    monkeypatch.setattr(Local, "count", 0)
    events.changed()
    yield
    monkeypatch.undo()
    events.changed()


def heard(*kinds: type[Any]) -> list[Any]:
    told: list[Any] = []
    for kind in kinds:
        events.on(kind, told.append)
    return told


def test_nothing_is_done_while_nothing_is_registered() -> None:
    async def main() -> None:
        box = Sandbox(Worker())
        assert box.wrapper(TASK) is None
        assert await box.run(lambda: 7) == 7
        events.on(OperationTerminated, print)
        assert box.wrapper(TASK) is not None

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "received", "terminated"), [(TASK, TaskReceived, TaskTerminated), (TICK, TickReceived, TickTerminated)])
def test_the_events_of_a_piece_of_work(kind: Any, received: Any, terminated: Any) -> None:
    told = heard(received, terminated)
    worker = Worker()

    async def work(number: int) -> int:
        assert worker.in_flight == 1
        return number

    assert asyncio.run(Sandbox(worker).run(work, 7, kind=kind, subject="mine")) == 7
    assert told == [received(worker=worker, **{kind.subject: "mine"}), terminated(worker=worker, outcome="ok", **{kind.subject: "mine"})]
    assert worker.in_flight == 0


def test_an_error_comes_out_and_is_told() -> None:
    told = heard(TaskTerminated)

    def fail() -> None:
        raise ZeroDivisionError

    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Sandbox(worker).run(fail))
    assert [event.outcome for event in told] == ["error"]
    assert worker.in_flight == 0


def test_cancellation_is_told_and_closes_what_is_local() -> None:
    told = heard(TaskTerminated)
    closed: list[str] = []

    class Thing:
        async def aclose(self) -> None:
            await asyncio.sleep(0)
            closed.append("thing")

    thing = sandbox.local(Thing)

    async def main() -> None:
        box, running = Sandbox(Worker()), asyncio.Event()

        async def work() -> None:
            thing()
            running.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(box.run(work))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [event.outcome for event in told] == ["cancelled"]
    assert closed == ["thing"]


def test_a_cancellation_while_one_is_closed_keeps_no_other_from_being_closed() -> None:
    closed: list[str] = []
    closing = asyncio.Event()

    class First:
        def close(self) -> None:
            closed.append("first")

    class Second:
        async def aclose(self) -> None:
            closing.set()
            await asyncio.Event().wait()

    first, second = sandbox.local(First), sandbox.local(Second)

    async def main() -> None:
        task = asyncio.create_task(Sandbox(Worker()).run(lambda: (first(), second())))
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert closed == ["first"]


# Locals ---------------------------------------------------------------------------------------------------------------------------


def test_each_operation_has_its_own_instance_also_while_they_overlap() -> None:
    cart = sandbox.local(list)
    both = asyncio.Barrier(2)

    async def shop(user: str) -> list[str]:
        cart().append(user)
        await both.wait()
        await asyncio.to_thread(lambda: cart().append(user))
        return cart()

    async def main() -> list[list[str]]:
        box = Sandbox(Worker())
        return await asyncio.gather(box.run(shop, "alice"), box.run(shop, "bob"))

    assert asyncio.run(main()) == [["alice", "alice"], ["bob", "bob"]]


def test_a_local_is_closed_after_the_listeners_have_heard_and_in_reverse() -> None:
    told: list[str] = []

    class Closing:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            told.append(f"{self.name} closed")

    @sandbox.local
    def session() -> Iterator[str]:
        yield "session"
        told.append("session ended")

    first, last = sandbox.local(lambda: Closing("first")), sandbox.local(lambda: Closing("last"))
    events.on(TaskTerminated, lambda event: told.append(f"terminated, {session()}"))

    async def work() -> None:
        first(), session(), last()

    asyncio.run(Sandbox(Worker()).run(work))
    assert told == ["terminated, session", "last closed", "session ended", "first closed"]


def test_one_that_cannot_be_closed_is_reported_and_recycles_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    class Fails:
        def close(self) -> None:
            raise OSError("stuck")

    class Closes:
        def close(self) -> None:
            closed.append("the other")

    other, fails = sandbox.local(Closes), sandbox.local(Fails)
    worker = Worker()

    assert asyncio.run(Sandbox(worker).run(lambda: (other(), fails(), 7)[2])) == 7
    assert closed == ["the other"]
    assert len(worker.reasons) == 1
    assert "Fails" in worker.reasons[0]
    assert "stuck" in caplog.text


def test_outside_of_operations_and_after_them_there_is_none() -> None:
    cart = sandbox.local(list)
    with pytest.raises(RuntimeError, match=r"builtins\.list is of an operation, and none is running here"):
        cart()

    async def main() -> None:
        left: list[asyncio.Task[Any]] = []
        over = asyncio.Event()

        async def outlive() -> Any:
            await over.wait()
            return cart()

        async def work() -> None:
            left.append(asyncio.create_task(outlive()))

        await Sandbox(Worker()).run(work, subject="short")
        over.set()
        with pytest.raises(RuntimeError, match="task short is over"):
            await left[0]

    asyncio.run(main())


def test_an_instance_that_is_not_used_is_not_made() -> None:
    made: list[int] = []
    sandbox.local(lambda: made.append(1))
    asyncio.run(Sandbox(Worker()).run(lambda: None))
    assert made == []


# Serial isolation -----------------------------------------------------------------------------------------------------------------


def test_serial_runs_one_operation_at_a_time_in_order() -> None:
    told: list[str] = []

    async def work(name: str) -> None:
        told.append(f"{name} in")
        await asyncio.sleep(0)
        told.append(f"{name} out")

    async def main(isolation: str) -> None:
        box = Sandbox(Worker(isolation=isolation))
        await asyncio.gather(box.run(work, "a"), box.run(work, "b"))

    asyncio.run(main("serial"))
    assert told == ["a in", "a out", "b in", "b out"]
    told.clear()
    asyncio.run(main("concurrent"))
    assert told == ["a in", "b in", "a out", "b out"]


def test_serial_goes_on_after_errors_and_cancellations() -> None:
    async def main() -> int:
        box, waiting = Sandbox(Worker(isolation="serial")), asyncio.Event()

        async def fail() -> None:
            raise ZeroDivisionError

        async def wait() -> None:
            waiting.set()
            await asyncio.Event().wait()

        with pytest.raises(ZeroDivisionError):
            await box.run(fail)
        first = asyncio.create_task(box.run(wait))
        await waiting.wait()
        queued = asyncio.create_task(box.run(lambda: 1))
        for task in (queued, first):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert box.active == 0
        async with asyncio.timeout(5):
            return int(await box.run(lambda: 7))

    assert asyncio.run(main()) == 7


def test_an_operation_may_be_waiting_for_what_a_link_brings() -> None:
    async def main() -> str:
        box, answer = Sandbox(Worker(isolation="serial")), asyncio.get_running_loop().create_future()

        async def request() -> Any:
            return await answer

        async with asyncio.timeout(5):
            asking = asyncio.create_task(box.run(request))
            await box.run(answer.set_result, "the answer", kind=LINK_MESSAGE, subject="a message")
            return str(await asking)

    assert asyncio.run(main()) == "the answer"


def test_out_of_turn_others_have_theirs() -> None:
    async def main() -> list[str]:
        box, message, told = Sandbox(Worker(isolation="serial")), asyncio.Event(), []

        async def session() -> None:
            told.append("session waits")
            await box.out_of_turn(message.wait)
            told.append("session works")

        async def request() -> None:
            message.set()
            await asyncio.sleep(0)
            told.append("request is done")

        await asyncio.gather(box.run(session), box.run(request))
        assert box.active == 0
        return told

    assert asyncio.run(main()) == ["session waits", "request is done", "session works"]


def test_the_operation_is_current_and_ends() -> None:
    async def main() -> Operation:
        found = await Sandbox(Worker()).run(current)
        assert isinstance(found, Operation)
        return found

    assert asyncio.run(main()).ended


def test_a_session_that_is_cancelled_while_it_waits_for_its_turn_ends_in_its_turn() -> None:
    told = heard(TaskTerminated)

    async def main() -> None:
        box, message, hold, held = Sandbox(Worker(isolation="serial")), asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def session() -> None:
            await box.out_of_turn(message.wait)

        async def request() -> None:
            held.set()
            await hold.wait()

        first = asyncio.create_task(box.run(session, subject="session"))
        second = asyncio.create_task(box.run(request, subject="request"))
        await held.wait()
        message.set()
        for _ in range(3):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        assert not first.done()
        hold.set()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert box.active == 0
        assert await box.run(lambda: 7) == 7

    asyncio.run(main())
    assert [(event.task, event.outcome) for event in told[:2]] == [("request", "ok"), ("session", "cancelled")]


def test_the_rest_is_closed_after_one_that_takes_its_time_and_after_one_that_fails() -> None:
    told: list[str] = []

    class Closing:
        def __init__(self, name: str) -> None:
            self.name = name

    class AtOnce(Closing):
        def close(self) -> None:
            told.append(self.name)

    class Later(Closing):
        async def aclose(self) -> None:
            await asyncio.sleep(0)
            told.append(self.name)

    class Fails(Closing):
        def close(self) -> None:
            raise OSError(self.name)

    kinds = (AtOnce, Fails, Later, AtOnce, Later, Fails, AtOnce)
    made = [sandbox.local(lambda kind=kind, name=str(number): kind(name)) for number, kind in enumerate(kinds)]
    worker = Worker()
    asyncio.run(Sandbox(worker).run(lambda: [one() for one in made] and None))
    assert told == ["6", "4", "3", "2", "0"]
    assert len(worker.reasons) == 2


def test_an_async_factory_is_refused() -> None:
    async def instance() -> None: ...
    async def generator() -> AsyncIterator[None]:
        yield

    for factory in (instance, generator):
        with pytest.raises(TypeError, match="is async"):
            sandbox.local(factory)


def test_what_is_made_while_others_are_closed_is_closed_and_nothing_stops_it() -> None:
    told: list[str] = []

    class Log:
        def close(self) -> None:
            told.append("log")

    class Closes:
        def close(self) -> None:
            log()
            raise SystemExit(7)

    class Later:
        async def aclose(self) -> None:
            raise asyncio.CancelledError

    closes, later, log = sandbox.local(Closes), sandbox.local(Later), sandbox.local(Log)
    worker = Worker()

    async def main() -> None:
        box = Sandbox(worker)
        await box.run(lambda: closes() and None)
        with pytest.raises(asyncio.CancelledError):
            await box.run(lambda: (closes(), later()))

    asyncio.run(main())
    assert told == ["log", "log"]
    assert len(worker.reasons) == 2


def test_a_listener_that_never_comes_to_its_end_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(surroundings, "LISTEN_SECONDS", 0.01)

    async def wait(event: TaskTerminated) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        events.on(TaskTerminated, wait)
        box = Sandbox(Worker(isolation="serial"))
        async with asyncio.timeout(10):
            assert [await box.run(lambda: 7), await box.run(lambda: 8)] == [7, 8]

    asyncio.run(main())
    assert "Listeners for TaskTerminated were not done" in caplog.text


def test_that_nothing_can_be_restored_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(surroundings, "OVERDUE", 3)
    restored: list[int] = []

    async def main() -> None:
        box, hold = Sandbox(Worker()), asyncio.Event()
        box.resets = types.SimpleNamespace(each=False, idle=True, failed="", when_idle=lambda: restored.append(1))  # type: ignore[assignment]
        box.wrapper(TASK)
        for _ in range(5):
            await box.run(lambda: None)
        assert (len(restored), caplog.messages) == (5, [])
        for _ in range(2):
            long = asyncio.create_task(box.run(hold.wait))
            await asyncio.sleep(0)
            for _ in range(10):
                await box.run(lambda: None)
            hold.set()
            await long
            hold.clear()

    asyncio.run(main())
    assert len(restored) == 7
    assert caplog.messages == ["sandbox.restore: nothing put back for 3 operations, as others were always in flight: see --isolation serial"]


def test_a_turn_is_given_away_once_and_is_there_at_the_end_whoever_still_waits() -> None:
    """A websocket session that leaves its task behind which receives, cancelled or not, or has two of them."""
    told: list[str] = []

    async def main(leave: str) -> None:
        box, message = Sandbox(Worker(isolation="serial")), asyncio.Event()
        events.on(TaskTerminated, lambda event: told.append(f"{event.task} {box.active}"))
        left: list[asyncio.Task[Any]] = []

        async def session() -> None:
            left.extend(asyncio.create_task(box.out_of_turn(message.wait)) for _ in range(2))
            await asyncio.sleep(0)
            if leave == "cancelled":
                left[0].cancel()
            elif leave == "back":
                message.set()
                await left[1]

        async def request() -> None:
            told.append("request")
            await asyncio.sleep(0)
            message.set()
            await asyncio.sleep(0)

        async with asyncio.timeout(10):
            await asyncio.gather(box.run(session, subject="session"), box.run(request, subject="first"), box.run(request, subject="second"))
            await asyncio.wait(left)
            assert await box.run(lambda: 7, subject="third") == 7
        assert box.active == 0

    for leave in ("waiting", "cancelled", "back"):
        told.clear()
        events._registered.clear()
        events.changed()
        asyncio.run(main(leave))
        assert sorted(told) == sorted(["request", "first 1", "request", "second 1", "session 1", "third 1"]), leave
        for name in ("first", "second"):
            assert told[told.index(f"{name} 1") - 1] == "request", leave  # nobody had a turn in between


def test_under_serial_an_operation_may_wait_for_work_of_its_own() -> None:
    async def main() -> list[int]:
        box = Sandbox(Worker(isolation="serial"))

        async def inner(depth: int) -> int:
            return depth if not depth else 1 + int(await box.run(inner, depth - 1))

        async with asyncio.timeout(10):
            return list(await asyncio.gather(box.run(inner, 2), box.run(inner, 3)))

    assert asyncio.run(main()) == [2, 3]
