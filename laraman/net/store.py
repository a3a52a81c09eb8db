"""Stores that the servers of a cluster share: what is held in one ends by itself, what is noted stays. See ``laraman.net.lease``.

    redis://[user:password@]host[:port][/db]     rediss:// with TLS; needs the extra redis
    nats://[user:password@]host[:port]           tls:// with TLS; needs the extra nats, and a server with JetStream

``?prefix=NAME`` is what names begin with there, "laraman" by default: clusters that share a store need different ones.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.net.lease import StoreLease

logger = logging.getLogger("uvicorn.error")

#: Seconds after which a lease ends unless it is renewed: for so long nobody runs when its holder has died.
LEASE_SECONDS = 10.0
#: Seconds that the store has to answer.
ANSWER_SECONDS = 2.0


class Store:
    """The connection of one worker with the store. Every method that asks it raises LinkDown when there is no answer."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.seconds = LEASE_SECONDS
        self.users = 0
        parts = urlsplit(url)
        self._where = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"  # not the password
        self._away = False

    def away(self, error: Exception) -> None:
        """It does not answer. Said once."""
        if not self._away:
            self._away = True
            why = str(error) or "no answer in time"
            logger.warning("The cluster's store %s is away, what runs once in the cluster waits for it: %s", self._where, why)

    def back(self) -> None:
        """It answers."""
        if self._away:
            self._away = False
            logger.info("The cluster's store %s is back", self._where)

    async def take(self, lease: StoreLease) -> bool:
        """Make the entry with the lease's token, to end after ``seconds``, unless somebody else's is there."""
        raise NotImplementedError

    async def renew(self, lease: StoreLease) -> bool:
        """Let the entry last for ``seconds`` from now on; False when it is not the lease's any more."""
        raise NotImplementedError

    async def give_back(self, lease: StoreLease) -> None:
        """Delete the entry if it is the lease's."""
        raise NotImplementedError

    async def noted(self, lease: StoreLease) -> str:
        """What was noted last; empty when nothing was."""
        raise NotImplementedError

    async def note(self, lease: StoreLease, text: str) -> bool:
        """Note ``text`` if what is noted is still what the lease has seen."""
        raise NotImplementedError

    async def close(self) -> None:
        """End the connection; the next who asks makes a new one."""
        raise NotImplementedError


_stores: WeakKeyDictionary[Any, Store] = WeakKeyDictionary()


def store_of(worker: Any) -> Store:
    """The store of this worker, as the option ``cluster`` says. Raises ConfigError when what it needs is not installed."""
    if (found := _stores.get(worker)) is None:
        found = _stores[worker] = open_store(worker.config.cluster)
    return found


def open_store(url: str) -> Store:
    """The same for a URL; nothing is dialled before somebody asks it."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    prefix = query.pop("prefix", "laraman")
    url = urlunsplit(parts._replace(query=urlencode(query)))
    try:
        if parts.scheme in ("redis", "rediss"):
            from laraman.net.redis_store import RedisStore

            return RedisStore(url, prefix)
        from laraman.net.nats_store import NatsStore

        return NatsStore(url, prefix)
    except ImportError:
        extra = "redis" if parts.scheme in ("redis", "rediss") else "nats"
        raise ConfigError(f"cluster: a store of {parts.scheme}:// needs the extra {extra} (pip install 'laraman[{extra}]')") from None
