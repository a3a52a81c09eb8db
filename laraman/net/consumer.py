"""Consumers: loops of third-party clients (a Redis subscriber, NATS, MQTT, Kafka, a websocket feed) that are kept alive.

    async def orders():
        async with redis.pubsub() as feed:
            await feed.subscribe("orders")
            async for message in feed.listen():
                ...

    laraman.supervise("orders", orders, scope="server")
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, overload

from laraman.net.resident import Declared

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.net.link import Backoff
    from laraman.net.resident import Resident

F = TypeVar("F", bound="Callable[[], Awaitable[Any]]")


class Consumer(Declared):
    """A consumer that has been declared."""

    what = "consumer"

    def __init__(
        self, name: str, function: Callable[[], Awaitable[Any]], *, scope: str, worker: str | None, backoff: Backoff | None, registrar: str
    ) -> None:
        super().__init__(function, name, scope, worker, registrar)
        self.backoff = backoff
        self.declare()

    def resident(self, worker: Any) -> Resident:
        from laraman.net.consuming import Consuming

        return Consuming(self, worker)


@overload
def supervise(
    name: str, coroutine_function: None = None, *, scope: str = "worker", worker: str | None = None, backoff: Backoff | None = None
) -> Callable[[F], F]: ...


@overload
def supervise(
    name: str, coroutine_function: Callable[[], Awaitable[Any]], *, scope: str = "worker", worker: str | None = None, backoff: Backoff | None = None
) -> Consumer: ...


def supervise(
    name: str,
    coroutine_function: Callable[[], Awaitable[Any]] | None = None,
    *,
    scope: str = "worker",
    worker: str | None = None,
    backoff: Backoff | None = None,
) -> Any:
    """Run ``coroutine_function()`` and, whenever it raises or returns, run it again after a pause of ``backoff``; without it, a decorator.

    ``scope``: in each process of the Workers named ``worker``, or in one of the "server", or of the "cluster" (``laraman.net.resident``). The first
    failure in a row is logged with its traceback. A run of ten seconds, or of the longest pause that would follow, ends a row.

    It is cancelled when its worker stops, after requests, messages and timers have been finished; so at a reload the predecessor consumes until
    then, and the successor of one per server begins when it has ended, with a gap in which nobody consumes: what must not be lost is for the broker
    to keep. When the lease of a cluster cannot be renewed it is cancelled before that ends. It is one of the rows of ``laraman connections``.

    It is no operation: where the handling of a record is to be one, ``worker.sandbox.run(handle, record)`` makes it one. Raises ConfigError.
    """
    registrar = str(sys._getframe(1).f_globals.get("__name__"))

    def declare(function: Callable[[], Awaitable[Any]]) -> Consumer:
        return Consumer(name, function, scope=scope, worker=worker, backoff=backoff, registrar=registrar)

    def decorate(function: F) -> F:
        declare(function)
        return function

    return decorate if coroutine_function is None else declare(coroutine_function)
