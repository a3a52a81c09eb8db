"""Leases in a cluster's store, real ones: one holder at a time, nobody while the store is away, and a memory that only the holder writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

import pytest

from laraman.errors import LinkDown
from laraman.net import store as store_module
from laraman.net.lease import StoreLease
from laraman.net.redis_store import RedisStore
from laraman.net.store import Store, open_store
from tests.net.serving import until
from tests.stores import StoreServer, store_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """One loop: what differs is the store."""
    return "asyncio"


@pytest.fixture(params=["redis-server", "nats-server"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    monkeypatch.setattr(store_module, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(StoreLease, "poll", 0.05)
    started = store_server(request.param, tmp_path)
    yield started
    started.kill()


class Two:
    """Two servers of a cluster, which compete for one lease."""

    def __init__(self, url: str, name: str = "timer.a b/c") -> None:
        self.stores: list[Store] = [open_store(url), open_store(url)]
        self.first, self.second = (StoreLease(name, "Timer t", store) for store in self.stores)

    async def close(self) -> None:
        for lease in (self.first, self.second):
            with contextlib.suppress(LinkDown):
                await lease.give_back()
        assert [store.users for store in self.stores] == [0, 0]


@contextlib.asynccontextmanager
async def two(url: str) -> Any:
    pair = Two(url)
    try:
        yield pair
    finally:
        await pair.close()


async def test_a_store_gives_it_to_one_and_what_is_noted_to_its_holder_only(server: StoreServer) -> None:
    async with two(server.url) as pair:
        first, second = pair.first, pair.second
        assert await first.take()
        assert await first.take()  # the answer to the first time might have been lost
        assert not await second.take()
        assert await first.noted() == ""
        assert await first.note("1")
        assert await first.note("2")
        assert not await second.note("3")
        await first.give_back()
        assert await second.take()
        assert await second.noted() == "2"
        assert await second.note("3")
        assert not await first.note("3")
        assert not await first.take()
    # Another cluster in the same store.
    async with two(f"{server.url}?prefix=other") as elsewhere:
        assert await elsewhere.first.take()
        assert await elsewhere.first.noted() == ""


async def test_a_lease_that_is_not_renewed_ends_and_one_that_is_does_not(server: StoreServer) -> None:
    async with two(server.url) as pair:
        first, second = pair.first, pair.second
        assert await first.take()
        renewing = asyncio.create_task(first.lost())
        for _ in range(11):  # longer than the lease
            assert not await second.take()
            await asyncio.sleep(0.2)
        renewing.cancel()
        async with asyncio.timeout(10):
            while not await second.take():
                await asyncio.sleep(0.05)
        first._until += 60  # as if its clock had stood still
        assert await first.lost() == "somebody else has its lease"


async def test_while_the_store_is_away_nobody_works_and_it_is_said_once(server: StoreServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")

    def said(what: str) -> list[str]:
        return [record.message for record in caplog.records if record.name == "uvicorn.error" and what in record.message]

    working: list[str] = []
    periods: list[str] = []

    async def work(lease: StoreLease) -> bool:
        """Begins periods, as a timer does."""
        working.append(lease.token)
        try:
            number = int(await lease.noted() or 0)
            while await lease.note(str(number := number + 1)):
                periods.append(str(number))
                await asyncio.sleep(0.05)
            return False
        finally:
            working.remove(lease.token)

    async with two(server.url) as pair:
        tasks = [asyncio.create_task(lease.while_held(lambda lease=lease: work(lease))) for lease in (pair.first, pair.second)]
        await until(lambda: len(periods) > 5)
        assert len(working) == 1
        server.kill()
        await until(lambda: not working)
        done = len(periods)
        server.start()
        await until(lambda: len(periods) > done + 5)
        assert len(working) == 1
        await until(lambda: len(said("is back")) == len(said("is away")))  # the other one may be dialling
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [int(number) for number in periods] == sorted({int(number) for number in periods})
    assert 1 <= len(said("is away")) <= 2  # once for each of the two servers
    assert all(f"127.0.0.1:{server.port}" in line for line in said("is away"))


async def test_a_store_that_does_not_answer_is_away(server: StoreServer) -> None:
    async with two(server.url) as pair:
        assert await pair.first.take()
        server.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                assert await pair.first.lost() == "its lease could not be renewed in time"
                assert not await pair.second.take()
        finally:
            server.process.send_signal(signal.SIGCONT)


async def test_a_redis_with_tls_is_to_be_the_one_that_is_named() -> None:
    client = RedisStore("rediss://localhost:1", "laraman")._dialled()
    assert client.connection_pool.connection_kwargs["ssl_check_hostname"] is True
    await client.aclose()


async def test_an_option_of_the_url_that_cannot_be_is_told_as_a_store_that_is_away() -> None:
    store = RedisStore("redis://localhost:1?socket_timeout=soon", "laraman")
    with pytest.raises(LinkDown, match="socket_timeout"):
        await store.take(StoreLease("x", "Timer x", store))
