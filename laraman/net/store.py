"""Stores that the servers of a cluster share: what is held in one ends by itself, what is noted stays. See ``laraman.net.lease``.

    redis://[user:password@]host[:port][/db]     rediss:// with TLS; needs the extra redis
    nats://[user:password@]host[:port]           tls:// with TLS; needs the extra nats, and a server with JetStream; nats://TOKEN@host as well

``?prefix=NAME`` is what names begin with there, "laraman" by default: clusters that share a store need different ones. With TLS the server has to
be the one that is named; ``?ssl_ca_certs=FILE`` is trusted beside the system's authorities, ``ssl_certfile`` and ``ssl_keyfile`` are shown to it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from laraman.config.texts import redis_or_nats
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.net.lease import StoreLease

logger = logging.getLogger("uvicorn.error")

#: Seconds after which a lease ends unless it is renewed: for so long nobody runs when its holder has died.
LEASE_SECONDS = 10.0
#: Seconds that the store has to answer.
ANSWER_SECONDS = 2.0


class Outage:
    """Says once that a server is away, and once that it is back. ``server`` is what it is called, ``meanwhile`` what becomes of what needs it."""

    def __init__(self, server: str, url: str, meanwhile: str) -> None:
        parts = urlsplit(url)
        self.server = f"{server} {parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # not the password
        self._meanwhile = meanwhile
        self._away = False

    def begins(self, error: BaseException) -> None:
        """It does not answer. Said once."""
        if not self._away:
            self._away = True
            logger.warning("%s is away, %s: %s", self.server, self._meanwhile, str(error) or "no answer in time")

    def ends(self) -> None:
        """It answers."""
        if self._away:
            self._away = False
            logger.info("%s is back", self.server)


class Store:
    """The connection of one worker with the store. Every method that asks it raises LinkDown when there is no answer."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.seconds = LEASE_SECONDS
        self.users = 0
        self.outage = Outage("The cluster's store", url, "what runs once in the cluster waits for it")

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
    scheme = urlsplit(url).scheme
    url, prefix = split_prefix(url)
    try:
        if scheme in ("redis", "rediss"):
            from laraman.net.redis_store import RedisStore

            return RedisStore(url, prefix)
        from laraman.net.nats_store import NatsStore

        return NatsStore(url, prefix)
    except ImportError:
        extra = "redis" if scheme in ("redis", "rediss") else "nats"
        raise ConfigError(f"cluster: a store of {scheme}:// needs the extra {extra} (pip install 'laraman[{extra}]')") from None


def split_prefix(url: str) -> tuple[str, str]:
    """``url`` without its prefix, and that: what names begin with there. Raises ConfigError for a URL that cannot be."""
    try:
        redis_or_nats(url)
    except ValueError as exc:
        raise ConfigError(f"the URL of Redis or NATS: {exc}") from None
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    prefix = query.pop("prefix", "laraman")
    return urlunsplit(parts._replace(query=urlencode(query))), prefix
