"""The channel between processes: messages by topic, queues of work, calls, tables and locks.

``Channel`` is the interface of the embedded hub, of Redis and of NATS. What is the same for all of them is here and in the modules that are imported
below: queues and policies of subscriptions, patterns, encoding, methods, deadlines. A backend fills in the methods under "What a backend does",
and calls those under "What a backend tells". What it is given is checked already, and payloads are bytes that it passes on as they are.

What is promised:

    publish     at most once: to who is subscribed at the moment and keeps up; order is kept between one publisher and one subscriber
    put         at least once: when it returns the backend has the job safely, and gives it to consumers until one acknowledges it
    call        at most once: an error may mean that it was carried out and the answer lost, and says so (LinkDown, TimeoutError)
    table       each call is atomic; what is in it lives as long as the backend's memory: the hub's is gone when the hub was started anew
    lock        one holder at a time, as long as the leases are kept; ``token`` grows with each holder, for those who must be sure

While the backend is away: what has not been sent waits for it up to its deadline; what was sent and not answered is asked again where that cannot
do harm (subscriptions, puts, reading), and is LinkDown where it could (calls, increments).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from laraman.channel.subscription import Subscription
from laraman.channel.table import Table
from laraman.channel.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.channel.lock import Lock
    from laraman.channel.table import Value
    from laraman.channel.work import Job

F = TypeVar("F", bound="Callable[..., Any]")

#: Seconds that the backend has to do what is asked of it, where the caller does not say.
ANSWER_SECONDS = 5.0


class Channel:
    """The connection of one process with the others, by way of a backend.

    ``name`` and ``slot`` are what others call this process by (a worker's; "" for a program that is not called); ``limit`` is how many jobs a queue
    may hold.
    Opened on first use, or with ``async with``.
    """

    def __init__(self, url: str, *, name: str = "", slot: int | None = None, limit: int = 100_000) -> None:
        self.url = url
        self.name = name
        self.slot = slot
        self.limit = limit
        self.methods: dict[str, Callable[..., Any]] = {}

    # What an application does ----------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, data: Any) -> None:
        """Tell everybody who is subscribed to ``topic``: words joined by ".". Waits while the backend does not keep up.

        Raises LocalProtocolError for a topic that cannot be and for data that cannot be encoded, LinkDown when the backend is away for too long.
        """
        raise NotImplementedError

    def subscribe(self, pattern: str, *, queue: int = 1000, overflow: str = "drop_oldest") -> Subscription:
        """The messages of the topics that match: "*" stands for one word, ">" at the end for one or more.

            async with channel.subscribe("orders.*") as subscription:
                async for message in subscription: ...

        Up to ``queue`` messages wait to be taken. When there is no room, ``overflow`` decides: "drop_oldest", "drop_newest", or "close": what
        waits is still given, then the iteration raises Busy. ``subscription.dropped`` counts. Raises LocalProtocolError for a pattern that cannot
        be, ConfigError for an ``overflow`` or ``queue`` that cannot.
        """
        raise NotImplementedError

    async def put(self, queue: str, data: Any, *, key: str | None = None, timeout: float = ANSWER_SECONDS) -> str:
        """Queue a job for one of the consumers of ``queue``; its id, when the backend has it safely.

        With a ``key`` nothing is queued while a job of the same key has not been acknowledged; the id of that one is returned. Raises Busy when the
        queue is full, LinkDown when there was no answer in ``timeout`` seconds: then it may be queued or not, and putting it again with the same
        key does no harm.
        """
        raise NotImplementedError

    async def get(self, queue: str, *, timeout: float, visibility: float = 30.0) -> Job:
        """One job, as soon as there is one. Raises TimeoutError when there was none in ``timeout`` seconds."""
        raise NotImplementedError

    def work(self, queue: str, *, visibility: float = 30.0, prefetch: int = 1) -> Work:
        """Consume ``queue``.

            async with channel.work("thumbs") as jobs:
                async for job in jobs:
                    ...
                    await job.ack()

        A job that is not acknowledged, given back or extended within ``visibility`` seconds is given to somebody again, at once when the backend
        sees that this process has died. No more than ``prefetch`` jobs are held at a time.
        """
        raise NotImplementedError

    async def call(self, member: str, method: str, *args: Any, timeout: float = ANSWER_SECONDS, **kwargs: Any) -> Any:
        """Call ``method`` in one process of the worker ``member``, or in that of a slot: "http[2]"; what it returns.

        Raises TaskError for what it raised, TimeoutError when there was no answer in ``timeout`` seconds, LinkDown when there is no such process, or
        it ended meanwhile, or the backend is away, and Busy when it has too much to do.
        """
        raise NotImplementedError

    async def call_all(self, member: str, method: str, *args: Any, timeout: float = ANSWER_SECONDS, **kwargs: Any) -> list[Any]:
        """The same in all processes of the worker at once: results in the order of slots, and exceptions where there is none."""
        raise NotImplementedError

    def method(self, function: F | str) -> Any:
        """``@channel.method`` or ``@channel.method("name")``: what others may call here, plain or ``async``. Plain ones must not block."""
        raise NotImplementedError

    def table(self, name: str) -> Table:
        """A table that all processes share."""
        raise NotImplementedError

    def lock(self, name: str, *, lease: float = 30.0, timeout: float = 30.0) -> Lock:
        """A lock of that name among all processes; see Lock."""
        raise NotImplementedError

    async def close(self) -> None:
        """End subscriptions and give back what is not acknowledged. Idempotent."""
        raise NotImplementedError

    async def __aenter__(self) -> Channel:
        raise NotImplementedError

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # What a backend does ---------------------------------------------------------------------------------------------------------
    #
    # Each raises LinkDown when the backend is away for longer than it should wait, TimeoutError never but where it is said.

    async def _open(self) -> None:
        """Start to connect, and keep connected until ``_shut``. Need not wait until the backend is there."""
        raise NotImplementedError

    async def _shut(self) -> None:
        """Send what waits, for a second at most, and disconnect."""
        raise NotImplementedError

    async def _publish(self, topic: str, payload: bytes) -> None:
        raise NotImplementedError

    async def _watch(self, pattern: str) -> None:
        """From when this returns until ``_unwatch``, tell ``_delivered`` of each message of the topics that match. Once per pattern, however many
        subscribe. When the backend was away in between, watch again, and tell ``_interrupted``.
        """
        raise NotImplementedError

    async def _unwatch(self, pattern: str) -> None:
        raise NotImplementedError

    async def _put(self, queue: str, key: str, payload: bytes, timeout: float) -> str:
        """Queue a job unless one with its ``key`` waits or is held already; the id of the one that is queued. ``key`` is the caller's, or a random
        one: the same put can be sent again when the answer was lost. Raises Busy when ``limit`` jobs are queued.
        """
        raise NotImplementedError

    async def _take(self, queue: str, count: int, visibility: float, timeout: float) -> list[Job]:
        """1 to ``count`` jobs as soon as there are any, none when there are none in ``timeout`` seconds. What comes when this has been cancelled is
        given back.
        """
        raise NotImplementedError

    async def _consume(self, work: Work) -> None:
        """Give ``work`` jobs, ``work.given(job)``, when it has room, until ``_leave``. This asks with ``_take``; a backend that pushes has its own."""
        raise NotImplementedError

    async def _leave(self, work: Work) -> None:
        raise NotImplementedError

    async def _ack(self, job: Job) -> None:
        raise NotImplementedError

    async def _nack(self, job: Job, delay: float) -> None:
        """Give it to somebody again, in ``delay`` seconds."""
        raise NotImplementedError

    async def _extend(self, job: Job) -> None:
        """Its visibility begins anew."""
        raise NotImplementedError

    async def _serve(self, methods: list[str]) -> None:
        """From now on take calls of these methods for ``name`` and ``slot``: tell ``_called`` of each. Again when there are more methods."""
        raise NotImplementedError

    async def _call(self, name: str, slot: int | None, method: str, payload: bytes, timeout: float) -> bytes:
        """The answer of that slot's process, or of any when ``slot`` is None. Raises TimeoutError, Busy, and LinkDown as soon as it is known that none
        will come.
        """
        raise NotImplementedError

    async def _call_all(self, name: str, method: str, payload: bytes, timeout: float) -> list[bytes | Exception]:
        """One for each process that there is, by slot. Raises LinkDown when there is none."""
        raise NotImplementedError

    async def _get(self, table: str, key: str) -> Value | None:
        raise NotImplementedError

    async def _set(self, table: str, key: str, value: Value, ttl: float | None) -> None:
        raise NotImplementedError

    async def _increment(self, table: str, key: str, by: int, ttl: float | None) -> int:
        """The sum; a key that is not there counts as 0, and only then ``ttl`` counts. Raises LocalProtocolError where there is no int of 64 bits."""
        raise NotImplementedError

    async def _compare_and_set(self, table: str, key: str, old: Value | None, new: Value | None, ttl: float | None) -> bool:
        """Set ``new`` if there is ``old``; None is a key that is not there."""
        raise NotImplementedError

    async def _delete(self, table: str, key: str) -> bool:
        """Whether it was there."""
        raise NotImplementedError

    async def _keys(self, table: str) -> list[str]:
        raise NotImplementedError

    async def _acquire(self, name: str, lease: float, timeout: float) -> int | None:
        """The token, as soon as the lock is free; None when that is not within ``timeout`` seconds. Tokens only grow."""
        raise NotImplementedError

    async def _renew(self, name: str, token: int, lease: float) -> bool:
        """Whether it is still held with that token; then for another ``lease`` seconds. One that the backend has forgotten and nobody has is."""
        raise NotImplementedError

    async def _release(self, name: str, token: int) -> None:
        raise NotImplementedError

    # What a backend tells --------------------------------------------------------------------------------------------------------

    def _delivered(self, pattern: str, topic: str, payload: bytes) -> None:
        """A message for who has subscribed to ``pattern``. Never waits."""
        raise NotImplementedError

    def _missed(self, pattern: str, count: int) -> None:
        """The backend had no room for so many messages: this process did not read. Each subscription's policy applies."""
        raise NotImplementedError

    def _interrupted(self) -> None:
        """The backend was away: messages may have been missed."""
        raise NotImplementedError

    def _called(self, method: str, payload: bytes, reply: Callable[[bytes], Any]) -> Callable[[], Any] | None:
        """A call for this process; ``reply`` is called with the answer, once, here and now or later. What is returned cancels it."""
        raise NotImplementedError


def channel_of(url: str, **options: Any) -> Channel:
    """The channel for ``url``, of the backend that it names. Raises ConfigError for one that cannot be, or whose extra is not installed."""
    raise NotImplementedError
