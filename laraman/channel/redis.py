"""The channel by way of Redis (6.2 or later; one server, or an address that is always the primary's; not Redis Cluster).

    topics    PUBLISH to PREFIX:topic:TOPIC; what Redis calls patterns knows no words, so what it sends is filtered here
    queues    a stream with a consumer group each, see ``laraman.channel.redis_scripts``; a job is given again when its holder's visibility is over,
              and not sooner when that has died: Redis does not see whether a process lives
    calls     each process that has methods listens on PREFIX:call:NAME:SLOT:ID; Redis knows who does. Of several that have the same slot (several
              servers, or a reload) the one that started last is called, and all of them by ``call_all``
    tables    a key for each entry: PREFIX:table:TABLE:KEY, ints as they are, so that other programs can count too
    locks     SET with NX and PX, and a token that grows with each holder

Several servers of laraman that share a Redis are one as far as the channel goes; ``?prefix=NAME`` keeps them apart ("laraman" by default). Pub/sub
does not care for the number of a database, so it is part of the prefix, unless it is 0.

Redis keeps what it has in memory. That what was put survives its end is up to its administrator: with "appendonly yes" a server that is killed loses
nothing that was acknowledged, a machine that is, a second; "appendfsync always" takes care of that as well.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import secrets
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from laraman.channel.interface import ANSWER_SECONDS, Channel
from laraman.channel.jobs import Job
from laraman.channel.names import matches
from laraman.channel.redis_scripts import ACK, ACQUIRE, COMPARE_AND_SET, EXTEND, INCREMENT, NACK, PUT, RELEASE, RENEW, SWEEP
from laraman.channel.redis_wire import News, Wire
from laraman.channel.remote import Remote
from laraman.errors import Busy, LinkDown, LocalProtocolError, RemoteProtocolError
from laraman.net.store import Outage, split_prefix

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from laraman.channel.remote import Call
    from laraman.channel.tables import Value

logger = logging.getLogger("uvicorn.error")

#: Of all queues: one group, which has each job once.
GROUP = "laraman"
#: Seconds between two looks at what is to be given again, and after which a consumer that has nothing is forgotten.
SWEEP_SECONDS, IDLE_SECONDS = 1.0, 3600
#: Seconds between two attempts at a lock, at most, and those in which what waits is sent at the end.
TRY_SECONDS, FLUSH_SECONDS = 0.25, 1.0
#: Seconds after which is asked anew who has methods.
BELIEVE_SECONDS = 1.0


class RedisChannel(Channel):
    """``url``: see ``laraman.net.store``."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        bare, prefix = split_prefix(url)
        settings: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": ANSWER_SECONDS, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        if bare.startswith("rediss:"):
            settings["ssl_check_hostname"] = True  # which redis-py before 6 does not
        self._pool: Any = ConnectionPool.from_url(bare, **settings)
        database = int(self._pool.connection_kwargs.get("db", 0))
        self._prefix = f"{prefix}:{database}" if database else prefix
        self._id = f"{time.time_ns():016x}{secrets.token_hex(4)}"
        self._outage = Outage("The channel's server", url, "what is asked of it waits and then fails")
        self._commands = Wire(self._pool, self._outage, tells=True)
        self._news = News(self._pool, self._outage, self._told, up=self._listening, lost=self._deaf)
        self._was_there = False
        self._patterns: defaultdict[bytes, set[str]] = defaultdict(set)  # by what was subscribed to in Redis
        self._inbox = self._name("call", self.name, "" if self.slot is None else str(self.slot), self._id)
        self._place = self._name("place", self._id)  # where it is for those whose calls it answers, when it takes no more of them
        self._remote = Remote(self._name("reply", self._id), self._say, self._gone, self._called)
        self._members: dict[str, tuple[float, list[str]]] = {}  # who was there, and until when that is believed
        self._takers: list[Wire] = []  # connections that wait for jobs, and of these those that have none to wait for
        self._free: list[Wire] = []
        self._beside: set[asyncio.Task[Any]] = set()

    def _name(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._news.names[self._remote.here] = "SUBSCRIBE"
        self._commands.start()
        self._news.start()

    async def _shut(self) -> None:
        if self._beside:
            await asyncio.wait(self._beside, timeout=FLUSH_SECONDS)
        self._remote.close()
        for wire in (self._commands, self._news, *self._takers):
            await wire.stop(FLUSH_SECONDS)

    def _listening(self) -> None:
        if self._was_there:
            self._interrupted()
        self._was_there = True

    def _deaf(self) -> None:
        self._members.clear()
        self._remote.lost(f"did not answer before {self._outage.server} went away")

    def _do_beside(self, doing: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(doing))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        task.add_done_callback(lambda _: doing.close())  # one that is cancelled before it begins does not

    # Topics ----------------------------------------------------------------------------------------------------------------------

    async def _publish(self, topic: str, payload: bytes) -> None:
        await self._commands.tell("PUBLISH", self._name("topic", topic), payload)

    async def _watch(self, pattern: str) -> None:
        name, is_pattern = self._topics(pattern)
        patterns = self._patterns[name.encode()]
        patterns.add(pattern)
        try:
            await self._news.subscribe(name, pattern=is_pattern)
        except BaseException:
            await self._unwatch(pattern)
            raise

    async def _unwatch(self, pattern: str) -> None:
        name, _ = self._topics(pattern)
        patterns = self._patterns[name.encode()]
        patterns.discard(pattern)
        if not patterns:
            del self._patterns[name.encode()]
            self._news.unsubscribe(name)

    def _topics(self, pattern: str) -> tuple[str, bool]:
        """What to subscribe to in Redis, and whether that is a pattern there."""
        name = self._name("topic", pattern)
        if "*" not in pattern and not pattern.endswith(">"):
            return name, False
        return _literal(name.removesuffix(">").replace("*", "\0")).replace("\0", "*") + "*" * pattern.endswith(">"), True

    def _told(self, name: bytes, channel: bytes, data: bytes) -> None:
        place = channel.decode(errors="replace")
        try:
            if place in (self._inbox, self._place):
                self._remote.asked(data, self._place)
            elif place == self._remote.here:
                self._remote.answered(data)
            else:
                topic = place[len(self._name("topic", "")) :]
                for pattern in tuple(self._patterns.get(name, ())):
                    if matches(pattern, topic):
                        self._delivered(pattern, topic, data)
        except RemoteProtocolError as exc:
            logger.warning("%s: in %s came what is ignored: %s", self._outage.server, place, exc)

    # Queues ----------------------------------------------------------------------------------------------------------------------

    def _queue(self, queue: str, *parts: str) -> tuple[str, ...]:
        return tuple(self._name("queue", queue, part) for part in parts)

    async def _put(self, queue: str, key: str, payload: bytes, timeout: float) -> str:
        keys = self._queue(queue, "jobs", "keys")
        id = await self._commands.run(PUT, keys, key, payload, self.limit, timeout=timeout, again=True)
        if id is None:
            raise Busy(f"queue {queue} is full: {self.limit} jobs")
        return str(id.decode())

    async def _take(self, queue: str, count: int, visibility: float, timeout: float) -> list[Job]:
        try:
            return await self._take_some(queue, count, visibility, timeout)
        except LinkDown as exc:
            if isinstance(exc.__cause__, ResponseError):  # a consumer goes on asking, and its application hears nothing
                self._commands.say_refusal(f"{str(exc).partition(' refuses ')[2]} (queue {queue})")
            raise

    async def _take_some(self, queue: str, count: int, visibility: float, timeout: float) -> list[Job]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        consumer = f"{self._id}@{math.ceil(visibility * 1000)}"
        sweep = self._queue(queue, "jobs", "delayed", "swept")
        while True:
            due = await self._commands.run(SWEEP, sweep, GROUP, round(SWEEP_SECONDS * 1000), IDLE_SECONDS, again=True)
            wait = min(due, round((deadline - loop.time()) * 1000))
            entries = await self._read(queue, consumer, count, wait)
            jobs = [self._job(queue, consumer, entry, fields, visibility) for entry, fields in entries if self._is_ours(queue, entry, fields)]
            if jobs or loop.time() >= deadline:
                return jobs

    async def _read(self, queue: str, consumer: str, count: int, wait: int) -> list[tuple[bytes, list[bytes]]]:
        """Entries, as soon as there are any, within ``wait`` milliseconds; those that come when this has been cancelled are given back."""
        wire = self._free.pop() if self._free else self._taker()
        block = ("BLOCK", wait) if wait > 0 else ()
        command = ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, *block, "STREAMS", *self._queue(queue, "jobs"), ">")
        asking = asyncio.ensure_future(wire.ask(*command, timeout=ANSWER_SECONDS + wait / 1000, again=True))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._do_beside(self._give_back(queue, wire, asking))
            raise
        except LinkDown as exc:
            self._free.append(wire)
            if isinstance(exc.__cause__, ResponseError) and any(word in str(exc) for word in ("NOGROUP", "UNBLOCKED")):
                await asyncio.sleep(max(0, min(wait / 1000, TRY_SECONDS)))  # it was deleted; the next sweep makes it anew
                return []
            raise
        self._free.append(wire)
        return answer[0][1] if answer else []

    def _taker(self) -> Wire:
        wire = Wire(self._pool, self._outage)
        wire.start()
        self._takers.append(wire)
        return wire

    async def _give_back(self, queue: str, wire: Wire, asking: asyncio.Future[Any]) -> None:
        """What was asked for is not wanted any more."""
        try:
            await self._commands.ask("CLIENT UNBLOCK", wire.id)
            for entry, _ in ((await asking) or [(b"", [])])[0][1]:
                await self._commands.run(NACK, self._queue(queue, "jobs", "delayed"), GROUP, entry, 0, 0)
        finally:
            asking.cancel()
            self._free.append(wire)

    def _is_ours(self, queue: str, entry: bytes, fields: list[bytes]) -> bool:
        """Another program's stays where it is: held, and given to nobody."""
        if fields[::2] == [b"k", b"n", b"i", b"d"]:
            return True
        logger.warning("%s: in queue %s is an entry that is no job, %s: it is ignored", self._outage.server, queue, entry.decode())
        return False

    def _job(self, queue: str, consumer: str, entry: bytes, fields: list[bytes], visibility: float) -> Job:
        key, attempt, id, payload = fields[1::2]
        return Job(self, queue, (id or entry).decode(), payload, int(attempt), visibility, (entry, key, consumer))

    async def _ack(self, job: Job) -> bool:
        entry, key, _ = job.handle
        return bool(await self._commands.run(ACK, self._queue(job.queue, "jobs", "keys"), GROUP, entry, key, job.id, again=True))

    async def _nack(self, job: Job, delay: float) -> bool:
        entry, _, _ = job.handle
        return bool(await self._commands.run(NACK, self._queue(job.queue, "jobs", "delayed"), GROUP, entry, round(delay * 1000), 1, again=True))

    async def _extend(self, job: Job) -> bool:
        entry, _, consumer = job.handle
        return bool(await self._commands.run(EXTEND, self._queue(job.queue, "jobs"), GROUP, consumer, entry, again=True))

    # Calls -----------------------------------------------------------------------------------------------------------------------

    async def _serve(self, methods: list[str]) -> None:
        if self.name:
            await self._news.subscribe(self._place)
            await self._news.subscribe(self._inbox)

    async def _withdraw(self) -> None:
        self._news.unsubscribe(self._inbox)
        await self._news.ask("PING")

    async def _call(self, name: str, slot: int | None, method: str, payload: bytes, timeout: float) -> bytes:
        member = name if slot is None else f"{name}[{slot}]"

        async def send(question: bytes, call: Call) -> None:
            await self._news.ready()
            until, there = self._members.get(name, (0.0, []))
            if until < asyncio.get_running_loop().time():
                there = await self._ask_members(name)
            while there := _of_slot(there, slot):
                call.asked, call.whom = True, there[-1] if slot is not None else random.choice(there)
                if await self._commands.ask("PUBLISH", call.whom, question):
                    return
                call.asked, call.whom = False, ""
                there = await self._ask_members(name)
            raise LinkDown(f"there is no process {member} that has methods")

        return await self._remote.call(member, method, payload, timeout, send)

    async def _call_all(self, name: str, method: str, payload: bytes, timeout: float) -> list[bytes | Exception]:
        await self._news.ready()
        asked = [self._call_one(name, inbox, method, payload, timeout) for inbox in await self._ask_members(name)]
        answers = [answer for answer in await asyncio.gather(*asked) if answer is not None]
        if not answers:
            raise LinkDown(f"there is no process {name} that has methods")
        return answers

    async def _call_one(self, name: str, inbox: str, method: str, payload: bytes, timeout: float) -> bytes | Exception | None:
        """None: it is not there any more."""
        there = True

        async def send(question: bytes, call: Call) -> None:
            nonlocal there
            call.asked, call.whom = True, inbox
            there = bool(await self._commands.ask("PUBLISH", inbox, question))
            if not there:
                raise LinkDown("nobody is there")

        try:
            return await self._remote.call(f"{name}[{_slot(inbox)}]", method, payload, timeout, send)
        except (LinkDown, Busy, TimeoutError) as exc:
            return exc if there else None

    async def _ask_members(self, name: str) -> list[str]:
        """By slot, and of those with the same the one that started last is last."""
        prefix = self._name("call", name)
        found = await self._commands.ask("PUBSUB CHANNELS", f"{_literal(prefix)}:*", again=True)
        inboxes = [inbox for inbox in (each.decode() for each in found) if inbox.rsplit(":", 2)[0] == prefix]
        inboxes.sort(key=lambda inbox: (_slot(inbox), inbox))
        self._members[name] = asyncio.get_running_loop().time() + BELIEVE_SECONDS, inboxes
        return inboxes

    async def _gone(self, places: set[str]) -> set[str]:
        asked = await self._commands.ask("PUBSUB NUMSUB", *places, again=True)
        return {place.decode() for place, listeners in zip(asked[::2], asked[1::2], strict=True) if not listeners}

    def _say(self, where: str, data: bytes) -> None:
        if self._commands.is_up:
            self._commands.say("PUBLISH", where, data)
        else:  # the other connection may be back before this one
            self._do_beside(self._commands.tell("PUBLISH", where, data))

    # Tables and locks ------------------------------------------------------------------------------------------------------------

    def _entry(self, table: str, key: str) -> str:
        return self._name("table", table.replace("%", "%25").replace(":", "%3A"), key)

    async def _get(self, table: str, key: str) -> Value | None:
        return _unpacked(await self._commands.ask("GET", self._entry(table, key), again=True))

    async def _set(self, table: str, key: str, value: Value, ttl: float | None) -> None:
        life = () if ttl is None else ("PX", _milliseconds(ttl))
        await self._commands.ask("SET", self._entry(table, key), _packed(value), *life, again=True)

    async def _increment(self, table: str, key: str, by: int, ttl: float | None) -> int:
        try:
            return int(await self._commands.run(INCREMENT, (self._entry(table, key),), by, "" if ttl is None else _milliseconds(ttl)))
        except LinkDown as exc:
            if isinstance(exc.__cause__, ResponseError) and ("not an integer" in str(exc) or "overflow" in str(exc)):
                raise LocalProtocolError(f"table {table}, key {key!r}: there is no int, or the sum has more than 64 bits") from None
            raise

    async def _compare_and_set(self, table: str, key: str, old: Value | None, new: Value | None, ttl: float | None) -> bool:
        life = "" if ttl is None else _milliseconds(ttl)
        return bool(await self._commands.run(COMPARE_AND_SET, (self._entry(table, key),), _packed(old), _packed(new), life))

    async def _delete(self, table: str, key: str) -> bool:
        return bool(await self._commands.ask("DEL", self._entry(table, key)))

    async def _keys(self, table: str) -> list[str]:
        prefix = self._entry(table, "")
        found: set[str] = set()
        cursor = b"0"
        while True:
            cursor, some = await self._commands.ask("SCAN", cursor, "MATCH", f"{_literal(prefix)}*", "COUNT", 1000, again=True)
            found.update(key.decode()[len(prefix) :] for key in some)
            if cursor == b"0":
                return list(found)

    async def _acquire(self, name: str, lease: float, timeout: float) -> int | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        who = secrets.token_hex(8)
        holder, last = self._lock_keys(name)
        try:
            while True:
                left = min(max(0.1, deadline - loop.time()), ANSWER_SECONDS)
                answer = int(await self._commands.run(ACQUIRE, (holder, last), who, _milliseconds(lease), timeout=left, again=True))
                if answer > 0:
                    return answer
                left = deadline - loop.time()
                if left <= 0:
                    return None
                await asyncio.sleep(min(left, -answer / 1000, TRY_SECONDS * random.uniform(0.5, 1)))
        except BaseException:  # it may have been given
            self._do_beside(self._commands.run(RELEASE, (holder,), "", who, again=True))
            raise

    async def _renew(self, name: str, token: int, lease: float) -> bool:
        return bool(await self._commands.run(RENEW, self._lock_keys(name), token, _milliseconds(lease), again=True))

    async def _release(self, name: str, token: int) -> None:
        await self._commands.run(RELEASE, self._lock_keys(name)[:1], token, "-", again=True)

    def _lock_keys(self, name: str) -> tuple[str, str]:
        return self._name("lock", name), self._name("token", name)


async def _quietly(doing: Coroutine[Any, Any, Any]) -> None:
    try:
        await doing
    except (LinkDown, Busy) as exc:
        logger.debug("what would have been given back to Redis comes back by itself: %s", exc)


def _literal(name: str) -> str:
    """As a part of what Redis calls a pattern."""
    return re.sub(r"([\[\]?*\\])", r"\\\1", name)


def _slot(inbox: str) -> int:
    slot = inbox.rsplit(":", 2)[1]
    return int(slot) if slot.isdecimal() else -1


def _of_slot(inboxes: list[str], slot: int | None) -> list[str]:
    return inboxes if slot is None else [inbox for inbox in inboxes if _slot(inbox) == slot]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _packed(value: Value | None) -> bytes | int:
    """An int as it is, anything else behind "=", and nothing for a key that is not there."""
    return b"" if value is None else value if isinstance(value, int) else b"=" + value


def _unpacked(value: bytes | None) -> Value | None:
    if value is None or value.startswith(b"="):
        return value and value[1:]
    try:
        return int(value)
    except ValueError:
        raise RemoteProtocolError(f"a value of {len(value)} bytes that is none of ours") from None
