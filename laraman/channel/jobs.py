"""Queues of work, as their consumers see them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from laraman.channel.names import check_name
from laraman.errors import ConfigError, LinkDown
from laraman.net.encoding import decode

if TYPE_CHECKING:
    from laraman.channel.interface import Channel


class Job:
    """One job of a queue, which this process has for ``visibility`` seconds: then, or when it ends, somebody else gets it unless it is acknowledged.

    ``attempt`` is 1 when it is given for the first time. ``handle`` is the backend's: what it acknowledges it by.
    """

    __slots__ = ("_channel", "_data", "attempt", "expires", "handle", "id", "payload", "queue", "visibility", "work")

    def __init__(self, channel: Channel, queue: str, id: str, payload: bytes, attempt: int, visibility: float, handle: Any = None) -> None:
        self._channel = channel
        self.queue = queue
        self.id = id
        self.payload = payload
        self.attempt = attempt
        self.visibility = visibility
        self.handle = handle
        #: The consumer that holds it; None for one of ``channel.get``.
        self.work: Work | None = None
        #: When somebody else gets it, in the loop's time.
        self.expires = asyncio.get_running_loop().time() + visibility

    def __repr__(self) -> str:
        return f"<Job {self.queue} {self.id} attempt {self.attempt}>"

    @property
    def data(self) -> Any:
        """What was put. Raises RemoteProtocolError when it is no msgpack."""
        try:
            return self._data
        except AttributeError:
            self._data: Any = decode(self.payload)
            return self._data

    async def ack(self) -> bool:
        """It is done: nobody gets it again. False when somebody else had it by then, where the backend can tell.

        Raises LinkDown when the backend could not be told, Busy when it cannot write that down; then it may be given again.
        """
        self._settled()
        return await self._channel._ack(self)

    async def nack(self, delay: float = 0.0) -> bool:
        """Give it to somebody again, in ``delay`` seconds. Returns and raises what ``ack`` does."""
        self._settled()
        return await self._channel._nack(self, delay)

    async def extend(self) -> bool:
        """It is still being worked on: the ``visibility`` seconds begin anew. Returns and raises what ``ack`` does."""
        self.expires = asyncio.get_running_loop().time() + self.visibility
        return await self._channel._extend(self)

    def _settled(self) -> None:
        if self.work is not None:
            self.work.settled(self)


class Work:
    """A consumer of a queue. Made by ``channel.work``; leaving it gives back what is not acknowledged. Any number of tasks may iterate."""

    def __init__(self, channel: Channel, queue: str, visibility: float, prefetch: int) -> None:
        if not visibility > 0 or not isinstance(prefetch, int) or prefetch < 1:
            raise ConfigError(f"work of {queue!r}: visibility and prefetch must be positive, and prefetch an int")
        self.queue = check_name(queue, "queue")
        self.visibility = visibility
        self.prefetch = prefetch
        #: What this process has and has not settled.
        self.held: set[Job] = set()
        self._channel = channel
        self._ready: deque[Job] = deque()
        self._news = asyncio.Event()
        self._vacancy = asyncio.Event()
        self._entered = self._over = False

    async def __aenter__(self) -> Work:
        if self._entered:
            raise RuntimeError(f"work of {self.queue} is entered once")
        self._entered = True
        await self._channel._enter(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more, and give back what is not acknowledged. Idempotent."""
        if self._over:
            return
        self.end()
        await self._channel._exit(self)
        with contextlib.suppress(LinkDown):  # then it will be given again by itself
            for job in sorted(self.held, key=lambda job: job.id):
                await job.nack()

    def __aiter__(self) -> Work:
        return self

    async def __anext__(self) -> Job:
        if not self._entered:
            raise RuntimeError(f"work of {self.queue} is entered before it is iterated over: async with channel.work(...) as jobs")
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._ready.popleft()

    # What the channel tells and asks it ------------------------------------------------------------------------------------------

    def given(self, job: Job) -> None:
        """The backend has one for it."""
        job.work = self
        self.held.add(job)
        self._ready.append(job)
        self._news.set()

    def settled(self, job: Job) -> None:
        self.held.discard(job)
        self._vacancy.set()

    def lost(self) -> None:
        """What was not taken is given to somebody else: the backend was away. Those that are being worked on may still be acknowledged."""
        self._ready.clear()
        self.held.clear()
        self._vacancy.set()

    def end(self) -> None:
        """No more jobs; those that were not taken are not given out."""
        self._over = True
        self._ready.clear()
        self._news.set()

    async def room(self) -> int:
        """For how many jobs there is room, as soon as there is any; those whose time is over are somebody else's."""
        loop = asyncio.get_running_loop()
        while len(self.held) >= self.prefetch:
            self._vacancy.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(job.expires for job in self.held)):
                    await self._vacancy.wait()
            self.held = {job for job in self.held if job.expires > loop.time()}
        return self.prefetch - len(self.held)
