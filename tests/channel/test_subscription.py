"""The queue of a subscription and its policies, and what the channel does for several of one pattern."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from laraman.channel.interface import Channel
from laraman.errors import Busy, ConfigError, ConnectionClosed, LinkDown, RemoteProtocolError
from laraman.net.encoding import encode
from tests.net.serving import until

if TYPE_CHECKING:
    from laraman.channel.subscription import Subscription

pytestmark = pytest.mark.anyio


class Books(Channel):
    """A backend that only keeps books."""

    def __init__(self) -> None:
        super().__init__("books://")
        self.said: list[str] = []
        self.away = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def _open(self) -> None:
        self.said.append("open")

    async def _shut(self) -> None:
        self.said.append("shut")

    async def _watch(self, pattern: str) -> None:
        await self.hold.wait()
        if self.away:
            raise LinkDown("away")
        self.said.append(f"+{pattern}")

    async def _unwatch(self, pattern: str) -> None:
        self.said.append(f"-{pattern}")

    def say(self, *numbers: int) -> None:
        for number in numbers:
            self._delivered("a.*", "a.b", encode(number))


async def rest(subscription: Subscription) -> list[Any]:
    """What waits in it."""
    return [(await anext(subscription)).data for _ in range(len(subscription._queue))]


@pytest.mark.parametrize(("overflow", "left"), [("drop_oldest", [3, 4]), ("drop_newest", [1, 2])])
async def test_a_full_queue_drops_as_its_policy_says(overflow: str, left: list[int]) -> None:
    books = Books()
    async with books.subscribe("a.*", queue=2, overflow=overflow) as subscription, books.subscribe("a.*") as other:
        books.say(1, 2, 3, 4)
        assert (subscription.dropped, await rest(subscription)) == (2, left)
        assert (other.dropped, await rest(other)) == (0, [1, 2, 3, 4])
        books._missed("a.*", 5)
        assert (subscription.dropped, other.dropped) == (7, 5)


async def test_a_full_queue_that_closes_gives_what_it_has_first() -> None:
    books = Books()
    async with books.subscribe("a.*", queue=2, overflow="close") as subscription:
        books.say(1, 2, 3, 4)
        assert await rest(subscription) == [1, 2]
        with pytest.raises(Busy, match=r"a\.\* was closed: more than 2 messages waited"):
            await anext(subscription)
        await until(lambda: "-a.*" in books.said)
        books.say(5)
        assert subscription.dropped == 1


async def test_one_that_does_not_read_closes_when_the_backend_has_dropped() -> None:
    books = Books()
    async with books.subscribe("a.*", overflow="close") as subscription:
        books._missed("a.*", 3)
        with pytest.raises(Busy):
            await anext(subscription)


async def test_the_backend_watches_a_pattern_once() -> None:
    books = Books()
    async with books.subscribe("a.*") as first:
        async with books.subscribe("a.*") as second, books.subscribe("a.>"):
            books.say(1)
            assert await rest(first) == await rest(second) == [1]
        books.say(2)
        assert await rest(first) == [2]
    assert books.said == ["open", "+a.*", "+a.>", "-a.>", "-a.*"]


async def test_who_comes_while_it_is_being_watched_waits_for_that() -> None:
    books = Books()
    books.hold.clear()
    entered = [asyncio.create_task(books.subscribe("a.*").__aenter__()) for _ in range(2)]
    await until(lambda: books.said == ["open"])
    await asyncio.sleep(0)
    assert not any(task.done() for task in entered)
    books.hold.set()
    await asyncio.wait_for(asyncio.gather(*entered), 5)
    assert books.said == ["open", "+a.*"]
    await books.close()


async def test_one_that_cannot_be_had_leaves_nothing() -> None:
    books = Books()
    books.away = True
    with pytest.raises(LinkDown):
        await books.subscribe("a.*").__aenter__()
    await until(lambda: not books._watched)
    books.away = False
    async with books.subscribe("a.*") as subscription:
        books.say(1)
        assert await rest(subscription) == [1]


async def test_a_loop_over_it_alone_subscribes_and_ends_with_the_channel() -> None:
    books = Books()
    heard: list[Any] = []

    async def listen() -> None:
        async for message in books.subscribe("a.*"):
            heard.append(message.data)

    listening = asyncio.create_task(listen())
    await until(lambda: "+a.*" in books.said)
    books.say(1)
    await until(lambda: heard == [1])
    await books.close()
    await asyncio.wait_for(listening, 5)
    assert books.said[-1] == "shut"
    with pytest.raises(ConnectionClosed, match="the channel is closed"):
        await books.publish("a.b", 1)


async def test_what_others_published_can_be_had_as_it_is() -> None:
    books = Books()
    async with books.subscribe("a.*") as subscription:
        books._delivered("a.*", "a.b", b"\xc1 not msgpack")
        message = await anext(subscription)
        assert (message.topic, message.payload) == ("a.b", b"\xc1 not msgpack")
        with pytest.raises(RemoteProtocolError, match="13 bytes that are not msgpack"):
            _ = message.data


async def test_options_that_cannot_be() -> None:
    books = Books()
    with pytest.raises(ConfigError, match="overflow is 'wait', not drop_oldest, drop_newest or close"):
        books.subscribe("a", overflow="wait")
    with pytest.raises(ConfigError, match="has no room for one"):
        books.subscribe("a", queue=0)
    with pytest.raises(ConfigError, match="must be positive"):
        books.work("a", prefetch=0)
    with pytest.raises(ConfigError, match="must be positive"):
        books.lock("a", lease=0)
