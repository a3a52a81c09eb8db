"""The channel between processes: topics, queues of work, calls, and what they share.

    from laraman import channel

    await channel.publish("orders.new", {"id": 7})

    async with channel.subscribe("orders.*") as subscription:
        async for message in subscription:
            print(message.topic, message.data)

    @channel.method
    def hello(name):
        return f"Hello, {name}!"

    await channel.call("http[2]", "hello", "you", timeout=1)

These are the calls of the process's own channel, which ``--channel`` names and ``laraman connections`` shows: opened when it is first used,
closed when the worker ends. ``connect`` is for programs outside of a server. `Channel` in ``laraman.channel.interface`` says what each of
them does and raises.

Only what is called brings in an event loop: methods can be declared in modules that a master imports too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from laraman import events
from laraman.errors import ConfigError
from laraman.net.current import current_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.channel.interface import Channel
    from laraman.channel.jobs import Job, Work
    from laraman.channel.locks import Lock
    from laraman.channel.subscription import Subscription
    from laraman.channel.tables import Table

F = TypeVar("F", bound="Callable[..., Any]")

#: What this process's own channel answers.
METHODS: dict[str, Callable[..., Any]] = {}

_channels: WeakKeyDictionary[Any, Channel] = WeakKeyDictionary()


def current() -> Channel:
    """The channel of this process. Raises ConfigError outside of a worker, and where there is no hub."""
    worker = current_worker.get()
    channel = None if worker is None else _channels.get(worker)
    return _made_for(worker) if channel is None else channel


def _made_for(worker: Any) -> Channel:
    if worker is None:
        raise ConfigError("this process is no worker, or this thread no task of one: channel.connect(url) is for other programs")
    url = worker.config.channel
    if not url:
        if "hub" not in worker.inner_paths:
            raise ConfigError("there is no hub here, because there is no master or no state directory: --channel redis://... or nats://...")
        url = f"unix://{worker.inner_paths['hub']}"
    channel = _channels[worker] = connect(url, name=worker.name, slot=worker.slot, limit=worker.config.channel_queue)
    channel.methods = METHODS
    return channel


def connect(url: str, *, name: str = "", slot: int | None = None, limit: int = 100_000) -> Channel:
    """A channel of one's own, for programs outside of a server: ``async with channel.connect("redis://127.0.0.1") as there:``.

    ``url`` is ``redis://``, ``rediss://``, ``nats://``, ``tls://``, or ``unix:///path/hub.sock`` in a server's state directory. With a ``name``
    others can call its methods. Nothing is dialled before it is used. Raises ConfigError for another URL and where an extra is not installed.
    """
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {"name": name, "slot": slot, "limit": limit}
    try:
        if scheme == "unix":
            from laraman.channel.client import HubChannel

            return HubChannel(url, **options)
        if scheme in ("redis", "rediss"):
            from laraman.channel.redis import RedisChannel

            return RedisChannel(url, **options)
        if scheme in ("nats", "tls"):
            from laraman.channel.nats import NatsChannel

            return NatsChannel(url, **options)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in ("redis", "nats"):
            raise  # a fault of ours, which is to be seen
        extra = "redis" if scheme in ("redis", "rediss") else "nats"
        raise ConfigError(f"channel: {scheme}:// needs the extra {extra} (pip install 'laraman[{extra}]')") from None
    raise ConfigError(f"channel: {scheme}:// is none of unix, redis, rediss, nats and tls")


# Those of the process's own channel ---------------------------------------------------------------------------------------------------


async def publish(topic: str, data: Any) -> None:
    await current().publish(topic, data)


def subscribe(pattern: str, *, queue: int = 1000, overflow: str = "drop_oldest") -> Subscription:
    return current().subscribe(pattern, queue=queue, overflow=overflow)


async def put(queue: str, data: Any, *, key: str | None = None, timeout: float = 5.0) -> str:
    return await current().put(queue, data, key=key, timeout=timeout)


async def get(queue: str, *, timeout: float, visibility: float = 30.0) -> Job:
    return await current().get(queue, timeout=timeout, visibility=visibility)


def work(queue: str, *, visibility: float = 30.0, prefetch: int = 1) -> Work:
    return current().work(queue, visibility=visibility, prefetch=prefetch)


async def call(member: str, method: str, *args: Any, timeout: float = 5.0, **kwargs: Any) -> Any:
    return await current().call(member, method, *args, timeout=timeout, **kwargs)


async def call_all(member: str, method: str, *args: Any, timeout: float = 5.0, **kwargs: Any) -> list[Any]:
    return await current().call_all(member, method, *args, timeout=timeout, **kwargs)


def table(name: str) -> Table:
    return current().table(name)


def lock(name: str, *, lease: float = 30.0, timeout: float = 30.0) -> Lock:
    return current().lock(name, lease=lease, timeout=timeout)


async def fan_out(websocket: Any, topic: str, *, publish: bool = True, queue: int = 100, overflow: str = "drop_oldest") -> None:
    """Connect an accepted websocket with ``topic``: see ``laraman.channel.fanout``."""
    from laraman.channel.fanout import fan_out

    await fan_out(current(), websocket, topic, publish=publish, queue=queue, overflow=overflow)


# Methods ------------------------------------------------------------------------------------------------------------------------------


@overload
def method(function: F) -> F: ...


@overload
def method(function: str) -> Callable[[F], F]: ...


def method(function: Any) -> Any:
    """``@channel.method`` or ``@channel.method("name")``: what others may call in every process that has imported this. Plain ones must not block."""
    if isinstance(function, str):
        return lambda named: _declare(function, named)
    return _declare(function.__name__, function)


def _declare(name: str, function: F) -> F:
    from laraman.channel.names import check_method

    worker = current_worker.get()
    channel = None if worker is None else _channels.get(worker)
    if channel is not None:
        return channel.add_method(name, function)
    METHODS[check_method(name)] = function
    return function


@events.on(events.WorkerStarted)
async def _answer(event: events.WorkerStarted) -> None:
    """Whoever has methods is to be reached; but the hub is not its own client."""
    worker = event.worker
    if METHODS and worker.inner != "hub" and (worker.config.channel or "hub" in worker.inner_paths):
        await current().take_place()


@events.on(events.WorkerStopping)
async def _leave(event: events.WorkerStopping) -> None:
    """Whoever is replaced leaves calls to its successor. When the whole server stops there is none."""
    channel = _channels.get(event.worker)
    if channel is not None and event.worker.stop_reason != "stop":
        await channel.leave_place()
