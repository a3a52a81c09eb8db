"""The channel by way of NATS (2.9 or later, with JetStream: ``nats-server --jetstream``).

    topics    subjects, as they are, behind "PREFIX.topic."
    queues    a JetStream stream each, from which a message is gone when it is acknowledged, with one consumer for all; how many there may be is kept
              by who puts them (``laraman.channel.nats_room`` says why), so that there may be some more. A job's key is the last word
              of its subject, of which the stream holds one: a key is free as soon as its job is acknowledged. (Nats-Msg-Id would go by time: for two
              minutes it would drop a new job, and afterwards take the same one twice.) NATS does not see whether a process lives: jobs of one that
              has died are given again when the queue's visibility is over, the longest that a consumer of the queue has ever asked for; those that
              have asked for less give back themselves what they did not settle in time
    calls     subjects of a worker and of a slot, in a queue group: NATS chooses the process; of several with the same slot one. ``call_all`` goes by
              a bucket in which each process that has methods says every five seconds that it is there: one that is killed is left out as soon as
              NATS has noticed, one that is just starting for a moment
    tables    and locks: see ``laraman.channel.nats_books``

What is larger than the server's max_payload (1 MB unless it says otherwise) is refused. Several servers of laraman that share a NATS are one as far
as the channel goes; ``?prefix=NAME`` keeps them apart ("laraman" by default).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from nats.errors import Error, NoRespondersError

from laraman.channel.interface import ANSWER_SECONDS, Channel
from laraman.channel.jobs import Job
from laraman.channel.nats_books import MEMBER_SECONDS, Books, listed
from laraman.channel.nats_room import CONSUMER, Room
from laraman.channel.nats_wire import Line, Subscribed
from laraman.channel.remote import Remote
from laraman.errors import LinkDown, RemoteProtocolError
from laraman.net.lease import plain_name
from laraman.net.store import Outage, split_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.client import JetStreamContext

    from laraman.channel.remote import Call
    from laraman.channel.tables import Value

logger = logging.getLogger("uvicorn.error")

#: Seconds for which a question for jobs stands, and those in which what waits is sent at the end.
PULL_SECONDS, FLUSH_SECONDS = 1.0, 1.0


class NatsChannel(Channel):
    """``url`` is nats://[user:password@]host[:port], or tls://; with ``?prefix=NAME``."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        bare, self._prefix = split_prefix(url)
        self._id = f"{time.time_ns():016x}{secrets.token_hex(4)}"
        self._outage = Outage("The channel's server", url, "what is asked of it waits and then fails")
        self._line = Line(bare, self._outage, self._is_up, self._is_down)
        self._was_there = False
        self._watching: dict[str, Subscribed] = {}
        self._place = self._name("process", self._id)
        self._replies = self._name("reply", self._id)
        self._remote = Remote(f"{self._replies}.answer", self._say, self._gone, self._called)
        self._books = Books(self._line, _plain(self._prefix), self._id)
        self._jobs = self._name("jobs", self._id)  # where jobs come in
        self._inboxes: dict[str, _Inbox] = {}
        self._rooms: dict[str, Room] = {}
        self._served: list[Subscribed] = []
        self._present = asyncio.Event()
        self._presence: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[Any]] = set()

    def _name(self, *parts: str) -> str:
        return ".".join((self._prefix, *parts))

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._line.later(Subscribed(f"{self._replies}.*", self._replied))
        self._line.start()

    async def _shut(self) -> None:
        self._remote.close()
        if self._presence is not None:
            self._presence.cancel()
            self._do_beside(self._leave_members())
        if self._beside:
            await asyncio.wait(self._beside, timeout=FLUSH_SECONDS)
        await self._line.stop(FLUSH_SECONDS)

    def _is_up(self) -> None:
        if self._was_there:
            self._interrupted()
        self._was_there = True
        self._present.set()

    def _is_down(self) -> None:
        for room in self._rooms.values():
            room.forget()
        for inbox in self._inboxes.values():
            while inbox.standing:
                inbox.end(inbox.standing[0])
        self._books.forget()
        self._remote.lost(f"did not answer before {self._outage.server} went away")

    def _do_beside(self, doing: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(doing))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        task.add_done_callback(lambda _: doing.close())  # one that is cancelled before it begins does not

    # Topics ----------------------------------------------------------------------------------------------------------------------

    async def _publish(self, topic: str, payload: bytes) -> None:
        await self._line.publish(self._name("topic", topic), payload)

    async def _watch(self, pattern: str) -> None:
        begin = len(self._name("topic", ""))

        def told(message: Msg) -> None:
            self._delivered(pattern, message.subject[begin:], message.data)

        self._watching[pattern] = subscribed = Subscribed(self._name("topic", pattern), told, missed=lambda: self._missed(pattern, 1))
        await self._line.subscribe(subscribed)

    async def _unwatch(self, pattern: str) -> None:
        await self._line.unsubscribe(self._watching.pop(pattern))

    # Queues ----------------------------------------------------------------------------------------------------------------------

    def _stream_name(self, queue: str) -> str:
        return f"{_plain(self._prefix)}-queue-{_plain(queue)}"

    def _subject(self, queue: str, last: str) -> str:
        return self._name("queue", _plain(queue), last)

    def _room(self, queue: str) -> Room:
        return self._rooms.setdefault(queue, Room(queue, self._stream_name(queue), self._subject(queue, "*"), self.limit))

    async def _put(self, queue: str, key: str, payload: bytes, timeout: float) -> str:
        subject = self._subject(queue, hashlib.blake2b(key.encode(), digest_size=16).hexdigest())

        async def put(_: Client, stream: JetStreamContext) -> str:
            return await self._room(queue).put(stream, subject, payload)

        return str(await self._line.ask(f"put in queue {queue}", put, timeout=timeout, again=True))

    async def _take(self, queue: str, count: int, visibility: float, timeout: float) -> list[Job]:
        """One at a time: only of a question for one job it is known when nothing comes any more."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            left = deadline - asyncio.get_running_loop().time()
            pull = _Pull(self, queue, visibility, min(PULL_SECONDS, max(0.05, left)))
            try:
                message = await self._line.ask(f"take from queue {queue}", pull.ask, timeout=pull.seconds + ANSWER_SECONDS, again=True)
            except BaseException:
                self._do_beside(pull.give_back())
                raise
            if message is not None:
                return [self._job(queue, message, visibility)]
            if left <= pull.seconds:
                return []

    def _job(self, queue: str, message: Msg, visibility: float) -> Job:
        meta = message.metadata
        job = Job(self, queue, str(meta.sequence.stream), message.data, meta.num_delivered or 1, visibility, _Held(message.reply))
        self._expect(job)
        return job

    def _expect(self, job: Job) -> None:
        job.handle.timer = asyncio.get_running_loop().call_later(job.visibility, lambda: self._do_beside(self._expired(job)))

    async def _expired(self, job: Job) -> None:
        """NATS gives it to somebody else now, unless others have asked for a longer visibility: then we do."""

        async def visibility(_: Client, stream: JetStreamContext) -> float:
            return (await stream.consumer_info(self._stream_name(job.queue), CONSUMER)).config.ack_wait or 0.0

        if await self._line.ask(f"the visibility of queue {job.queue}", visibility, again=True) > job.visibility:
            await self._nack(job, 0.0)

    async def _ack(self, job: Job) -> bool:
        return await self._settle(job, b"+ACK")

    async def _nack(self, job: Job, delay: float) -> bool:
        return await self._settle(job, b"-NAK" + (json.dumps({"delay": round(delay * 1e9)}).encode() if delay > 0 else b""))

    async def _extend(self, job: Job) -> bool:
        job.handle.timer.cancel()
        self._expect(job)
        return await self._settle(job, b"+WPI")

    async def _settle(self, job: Job, word: bytes) -> bool:
        """NATS does not say whether somebody else has it by now."""
        if word != b"+WPI":
            job.handle.timer.cancel()

        async def settle(client: Client, _: JetStreamContext) -> None:
            try:
                await client.request(job.handle.reply, word, timeout=ANSWER_SECONDS)
            except NoRespondersError:
                raise Error("its JetStream is not ready") from None

        await self._line.ask(f"{word[:4].decode()} to job {job.id} of queue {job.queue}", settle, again=True)
        return True

    # Calls -----------------------------------------------------------------------------------------------------------------------

    async def _serve(self, methods: list[str]) -> None:
        if not self.name or self._served:
            return
        places = [self._name("call", self.name)] + ([] if self.slot is None else [self._name("call", self.name, str(self.slot))])
        self._served = [Subscribed(self._place, self._asked), *(Subscribed(place, self._asked, "any") for place in places)]
        self._presence = asyncio.get_running_loop().create_task(self._stay_present(), name="presence in NATS")
        for subscribed in self._served:
            await self._line.subscribe(subscribed)

    async def _withdraw(self) -> None:
        if self._presence is not None:
            self._presence.cancel()
            self._presence = None
            await self._leave_members()
        for subscribed in self._served[1:]:
            await self._line.drain(subscribed)

    async def _stay_present(self) -> None:
        said = False
        while True:
            self._present.clear()
            try:
                await self._line.ask("to say who is there", self._join_members, again=True)
                said = False
            except LinkDown as exc:
                if not said:
                    logger.warning("call_all does not reach this process: %s", exc)
                said = True
            try:
                async with asyncio.timeout(MEMBER_SECONDS / 3):
                    await self._present.wait()
            except TimeoutError:
                continue

    def _member(self) -> str:
        return f"{_plain(self.name)}.{'-' if self.slot is None else self.slot}.{self._id}"

    async def _join_members(self, _: Client, stream: JetStreamContext) -> None:
        await (await self._books.bucket(stream, "members", MEMBER_SECONDS)).put(self._member(), self._place.encode())

    async def _leave_members(self) -> None:
        async def leave(_: Client, stream: JetStreamContext) -> None:
            await (await self._books.bucket(stream, "members", MEMBER_SECONDS)).delete(self._member())

        if self._line.is_up:
            await self._line.ask("to say who leaves", leave, timeout=FLUSH_SECONDS, again=False)

    async def _call(self, name: str, slot: int | None, method: str, payload: bytes, timeout: float) -> bytes:
        member, subject = (name, self._name("call", name)) if slot is None else (f"{name}[{slot}]", self._name("call", name, str(slot)))
        return await self._call_at(subject, member, method, payload, timeout)

    async def _call_at(self, subject: str, member: str, method: str, payload: bytes, timeout: float) -> bytes:
        async def send(question: bytes, call: Call) -> None:
            await self._line.ready(timeout)
            call.asked = True
            await self._line.publish(subject, question, f"{self._replies}.{call.number}")

        return await self._remote.call(member, method, payload, timeout, send)

    async def _call_all(self, name: str, method: str, payload: bytes, timeout: float) -> list[bytes | Exception]:
        async def members(_: Client, stream: JetStreamContext) -> list[tuple[str, bytes, int]]:
            return await listed(await self._books.bucket(stream, "members", MEMBER_SECONDS), f"{_plain(name)}.*.*")

        places = await self._line.ask(f"who is {name}", members, again=True)
        places.sort(key=lambda place: (_slot(place[0]), place[0]))
        asked = [self._call_at(place.decode(), f"{name}[{_slot(key)}]", method, payload, timeout) for key, place, _ in places]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        there = [answer for answer in answers if not _is_nobody(answer)]
        for answer in there:
            if isinstance(answer, BaseException) and not isinstance(answer, (LinkDown, TimeoutError)):
                raise answer
        if not there:
            raise LinkDown(f"there is no process {name} that has methods")
        return there  # type: ignore[return-value]

    async def _gone(self, places: set[str]) -> set[str]:
        """A process that does not answer is there; of one that has gone NATS says that nobody is."""
        client = await self._line.ready()

        async def is_gone(place: str) -> bool:
            try:
                await client.request(place, b"", timeout=1)
            except NoRespondersError:
                return True
            except (Error, OSError):
                pass
            return False

        asked = tuple(places)
        return {place for place, gone in zip(asked, await asyncio.gather(*map(is_gone, asked)), strict=True) if gone}

    def _say(self, where: str, data: bytes) -> None:
        self._line.check_size(data)
        self._do_beside(self._line.publish(where, data))

    def _asked(self, message: Msg) -> None:
        if not message.data and message.reply:  # whether we are there
            self._say(message.reply, b"")
            return
        try:
            self._remote.asked(message.data, self._place)
        except RemoteProtocolError as exc:
            logger.warning("%s: in %s came what is ignored: %s", self._outage.server, message.subject, exc)

    def _replied(self, message: Msg) -> None:
        last = message.subject.rpartition(".")[2]
        try:
            if last == "answer":
                self._remote.answered(message.data)
            elif last.isdecimal() and message.headers and message.headers.get("Status") == "503":
                self._remote.nobody(int(last))
        except RemoteProtocolError as exc:
            logger.warning("%s: in %s came what is ignored: %s", self._outage.server, message.subject, exc)

    # Tables and locks ------------------------------------------------------------------------------------------------------------

    async def _get(self, table: str, key: str) -> Value | None:
        return await self._books.get(table, key)

    async def _set(self, table: str, key: str, value: Value, ttl: float | None) -> None:
        await self._books.set(table, key, value, ttl)

    async def _increment(self, table: str, key: str, by: int, ttl: float | None) -> int:
        return await self._books.increment(table, key, by, ttl)

    async def _compare_and_set(self, table: str, key: str, old: Value | None, new: Value | None, ttl: float | None) -> bool:
        return await self._books.compare_and_set(table, key, old, new, ttl)

    async def _delete(self, table: str, key: str) -> bool:
        return await self._books.delete(table, key)

    async def _keys(self, table: str) -> list[str]:
        return await self._books.keys(table)

    async def _acquire(self, name: str, lease: float, timeout: float) -> int | None:
        who = secrets.token_hex(8)
        try:
            return await self._books.acquire(name, who, lease, timeout)
        except BaseException:  # it may have been given
            self._do_beside(self._books.release(name, 0, who))
            raise

    async def _renew(self, name: str, token: int, lease: float) -> bool:
        return await self._books.renew(name, token, lease)

    async def _release(self, name: str, token: int) -> None:
        await self._books.release(name, token)


class _Held:
    """What a job is settled by, and what gives it back when its time is over."""

    __slots__ = ("reply", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, reply: str) -> None:
        self.reply = reply


class _Inbox:
    """Where the jobs of a queue come in, and as many words that there is none as questions that nothing came for. Which is whose does not matter."""

    def __init__(self, subject: str, deleted: Callable[[], Any]) -> None:
        self.subscribed = Subscribed(subject, self._told)
        self.standing: deque[asyncio.Future[Msg | None]] = deque()
        self._deleted = deleted

    def _told(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status not in (None, "408"):  # not that its time is over
            self._deleted()
        if self.standing:
            self.standing.popleft().set_result(None if status else message)

    def end(self, standing: asyncio.Future[Msg | None]) -> None:
        """Nothing was heard of it."""
        if standing in self.standing:
            self.standing.remove(standing)
            standing.set_result(None)


class _Pull:
    """A question for a job, which stands for ``seconds``. Until it is over a job may come: one that is given to nobody would be held for long."""

    def __init__(self, channel: NatsChannel, queue: str, visibility: float, seconds: float) -> None:
        self.seconds = seconds
        self._channel = channel
        self._queue = queue
        self._visibility = visibility
        self._over: asyncio.Future[Msg | None] | None = None

    async def ask(self, client: Client, stream: JetStreamContext) -> Msg | None:
        channel, loop = self._channel, asyncio.get_running_loop()
        room = channel._room(self._queue)
        await room.prepare(stream, self._visibility)
        inbox = channel._inboxes.get(self._queue)
        if inbox is None:
            inbox = channel._inboxes[self._queue] = _Inbox(f"{channel._jobs}.{_plain(self._queue)}", room.forget)
            channel._line.later(inbox.subscribed)
        await inbox.subscribed.begin(client)
        self._over = loop.create_future()
        inbox.standing.append(self._over)
        question = json.dumps({"batch": 1, "expires": round(self.seconds * 1e9)}).encode()
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{channel._stream_name(self._queue)}.{CONSUMER}", question, reply=inbox.subscribed.subject)
        loop.call_later(self.seconds + 1, inbox.end, self._over)
        return await asyncio.shield(self._over)

    async def give_back(self) -> None:
        """Nobody waits for it any more."""
        if self._over is not None:
            message = await self._over
            if message is not None:
                await self._channel._nack(self._channel._job(self._queue, message, self._visibility), 0.0)


async def _quietly(doing: Coroutine[Any, Any, Any]) -> None:
    try:
        await doing
    except LinkDown as exc:
        logger.debug("what would have been given back to NATS comes back by itself: %s", exc)


def _is_nobody(answer: Any) -> bool:
    return isinstance(answer, LinkDown) and str(answer).startswith("there is no process")


def _plain(name: str) -> str:
    return plain_name(name).replace(".", "_")


def _slot(member: str) -> int:
    slot = member.split(".")[1]
    return int(slot) if slot.isdecimal() else -1
