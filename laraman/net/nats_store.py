"""Leases in NATS: keys of a JetStream bucket whose entries end by themselves, each change made only if the last one is known
(docs.nats.io, "Key/Value Store": create, update with a revision). What is noted is in a second bucket, where nothing ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import anyio
from nats.errors import Error
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError

from laraman.errors import LinkDown
from laraman.net.lease import plain_name
from laraman.net.nats_dial import NatsClient
from laraman.net.store import ANSWER_SECONDS, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from nats.js.client import JetStreamContext
    from nats.js.kv import KeyValue

    from laraman.net.lease import StoreLease


T = TypeVar("T")


class NatsStore(Store):
    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(url, prefix)
        self._client: NatsClient | None = None
        self._buckets: tuple[KeyValue, KeyValue] | None = None
        self._dialling = asyncio.Lock()

    async def take(self, lease: StoreLease) -> bool:
        return await self._ask(self._take(lease))

    async def renew(self, lease: StoreLease) -> bool:
        return await self._ask(self._renew(lease))

    async def give_back(self, lease: StoreLease) -> None:
        if self._client is not None:
            await self._ask(self._give_back(lease))

    async def noted(self, lease: StoreLease) -> str:
        return await self._ask(self._noted(lease))

    async def note(self, lease: StoreLease, text: str) -> bool:
        return await self._ask(self._note(lease, text))

    async def close(self) -> None:
        client, self._client, self._buckets = self._client, None, None
        if client is not None:
            with anyio.move_on_after(ANSWER_SECONDS):
                await client.close()

    async def _take(self, lease: StoreLease) -> bool:
        leases, _ = await self._open()
        try:
            lease.revision = await leases.create(plain_name(lease.name), lease.token.encode())
        except KeyWrongLastSequenceError:
            return await self._find(lease) and await self._renew(lease)  # it may be ours: the answer was lost
        return True

    async def _renew(self, lease: StoreLease) -> bool:
        leases, _ = await self._open()
        for _ in range(2):
            try:
                lease.revision = await leases.update(plain_name(lease.name), lease.token.encode(), last=lease.revision)
            except KeyWrongLastSequenceError:
                if not await self._find(lease):
                    break
            else:
                return True
        return False

    async def _find(self, lease: StoreLease) -> bool:
        """Whether the entry is the lease's; then its revision is known."""
        leases, _ = await self._open()
        try:
            entry = await leases.get(plain_name(lease.name))
        except KeyNotFoundError:
            return False
        lease.revision = entry.revision or 0
        return entry.value == lease.token.encode()

    async def _give_back(self, lease: StoreLease) -> None:
        leases, _ = await self._open()
        if await self._find(lease):
            await leases.delete(plain_name(lease.name), last=lease.revision)

    async def _noted(self, lease: StoreLease) -> str:
        _, notes = await self._open()
        try:
            entry = await notes.get(plain_name(lease.name))
        except KeyNotFoundError:
            lease.note_revision = 0
            return ""
        lease.note_revision = entry.revision or 0
        return (entry.value or b"").decode(errors="replace")

    async def _note(self, lease: StoreLease, text: str) -> bool:
        _, notes = await self._open()
        try:
            lease.note_revision = await notes.update(plain_name(lease.name), text.encode(), last=lease.note_revision)
        except KeyWrongLastSequenceError:
            # What is noted already was noted by us, if the answer was lost: the lease has been ours all the time.
            return await self._noted(lease) == text and await self._find(lease)
        return True

    async def _open(self) -> tuple[KeyValue, KeyValue]:
        async with self._dialling:
            if self._client is None or not self._client.is_connected or self._buckets is None:
                await self.close()
                self._client = NatsClient(self.url)
                await self._client.dial(_nothing)  # whoever asks next dials anew
                stream = self._client.jetstream(timeout=ANSWER_SECONDS)
                leases = await _bucket(stream, f"{self.prefix}-leases", self.seconds)
                self._buckets = leases, await _bucket(stream, f"{self.prefix}-noted", None)
            return self._buckets

    async def _ask(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await work
        except (Error, OSError, ValueError, asyncio.IncompleteReadError) as exc:  # ValueError: a server that is none
            raise LinkDown(str(exc) or type(exc).__name__) from exc


async def _bucket(stream: JetStreamContext, name: str, seconds: float | None) -> KeyValue:
    try:
        return await stream.key_value(name)
    except BucketNotFoundError:
        return await stream.create_key_value(bucket=name, ttl=seconds)


async def _nothing(error: Exception) -> None:
    """Whoever asked hears of it."""
