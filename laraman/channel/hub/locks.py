"""Locks: one holder at a time, while its lease lasts. A holder that goes away without a word keeps its lock until then: it may be at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import SECONDS, TOKEN, Fault, take

if TYPE_CHECKING:
    from laraman.channel.hub.clients import Client, Outbox

#: Seconds that the holders of locks have to come back and renew them, when the hub was killed and started again.
RETURN = 2.0
#: Larger ones are nobody's: the next has to fit into 64 bits.
MAX_TOKEN = 2**63


class Lock:
    """``token`` is the holder's, 0 when nobody holds it. ``waiting`` are those whose turn comes, with their leases."""

    __slots__ = ("end", "name", "token", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.token = 0
        self.end = 0.0
        self.waiting: dict[tuple[Client, int], float] = {}


class Locks:
    """Tokens are larger than ``used``, and than all before. Nobody is given a lock before the time ``closed_until``."""

    def __init__(self, outbox: Outbox, used: int, closed_until: float) -> None:
        self._outbox = outbox
        self._token = used
        self._closed_until = closed_until
        self._locks: dict[str, Lock] = {}

    @property
    def held(self) -> bool:
        """Whether there are holders, who will want their locks of the next hub."""
        return bool(self._locks)

    def acquire(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        client.check_new(id)
        lease = _lease(take(SECONDS, body)[0])
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = Lock(name)
        lock.waiting[client, id] = lease
        client.locks[id] = lock
        self._grant(lock, now)

    def _grant(self, lock: Lock, now: float) -> None:
        """Give it to the next, when nobody has it."""
        if (lock.token and now < lock.end) or now < self._closed_until:
            return
        lock.token = 0
        if not lock.waiting:
            del self._locks[lock.name]
            return
        (client, id), lease = next(iter(lock.waiting.items()))
        del lock.waiting[client, id], client.locks[id]
        self._token += 1
        lock.token, lock.end = self._token, now + lease
        self._outbox.answer(client, id, TOKEN.pack(lock.token))

    def renew(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        (token,) = take(TOKEN, body)
        lease = _lease(take(SECONDS, body, TOKEN.size)[0])
        if not 0 < token < MAX_TOKEN:
            raise RemoteProtocolError(f"{token} is no token")
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = Lock(name)
        if lock.token not in (0, token):
            self._outbox.refuse(client, id, Fault.GONE, f"lock {name} is somebody else's")
            return
        lock.token, lock.end = token, now + lease
        self._token = max(self._token, token)
        self._outbox.answer(client, id)

    def release(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        (token,) = take(TOKEN, body)
        lock = self._locks.get(name)
        if lock is None or lock.token != token:
            self._outbox.refuse(client, id, Fault.GONE, f"lock {name} is not held with that token")
            return
        lock.end = now
        self._grant(lock, now)
        self._outbox.answer(client, id)

    def cancel(self, client: Client, id: int, now: float) -> None:
        lock = client.locks.pop(id, None)
        if lock is not None:
            del lock.waiting[client, id]

    def lost(self, client: Client, now: float) -> None:
        for id in tuple(client.locks):
            self.cancel(client, id, now)

    def tick(self, now: float) -> None:
        for lock in [lock for lock in self._locks.values() if lock.end <= now]:
            self._grant(lock, now)


def _lease(seconds: float) -> float:
    if not seconds > 0:
        raise RemoteProtocolError(f"a lease of {seconds} s")
    return seconds
