"""Which worker connection gets an event, and what happens to events that cannot go out yet.

The events of one client are a serial lane: they go to the same worker connection while it lives, and in the order in which they happened.

- A worker connection that does not read: events wait in its queue. When that is full, the clients whose events came last are not read until half
  of it is gone. If the connection ends, its queue goes to the others.
- No worker connection, or the last one that took this kind of event has just left: events wait in one queue for all, ``hold`` seconds.
  A client whose events wait there has the next ones wait behind them.
- Nobody takes this kind of event: it is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from laraman.protocols.netsvr import EVENT_CLOSE, EVENT_MESSAGE, EVENT_OPEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laraman.gateway.business import Session
    from laraman.gateway.client import Client
    from laraman.gateway.metrics import Metrics
    from laraman.gateway.wheel import Wheel

BITS = (EVENT_OPEN, EVENT_CLOSE, EVENT_MESSAGE)
#: What waits for one worker connection before its clients are held, and what waits for any: events, and bytes with what an event costs itself.
QUEUE_EVENTS, QUEUE_BYTES = 1024, 4 * 1024 * 1024
HOLD_EVENTS, HOLD_BYTES = 10_000, 32 * 1024 * 1024
EVENT_COST = 256


class Event(NamedTuple):
    """One event that waits; ``since`` is the wheel's time."""

    client: Client
    bit: int
    message: Any
    since: float

    @property
    def cost(self) -> int:
        return EVENT_COST + int(self.message.ByteSize())


class Queue:
    """Events that wait. It takes every one, but holds the clients of those that come while it is full."""

    __slots__ = ("_blocked", "_max_bytes", "_max_events", "bytes", "events")

    def __init__(self, max_events: int = QUEUE_EVENTS, max_bytes: int = QUEUE_BYTES) -> None:
        self.events: deque[Event] = deque()
        self.bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._blocked: list[Client] = []

    @property
    def full(self) -> bool:
        return len(self.events) >= self._max_events or self.bytes >= self._max_bytes

    def put(self, event: Event) -> None:
        self.events.append(event)
        self.bytes += event.cost
        if not event.client.blocked and self.full:
            event.client.block()
            self._blocked.append(event.client)

    def take(self) -> Event:
        event = self.events.popleft()
        self.bytes -= event.cost
        return event

    def take_all(self) -> list[Event]:
        events = list(self.events)
        self.events.clear()
        self.bytes = 0
        return events

    def relax(self) -> None:
        """Read from the held clients again when half of the room is free. Their messages may come back at once."""
        if self._blocked and len(self.events) <= self._max_events // 2 and self.bytes <= self._max_bytes // 2:
            blocked, self._blocked = self._blocked, []
            for client in blocked:
                client.unblock()


class Dispatcher:
    """Gives events to the worker connections that take them."""

    __slots__ = ("_hold", "_left", "_metrics", "_registered", "_takers", "_wheel", "held")

    def __init__(self, metrics: Metrics, wheel: Wheel, hold: float) -> None:
        self._metrics = metrics
        self._wheel = wheel
        self._hold = hold
        self._registered = 0
        self._takers: dict[int, list[Session]] = {bit: [] for bit in BITS}
        self._left = dict.fromkeys(BITS, float("-inf"))  # when the last taker went
        self.held = Queue(HOLD_EVENTS, HOLD_BYTES)

    # Worker connections ----------------------------------------------------------------------------------------------------------

    def add(self, session: Session) -> None:
        """It has registered: it gets what waits, and its share of what comes."""
        self._registered += 1
        for bit in BITS:
            if session.events & bit:
                self._takers[bit].append(session)
        self._replay()

    def remove(self, session: Session) -> None:
        """It gets no more. What waits for it goes to the others."""
        self._registered -= 1
        for bit in BITS:
            if session.events & bit:
                takers = self._takers[bit]
                takers.remove(session)
                if not takers:
                    self._left[bit] = self._wheel.now
        self._take_back(session.queue.take_all())
        session.queue.relax()

    def _take_back(self, events: Iterable[Event]) -> None:
        """In front of what waits: these are older than anything that waits of the same clients."""
        events = [event._replace(since=self._wheel.now) for event in events]
        if not events:
            return
        for event in events:
            event.client.waiting += 1
        waiting = self.held.take_all()
        for event in (*events, *waiting):
            self.held.put(event)
        self._replay()
        if not self._hold:
            self.expire(self._wheel.now)

    # Events ----------------------------------------------------------------------------------------------------------------------

    def dispatch(self, client: Client, bit: int, message: Any) -> None:
        session = None if client.waiting else self._session(client, bit)
        if session is not None:
            if bit == EVENT_OPEN:
                client.told = True
            session.forward(client, bit, message)
        elif client.waiting or self._is_expected(bit):
            if bit == EVENT_CLOSE and not client.told and not client.waiting:
                return  # its ConnOpen was given up: nobody has heard of it
            client.waiting += 1
            self.held.put(Event(client, bit, message, self._wheel.now))
        else:
            client.told = True  # as far as anybody wants to know
            self._metrics.not_forwarded += 1

    def forget(self, client: Client) -> None:
        """The client has gone, and so has its last event."""
        if client.owner is not None:
            client.owner.clients -= 1
            client.owner = None

    @property
    def overloaded(self) -> bool:
        """No more opens can wait: not for those who take them, or, while nobody does, not for anybody."""
        takers = self._takers[EVENT_OPEN]
        return all(session.queue.full for session in takers) if takers else self.held.full

    def _is_expected(self, bit: int) -> bool:
        """Whether somebody who takes such events is likely to come."""
        if not self._hold:
            return False
        return not self._registered or self._wheel.now - self._left[bit] < self._hold

    def _session(self, client: Client, bit: int) -> Session | None:
        """The worker connection for this event: the one that the client has, if it takes such events, else the one with the fewest clients."""
        owner = client.owner
        if owner is not None and owner.events & bit and owner.registered:
            return owner
        takers = self._takers[bit]
        if not takers:
            return None
        session = takers[0] if len(takers) == 1 else min(takers, key=_load)
        if owner is None or not owner.registered or bit == EVENT_MESSAGE:
            if owner is not None:
                owner.clients -= 1
            session.clients += 1
            client.owner = session
        return session

    # What waits ------------------------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Give up what has waited too long. What waited behind it may go now."""
        held = self.held
        before = len(held.events)
        while held.events and now - held.events[0].since >= self._hold:
            event = held.take()
            event.client.waiting -= 1
            self._metrics.not_forwarded += 1
            if event.bit == EVENT_CLOSE:
                self.forget(event.client)
        if len(held.events) < before:
            self._replay()

    def give_up(self) -> None:
        """Nothing waits for a worker any more: the gateway stops."""
        self._hold = 0.0
        self.expire(self._wheel.now)

    def _replay(self) -> None:
        """Forward what waits and can go, in order."""
        stuck: set[Client] = set()
        for event in self.held.take_all():
            client = event.client
            session = None if client in stuck else self._session(client, event.bit)
            if session is None:
                stuck.add(client)
                self.held.put(event)
            else:
                client.waiting -= 1
                client.told = True
                session.forward(client, event.bit, event.message)
                if event.bit == EVENT_CLOSE:
                    self.forget(client)
        self.held.relax()


def _load(session: Session) -> tuple[bool, int]:
    return session.queue.full, session.clients
