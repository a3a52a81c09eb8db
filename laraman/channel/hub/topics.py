"""Publish and subscribe. A message is kept for nobody but subscribers that do not read at the moment, and for them within bounds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import COUNT, Op, frame, head, sized, take

if TYPE_CHECKING:
    from laraman.channel.hub.clients import Client, Outbox

#: Bytes that wait for one subscriber, besides the limit in messages: those may be large.
MAX_WAITING = 32 * 1024 * 1024
#: Bytes of what waited that are written before it is seen whether they are read.
CHUNK = 256 * 1024
#: Topics whose subscribers are remembered.
MAX_FOUND = 10_000

_MESSAGE = int(Op.MESSAGE)


class Subscription:
    """One of a client's. What waits are the ends of frames, whose heads say the rest."""

    __slots__ = ("client", "dropped", "id", "limit", "pattern", "size", "waiting")

    def __init__(self, client: Client, id: int, pattern: str, limit: int) -> None:
        self.client = client
        self.id = id
        self.pattern = pattern
        self.limit = limit
        self.waiting: deque[bytes] = deque()
        self.size = 0  # bytes of what waits
        self.dropped = 0

    def keep(self, rest: bytes) -> None:
        """A message that cannot be sent now waits; the oldest go when there is no room."""
        waiting = self.waiting
        waiting.append(rest)
        self.size += len(rest)
        while len(waiting) > self.limit or self.size > MAX_WAITING:
            self.size -= len(waiting.popleft())
            self.dropped += 1


class Topics:
    """Who is subscribed to what."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._exact: dict[str, list[Subscription]] = {}
        self._patterns: list[tuple[list[str], Subscription]] = []
        #: By topic: its name in a frame, and its subscribers. Until somebody subscribes or unsubscribes.
        self._found: dict[str, tuple[bytes, list[Subscription]]] = {}

    def publish(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        found = self._found.get(name)
        if found is None:
            found = self._find(name)
        named, subscriptions = found
        if subscriptions:
            rest = named + body
            size = len(rest)
            dirty = self._outbox.dirty
            for subscription in subscriptions:
                subscriber = subscription.client
                if subscriber.full:
                    subscription.keep(rest)
                    continue
                out = subscriber.out
                if not out:
                    dirty.append(subscriber)
                out.append(head(_MESSAGE, subscription.id, size))
                out.append(rest)
        if id:
            self._outbox.answer(client, id, COUNT.pack(len(subscriptions)))

    def _find(self, topic: str) -> tuple[bytes, list[Subscription]]:
        if len(self._found) >= MAX_FOUND:
            self._found.clear()
        words = topic.split(".")
        matching = [*self._exact.get(topic, ()), *(subscription for pattern, subscription in self._patterns if _match(pattern, words))]
        found = self._found[topic] = sized(topic, "topic"), matching
        return found

    def subscribe(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        client.check_new(id)
        (limit,) = take(COUNT, body)
        words = name.split(".")
        if limit < 1 or not all(words) or ">" in words[:-1]:
            raise RemoteProtocolError(f"{name!r} cannot be subscribed to, with {limit} messages")
        subscription = client.subscriptions[id] = Subscription(client, id, name, limit)
        if "*" in words or ">" in words:
            self._patterns.append((words, subscription))
        else:
            self._exact.setdefault(name, []).append(subscription)
        self._found.clear()
        self._outbox.answer(client, id)

    def cancel(self, client: Client, id: int, now: float) -> None:
        subscription = client.subscriptions.pop(id, None)
        if subscription is None:
            return
        exact = self._exact.get(subscription.pattern)
        if exact is not None:
            exact.remove(subscription)
            if not exact:
                del self._exact[subscription.pattern]
        else:
            self._patterns = [entry for entry in self._patterns if entry[1] is not subscription]
        self._found.clear()

    def resume(self, client: Client) -> bool:
        """A client reads again: send it some of what waits. Whether that is all of it."""
        written = 0
        for subscription in client.subscriptions.values():
            if subscription.dropped:
                self._outbox.say(client, frame(Op.DROPPED, subscription.id, "", COUNT.pack(min(subscription.dropped, 0xFFFFFFFF))))
                subscription.dropped = 0
            waiting = subscription.waiting
            while waiting:
                if written >= CHUNK:
                    return False
                rest = waiting.popleft()
                written += len(rest)
                subscription.size -= len(rest)
                self._outbox.say(client, head(_MESSAGE, subscription.id, len(rest)) + rest)
        return True

    def lost(self, client: Client, now: float) -> None:
        for id in tuple(client.subscriptions):
            self.cancel(client, id, now)


def _match(pattern: list[str], words: list[str]) -> bool:
    """Whether a topic is one of a pattern's: "*" is any one word, ">" one or more at the end, as in NATS."""
    if pattern[-1] == ">":
        return len(words) >= len(pattern) and all(map(_same, pattern[:-1], words))
    return len(words) == len(pattern) and all(map(_same, pattern, words))


def _same(wanted: str, word: str) -> bool:
    return wanted in ("*", word)
