"""Checks of queues of work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from laraman.errors import Busy
from laraman.testing.expecting import raises, require

if TYPE_CHECKING:
    from laraman.channel.interface import Channel
    from laraman.channel.jobs import Job
    from laraman.testing.channels import Bench

#: Seconds that are long enough for what is to happen, those in which nothing is to happen, and of a short visibility.
LONG, QUIET, SHORT = 20.0, 0.5, 1.0


async def nothing(channel: Channel, queue: str, seconds: float = QUIET) -> None:
    """There is no job now."""
    try:
        job = await channel.get(queue, timeout=seconds)
    except TimeoutError:
        return
    raise AssertionError(f"{job} was given, data {job.data!r}")


async def competing(bench: Bench) -> None:
    """Each of 300 jobs is given to one of several consumers in several processes, as it was put."""
    channels = [await bench.open() for _ in range(3)]
    done: list[Any] = []
    over = asyncio.Event()

    async def consume(channel: Channel) -> None:
        async with channel.work(bench.name, prefetch=5) as jobs:
            async for job in jobs:
                require(job.attempt == 1, f"{job} is not the first")
                done.append(job.data)
                await job.ack()
                if len(done) == 300:
                    over.set()

    consumers = [asyncio.create_task(consume(channel)) for channel in channels[1:] for _ in range(2)]
    ids = [await channels[0].put(bench.name, {"number": number}) for number in range(300)]
    try:
        async with asyncio.timeout(LONG):
            await over.wait()
    finally:
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)
    require(sorted(each["number"] for each in done) == list(range(300)), f"{len(done)} were done")
    require(len(set(ids)) == 300, "two have the same id")


async def first_in(bench: Bench) -> None:
    """Jobs wait for a consumer, outlive who has put them, and come in their order, with the ids that put returned."""
    putter, consumer = await bench.open(), await bench.open()
    ids = [await putter.put(bench.name, number) for number in range(10)]
    await putter.close()
    for number, id in enumerate(ids):
        job = await consumer.get(bench.name, timeout=LONG)
        require((job.data, job.id, job.queue) == (number, id, bench.name), f"{job} came instead of {number}, {id}")
        await job.ack()
    await nothing(consumer, bench.name)


async def waiting(bench: Bench) -> None:
    """Who waits for a job gets it when it is put, and TimeoutError when none is."""
    putter, consumer = await bench.open(), await bench.open()
    with raises(TimeoutError, bench.name):
        await consumer.get(bench.name, timeout=0.2)
    waits = asyncio.create_task(consumer.get(bench.name, timeout=LONG))
    await asyncio.sleep(QUIET)
    await putter.put(bench.name, "now")
    job = await waits
    require(job.data == "now" and await job.ack(), "it was not the one that was put")


async def acknowledged(bench: Bench) -> None:
    """What is acknowledged is not given again, not after its visibility either."""
    channel = await bench.open()
    await channel.put(bench.name, 1)
    await (await channel.get(bench.name, timeout=LONG, visibility=SHORT)).ack()
    await nothing(channel, bench.name, 2.5 * SHORT)


async def visibility(bench: Bench) -> None:
    """What is not acknowledged in its visibility is given again, as the second attempt, with the same id; not before."""
    first, second = await bench.open(), await bench.open()
    id = await first.put(bench.name, "again")
    await first.get(bench.name, timeout=LONG, visibility=2 * SHORT)
    await nothing(second, bench.name, SHORT)
    job = await second.get(bench.name, timeout=LONG, visibility=2 * SHORT)
    require((job.data, job.attempt, job.id) == ("again", 2, id), f"{job} came, data {job.data!r}")
    require(await job.ack(), "it cannot be acknowledged")


async def own_visibility(bench: Bench) -> None:
    """Who looks for jobs with a short visibility does not get what another holds for longer."""
    long, short = await bench.open(), await bench.open()
    await long.put(bench.name, "held")
    held = await long.get(bench.name, timeout=LONG, visibility=30.0)
    try:
        job = await short.get(bench.name, timeout=3 * SHORT, visibility=SHORT / 2)
    except TimeoutError:
        job = held
    require(job is held, f"{job} was given while another had it")
    require(await held.ack(), "its holder cannot acknowledge it")


async def short_visibility(bench: Bench) -> None:
    """Who has asked for a short visibility loses a job after it, though others have asked for longer ones."""
    long, short = await bench.open(), await bench.open()
    await nothing(long, bench.name, 0.1)
    await short.put(bench.name, 1)
    await short.get(bench.name, timeout=LONG, visibility=SHORT)
    job = await long.get(bench.name, timeout=LONG / 2)
    require(job.attempt == 2 and await job.ack(), f"{job} came")


async def given_back(bench: Bench) -> None:
    """A job that is given back comes again, and its attempts are counted; with a delay, not before that."""
    channel = await bench.open()
    await channel.put(bench.name, 1)
    job = await channel.get(bench.name, timeout=LONG)
    await job.nack()
    job = await channel.get(bench.name, timeout=LONG)
    require(job.attempt == 2, f"{job} is not the second attempt")
    await job.nack(delay=1.5)
    await nothing(channel, bench.name)
    job = await channel.get(bench.name, timeout=LONG)
    require((job.attempt, job.data) == (3, 1) and await job.ack(), f"{job} came after the delay")
    await nothing(channel, bench.name)


async def extended(bench: Bench) -> None:
    """A job that is extended stays with its holder."""
    first, second = await bench.open(), await bench.open()
    await first.put(bench.name, 1)
    job = await first.get(bench.name, timeout=LONG, visibility=1.5 * SHORT)
    for _ in range(4):
        require(await job.extend(), "it is not ours any more")
        await nothing(second, bench.name, SHORT / 2)
    require(await job.ack(), "it is not ours any more")
    await nothing(second, bench.name, 2 * SHORT)


async def keys(bench: Bench) -> None:
    """A second job of a key is not queued before the first is acknowledged, held or not, and afterwards it is."""
    one, other = await bench.open(), await bench.open()
    id = await one.put(bench.name, "first", key="a key: ä/*.>")
    require(await other.put(bench.name, "second", key="a key: ä/*.>") == id, "it has another id")
    require(await other.put(bench.name, "other", key="another") != id, "another key has the same id")
    job = await one.get(bench.name, timeout=LONG)
    require(job.data == "first", f"{job.data!r} came first")
    require(await other.put(bench.name, "third", key="a key: ä/*.>") == id, "it has another id while it is held")
    await job.ack()
    again = await other.put(bench.name, "fourth", key="a key: ä/*.>")
    require(again != id, "it has the id of the one before")
    found = [await one.get(bench.name, timeout=LONG) for _ in range(2)]
    require([job.data for job in found] == ["other", "fourth"], f"{[job.data for job in found]} came")
    for job in found:
        await job.ack()
    await nothing(one, bench.name)


async def full(bench: Bench) -> None:
    """A full queue is Busy and loses nothing; what is held counts; there is room when one is acknowledged."""
    channel = await bench.open(limit=5)
    for number in range(5):
        await channel.put(bench.name, number, key=str(number))
    with raises(Busy, bench.name):
        await channel.put(bench.name, 5)
    require(await channel.put(bench.name, 0, key="0"), "one of a key that is there is refused")
    job = await channel.get(bench.name, timeout=LONG)
    with raises(Busy):
        await channel.put(bench.name, 5)
    await job.ack()
    await channel.put(bench.name, 5)
    found = [await channel.get(bench.name, timeout=LONG) for _ in range(5)]
    require([job.data for job in found] == [1, 2, 3, 4, 5], f"{[job.data for job in found]} came")
    for job in found:
        await job.ack()


async def left(bench: Bench) -> None:
    """A consumer that leaves gives back what it has not acknowledged, given out or not; one that is cancelled too."""
    leaver, stayer = await bench.open(), await bench.open()
    for number in range(6):
        await leaver.put(bench.name, number)
    async with leaver.work(bench.name, prefetch=4) as jobs:
        await anext(jobs)
        await asyncio.sleep(QUIET)
    found: list[Job] = [await stayer.get(bench.name, timeout=LONG / 2) for _ in range(6)]
    require(sorted(job.data for job in found) == list(range(6)), f"{[job.data for job in found]} came")
    for job in found:
        await job.ack()


async def prefetch(bench: Bench) -> None:
    """A consumer holds no more than its prefetch."""
    slow, other = await bench.open(), await bench.open()
    for number in range(5):
        await slow.put(bench.name, number)
    async with slow.work(bench.name, prefetch=2) as jobs:
        first = await anext(jobs)
        rest = [await other.get(bench.name, timeout=LONG) for _ in range(3)]
        await nothing(other, bench.name)
        second = await anext(jobs)
        for job in (first, second, *rest):
            await job.ack()
    require({job.data for job in (first, second, *rest)} == set(range(5)), "not all were given")


async def cancelled(bench: Bench) -> None:
    """Who stops waiting for a job loses none: what comes is given to others."""
    impatient, patient = await bench.open(), await bench.open()
    for _ in range(5):
        waits = asyncio.create_task(impatient.get(bench.name, timeout=LONG))
        await asyncio.sleep(0.05)
        putting = asyncio.create_task(patient.put(bench.name, "kept"))
        await asyncio.sleep(0.001)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await putting
        if not waits.cancelled():
            await waits.result().ack()
        else:
            await (await patient.get(bench.name, timeout=LONG / 2)).ack()
    await nothing(patient, bench.name)


async def large_job(bench: Bench) -> None:
    """A job of half a million bytes is given as it was."""
    channel = await bench.open()
    await channel.put(bench.name, b"y" * 500_000)
    job = await channel.get(bench.name, timeout=LONG)
    require(job.data == b"y" * 500_000 and await job.ack(), "another one came")


async def apart(bench: Bench) -> None:
    """Queues do not know of each other."""
    channel = await bench.open()
    await channel.put(f"{bench.name}.a", "a", key="same")
    await channel.put(f"{bench.name}.b", "b", key="same")
    await nothing(channel, bench.name, 0.1)
    for queue in "ba":
        job = await channel.get(f"{bench.name}.{queue}", timeout=LONG)
        require(job.data == queue and await job.ack(), f"{job.data} came")


QUEUES = (
    *(competing, first_in, waiting, acknowledged, visibility, own_visibility, short_visibility, given_back, extended),
    *(keys, full, left, prefetch, cancelled, large_job, apart),
)
