"""Tables: keys with values that are ints or opaque, and when they end. They live as long as the hub's process."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import INCREMENT_BODY, SECONDS, SIZE, Fault, pack_value, take, take_text, take_value, text

if TYPE_CHECKING:
    from laraman.channel.hub.clients import Client, Outbox

#: Bounds of all tables together: keys, and bytes of keys and values.
MAX_KEYS, MAX_SIZE = 1_000_000, 256 * 1024 * 1024
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class Tables:
    """Values as they are on the wire, by table and key, each with the time at which it ends."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._tables: dict[str, dict[str, tuple[bytes, float]]] = {}
        #: Of each key that ends, at least one entry no later than that: when it comes up it is looked at again.
        self._ends: list[tuple[float, str, str]] = []
        self._keys = self._size = 0

    def _value(self, table: str, key: str, now: float) -> tuple[bytes, float]:
        """No bytes where there is none."""
        found = self._tables.get(table, {}).get(key)
        return found if found is not None and found[1] > now else (b"", math.inf)

    def _store(self, table: str, key: str, value: bytes, end: float) -> bool:
        """Set, or without a value delete. False when there is no room."""
        keys = self._tables.get(table, {})
        before = keys.get(key)
        size = len(value) - len(before[0]) if before is not None else len(value) + len(key)
        if value and (size > MAX_SIZE - self._size or (before is None and self._keys >= MAX_KEYS)):
            return False
        if value:
            self._tables.setdefault(table, keys)[key] = value, end
            self._keys += before is None
            self._size += size
            if end < math.inf and (before is None or before[1] > end):
                self._note(end, table, key)
        elif before is not None:
            del keys[key]
            self._keys -= 1
            self._size -= len(before[0]) + len(key)
            if not keys:
                del self._tables[table]
        return True

    def _note(self, end: float, table: str, key: str) -> None:
        heappush(self._ends, (end, table, key))
        if len(self._ends) > 2 * self._keys + 1000:  # of keys that were deleted before they ended
            self._ends = sorted((end, table, key) for table, keys in self._tables.items() for key, (_, end) in keys.items() if end < math.inf)

    def _put(self, client: Client, id: int, table: str, key: str, value: bytes, end: float, body: bytes = b"") -> None:
        if self._store(table, key, value, end):
            self._outbox.answer(client, id, body)
        else:
            self._outbox.refuse(client, id, Fault.BUSY, f"the tables are full: {self._keys} keys, {self._size} bytes")

    def get(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        self._outbox.answer(client, id, self._value(name, take_text(body)[0], now)[0])

    def set(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        end = _end(take(SECONDS, body)[0], now)
        key, at = take_text(body, SECONDS.size)
        self._put(client, id, name, key, _checked(body[at:]), end)

    def increment(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        by, ttl = take(INCREMENT_BODY, body)
        key, _ = take_text(body, INCREMENT_BODY.size)
        before, end = self._value(name, key, now)
        value = take_value(before) if before else 0
        if not isinstance(value, int) or not _LOWEST <= value + by <= _HIGHEST:
            why = "no int" if not isinstance(value, int) else "no room for more than 64 bits"
            self._outbox.refuse(client, id, Fault.BAD, f"table {name}: there is {why} at {key!r}")
            return
        after = pack_value(value + by)
        self._put(client, id, name, key, after, end if before else _end(ttl, now), after)

    def compare_and_set(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        end = _end(take(SECONDS, body)[0], now)
        key, at = take_text(body, SECONDS.size)
        middle = at + SIZE.size + take(SIZE, body, at)[0]
        old, new = body[at + SIZE.size : middle], body[middle:]
        if self._value(name, key, now)[0] != old:
            self._outbox.answer(client, id, b"\0")
        else:
            self._put(client, id, name, key, _checked(new), end, b"\1")

    def delete(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        key, _ = take_text(body)
        there = bool(self._value(name, key, now)[0])
        self._put(client, id, name, key, b"", math.inf, b"\1" if there else b"\0")

    def keys(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        keys = b"".join(text(key) for key, (_, end) in self._tables.get(name, {}).items() if end > now)
        self._outbox.answer(client, id, keys)

    def tick(self, now: float) -> None:
        """Forget what has ended."""
        ends = self._ends
        while ends and ends[0][0] <= now:
            _, table, key = heappop(ends)
            found = self._tables.get(table, {}).get(key)
            if found is None or found[1] == math.inf:
                continue
            if found[1] <= now:
                self._store(table, key, b"", math.inf)
            elif found[1] != math.inf:
                heappush(ends, (found[1], table, key))


def _end(ttl: float, now: float) -> float:
    if not ttl >= 0:
        raise RemoteProtocolError(f"{ttl} seconds cannot be lived")
    return now + ttl if ttl else math.inf


def _checked(value: bytes) -> bytes:
    take_value(value)
    return value
