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

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio

from laraman.channel.jobs import Work
from laraman.channel.locks import Lock
from laraman.channel.methods import Methods, result_of
from laraman.channel.names import check_key, check_method, check_name, check_seconds, parse_member
from laraman.channel.subscription import Message, Subscription
from laraman.channel.tables import Table
from laraman.errors import Busy, ConfigError, ConnectionClosed, LinkDown, TaskError
from laraman.net.current import current_worker
from laraman.net.encoding import encode, encode_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from laraman.channel.jobs import Job
    from laraman.channel.tables import Value

F = TypeVar("F", bound="Callable[..., Any]")

#: Seconds that the backend has to do what is asked of it, where the caller does not say; and that it has to say good-bye.
ANSWER_SECONDS, CLOSE_SECONDS = 5.0, 2.0
#: Seconds that a process waits, when it starts and when it is replaced, until the backend knows whether it answers calls.
PLACE_SECONDS = 1.0
#: Seconds that ``_take`` is let wait for jobs at a time, and between two attempts while the backend is away.
TAKE_SECONDS, AGAIN_SECONDS = 20.0, 0.5


class _Watched:
    """A pattern that the backend watches, and who has subscribed to it. ``lock``: one watches or unwatches at a time."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.watching = False
        self.subscriptions: tuple[Subscription, ...] = ()


class Channel:
    """The connection of one process with the others, by way of a backend.

    ``name`` and ``slot`` are what others call this process by (a worker's; "" for a program that is not called); ``limit`` is how many jobs a queue
    may hold. Opened on first use, or with ``async with``; in a worker it is closed when that ends.
    """

    def __init__(self, url: str, *, name: str = "", slot: int | None = None, limit: int = 100_000) -> None:
        self.url = url
        self.name = name
        self.slot = slot
        self.limit = limit
        #: What others may call here.
        self.methods: dict[str, Callable[..., Any]] = {}
        self.worker: Any = current_worker.get()
        self._answering = Methods(self.worker)
        self._watched: dict[str, _Watched] = {}
        self._works: set[Work] = set()
        self._pulling: dict[Work, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opening: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is open
        self._closed = False

    # What an application does ----------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, data: Any) -> None:
        """Tell everybody who is subscribed to ``topic``: words joined by ".". Waits while the backend does not keep up.

        Raises LocalProtocolError for a topic that cannot be and for data that cannot be encoded, LinkDown when the backend is away for too long.
        """
        check_name(topic)
        payload = encode(data)
        if self._loop is not asyncio.get_running_loop():
            await self._ready()
        await self._publish(topic, payload)

    def subscribe(self, pattern: str, *, queue: int = 1000, overflow: str = "drop_oldest") -> Subscription:
        """The messages of the topics that match: "*" stands for one word, ">" at the end for one or more.

            async with channel.subscribe("orders.*") as subscription:
                async for message in subscription: ...

        Up to ``queue`` messages wait to be taken. When there is no room, ``overflow`` decides: "drop_oldest", "drop_newest", or "close": what
        waits is still given, then the iteration raises Busy. ``subscription.dropped`` counts. Raises LocalProtocolError for a pattern that cannot
        be, ConfigError for an ``overflow`` or ``queue`` that cannot.
        """
        return Subscription(self, pattern, queue, overflow)

    async def put(self, queue: str, data: Any, *, key: str | None = None, timeout: float = ANSWER_SECONDS) -> str:
        """Queue a job for one of the consumers of ``queue``; its id, when the backend has it safely.

        With a ``key`` nothing is queued while a job of the same key has not been acknowledged; the id of that one is returned. Raises Busy when the
        queue is full, LinkDown when there was no answer in ``timeout`` seconds: then it may be queued or not, and putting it again with the same
        key does no harm.
        """
        check_name(queue, "queue")
        payload = encode(data)
        await self._ready()
        return await self._put(queue, secrets.token_hex(8) if key is None else check_key(key, f"queue {queue}"), payload, timeout)

    async def get(self, queue: str, *, timeout: float, visibility: float = 30.0) -> Job:
        """One job, as soon as there is one. Raises TimeoutError when there was none in ``timeout`` seconds."""
        check_name(queue, "queue")
        await self._ready()
        for job in await self._take(queue, 1, visibility, timeout):
            return job
        raise TimeoutError(f"there was no job in queue {queue} in {timeout:g} s")

    def work(self, queue: str, *, visibility: float = 30.0, prefetch: int = 1) -> Work:
        """Consume ``queue``.

            async with channel.work("thumbs") as jobs:
                async for job in jobs:
                    ...
                    await job.ack()

        A job that is not acknowledged, given back or extended within ``visibility`` seconds is given to somebody again, at once when the backend
        sees that this process has died. No more than ``prefetch`` jobs are held at a time.
        """
        return Work(self, queue, visibility, prefetch)

    async def call(self, member: str, method: str, *args: Any, timeout: float = ANSWER_SECONDS, **kwargs: Any) -> Any:
        """Call ``method`` in one process of the worker ``member``, or in that of a slot: "http[2]"; what it returns.

        Raises TaskError for what it raised, TimeoutError when there was no answer in ``timeout`` seconds, LinkDown when there is no such process, or
        it ended meanwhile, or the backend is away, and Busy when it has too much to do.
        """
        name, slot = parse_member(member)
        payload = encode_call(args, kwargs, check_seconds(timeout, "timeout"))
        if self._loop is not asyncio.get_running_loop():
            await self._ready()
        if self.worker is not None and self.worker.sandbox.serial:
            return result_of(await self._out_of_turn(self._call, name, slot, check_method(method), payload, timeout))
        return result_of(await self._call(name, slot, check_method(method), payload, timeout))

    async def call_all(self, member: str, method: str, *args: Any, timeout: float = ANSWER_SECONDS, **kwargs: Any) -> list[Any]:
        """The same in all processes of the worker at once: results in the order of slots, and exceptions where there is none."""
        name, slot = parse_member(member)
        if slot is not None:
            try:
                return [await self.call(member, method, *args, timeout=timeout, **kwargs)]
            except (TaskError, TimeoutError, Busy) as exc:
                return [exc]
        payload = encode_call(args, kwargs, check_seconds(timeout, "timeout"))
        await self._ready()
        answers: list[bytes | Exception] = await self._out_of_turn(self._call_all, name, check_method(method), payload, timeout)
        return [_result_or_error(answer) for answer in answers]

    async def _out_of_turn(self, ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Under serial isolation others have their turn meanwhile, what the one that is called may call here above all."""
        if self.worker is not None and self.worker.sandbox.serial:
            return await self.worker.sandbox.out_of_turn(lambda: ask(*args))
        return await ask(*args)

    @overload
    def method(self, function: F) -> F: ...

    @overload
    def method(self, function: str) -> Callable[[F], F]: ...

    def method(self, function: Any) -> Any:
        """``@channel.method`` or ``@channel.method("name")``: what others may call here, plain or ``async``. Plain ones must not block."""
        if isinstance(function, str):
            return lambda named: self.add_method(function, named)
        return self.add_method(function.__name__, function)

    def add_method(self, name: str, function: F) -> F:
        """The same for any function. One that is there already is replaced."""
        self.methods[check_method(name)] = function
        if self._loop is not None:
            self._soon(self._serve(list(self.methods)))
        return function

    def table(self, name: str) -> Table:
        """A table that all processes share."""
        return Table(self, name)

    def lock(self, name: str, *, lease: float = 30.0, timeout: float = 30.0) -> Lock:
        """A lock of that name among all processes; see Lock."""
        return Lock(self, name, lease, timeout)

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Channel:
        return await self._ready()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _ready(self) -> Channel:
        """Open it if it is not; who comes first does, for all. Raises ConnectionClosed when it is closed, ConfigError in another event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return self
        if self._closed:
            raise ConnectionClosed("the channel is closed")
        if self._loop is not None or (self._opening is not None and self._opening.get_loop() is not loop):
            raise ConfigError("the channel belongs to another event loop: anyio.from_thread.run and asyncio.run_coroutine_threadsafe reach that")
        if self._opening is None or self._opening.done():
            # In a context of its own: what lives on is no part of the operation that needs it first.
            context = None if self.worker is None else self.worker.sandbox.outside()
            self._opening = asyncio.get_running_loop().create_task(self._begin(), name="open the channel", context=context)
        await asyncio.shield(self._opening)
        return self

    async def _begin(self) -> None:
        await self._open()
        self._loop = asyncio.get_running_loop()
        if self.worker is not None:
            self.worker.tasks.start_soon(self._close_at_the_end, name="channel")
        if self.methods:
            self._serving = self._soon(self._serve(list(self.methods)))

    async def take_place(self) -> None:
        """Open it; when this returns others can call the methods here, unless the backend is away."""
        await self._ready()
        if self._serving is not None:
            await asyncio.wait({self._serving}, timeout=PLACE_SECONDS)

    async def leave_place(self) -> None:
        """From now on calls go to others. Those that have come are answered, and what is asked here goes on."""
        if self._loop is not None and not self._closed and self.methods:
            with anyio.move_on_after(PLACE_SECONDS), contextlib.suppress(LinkDown):
                await self._withdraw()

    async def _close_at_the_end(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self.close()

    async def close(self) -> None:
        """End subscriptions, calls that are being answered and consumers, and give back what is not acknowledged. Idempotent."""
        if self._closed:
            return
        self._closed = True
        was_open, self._loop = self._loop is not None, None
        for watched in self._watched.values():
            for subscription in watched.subscriptions:
                subscription.end()
        for work in tuple(self._works):
            await work.close()
        await self._answering.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._opening is not None and not was_open:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if was_open or self._opening is not None:
            await self._shut()

    def _soon(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do it beside; that the backend is away is said elsewhere."""
        task = asyncio.get_running_loop().create_task(_quietly(doing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: doing.close())  # one that is cancelled before it begins does not
        return task

    # Subscriptions and consumers, which tell it that they begin and end ----------------------------------------------------------------

    async def _join(self, subscription: Subscription) -> None:
        await self._ready()
        watched = self._watched.setdefault(subscription.pattern, _Watched())
        watched.subscriptions += (subscription,)
        try:
            async with watched.lock:
                if not watched.watching:
                    await self._watch(subscription.pattern)
                    watched.watching = True
        except BaseException:
            subscription.end()
            self._part_soon(subscription)
            raise

    async def _part(self, subscription: Subscription) -> None:
        watched = self._watched.get(subscription.pattern)
        if watched is None:
            return
        watched.subscriptions = tuple(other for other in watched.subscriptions if other is not subscription)
        async with watched.lock:
            if watched.subscriptions or self._closed:
                return
            if watched.watching:
                watched.watching = False
                with contextlib.suppress(LinkDown):  # it has forgotten it
                    await self._unwatch(subscription.pattern)
            if not watched.subscriptions:  # nobody waits for the lock
                self._watched.pop(subscription.pattern, None)

    def _part_soon(self, subscription: Subscription) -> None:
        self._soon(self._part(subscription))

    async def _enter(self, work: Work) -> None:
        await self._ready()
        await self._consume(work)
        self._works.add(work)

    async def _exit(self, work: Work) -> None:
        self._works.discard(work)
        await self._leave(work)

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
        """Give ``work`` jobs, ``work.given(job)``, when it has room, until ``_leave``. It asks with ``_take``; who pushes has its own."""
        self._pulling[work] = asyncio.get_running_loop().create_task(self._pull(work), name=f"work of {work.queue}")

    async def _leave(self, work: Work) -> None:
        task = self._pulling.pop(work)
        task.cancel()
        await asyncio.wait({task})

    async def _pull(self, work: Work) -> None:
        while True:
            room = await work.room()
            try:
                for job in await self._take(work.queue, room, work.visibility, TAKE_SECONDS):
                    work.given(job)
            except LinkDown:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _ack(self, job: Job) -> bool:
        """It is done. This and the next two are False when somebody else has it by now."""
        raise NotImplementedError

    async def _nack(self, job: Job, delay: float) -> bool:
        """Give it to somebody again, in ``delay`` seconds."""
        raise NotImplementedError

    async def _extend(self, job: Job) -> bool:
        """Its visibility begins anew."""
        raise NotImplementedError

    async def _serve(self, methods: list[str]) -> None:
        """From now on take calls of these methods for ``name`` and ``slot``: tell ``_called`` of each. Again when there are more methods."""
        raise NotImplementedError

    async def _withdraw(self) -> None:
        """Take no more calls for ``name`` and ``slot``; when this returns, those that were sent here have been told to ``_called``."""
        raise NotImplementedError

    async def _call(self, name: str, slot: int | None, method: str, payload: bytes, timeout: float) -> bytes:
        """The answer of that slot's process, or of any when ``slot`` is None. Raises TimeoutError, Busy, and LinkDown as soon as it is
        known that none will come.
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
        """The sum; one that is not there counts as 0, and only then ``ttl`` counts. Raises LocalProtocolError where there is no int of 64 bits."""
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
        """Whether it is held with that token; then for another ``lease`` seconds. One that the backend has forgotten and nobody has is."""
        raise NotImplementedError

    async def _release(self, name: str, token: int) -> None:
        raise NotImplementedError

    # What a backend tells --------------------------------------------------------------------------------------------------------

    def _delivered(self, pattern: str, topic: str, payload: bytes) -> None:
        """A message for who has subscribed to ``pattern``. Never waits."""
        watched = self._watched.get(pattern)
        if watched is not None:
            for subscription in watched.subscriptions:
                subscription.offer(Message(topic, payload))

    def _missed(self, pattern: str, count: int) -> None:
        """The backend had no room for so many messages: this process did not read. Each subscription's policy applies."""
        watched = self._watched.get(pattern)
        for subscription in () if watched is None else watched.subscriptions:
            subscription.miss(count)

    def _interrupted(self) -> None:
        """The backend was away: messages may have been missed."""
        for watched in self._watched.values():
            for subscription in watched.subscriptions:
                subscription.gaps += 1

    def _called(self, method: str, payload: bytes, reply: Callable[[bytes], Any]) -> Callable[[], Any] | None:
        """A call for this process; ``reply`` is called with the answer, once, here and now or later. What is returned cancels it."""
        return self._answering.called(self.methods.get(method), method, payload, reply)


async def _quietly(doing: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(LinkDown):
        await doing


def _result_or_error(answer: bytes | Exception) -> Any:
    if isinstance(answer, Exception):
        return answer
    try:
        return result_of(answer)
    except Exception as exc:
        return exc
