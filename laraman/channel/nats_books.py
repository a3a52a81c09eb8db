"""Tables and locks in NATS: key/value buckets of JetStream, each change made only if the last one is known (an entry's revision).

What is kept says when it ends, by the server's clock, which is asked for: those of the clients need not agree. An entry whose time is over is there
for nobody; what it takes is freed when it is set again, or when the keys of its table are asked for. (NATS itself ends single entries since 2.11
only.) Who changes an entry while others do tries again, so one entry that all change all the time is slower than in Redis.
"""

from __future__ import annotations

import asyncio
import base64
import random
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from laraman.channel.interface import ANSWER_SECONDS
from laraman.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.client import JetStreamContext
    from nats.js.kv import KeyValue

    from laraman.channel.nats_wire import Line
    from laraman.channel.tables import Value

#: Seconds after which entries of processes end unless they are renewed, and those for which the server's clock is believed.
MEMBER_SECONDS, CLOCK_SECONDS = 15.0, 300.0
#: Seconds between two attempts at a lock, at most, and at an entry that others change.
TRY_SECONDS, CHANGE_SECONDS = 0.25, 0.005
#: Of what is kept: when it ends (0: never), and whether it is an int.
_HEAD = struct.Struct("!d?")


class Entry(NamedTuple):
    """What is there: nothing, ``value`` None, when it was deleted, has ended or never was."""

    value: Value | None
    ends: float
    revision: int


class Books:
    """``prefix`` begins the buckets' names, ``id`` is this process's."""

    def __init__(self, line: Line, prefix: str, id: str) -> None:
        self._line = line
        self._prefix = prefix
        self._id = id
        self._ahead = 0.0  # of the loop's clock is the server's
        self._believed = 0.0
        self._looking = asyncio.Lock()

    async def bucket(self, stream: JetStreamContext, name: str, seconds: float | None = None) -> KeyValue:
        name = f"{self._prefix}-{name}"
        try:
            return await stream.key_value(name)
        except BucketNotFoundError:
            return await stream.create_key_value(bucket=name, ttl=seconds)

    def forget(self) -> None:
        """Another server may be asked from now on."""
        self._believed = 0.0

    async def _now(self, stream: JetStreamContext) -> float:
        """The server's clock, in seconds: that of an entry which has just been written."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if loop.time() >= self._believed:
                bucket = await self.bucket(stream, "members", MEMBER_SECONDS)
                before = loop.time()
                revision = await bucket.put(f"clock.{self._id}", b"")
                after = loop.time()
                message = await stream.get_msg(f"KV_{self._prefix}-members", seq=revision)
                assert message.time is not None
                self._ahead = message.time.timestamp() - (before + after) / 2
                self._believed = after + CLOCK_SECONDS
        return loop.time() + self._ahead

    # Tables ----------------------------------------------------------------------------------------------------------------------

    async def _entry(self, bucket: KeyValue, key: str, now: float) -> Entry:
        try:
            found = await bucket.get(key)
        except KeyNotFoundError as exc:
            return Entry(None, 0.0, (exc.entry and exc.entry.revision) or 0)
        value, ends = _unpacked(found.value or b"")
        return Entry(value if not ends or ends > now else None, ends, found.revision or 0)

    async def get(self, table: str, key: str) -> Value | None:
        async def ask(_: Client, stream: JetStreamContext) -> Value | None:
            bucket = await self.bucket(stream, "tables")
            return (await self._entry(bucket, _place(table, key), await self._now(stream))).value

        return await self._line.ask(f"get {key} of table {table}", ask, again=True)

    async def change(self, table: str, key: str, ttl: float | None, decide: Any, *, again: bool = False) -> Any:
        """``decide(entry, ends)`` says what is to be there, until when, and what to return; ``ends`` is in ``ttl`` seconds, or 0."""

        async def ask(_: Client, stream: JetStreamContext) -> Any:
            bucket = await self.bucket(stream, "tables")
            place = _place(table, key)
            while True:
                now = await self._now(stream)
                entry = await self._entry(bucket, place, now)
                value, ends, answer = decide(entry, 0.0 if ttl is None else now + ttl)
                if value is entry.value and ends == entry.ends:
                    return answer
                try:
                    if value is not None:
                        await bucket.update(place, _packed(value, ends), last=entry.revision)
                    elif entry.value is not None:
                        await bucket.delete(place, last=entry.revision)
                    return answer
                except APIError as exc:
                    if not _is_outdated(exc):
                        raise
                await asyncio.sleep(CHANGE_SECONDS * random.random())

        return await self._line.ask(f"the change of {key} of table {table}", ask, again=again)

    async def set(self, table: str, key: str, value: Value, ttl: float | None) -> None:
        await self.change(table, key, ttl, lambda entry, ends: (value, ends, None), again=True)

    async def increment(self, table: str, key: str, by: int, ttl: float | None) -> int:
        def decide(entry: Entry, ends: float) -> tuple[Value, float, int]:
            if entry.value is None:
                return by, ends, by
            if not isinstance(entry.value, int) or not -(2**63) <= entry.value + by < 2**63:
                raise LocalProtocolError(f"table {table}, key {key!r}: there is no int, or the sum has more than 64 bits")
            return entry.value + by, entry.ends, entry.value + by

        return int(await self.change(table, key, ttl, decide))

    async def compare_and_set(self, table: str, key: str, old: Value | None, new: Value | None, ttl: float | None) -> bool:
        def decide(entry: Entry, ends: float) -> tuple[Value | None, float, bool]:
            if entry.value != old or type(entry.value) is not type(old):
                return entry.value, entry.ends, False
            return new, ends if new is not None else entry.ends, True

        return bool(await self.change(table, key, ttl, decide))

    async def delete(self, table: str, key: str) -> bool:
        return bool(await self.change(table, key, None, lambda entry, ends: (None, entry.ends, entry.value is not None)))

    async def keys(self, table: str) -> list[str]:
        async def ask(_: Client, stream: JetStreamContext) -> list[str]:
            bucket = await self.bucket(stream, "tables")
            now = await self._now(stream)
            keys = []
            for place, kept, revision in await listed(bucket, f"{_word(table)}.*"):
                ends = _unpacked(kept)[1]
                if not ends or ends > now:
                    keys.append(_unword(place.partition(".")[2]))
                else:
                    await self._prune(bucket, place, revision)
            return keys

        return await self._line.ask(f"the keys of table {table}", ask, timeout=4 * ANSWER_SECONDS, again=True)

    async def _prune(self, bucket: KeyValue, place: str, revision: int) -> None:
        try:
            await bucket.delete(place, last=revision)
        except APIError as exc:  # somebody has set it anew
            if not _is_outdated(exc):
                raise

    # Locks -----------------------------------------------------------------------------------------------------------------------

    async def acquire(self, name: str, who: str, lease: float, timeout: float) -> int | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            left = max(0.1, deadline - loop.time())
            token, wait = await self._try(name, who, lease, min(left, ANSWER_SECONDS))
            if token:
                return token
            left = deadline - loop.time()
            if left <= 0:
                return None
            await asyncio.sleep(min(left, wait, TRY_SECONDS * random.uniform(0.5, 1)))

    async def _try(self, name: str, who: str, lease: float, timeout: float) -> tuple[int, float]:
        """The token, or seconds until the lease of another ends."""

        async def ask(_: Client, stream: JetStreamContext) -> tuple[int, float]:
            bucket = await self.bucket(stream, "locks")
            now = await self._now(stream)
            token, holder, ends, revision = await _holder(bucket, name)
            if holder == who:
                return token, 0.0  # the answer was lost
            if holder and ends > now:
                return 0, ends - now
            # No less than the clock's milliseconds: they grow even when the server has lost what it knew.
            token = max(token + 1, round(now * 1000))
            return (token, 0.0) if await _hold(bucket, name, token, who, now + lease, revision) else (0, 0.0)

        return await self._line.ask(f"lock {name}", ask, timeout=timeout, again=True)

    async def renew(self, name: str, token: int, lease: float) -> bool:
        async def ask(_: Client, stream: JetStreamContext) -> bool:
            bucket = await self.bucket(stream, "locks")
            while True:
                last, holder, _ends, revision = await _holder(bucket, name)
                if last > token or (last == token and not holder):
                    return False
                if await _hold(bucket, name, token, holder or "?", await self._now(stream) + lease, revision):
                    return True

        return await self._line.ask(f"the renewal of lock {name}", ask, again=True)

    async def release(self, name: str, token: int, who: str = "-") -> None:
        """Whoever it is: who has the token, or who asked for it and did not wait for the answer."""

        async def ask(_: Client, stream: JetStreamContext) -> None:
            bucket = await self.bucket(stream, "locks")
            last, holder, _ends, revision = await _holder(bucket, name)
            if holder and (last == token or holder == who):
                await _hold(bucket, name, last, "", 0.0, revision)

        await self._line.ask(f"the release of lock {name}", ask, again=True)


async def listed(bucket: KeyValue, pattern: str) -> list[tuple[str, bytes, int]]:
    """Key, value and revision of each entry that is there."""
    watcher: Any = await bucket.watch(pattern, ignore_deletes=True)
    found = []
    try:
        while (entry := await watcher.updates(ANSWER_SECONDS)) is not None:
            found.append((entry.key, entry.value or b"", entry.revision or 0))
    finally:
        await watcher.stop()
    return found


async def _holder(bucket: KeyValue, name: str) -> tuple[int, str, float, int]:
    """The last token, who holds it ("": nobody), when that ends, and the revision."""
    try:
        entry = await bucket.get(_word(name))
    except KeyNotFoundError as exc:
        return 0, "", 0.0, (exc.entry and exc.entry.revision) or 0
    token, who, ends = msgpack.unpackb(entry.value)
    return token, who, ends, entry.revision or 0


async def _hold(bucket: KeyValue, name: str, token: int, who: str, ends: float, last: int) -> bool:
    try:
        await bucket.update(_word(name), msgpack.packb([token, who, ends]), last=last)
    except APIError as exc:
        if not _is_outdated(exc):
            raise
        return False
    return True


def _is_outdated(error: APIError) -> bool:
    return isinstance(error, (KeyWrongLastSequenceError, NotFoundError)) or error.err_code in (10071, 10164)


def _place(table: str, key: str) -> str:
    return f"{_word(table)}.{_word(key)}"


def _word(name: str) -> str:
    """A word of a subject, and back: NATS allows few characters in keys."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _unword(word: str) -> str:
    return base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)).decode()


def _packed(value: Value, ends: float) -> bytes:
    is_int = isinstance(value, int)
    return _HEAD.pack(ends, is_int) + (str(value).encode() if isinstance(value, int) else value)


def _unpacked(kept: bytes) -> tuple[Value, float]:
    try:
        ends, is_int = _HEAD.unpack_from(kept)
        return int(kept[_HEAD.size :]) if is_int else kept[_HEAD.size :], ends
    except (struct.error, ValueError):
        raise RemoteProtocolError(f"an entry of {len(kept)} bytes that is none of ours") from None
