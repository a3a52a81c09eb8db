"""Subscriptions: the messages of a pattern, in a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from laraman.channel.names import check_pattern
from laraman.errors import Busy, ConfigError
from laraman.net.encoding import decode

if TYPE_CHECKING:
    from laraman.channel.interface import Channel

POLICIES = ("drop_oldest", "drop_newest", "close")


class Message:
    """What was published: ``topic``, and ``data`` as it was given. ``payload`` is it in bytes, for what others than we publish."""

    __slots__ = ("_data", "payload", "topic")

    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic = topic
        self.payload = payload

    def __repr__(self) -> str:
        return f"<Message {self.topic} {len(self.payload)} bytes>"

    @property
    def data(self) -> Any:
        """Raises RemoteProtocolError when it is no msgpack."""
        try:
            return self._data
        except AttributeError:
            self._data: Any = decode(self.payload)
            return self._data


class Subscription:
    """The messages of the topics that match ``pattern``, from when it is entered. Made by ``channel.subscribe``.

    ``dropped`` counts the messages for which there was no room, ``gaps`` how often the backend was away, so that messages may have been missed.
    The iteration ends when the subscription or the channel is closed. Any number of tasks may iterate: each message is given to one.
    """

    def __init__(self, channel: Channel, pattern: str, limit: int, overflow: str) -> None:
        if overflow not in POLICIES:
            raise ConfigError(f"subscription to {pattern!r}: overflow is {overflow!r}, not drop_oldest, drop_newest or close")
        if limit < 1:
            raise ConfigError(f"subscription to {pattern!r}: a queue of {limit!r} messages has no room for one")
        self.pattern = check_pattern(pattern)
        self.dropped = 0
        self.gaps = 0
        self._channel = channel
        self._limit = limit
        self._overflow = overflow
        self._queue: deque[Message] = deque()
        self._news = asyncio.Event()
        self._entered = self._over = False
        self._error: Busy | None = None

    def __repr__(self) -> str:
        return f"<Subscription {self.pattern}, {len(self._queue)} messages wait>"

    async def __aenter__(self) -> Subscription:
        if self._entered:
            raise RuntimeError("a subscription is entered once")
        self._entered = True
        await self._channel._join(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        if not self._entered:
            await self.__aenter__()
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()

    async def close(self) -> None:
        """No more messages; what waits is dropped. Idempotent."""
        self._queue.clear()
        self._error = None
        if not self._over:
            self.end()
            await self._channel._part(self)

    # What the channel tells it ---------------------------------------------------------------------------------------------------

    def offer(self, message: Message) -> None:
        """A message for it."""
        if len(self._queue) >= self._limit and not self._make_room():
            return
        self._queue.append(message)
        self._news.set()

    def _make_room(self) -> bool:
        self.miss(1)
        if self._overflow == "drop_oldest":
            self._queue.popleft()
            return True
        return False

    def miss(self, count: int) -> None:
        """There was no room for so many."""
        if self._over:
            return
        self.dropped += count
        if self._overflow == "close":
            self._error = Busy(f"subscription to {self.pattern} was closed: more than {self._limit} messages waited")
            self.end()
            self._channel._part_soon(self)

    def end(self) -> None:
        """No more messages; what waits is still given."""
        self._over = True
        self._news.set()
