"""What the channel does while the hub is away and when it is back, and where two processes meet in the middle of something."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest

from laraman.channel.asking import PIECE, Question
from laraman.channel.methods import MAX_CALLS
from laraman.errors import Busy, ConfigError, ConnectionClosed, LinkDown, LocalProtocolError, TaskError
from laraman.protocols.hub import HELLO_BODY, Hub, Op
from tests.net.serving import until

if TYPE_CHECKING:
    from pathlib import Path

    from laraman.channel.interface import Channel
    from tests.channel.hubs import AHub

pytestmark = pytest.mark.anyio


async def serving(hub: AHub, name: str = "b", slot: int = 0) -> Channel:
    """A process that others call."""
    client = hub.client(name=name, slot=slot)

    @client.method
    def add(x: int, y: int = 1) -> int:
        return x + y

    @client.method
    async def sleep(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.append(client)
            raise
        return "slept"

    cancelled.clear()
    await client._ready()
    await until(lambda: any(known.methods for known in hub.hub._members if str(known) == f"{name}[{slot}]"))
    return client


#: Those whose call of ``sleep`` was cancelled.
cancelled: list[Channel] = []


# Calls ---------------------------------------------------------------------------------------------------------------------------------


async def test_calls_reach_any_process_or_that_of_a_slot(hub: AHub) -> None:
    first, second = await serving(hub), await serving(hub, slot=1)
    for client, number in ((first, 1), (second, 2)):
        client.add_method("number", lambda number=number: number)
    await until(lambda: all("number" in known.methods for known in hub.hub._members))
    caller = hub.client()
    assert [await caller.call("b[0]", "number"), await caller.call("b[1]", "number")] == [1, 2]
    assert {await caller.call("b", "number") for _ in range(4)} == {1, 2}
    assert await caller.call_all("b", "number") == [1, 2]
    assert await caller.call_all("b[1]", "number") == [2]
    assert await caller.call("b", "add", 3, y=4) == 7


async def test_what_a_method_raises_comes_back_as_text(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @server.method
    def fail(kind: str) -> None:
        raise {"value": ValueError("n\udc80o"), "busy": Busy("mine"), "odd": Odd()}[kind]

    await until(lambda: all("fail" in known.methods for known in hub.hub._members if known.name))
    with pytest.raises(TaskError, match=r"^ValueError: n") as caught:
        await caller.call("b", "fail", "value")
    assert (caught.value.type, caught.value.message) == ("ValueError", "n\\udc80o")
    assert 'in fail\n    raise {"value"' in caught.value.traceback
    with pytest.raises(TaskError, match=r"^laraman\.errors\.Busy: mine$"):
        await caller.call("b", "fail", "busy")
    with pytest.raises(TaskError, match="its text cannot be had: RuntimeError"):
        await caller.call("b", "fail", "odd")
    with pytest.raises(TaskError, match=r"^TypeError: .*missing 1 required positional argument"):
        await caller.call("b", "fail")


async def test_what_cannot_be_encoded_is_named_where_it_is_called(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    with pytest.raises(LocalProtocolError, match=r"^args\[0\]\['user'\] is <object"):
        await caller.call("b", "add", {"user": object()})
    with pytest.raises(LocalProtocolError, match=r"^kwargs\['y'\] is \(1\+2j\)"):
        await caller.call("b", "add", 1, y=1 + 2j)
    server.add_method("odd", lambda: [{"x": {1, 2}}])
    await until(lambda: any("odd" in known.methods for known in hub.hub._members))
    with pytest.raises(TaskError, match=r"the result of odd\[0\]\['x'\] is \{1, 2\}: set cannot be sent"):
        await caller.call("b", "odd")


async def test_nobody_there_is_said_at_once(hub: AHub) -> None:
    await serving(hub)
    caller = hub.client()
    with pytest.raises(LinkDown, match="no process of nobody is connected"):
        await caller.call("nobody", "add", 1, timeout=30)
    with pytest.raises(LinkDown, match=r"no process of b\[7\] is connected"):
        await caller.call("b[7]", "add", 1, timeout=30)
    with pytest.raises(LinkDown):
        await caller.call_all("nobody", "add", 1, timeout=30)
    with pytest.raises(TaskError, match="LookupError: b has no method 'nothing'"):
        await caller.call("b", "nothing", timeout=30)


async def test_a_call_that_takes_too_long_is_cancelled_over_there(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    with pytest.raises(TimeoutError, match=r"sleep of b did not answer in 0\.2 s"):
        await caller.call("b", "sleep", 60, timeout=0.2)
    await until(lambda: cancelled == [server])
    assert await caller.call("b", "sleep", 0) == "slept"
    (late,) = await caller.call_all("b", "sleep", 60, timeout=0.2)
    assert isinstance(late, TimeoutError)


async def test_a_caller_that_is_cancelled_cancels_the_method(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    calling = asyncio.create_task(caller.call("b", "sleep", 60, timeout=60))
    await until(lambda: server._answering._running)
    calling.cancel()
    await until(lambda: cancelled == [server])
    assert not caller._line._questions  # type: ignore[attr-defined]


async def test_more_calls_than_a_process_takes_are_busy(hub: AHub) -> None:
    await serving(hub)
    caller = hub.client()
    calls = [asyncio.create_task(caller.call("b", "sleep", 60, timeout=60)) for _ in range(MAX_CALLS + 1)]
    (done,) = (await asyncio.wait(calls, timeout=10, return_when=asyncio.FIRST_COMPLETED))[0]
    with pytest.raises(Busy, match=f"{MAX_CALLS} calls are being answered"):
        done.result()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_process_that_ends_while_it_is_called(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    calling = asyncio.create_task(caller.call("b", "sleep", 60, timeout=60))
    await until(lambda: server._answering._running)
    await server.close()
    with pytest.raises(LinkDown, match="went away before it answered"):
        await asyncio.wait_for(calling, 10)
    assert cancelled == [server]


# The hub goes and comes back ------------------------------------------------------------------------------------------------------------


async def test_subscriptions_methods_and_consumers_are_there_again(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    async with caller.subscribe("a.>") as subscription, caller.work("q") as jobs:
        await hub.kill()
        await hub.start()
        await until(lambda: any(known.methods for known in hub.hub._members))
        await until(lambda: any(known.subscriptions and known.consumers for known in hub.hub._members))
        await server.publish("a.b", "again")
        assert (await asyncio.wait_for(anext(subscription), 10)).data == "again"
        assert subscription.gaps == 1
        await server.put("q", "job")
        job = await asyncio.wait_for(anext(jobs), 10)
        assert await job.ack()
    assert await caller.call("b", "add", 1) == 2


async def test_what_is_asked_while_the_hub_is_away_waits_for_it(hub: AHub) -> None:
    client = hub.client()
    await client.publish("a", 1)
    await hub.kill()
    waiting = [client.put("q", 1), client.publish("a", 2), client.table("t").set("k", 7), client.table("t").increment("n"), client.call("x", "y")]
    tasks = [asyncio.create_task(doing) for doing in waiting]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)
    await hub.start()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert done[1:4] == [None, None, 1]
    assert isinstance(done[4], LinkDown)
    assert (await client.get("q", timeout=10)).data == 1


async def test_what_cannot_be_asked_in_time_says_that_the_hub_is_away(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.channel.client.ANSWER_SECONDS", 0.2)
    client = hub.client()
    await client.publish("a", 1)
    await hub.kill()
    await until(lambda: client._line.connection is None)  # type: ignore[attr-defined]
    for doing in (
        client.publish("a", 1),
        client.put("q", 1, timeout=0.2),
        client.table("t").get("k"),
        client.call("b", "add", 1, timeout=0.2),
        client.get("q", timeout=0.2),
        client.subscribe("a").__aenter__(),
    ):
        with pytest.raises(LinkDown, match="the hub is away: "):
            await doing
    await hub.start()


async def test_calls_and_increments_under_way_fail_when_the_hub_goes(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    calling = asyncio.create_task(caller.call("b", "sleep", 60, timeout=60))
    await until(lambda: server._answering._running)
    await hub.kill()
    with pytest.raises(LinkDown, match="went away before it answered, what was asked may have been done"):
        await asyncio.wait_for(calling, 10)
    await until(lambda: cancelled == [server])
    await hub.start()


async def test_an_answer_to_the_hub_before_is_not_given_to_the_next(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    over = asyncio.Event()

    @server.method
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await over.wait()
        return "to the hub before"

    await until(lambda: any("stubborn" in known.methods for known in hub.hub._members))
    calling = asyncio.create_task(caller.call("b", "stubborn", timeout=60))
    await until(lambda: server._answering._running)
    await hub.kill()
    with pytest.raises(LinkDown):
        await asyncio.wait_for(calling, 10)
    await hub.start()
    await until(lambda: any(known.methods for known in hub.hub._members))
    calling = asyncio.create_task(caller.call("b", "sleep", 0.3, timeout=10))  # by the same number
    await until(lambda: len(server._answering._running) == 2)
    over.set()
    assert await calling == "slept"


async def test_a_put_whose_answer_was_lost_is_put_once(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    client = hub.client()
    await client.publish("a", 1)
    with monkeypatch.context() as patched:
        patched.setattr("laraman.channel.hub.service.Member.write", lambda member, frames: None)
        putting = asyncio.create_task(client.put("q", "once"))
        await until(lambda: list(hub.hub.core.queues.jobs()))
        await hub.kill()
    await hub.start()
    await asyncio.wait_for(putting, 10)
    assert [job.data for job in hub.hub.core.queues.jobs()] == [b"\xa4once"]


# Jobs, locks ----------------------------------------------------------------------------------------------------------------------------


async def test_what_a_consumer_has_not_acknowledged_is_given_to_others(hub: AHub) -> None:
    first, second = hub.client(), hub.client()
    for number in range(3):
        await first.put("q", number)
    with contextlib.suppress(ZeroDivisionError):
        async with first.work("q", prefetch=2) as jobs:
            assert await (await anext(jobs)).ack()
            await anext(jobs)
            raise ZeroDivisionError
    given = [await second.get("q", timeout=10) for _ in range(2)]
    assert sorted(job.data for job in given) == [1, 2]
    assert [await job.ack() for job in given] == [True, True]


async def test_a_job_that_somebody_else_has_by_now(hub: AHub) -> None:
    first, second = hub.client(), hub.client()
    await first.put("q", 1)
    job = await first.get("q", timeout=10, visibility=0.2)
    again = await second.get("q", timeout=10)
    assert (again.id, again.attempt) == (job.id, 2)
    assert not await job.ack()
    assert not await job.extend()
    assert await again.nack()
    assert (await first.get("q", timeout=10)).attempt == 3


async def test_a_job_that_comes_when_nobody_waits_any_more_is_given_back(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    client = hub.client()
    getting = asyncio.create_task(client.get("q", timeout=60))
    await until(lambda: any(known.consumers for known in hub.hub._members))
    getting.cancel()
    await asyncio.wait({getting})
    with pytest.raises(TimeoutError, match=r"there was no job in queue q in 0\.1 s"):
        await client.get("q", timeout=0.1)
    await client.put("q", 1)
    job = await hub.client().get("q", timeout=10)
    assert (job.data, job.attempt) == (1, 1)
    await job.ack()
    with monkeypatch.context() as patched:
        patched.setattr(client._line, "forget", lambda id: None)  # type: ignore[attr-defined] # as if the hub heard of it too late
        with pytest.raises(TimeoutError):
            await client.get("q", timeout=0.1)
    await client.put("q", 2)
    job = await hub.client().get("q", timeout=10)
    assert (job.data, job.attempt) == (2, 2)


async def test_a_full_queue_is_busy_and_a_key_is_queued_once(hub: AHub) -> None:
    client = hub.client()
    ids = {await client.put("q", 1, key="same") for _ in range(3)}
    assert len(ids) == 1
    for number in range(49):
        await client.put("q", number)
    with pytest.raises(Busy, match="queue q is full: 50 jobs"):
        await client.put("q", 1)


async def test_a_lock_is_one_process_s_at_a_time(hub: AHub) -> None:
    first, second = hub.client(), hub.client()
    async with first.lock("l") as held:
        with pytest.raises(TimeoutError, match=r"lock l was not to be had in 0\.2 s"):
            async with second.lock("l", timeout=0.2):
                pass
    async with second.lock("l", timeout=10) as after:
        assert after.token > held.token


async def test_who_is_cancelled_while_it_waits_for_a_lock_does_not_keep_it(hub: AHub) -> None:
    first, second = hub.client(), hub.client()
    async with first.lock("l"):
        waiting = asyncio.create_task(second.lock("l", timeout=60).__aenter__())
        await until(lambda: any(known.locks for known in hub.hub._members))
        waiting.cancel()
        await asyncio.wait({waiting})
    async with first.lock("l", timeout=10):
        pass


async def test_a_lock_is_renewed_and_its_holder_learns_that_it_is_lost(hub: AHub) -> None:
    first, second = hub.client(), hub.client()
    async with first.lock("l", lease=0.3):
        with pytest.raises(TimeoutError):
            async with second.lock("l", timeout=1):
                pass
    reached = []

    async def lose() -> None:
        async with first.lock("l", lease=0.6) as lock:
            await second._release("l", lock.token)  # as if it had been away for too long
            reached.append(await second._acquire("l", 60, 10))
            await asyncio.sleep(30)
            reached.append(None)

    with pytest.raises(LinkDown, match="lock l was lost: somebody else may have it"):
        await asyncio.wait_for(lose(), 20)
    assert len(reached) == 1


async def test_tables(hub: AHub) -> None:
    table, other = hub.client().table("t"), hub.client().table("t")
    assert [await table.increment("n"), await other.increment("n", 4), await other.get("n")] == [1, 5, 5]
    await table.set("d", {"a": [1.5, None]})
    assert await other.get("d") == {"a": [1.5, None]}
    assert await other.compare_and_set("d", {"a": [1.5, None]}, None)
    assert await other.get("d", "gone") == "gone"
    assert [await other.compare_and_set("d", 1, 2), await other.compare_and_set("d", None, True)] == [False, True]
    assert await other.get("d") is True
    assert sorted(await table.keys()) == ["d", "n"]
    assert [await table.delete("d"), await table.delete("d")] == [True, False]
    await table.set("text", "7")
    with pytest.raises(LocalProtocolError):
        await table.increment("text")
    for wrong in (table.set("d", None), table.increment("d", 2**63), table.increment("d", 1.5), table.set("d", 1, ttl=0), table.get("")):  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError):
            await wrong
    await table.set("soon", 1, ttl=0.2)
    async with asyncio.timeout(10):
        while await table.get("soon"):
            await asyncio.sleep(0.02)


# Much at once ---------------------------------------------------------------------------------------------------------------------------


async def test_a_publisher_that_never_rests_waits_for_the_hub_and_keeps_order(hub: AHub) -> None:
    publisher, listener = hub.client(), hub.client()
    text = "x" * (PIECE // 4)
    async with listener.subscribe("a", queue=1000) as subscription:

        async def publish() -> None:
            for number in range(300):
                await publisher.publish("a", [number, text])

        publishing = asyncio.create_task(publish())
        heard = [(await asyncio.wait_for(anext(subscription), 10)).data[0] for _ in range(300)]
        assert heard == list(range(300))
        await publishing


async def test_answers_wait_for_a_hub_that_does_not_read(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()
    server.add_method("big", lambda number: [number, "x" * PIECE])
    await until(lambda: any("big" in known.methods for known in hub.hub._members))
    (member,) = (member for client, member in hub.hub._members.items() if client.name)
    member.transport.pause_reading()
    calls = [asyncio.create_task(caller.call("b", "big", number, timeout=10)) for number in range(50)]
    await until(lambda: server._line.connection.writing_paused)  # type: ignore[attr-defined]
    calls += [asyncio.create_task(caller.call("b", "big", number, timeout=10)) for number in range(50, 60)]
    await until(lambda: server._line._writing)  # type: ignore[attr-defined]
    member.transport.resume_reading()
    assert [number for number, _ in await asyncio.gather(*calls)] == list(range(60))


async def test_a_hub_that_refuses_is_dialled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it says is in the log, and what waited says that it is away."""
    from laraman import channel

    wire = Hub()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ((op, id, name, body),) = wire.receive_data(await reader.read(65536))
        assert (op, name, HELLO_BODY.unpack(body)[1]) == (Op.HELLO, "b", 3)
        writer.write(wire.send((Op.ERROR, id, "bad", b"another version")))
        writer.close()

    server = await asyncio.start_unix_server(refuse, tmp_path / "hub.sock")
    caplog.set_level(logging.WARNING)
    client = channel.connect(f"unix://{tmp_path}/hub.sock", name="b", slot=3)
    with pytest.raises(LinkDown, match="the hub is away: the hub refuses this process: bad another version"):
        await client.put("q", 1, timeout=0.3)
    assert "Link hub is down: the hub refuses this process: bad another version" in caplog.text
    await client.close()
    server.close()


async def test_who_waits_when_the_channel_is_closed_is_told(hub: AHub) -> None:
    client = hub.client()
    getting = asyncio.create_task(client.lock("l", timeout=60).__aenter__())
    other = asyncio.create_task(hub.client().lock("l", timeout=60).__aenter__())
    done, _ = await asyncio.wait({getting, other}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    waiting = other if getting in done else getting
    for open in hub.clients:
        await open.close()
    with pytest.raises(ConnectionClosed, match="the channel was closed"):
        await asyncio.wait_for(waiting, 10)


def test_urls_that_cannot_be() -> None:
    from laraman import channel
    from laraman.errors import ConfigError

    with pytest.raises(ConfigError, match="http:// is none of unix, redis"):
        channel.connect("http://127.0.0.1")
    with pytest.raises(ConfigError, match="this process is no worker"):
        channel.current()


# Users' mistakes and moments --------------------------------------------------------------------------------------------------------------


async def test_many_tasks_may_take_the_jobs_of_one_consumer(hub: AHub) -> None:
    client, done = hub.client(), set[int]()
    async with asyncio.timeout(10), client.work("q", prefetch=3) as jobs:
        together = asyncio.Barrier(3)

        async def consume() -> None:
            async for job in jobs:
                await together.wait()  # each has one
                done.add(job.data)
                await job.ack()

        tasks = [asyncio.create_task(consume()) for _ in range(3)]
        await until(lambda: hub.hub.core.queues._queues)
        for number in range(9):
            await client.put("q", number)
        await until(lambda: len(done) == 9)
        await jobs.close()
        await asyncio.gather(*tasks)


async def test_many_tasks_may_take_the_messages_of_one_subscription(hub: AHub) -> None:
    client = hub.client()
    async with asyncio.timeout(10), client.subscribe("t") as subscription:
        tasks = [asyncio.create_task(anext(subscription)) for _ in range(3)]
        await asyncio.sleep(0)
        for number in range(3):
            await client.publish("t", number)
        assert {message.data for message in await asyncio.gather(*tasks)} == {0, 1, 2}


async def test_a_consumer_is_entered_once_and_first(hub: AHub) -> None:
    work = hub.client().work("q")
    with pytest.raises(RuntimeError, match="work of q is entered before"):
        await anext(work)
    async with work:
        with pytest.raises(RuntimeError, match="work of q is entered once"):
            await work.__aenter__()


async def test_a_lock_is_entered_once(hub: AHub) -> None:
    client = hub.client()
    lock = client.lock("l")
    async with lock:
        pass
    with pytest.raises(RuntimeError, match="lock l is entered once"):
        await lock.__aenter__()
    async with client.lock("l", timeout=5):
        pass


async def test_another_loop_is_told_that_it_is_not_its_own(hub: AHub) -> None:
    client = hub.client()

    def elsewhere() -> None:
        for doing in (client.publish("t", 1), client.put("q", 1), client.call("b", "add"), client.table("t").get("k")):
            with pytest.raises(ConfigError, match="belongs to another event loop"):
                asyncio.run(doing)

    await client.publish("t", 1)
    await asyncio.to_thread(elsewhere)
    done = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(client.put("q", 1), done).result(10))
    assert (await client.get("q", timeout=5)).data == 1


async def test_a_method_that_is_cancelled_by_itself_is_an_error_and_keeps_nobody(hub: AHub) -> None:
    server, caller = await serving(hub), hub.client()

    def plain() -> None:
        raise asyncio.CancelledError

    async def later() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    server.add_method("plain", plain)
    server.add_method("later", later)
    await until(lambda: any("later" in known.methods for known in hub.hub._members))
    for name in ("plain", "later"):
        with pytest.raises(TaskError, match="CancelledError"):
            await caller.call("b", name, timeout=20)
        assert await caller.call("b", "add", 1) == 2
    (error,) = await caller.call_all("b[0]", "later")
    assert isinstance(error, TaskError)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), None])
async def test_a_call_has_a_deadline(hub: AHub, timeout: Any) -> None:
    with pytest.raises(LocalProtocolError, match=r"a timeout of .* seconds is none"):
        await hub.client().call("b", "add", timeout=timeout)


async def test_a_job_that_comes_as_it_is_given_up_goes_to_others(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    client = hub.client()
    task = asyncio.create_task(client.get("q", timeout=20))
    await until(lambda: any(known.consumers for known in hub.hub._members))
    heard = client._line._heard  # type: ignore[attr-defined]

    def hear(op: int, *said: Any) -> None:
        heard(op, *said)
        if op == Op.GIVEN:
            task.cancel()

    monkeypatch.setattr(client._line, "_heard", hear)  # type: ignore[attr-defined]
    await client.put("q", 1)
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    job = await client.get("q", timeout=5)
    assert (job.data, job.attempt) == (1, 2)


async def test_a_lock_that_comes_as_it_is_given_up_is_given_back(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    client, waiting = hub.client(), hub.client()
    answered = Question.answered
    lock = waiting.lock("l")

    def then_cancel(question: Question, *answer: Any) -> None:
        answered(question, *answer)
        if question in waiting._line._questions.values():  # type: ignore[attr-defined]
            task.cancel()

    async with client.lock("l"):
        task = asyncio.create_task(lock.__aenter__())
        await until(lambda: any(known.locks for known in hub.hub._members))
        monkeypatch.setattr(Question, "answered", then_cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    async with client.lock("l", timeout=5):
        pass


async def test_who_has_waited_for_a_lock_has_it_for_all_of_its_lease(hub: AHub) -> None:
    first, second = hub.client(), hub.client()

    async def inside() -> str:
        async with second.lock("l", lease=1.5):
            await asyncio.sleep(0.6)  # after most of a lease before
        return "done"

    async with first.lock("l", lease=1.5):
        waiting = asyncio.create_task(inside())
        await until(lambda: any(known.locks for known in hub.hub._members))
        await asyncio.sleep(1.2)
    assert await waiting == "done"
