"""The kit for backends of the channel, on all that there are, each in a real server; and what becomes of what was promised when that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.channel import connect
from laraman.channel.redis import RedisChannel
from laraman.errors import Busy, LinkDown
from laraman.testing import check_channel
from laraman.testing.channels import CHECKS
from tests.channel.hubs import AHub
from tests.conftest import DEADLINE
from tests.net.serving import until
from tests.stores import StoreServer, store_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laraman.channel.interface import Channel

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    """One loop, that of workers: what differs is the backend."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["redis-server", "nats-server"], scope="module")
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    started = store_server(request.param, tmp_path_factory.mktemp("store"))
    yield started
    started.kill()


async def test_a_backend_keeps_the_contract(backend: StoreServer) -> None:
    said: list[str] = []
    assert await check_channel(functools.partial(connect, backend.url), said.append) == len(CHECKS) == 46
    assert said == [f"channel: {len(CHECKS)} checks passed"]


async def test_the_hub_keeps_the_contract(tmp_path: Path) -> None:
    """A small one beside it: how many jobs a queue may hold is the hub's to say."""
    hubs = [AHub(tmp_path), AHub(tmp_path / "small")]
    (tmp_path / "small").mkdir()
    for hub, jobs in zip(hubs, (100_000, 5), strict=True):
        await hub.start(jobs)
    try:
        assert await check_channel(lambda **options: connect(hubs[options.get("limit") == 5].url, **options)) == len(CHECKS)
    finally:
        for hub in hubs:
            await hub.close()


@pytest.fixture(params=["redis-server", "nats-server"])
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreServer]:
    """A server of one's own, to be killed."""
    started = store_server(request.param, tmp_path)
    yield started
    started.kill()


def stands_still(pid: int) -> bool:
    """All threads of it: they are stopped one by one."""
    return all(status.read_text().rpartition(")")[2].split()[0] == "T" for status in Path(f"/proc/{pid}/task").glob("*/stat"))


def more_than(some: set[str], count: int) -> bool:
    return len(some) > count


async def test_what_was_acknowledged_outlives_a_server_that_is_killed(mortal: StoreServer) -> None:
    async with asyncio.timeout(2 * DEADLINE), connect(mortal.url) as putter, connect(mortal.url) as consumer:
        put: set[str] = set()
        done: set[str] = set()
        over = asyncio.Event()

        async def consume() -> None:
            async with consumer.work("jobs", visibility=2.0, prefetch=3) as jobs:
                async for job in jobs:
                    with contextlib.suppress(LinkDown):
                        await job.ack()
                        done.add(job.id)

        async def produce() -> None:
            number = 0
            while not over.is_set():
                with contextlib.suppress(LinkDown):
                    put.add(await putter.put("jobs", number, key=str(number)))
                    number += 1
                    await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(consume()), asyncio.create_task(produce())]
        for enough in (50, 100):
            await until(functools.partial(more_than, put, enough))
            mortal.kill()
            await asyncio.sleep(0.5)  # some have to be asked for while it is away
            await asyncio.to_thread(mortal.start)
        await until(functools.partial(more_than, put, 150))
        over.set()
        await tasks[1]
        await until(lambda: put <= done)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_full_queue_outlives_a_server_that_is_killed(mortal: StoreServer) -> None:
    """What was being worked on is not pushed out by what was acknowledged and comes back, and what comes back is in nobody's way for long."""
    async with asyncio.timeout(2 * DEADLINE), connect(mortal.url, limit=20) as channel:
        for number in range(20):
            await channel.put("jobs", number, key=str(number))
        held = await channel.get("jobs", timeout=20, visibility=2.0)
        for number in range(20, 120):
            assert await (await channel.get("jobs", timeout=20, visibility=2.0)).ack()
            await channel.put("jobs", number, key=str(number))
        mortal.kill()
        await asyncio.to_thread(mortal.start)
        done: set[int] = set()  # others may be given, which were acknowledged when the server was killed
        consumer = asyncio.create_task(consume(channel, done))
        await until(lambda: {held.data, *range(101, 120)} <= done)
        for number in range(120):
            done.discard(number)
            await put_when_there_is_room(channel, number)
            await until(lambda number=number: number in done)  # type: ignore[misc]
        consumer.cancel()
        await asyncio.wait({consumer})


async def consume(channel: Channel, done: set[int]) -> None:
    async with channel.work("jobs", visibility=2.0) as jobs:
        async for job in jobs:
            await job.ack()
            done.add(job.data)


async def put_when_there_is_room(channel: Channel, number: int) -> None:
    """What has come back is in the way until it is seen that it is done."""
    while True:
        try:
            await channel.put("jobs", number, key=str(number))
        except Busy:
            await asyncio.sleep(0.05)
        else:
            return


async def test_a_server_that_is_away_is_said_and_everything_is_restored(mortal: StoreServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with asyncio.timeout(2 * DEADLINE), connect(mortal.url) as one, connect(mortal.url, name="worker", slot=0) as other:
        begun = asyncio.Event()

        async def linger() -> None:
            begun.set()
            await asyncio.sleep(100)

        other.add_method("linger", linger)
        other.add_method("echo", lambda value: value)
        await other._serve(["linger", "echo"])
        async with other.subscribe("news.*") as subscription:
            await one.publish("news.a", 1)
            assert (await anext(subscription)).data == 1
            assert await one.call("worker", "echo", 1) == 1
            call = asyncio.create_task(one.call("worker", "linger", timeout=60))
            await begun.wait()
            mortal.kill()
            with pytest.raises(LinkDown, match="whether the call was carried out is not known"):
                await call
            for ask in (one.put("jobs", 1, timeout=0.2), one.call("worker", "echo", 1, timeout=0.2)):
                with pytest.raises(LinkDown):
                    await ask
            late = asyncio.create_task(one.put("late", "kept"))
            await asyncio.to_thread(mortal.start)
            assert await late
            assert (await one.get("late", timeout=20)).data == "kept"
            await until(lambda: subscription.gaps == 1)
            await one.publish("news.b", 2)
            assert (await anext(subscription)).data == 2
            assert await one.call("worker", "echo", 2) == 2
            await one.table("t").set("k", 1)
            assert await other.table("t").get("k") == 1
    said = [record.message for record in caplog.records if record.message.startswith("The channel's server")]
    assert len([text for text in said if " is away" in text]) == 2
    assert len([text for text in said if text.endswith(" is back")]) == 2


async def test_a_server_that_is_not_there_does_not_hang(free_port: int) -> None:
    for scheme in ("redis", "nats"):
        async with connect(f"{scheme}://127.0.0.1:{free_port}") as channel:
            with pytest.raises(LinkDown, match=f"{scheme}://127.0.0.1:{free_port} was away"):
                await channel.put("jobs", 1, timeout=0.3)
            with pytest.raises(LinkDown):
                await channel.call("worker", "method", timeout=0.3)


async def test_a_server_that_does_not_answer_is_said_in_time_and_goes_on(mortal: StoreServer) -> None:
    async with asyncio.timeout(2 * DEADLINE), connect(mortal.url) as channel:
        await channel.put("jobs", 0, key="0")
        await channel.table("t").set("k", 1)
        mortal.process.send_signal(signal.SIGSTOP)
        await until(functools.partial(stands_still, mortal.process.pid))
        try:
            with pytest.raises(LinkDown, match=r"did not answer in 0\.5 s"):
                await channel.put("jobs", 1, key="1", timeout=0.5)
        finally:
            mortal.process.send_signal(signal.SIGCONT)
        assert await channel.put("jobs", 1, key="1", timeout=20)
        jobs = [await channel.get("jobs", timeout=20) for _ in range(2)]
        assert [job.data for job in jobs] == [0, 1]
        assert await channel.table("t").increment("k") == 2


@pytest.mark.parametrize("mortal", ["nats-server"], indirect=True)
async def test_a_connection_that_is_lost_with_much_to_send_comes_back(mortal: StoreServer) -> None:
    """nats-py fails to say that it is lost when it cannot send the rest."""
    async with asyncio.timeout(2 * DEADLINE), connect(mortal.url) as channel:
        await channel.put("jobs", 1)
        mortal.process.send_signal(signal.SIGSTOP)
        line = channel._line  # type: ignore[attr-defined]

        sent = 0
        over = False  # not by cancelling: before Python 3.12 asyncio.wait_for may swallow that

        async def send() -> None:
            nonlocal sent
            while not over:
                with contextlib.suppress(LinkDown):
                    await channel.publish("much", b"x" * 500_000)
                    sent += 1
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        await until(lambda: line._client._pending_data_size > 0 and line._client._transport._io_writer.transport.get_write_buffer_size() > 0)
        mortal.kill()
        await asyncio.to_thread(mortal.start)
        assert (await channel.get("jobs", timeout=20)).data == 1
        before = sent
        await until(lambda: sent > before + 1)
        over = True
        await sending


class Forgetful(RedisChannel):
    """Believes that what it was told will be known."""

    async def _compare_and_set(self, *args: Any) -> bool:
        return True

    async def _delete(self, table: str, key: str) -> bool:
        return True


@pytest.mark.parametrize("backend", ["redis-server"], indirect=True)
async def test_the_kit_finds_what_is_wrong(backend: StoreServer) -> None:
    with pytest.raises(AssertionError, match=r"(?s)3 of 46 checks.*Of many who compare and set the same at once one succeeds"):
        await check_channel(functools.partial(Forgetful, backend.url))
