"""Queues of jobs, which consumers compete for. What is put and what is done is in the journal before it is answered.

A job waits, or it is held by a consumer until that one acknowledges it, gives it back, is silent for its visibility, or goes away. Whoever has had it
before may still acknowledge it while it waits: it is done then, whatever the clock says.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from laraman.channel.hub.records import done_record, put_record
from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import JOB, SECONDS, WORK_BODY, Fault, Op, frame, take, take_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from laraman.channel.hub.clients import Client, Outbox

#: Bytes of the jobs in one queue, besides the limit in jobs; what one costs besides its data.
MAX_SIZE, OVERHEAD = 512 * 1024 * 1024, 64

_GIVEN = int(Op.GIVEN)


class Job:
    """``segment`` is where in the journal it was put. ``due`` is when its consumer has been silent for too long."""

    __slots__ = ("attempt", "consumer", "data", "due", "key", "number", "queue", "segment")

    def __init__(self, number: int, queue: Queue, key: str, data: bytes, segment: int = 0) -> None:
        self.number = number
        self.queue = queue
        self.key = key
        self.data = data
        self.segment = segment
        self.attempt = 0
        self.consumer: Consumer | None = None
        self.due = 0.0

    @property
    def size(self) -> int:
        """Bytes, at least what it takes in the journal."""
        return OVERHEAD + len(self.queue.name) + len(self.key) + len(self.data)


class Consumer:
    """Takes up to ``prefetch`` jobs at a time; with ``left`` no more than so many in all. ``held`` has the job first that is due first."""

    __slots__ = ("client", "held", "id", "left", "listed", "prefetch", "queue", "visibility")

    def __init__(self, client: Client, id: int, queue: Queue, visibility: float, prefetch: int, left: int | None) -> None:
        self.client = client
        self.id = id
        self.queue = queue
        self.visibility = visibility
        self.prefetch = prefetch
        self.left = left
        self.held: dict[int, Job] = {}
        self.listed = False

    @property
    def wants(self) -> bool:
        return len(self.held) < self.prefetch and self.left != 0 and not self.client.full


class Queue:
    """``free`` are consumers that may want a job, ``ready`` and ``delayed`` jobs that may be there: each is looked at when it comes up."""

    __slots__ = ("consumers", "delayed", "free", "jobs", "keys", "name", "ready", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: dict[int, Job] = {}
        self.keys: dict[str, int] = {}
        self.ready: deque[Job] = deque()
        self.delayed: list[tuple[float, int]] = []
        self.free: deque[Consumer] = deque()
        self.consumers = 0
        self.size = 0

    def list_free(self, consumer: Consumer) -> None:
        if not consumer.listed:
            consumer.listed = True
            self.free.append(consumer)

    def next_free(self) -> Consumer | None:
        """Whoever is next in turn and wants a job; it stays in the list while it may want another one."""
        free = self.free
        while free:
            consumer = free[0]
            if consumer.wants:
                return consumer
            free.popleft()
            consumer.listed = False
        return None

    def next_ready(self) -> Job | None:
        ready = self.ready
        while ready:
            job = ready.popleft()
            if job.number in self.jobs:
                return job
        return None


class Queues:
    """All queues. ``records`` are for the journal; what is answered when they are in it waits until ``written`` or ``not_written``."""

    def __init__(self, outbox: Outbox, limit: int, used: int) -> None:
        self.records: list[bytes] = []
        self._outbox = outbox
        self._limit = limit
        self._queues: dict[str, Queue] = {}
        self._number = used
        self._staged: list[tuple[Client, int, Job, bool]] = []  # and whether it is put, not done
        self._holding: dict[Consumer, None] = {}

    def jobs(self) -> Iterator[Job]:
        for queue in self._queues.values():
            yield from queue.jobs.values()

    def restore(self, number: int, queue: str, key: str, data: bytes, segment: int) -> None:
        """A job that the journal has. In the order of their numbers, before anything else."""
        job = Job(number, self._queue(queue), key, data, segment)
        self._enter(job)
        job.queue.ready.append(job)
        self._number = max(self._number, number)

    @property
    def size(self) -> int:
        """Bytes of all jobs."""
        return sum(queue.size for queue in self._queues.values())

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(name)
        return queue

    def _enter(self, job: Job) -> None:
        queue = job.queue
        queue.jobs[job.number] = job
        queue.size += job.size
        if job.key:
            queue.keys[job.key] = job.number

    def _leave(self, job: Job) -> None:
        queue = job.queue
        del queue.jobs[job.number]
        queue.size -= job.size
        if job.key:
            del queue.keys[job.key]
        self._forget(queue)

    def _forget(self, queue: Queue) -> None:
        if not queue.jobs and not queue.consumers:
            self._queues.pop(queue.name, None)

    @property
    def unanswered(self) -> bool:
        """Whether somebody waits for ``written``."""
        return bool(self._staged)

    # Putting ---------------------------------------------------------------------------------------------------------------------

    def put(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        key, at = take_text(body)
        queue = self._queue(name)
        number = queue.keys.get(key)
        if number is not None:
            self._staged.append((client, id, queue.jobs[number], True))
            return
        if len(queue.jobs) >= self._limit or queue.size + len(body) > MAX_SIZE:
            self._outbox.refuse(client, id, Fault.BUSY, f"queue {name} is full: {len(queue.jobs)} jobs, {queue.size} bytes")
            return
        self._number += 1
        job = Job(self._number, queue, key, body[at:])
        self._enter(job)
        self.records.append(put_record(job.number, name, key, job.data))
        self._staged.append((client, id, job, True))

    def written(self, segment: int, now: float) -> list[Job]:
        """The records are in the journal, in this segment of it. The jobs that are done with that."""
        staged, self._staged, self.records = self._staged, [], []
        done = []
        queues: dict[Queue, None] = {}
        for client, id, job, put in staged:
            self._outbox.answer(client, id, JOB.pack(job.number, 0) if put else b"")
            if not put:
                done.append(job)
            elif not job.segment:
                job.segment = segment
                job.queue.ready.append(job)
                queues[job.queue] = None
        for queue in queues:
            self._give(queue, now)
        return done

    def not_written(self, reason: str) -> None:
        """The journal could not be written: nothing of it was put. What was done is to be written next time, and may be given again until then, when
        the hub starts anew."""
        staged, self._staged, self.records = self._staged, [], []
        for client, id, job, put in staged:
            if id:
                self._outbox.refuse(client, id, Fault.FAILED, f"the journal cannot be written: {reason}")
            if not put:
                self._staged.append((client, 0, job, False))
                self.records.append(done_record(job.number))
            elif not job.segment and job.queue.jobs.get(job.number) is job:
                self._leave(job)

    # Giving ----------------------------------------------------------------------------------------------------------------------

    def work(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        self._consume(client, id, name, body, now, in_all=False)

    def take(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        self._consume(client, id, name, body, now, in_all=True)

    def _consume(self, client: Client, id: int, name: str, body: bytes, now: float, *, in_all: bool) -> None:
        client.check_new(id)
        visibility, prefetch = take(WORK_BODY, body)
        if not visibility > 0 or prefetch < 1:
            raise RemoteProtocolError(f"{prefetch} jobs for {visibility} s cannot be had")
        queue = self._queue(name)
        consumer = client.consumers[id] = Consumer(client, id, queue, visibility, prefetch, prefetch if in_all else None)
        queue.consumers += 1
        queue.list_free(consumer)
        self._outbox.answer(client, id)
        self._give(queue, now)

    def _give(self, queue: Queue, now: float) -> None:
        while queue.ready and (consumer := queue.next_free()) is not None and (job := queue.next_ready()) is not None:
            job.attempt += 1
            job.consumer = consumer
            job.due = now + consumer.visibility
            if not consumer.held:
                self._holding[consumer] = None
            consumer.held[job.number] = job
            if consumer.left is not None:
                consumer.left -= 1
            queue.free.rotate(-1)
            self._outbox.say(consumer.client, frame(_GIVEN, consumer.id, queue.name, JOB.pack(job.number, job.attempt) + job.data))

    def _take_back(self, job: Job) -> None:
        """Its consumer has it no more."""
        consumer, job.consumer = job.consumer, None
        if consumer is None:
            return
        del consumer.held[job.number]
        if not consumer.held:
            del self._holding[consumer]
            if consumer.left == 0:
                self._end(consumer)
        job.queue.list_free(consumer)

    def _end(self, consumer: Consumer) -> None:
        if consumer.client.consumers.pop(consumer.id, None) is not None:
            consumer.left = 0
            consumer.queue.consumers -= 1
            self._forget(consumer.queue)

    def _wait_again(self, jobs: Iterable[Job], queue: Queue, now: float) -> None:
        """Before those that have never been given."""
        jobs = list(jobs)
        for job in jobs:
            self._take_back(job)
        queue.ready.extendleft(reversed(jobs))
        self._give(queue, now)

    # What consumers say ----------------------------------------------------------------------------------------------------------

    def _job(self, client: Client, id: int, name: str, body: bytes) -> Job | None:
        """The job that this is about, if it may be: nobody else has it by now."""
        number, attempt = take(JOB, body)
        queue = self._queues.get(name)
        job = queue.jobs.get(number) if queue is not None else None
        if job is not None and (job.consumer is None or (job.consumer.client is client and job.attempt == attempt)):
            return job
        self._outbox.refuse(client, id, Fault.GONE, f"job {number} of {name} {'is done' if job is None else 'was given to somebody else'}")
        return None

    def ack(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        job = self._job(client, id, name, body)
        if job is not None:
            self._take_back(job)
            self._leave(job)
            self.records.append(done_record(job.number))
            self._staged.append((client, id, job, False))
            self._give(job.queue, now)

    def nack(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        (delay,) = take(SECONDS, body, JOB.size)
        job = self._job(client, id, name, body)
        if job is None:
            return
        if job.consumer is not None:
            if delay > 0:
                self._take_back(job)
                heappush(job.queue.delayed, (now + delay, job.number))
                self._give(job.queue, now)
            else:
                self._wait_again([job], job.queue, now)
        self._outbox.answer(client, id)

    def extend(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        job = self._job(client, id, name, body)
        if job is None:
            return
        consumer = job.consumer
        if consumer is None:
            self._outbox.refuse(client, id, Fault.GONE, f"job {job.number} of {name} waits for somebody else already")
            return
        del consumer.held[job.number]
        job.due = now + consumer.visibility
        consumer.held[job.number] = job
        self._outbox.answer(client, id)

    # Ends ------------------------------------------------------------------------------------------------------------------------

    def cancel(self, client: Client, id: int, now: float) -> None:
        consumer = client.consumers.get(id)
        if consumer is None:
            return
        if consumer.left is None:
            self._drop(consumer, now)
        else:
            consumer.left = 0
            if not consumer.held:
                self._end(consumer)

    def _drop(self, consumer: Consumer, now: float) -> None:
        consumer.left = 0
        self._wait_again(list(consumer.held.values()), consumer.queue, now)
        self._end(consumer)

    def lost(self, client: Client, now: float) -> None:
        for consumer in tuple(client.consumers.values()):
            self._drop(consumer, now)

    def resume(self, client: Client, now: float) -> None:
        """It reads again."""
        for consumer in tuple(client.consumers.values()):
            consumer.queue.list_free(consumer)
            self._give(consumer.queue, now)

    def tick(self, now: float) -> None:
        for consumer in tuple(self._holding):
            late = []
            for job in consumer.held.values():
                if job.due > now:
                    break
                late.append(job)
            if late:
                self._wait_again(late, consumer.queue, now)
        for queue in tuple(self._queues.values()):
            while queue.delayed and queue.delayed[0][0] <= now:
                delayed = queue.jobs.get(heappop(queue.delayed)[1])
                if delayed is not None:
                    queue.ready.append(delayed)
                    self._give(queue, now)
