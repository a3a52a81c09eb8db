"""Leases within a process and in files: one holder at a time, whatever dies, and a memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from laraman.net.lease import FileLease, Lease
from tests.net.serving import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


async def test_one_of_a_process_has_it_and_the_next_one_waits() -> None:
    first, second = Lease("x", "Timer x"), Lease("x", "Timer x")
    assert await first.take()
    assert await first.take()
    assert not await second.take()
    await second.give_back()  # what it has not got
    assert not await second.take()
    await first.note("1")
    await first.give_back()
    assert await second.take()
    assert await second.noted() == "1"
    await second.give_back()


async def test_a_file_has_one_holder_and_remembers(directory: int) -> None:
    first, second, other = (FileLease(name, f"Timer {name}", directory) for name in ("a/b", "a/b", "a_b"))
    assert await first.take()
    assert not await second.take()
    assert await other.take()
    assert await first.noted() == ""
    await first.note("clock 12345")
    await first.note("clock 7")
    await first.give_back()
    assert await second.take()
    assert await second.noted() == "clock 7"
    await second.give_back()
    await other.give_back()
    assert len(os.listdir(directory)) == 2


HOLDER = """
import asyncio, os, sys, time
from laraman.net.lease import FileLease
lease = FileLease("x", "Timer x", os.open(sys.argv[1], os.O_RDONLY))
assert asyncio.run(lease.take())
asyncio.run(lease.note("before"))
if pid := os.fork():  # what an application leaves behind must not hold the lease
    print(pid, flush=True)
time.sleep(60)
"""


async def test_the_kernel_takes_a_file_from_whoever_is_killed(directory: int, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220
        assert holder.stdout is not None
        left_behind = int(holder.stdout.readline())
        try:
            lease = FileLease("x", "Timer x", directory)
            assert not await lease.take()
            holder.kill()
            holder.wait()
            async with asyncio.timeout(10):  # what was left behind may just have been forked
                while not await lease.take():
                    await asyncio.sleep(0.005)
            assert await lease.noted() == "before"
            await lease.give_back()
        finally:
            os.kill(left_behind, signal.SIGKILL)


async def test_work_is_done_while_the_lease_is_held_and_anew_when_it_was_lost() -> None:
    class Losing(Lease):
        async def lost(self) -> str:
            await gone.wait()
            gone.clear()
            await self.give_back()
            return "of the test"

    async def work() -> bool:
        told.append("begun")
        try:
            await asyncio.sleep(60 if told.count("begun") == 1 else 0)
            return told.count("begun") == 3
        finally:
            told.append("over")

    told: list[str] = []
    gone = asyncio.Event()
    running = asyncio.create_task(Losing("y", "Timer y").while_held(work))
    await until(lambda: told == ["begun"])
    gone.set()
    await running
    assert told == ["begun", "over"] * 3
    after = Lease("y", "Timer y")
    assert await after.take()
    await after.give_back()
