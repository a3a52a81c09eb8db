"""Leases within a process and in files: one holder at a time, whatever dies, and a memory."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

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


async def test_a_file_that_somebody_removes_or_replaces_is_made_anew(directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileLease, "look", 0.01)
    first, second = (FileLease("x", "Timer x", directory) for _ in range(2))
    assert await first.take()
    assert await first.note("clock 1")
    file = tmp_path / os.listdir(directory)[0]
    file.unlink()
    assert await first.note("clock 2")
    assert not await second.take()
    watching = asyncio.create_task(first.lost())
    file.unlink()
    await until(lambda: file.exists() and file.read_text().strip() == "clock 2")
    (tmp_path / "other").touch()
    (tmp_path / "other").replace(file)
    await until(lambda: file.read_text().strip() == "clock 2")
    assert not await second.take()
    file.unlink()
    assert await second.take()  # before it was looked at
    async with asyncio.timeout(10):
        assert await watching == "somebody else has its lease"
    assert not await first.note("clock 3")
    await first.give_back()
    await second.give_back()


async def test_a_file_that_cannot_be_had_or_written_is_tried_again_and_told_of_once(
    directory: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []

    def failing(name: str, function: Any, error: int) -> Any:
        def call(*arguments: Any) -> Any:
            failures.append(name)
            if failures.count(name) <= 3:
                raise OSError(error, os.strerror(error))
            return function(*arguments)

        return call

    async def work() -> bool:
        noted.append(await lease.note("clock 1"))
        noted.append(await lease.noted())
        return True

    noted: list[Any] = []
    monkeypatch.setattr("laraman.net.lease.RETRY", 0.01)
    monkeypatch.setattr("laraman.net.lease.fcntl.flock", failing("lock", fcntl.flock, errno.ENOLCK))
    monkeypatch.setattr("laraman.net.lease.os.pwrite", failing("write", os.pwrite, errno.ENOSPC))
    lease = FileLease("x", "Timer x", directory)
    async with asyncio.timeout(10):
        await lease.while_held(work)
    assert noted == [True, "clock 1"]
    assert [record.message for record in caplog.records] == [
        f"Timer x waits for the file of its lease: {os.strerror(error)}" for error in (errno.ENOLCK, errno.ENOSPC)
    ]


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
