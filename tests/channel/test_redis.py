"""What can become of a Redis that stays where it is: it is full, emptied, made a replica, refuses, or holds what is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from laraman.channel import connect, redis_wire
from laraman.channel import redis as redis_module
from laraman.channel.redis import RedisChannel
from laraman.errors import Busy, LinkDown
from tests.conftest import DEADLINE, free_ports
from tests.net.serving import until
from tests.stores import store_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.stores import StoreServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    started = store_server("redis-server", tmp_path_factory.mktemp("store"))
    yield started
    started.kill()


@pytest.fixture
def admin(server: StoreServer) -> Iterator[Any]:
    """Its administrator, in an empty one."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        yield client


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("The channel's server")]


# Memory --------------------------------------------------------------------------------------------------------------------------------


async def test_a_full_memory_is_busy_and_what_is_in_it_can_be_done(server: StoreServer, admin: Any) -> None:
    async with asyncio.timeout(2 * DEADLINE), connect(server.url) as channel, connect(server.url) as other:
        ids = {await channel.put("jobs", number) for number in range(5)}
        held, delayed = [await other.get("jobs", timeout=DEADLINE, visibility=0.5) for _ in range(2)]
        assert await delayed.nack(delay=0.3)
        unseen = await channel.put("unseen", 1)  # nobody has asked for it before, so its group is still to be made
        admin.config_set("maxmemory", "1mb")
        try:
            for asked in (channel.put("jobs", 5), channel.table("t").set("k", 1), channel.table("t").increment("n"), enter(channel)):
                with pytest.raises(Busy, match="has no memory left"):
                    await asked
            assert held.attempt == 1
            done = {}
            async with channel.work("jobs", prefetch=2) as jobs:
                async for job in jobs:
                    assert await job.ack()
                    done[job.id] = job.attempt
                    if len(done) == 5:
                        break
            assert done == {id: 2 if id in (held.id, delayed.id) else 1 for id in ids}
            assert (await channel.get("unseen", timeout=DEADLINE)).id == unseen
        finally:
            admin.config_set("maxmemory", "0")
        await channel.put("jobs", 5)
        await enter(channel)


async def test_a_lock_that_cannot_be_renewed_without_memory_is_lost(server: StoreServer, admin: Any) -> None:
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel:
        try:
            with pytest.raises(LinkDown, match="lock l was lost"):
                await enter(channel, lambda: (admin.flushall(), admin.config_set("maxmemory", "1mb")), DEADLINE)
        finally:
            admin.config_set("maxmemory", "0")


async def enter(channel: Any, inside: Callable[[], Any] = lambda: None, seconds: float = 0) -> None:
    async with channel.lock("l", lease=1, timeout=5):
        inside()
        await asyncio.sleep(seconds)


async def test_of_what_is_done_and_of_who_has_gone_nothing_is_left(server: StoreServer, admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "IDLE_SECONDS", 0)
    for _ in range(3):  # as many starts of a server
        async with asyncio.timeout(DEADLINE), connect(server.url) as channel:
            await asyncio.gather(*(channel.put("jobs", number) for number in range(500)))
            async with channel.work("jobs", prefetch=100) as jobs:
                for _ in range(500):
                    assert await (await anext(jobs)).ack()
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel:

        async def forgotten() -> bool:
            with contextlib.suppress(TimeoutError):
                await channel.get("jobs", timeout=0.1)
            return len(admin.xinfo_consumers("laraman:queue:jobs:jobs", "laraman")) <= 1

        while not await forgotten():
            pass
    assert admin.xlen("laraman:queue:jobs:jobs") == 0
    assert admin.memory_usage("laraman:queue:jobs:jobs") < 5000
    assert {key.decode() for key in admin.scan_iter()} <= {"laraman:queue:jobs:jobs", "laraman:queue:jobs:swept"}


# What it is -----------------------------------------------------------------------------------------------------------------------------


async def test_a_replica_is_said_once_and_a_promoted_one_is_used(server: StoreServer, admin: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with asyncio.timeout(2 * DEADLINE), connect(server.url) as channel, channel.work("jobs") as jobs:
        await channel.put("jobs", 1)
        assert await (await anext(jobs)).ack()
        admin.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(LinkDown, match="was away for 1 s: it is a replica"):
                await channel.put("jobs", 2, timeout=1)
        finally:
            admin.replicaof("no", "one")
        await channel.put("jobs", 3, timeout=DEADLINE)
        while (await anext(jobs)).data != 3:
            pass
    assert [text.partition(server.url)[2].partition(",")[0] for text in said(caplog)] == [" is away", " is back"]


async def test_redis_cluster_is_refused(tmp_path: Path) -> None:
    (bus,) = free_ports(1)  # of its own: a port number 10,000 higher may be none
    options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(bus))
    cluster = store_server("redis-server", tmp_path, *options)
    try:
        async with connect(cluster.url) as channel:
            with pytest.raises(LinkDown, match="it is a cluster, which the channel does not support"):
                await channel.put("jobs", 1, timeout=1)
    finally:
        cluster.kill()


async def test_one_that_is_emptied_goes_on(server: StoreServer, admin: Any) -> None:
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel:
        getting = asyncio.create_task(channel.get("jobs", timeout=DEADLINE))
        await until(lambda: any(client["cmd"] == "xreadgroup" and "b" in client["flags"] for client in admin.client_list()))
        admin.flushall()
        admin.script_flush()
        id = await channel.put("jobs", 1)
        assert (await getting).id == id


# What it refuses --------------------------------------------------------------------------------------------------------------------------


async def test_what_is_not_ours_is_in_nobodys_way(server: StoreServer, admin: Any, caplog: pytest.LogCaptureFixture) -> None:
    strange = admin.xadd("laraman:queue:jobs:jobs", {"a": "b"}).decode()
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel, channel.work("jobs", visibility=0.3, prefetch=3) as jobs:
        await until(lambda: any("an entry that is no job" in text and strange in text for text in said(caplog)))
        held = await channel.put("jobs", 1)
        for attempt in (1, 2):  # it is given again as well, whatever becomes of the strange one
            job = await anext(jobs)
            assert (job.id, job.attempt) == (held, attempt)
        assert await job.ack()
    assert len(said(caplog)) == 1
    assert admin.xlen("laraman:queue:jobs:jobs") == 1


async def test_a_key_of_another_type_is_said_to_who_asks_and_for_who_consumes(
    server: StoreServer, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    admin.set("laraman:queue:jobs:jobs", "x")
    admin.lpush("laraman:table:t:k", "x")
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel:
        for asked in (channel.put("jobs", 1), channel.table("t").get("k"), channel.table("t").increment("k")):
            with pytest.raises(LinkDown, match=r"refuses .*: WRONGTYPE"):
                await asked
        assert not said(caplog)
        async with channel.work("jobs") as jobs:
            await until(lambda: any("refuses: " in text and "WRONGTYPE" in text and text.endswith("(queue jobs)") for text in said(caplog)))
            await asyncio.sleep(1.1)  # it is asked again, and not said again
            admin.delete("laraman:queue:jobs:jobs")
            await channel.put("jobs", 2)
            assert (await anext(jobs)).data == 2
    assert len(said(caplog)) == len(set(said(caplog))) <= 2  # it is asked in two ways


async def test_a_user_without_the_rights_is_told_which(server: StoreServer, admin: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The first is what Redis makes of ACL SETUSER unless it is given channels as well."""
    admin.execute_command("ACL", "SETUSER", "deaf", "on", ">pass-word", "+@all", "~*", "resetchannels")
    admin.execute_command("ACL", "SETUSER", "plain", "on", ">pass-word", "+@all", "-@scripting", "~*", "allchannels")
    where = f"127.0.0.1:{server.port}"
    async with asyncio.timeout(DEADLINE), connect(f"redis://deaf:pass-word@{where}") as channel:
        await channel.put("jobs", 1)
        with pytest.raises(LinkDown, match=r"was away for 5 s: .*no permissions to access one of the channels"):
            async with channel.subscribe("a"):
                pass
        for _ in range(10):
            await channel.publish("a", 1)
        await channel.table("t").get("k")
    assert len(said(caplog)) == 2  # that it cannot listen, that it cannot publish
    async with asyncio.timeout(DEADLINE), connect(f"redis://plain:pass-word@{where}") as channel:
        with pytest.raises(LinkDown, match=r"refuses EVALSHA: .*no permissions"):
            await channel.put("jobs", 1)
    async with connect(f"redis://plain:wrong-word@{where}") as channel:
        with pytest.raises(LinkDown, match="was away for 1 s: invalid username-password pair"):
            await channel.put("jobs", 1, timeout=1)
    async with connect(f"{server.url}/99") as channel:
        with pytest.raises(LinkDown, match="was away for 1 s: DB index is out of range"):
            await channel.put("jobs", 1, timeout=1)
    assert "-word" not in caplog.text


# Connections ----------------------------------------------------------------------------------------------------------------------------


async def test_a_loop_that_stands_still_does_not_lose_its_connections(
    server: StoreServer, admin: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "BEAT_SECONDS", 0.2)
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel, channel.subscribe("a") as subscription:
        for _ in range(3):
            await asyncio.sleep(0.25)  # it has been asked whether it is there
            time.sleep(1)  # noqa: ASYNC251
        await channel.publish("a", 1)
        assert (await anext(subscription)).data == 1
        assert subscription.gaps == 0
    assert not said(caplog)


async def test_a_redis_that_gives_up_a_slow_subscriber_is_a_gap(server: StoreServer, admin: Any) -> None:
    admin.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 0")
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel, channel.subscribe("a", queue=100_000) as subscription:
        for _ in range(300):  # the loop stands still meanwhile
            admin.publish("laraman:topic:a", b"\xc4\x01\x00\x00" + bytes(65536))
        await until(lambda: subscription.gaps == 1)
        await channel.publish("a", "end")
        async for message in subscription:
            if message.payload[-3:] == b"end":
                break
        assert await channel.table("t").increment("k") == 1  # the other connection is there


async def test_what_cannot_be_sent_is_no_answer_of_the_next(server: StoreServer, admin: Any) -> None:
    async with asyncio.timeout(DEADLINE), connect(server.url) as channel:
        assert isinstance(channel, RedisChannel)
        await channel.table("t").set("k", 1)
        with pytest.raises(redis.DataError):
            await channel._commands.ask("SET", "k", object())
        assert await channel.table("t").get("k") == 1
