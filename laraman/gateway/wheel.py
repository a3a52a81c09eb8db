"""Deadlines of many connections with one timer: a connection that waits for its deadline costs a place in a set, no handle and no task."""

from __future__ import annotations

from typing import Any

from laraman.net.connection import Connection

#: Seconds between two looks; a deadline is met up to this much late.
TICK = 0.1


class Watched(Connection):
    """A Connection with one deadline in a Wheel. Its handler has a further method, ``on_deadline(connection, now)``."""

    __slots__ = ("_bytes_read", "_bytes_seen", "_heard", "due")

    def __init__(self, protocol: Any, handler: Any, worker: Any, **options: Any) -> None:
        super().__init__(protocol, handler, worker, **options)
        self.operates_for = None  # what a gateway passes on becomes an operation in the worker that it is for
        self.due = 0  # the wheel's
        self._bytes_seen = self._bytes_read = 0
        self._heard = 0.0

    def heard(self, now: float) -> None:
        """Count silence from now on."""
        self._heard = now
        self._bytes_seen = self.bytes_in

    def silence(self, now: float) -> float:
        """Seconds without a byte, up to the time between two calls less than it was. While reading is paused there is none: that silence is ours."""
        if self.bytes_in != self._bytes_seen or self.reading_paused:
            self.heard(now)
        return now - self._heard

    def reads(self) -> bool:
        """Whether there is something for the peer to read, and it has read some of it since the last call."""
        read, self._bytes_read = self._bytes_read, self._bytes_flushed()
        return self._bytes_read > read and self.transport.get_write_buffer_size() > 0


class Wheel:
    """Connections by the tick in which their deadline comes. ``now`` is the loop's time at the last tick."""

    __slots__ = ("_at", "_slots", "now")

    def __init__(self, now: float) -> None:
        self.now = now
        self._at = int(now / TICK)
        self._slots: dict[int, set[Watched]] = {}

    def set(self, item: Watched, seconds: float) -> None:
        """Let its deadline be in ``seconds``, and no other."""
        self.cancel(item)
        item.due = max(int((self.now + seconds) / TICK), self._at) + 1
        self._slots.setdefault(item.due, set()).add(item)

    def cancel(self, item: Watched) -> None:
        slot = self._slots.get(item.due)
        if slot is not None:
            slot.discard(item)
        item.due = 0

    def advance(self, now: float) -> list[Watched]:
        """Those whose deadline has come; they have none any more."""
        expired: list[Watched] = []
        self.now = now
        while self._at < int(now / TICK):
            self._at += 1
            expired.extend(self._slots.pop(self._at, ()))
        for item in expired:
            item.due = 0
        return expired
