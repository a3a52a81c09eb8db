"""What is killed in benchmarks.chaos: consumers, which have each job done in a task worker, and write into a book what becomes of it."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from typing import TYPE_CHECKING, Any

import laraman
from laraman import channel
from laraman.errors import LaramanError

if TYPE_CHECKING:
    from laraman.channel.jobs import Job

QUEUE, BOOK = "chaos", "book"
VISIBILITY = float(os.environ.get("CHAOS_VISIBILITY", "10"))
PREFETCH = 8


@functools.cache
def _book() -> int:
    return os.open(BOOK, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(what: str, *facts: object) -> None:
    """One line, which is there as a whole whoever is killed: what, when in the machine's time, who."""
    os.write(_book(), f"{' '.join(map(str, (what, time.monotonic(), os.getpid(), *facts)))}\n".encode())


@laraman.task
def do(number: int) -> None:
    note("did", number)


async def work(job: Job) -> None:
    note("begin", job.data, job.id, job.attempt)
    try:
        await laraman.submit(do, job.data)
        settled = "acked" if await job.ack() else "late"
    except LaramanError:  # the task worker was killed, or the channel's server is away
        settled = "failed"
        try:
            await job.nack()
        except LaramanError:
            settled = "lost"
    note(settled, job.data, job.id, job.attempt)


async def consume() -> None:
    working: set[asyncio.Task[None]] = set()
    async with channel.work(QUEUE, visibility=VISIBILITY, prefetch=PREFETCH) as jobs:
        async for job in jobs:
            task = asyncio.create_task(work(job))
            working.add(task)
            task.add_done_callback(working.discard)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        raise NotImplementedError("there are only consumers here")
    await receive()
    consuming = asyncio.create_task(consume())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    consuming.cancel()
    await asyncio.wait({consuming})
    await send({"type": "lifespan.shutdown.complete"})
