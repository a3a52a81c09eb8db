"""What a nats-server may have forgotten that was killed: messages that were acknowledged are there again, as in a store that is too old."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from laraman.channel import connect, nats_room
from tests.conftest import DEADLINE
from tests.stores import store_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stores import StoreServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    started = store_server("nats-server", tmp_path)
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_room, "LOOK_SECONDS", 0.2)


class Copy:
    """The messages of its queues as they are now, which it has again later, while its consumers remember what they did since."""

    def __init__(self, server: StoreServer) -> None:
        self.server = server
        self.kept = server.directory / "kept"
        self._end()
        for messages in server.directory.glob("jetstream/**/*-queue-*/msgs"):
            shutil.copytree(messages, self.kept / messages.relative_to(server.directory))
        server.start()

    def brings_back(self) -> None:
        self._end()
        shutil.copytree(self.kept, self.server.directory, dirs_exist_ok=True)
        self.server.start()

    def _end(self) -> None:
        """With everything in its files."""
        self.server.process.terminate()
        self.server.process.wait(DEADLINE)


async def test_a_job_that_the_consumer_has_forgotten_is_given_out(server: StoreServer) -> None:
    async with asyncio.timeout(2 * DEADLINE):
        async with connect(server.url) as channel:
            await channel.put("jobs", 1, key="one")
            copy = await asyncio.to_thread(Copy, server)
            await (await channel.get("jobs", timeout=DEADLINE)).ack()
        await asyncio.to_thread(copy.brings_back)
        async with connect(server.url) as channel:
            job = await channel.get("jobs", timeout=DEADLINE)
            assert job.data == 1
            await job.ack()
            with pytest.raises(TimeoutError):
                await channel.get("jobs", timeout=1)


async def test_a_job_that_is_being_worked_on_is_not_given_to_others(server: StoreServer) -> None:
    """However long it takes, the consumer has not forgotten it."""
    async with asyncio.timeout(2 * DEADLINE), connect(server.url) as channel:
        await channel.put("jobs", 1)
        job = await channel.get("jobs", timeout=DEADLINE)
        with pytest.raises(TimeoutError):
            await channel.get("jobs", timeout=3)
        assert await job.ack()
