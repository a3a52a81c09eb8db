"""Checks of publish and subscribe."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from laraman.errors import Busy, ConnectionClosed, LocalProtocolError
from laraman.testing.expecting import raises, require

if TYPE_CHECKING:
    from laraman.channel.subscription import Subscription
    from laraman.testing.channels import Bench

#: What messages may be made of.
SAMPLES: list[Any] = [None, True, 0, -(2**63), 2**63 - 1, 1.5, "", "grüße \U0001f600", b"\x00\xff", [], [1, ["two"]], {}, {"a": {"b": [None]}}]
SAMPLES.append(datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC))


async def take(subscription: Subscription, count: int) -> list[Any]:
    """The data of so many messages."""
    async with asyncio.timeout(20):
        return [(await anext(subscription)).data for _ in range(count)]


async def everybody(bench: Bench) -> None:
    """A message reaches everybody who is subscribed, its publisher too, with its topic and as it was."""
    first, second = await bench.open(), await bench.open()
    topic = f"{bench.name}.a"
    async with first.subscribe(topic) as mine, second.subscribe(topic) as other, second.subscribe(topic) as third:
        for sample in SAMPLES:
            await first.publish(topic, sample)
        for subscription in (mine, other, third):
            async with asyncio.timeout(20):
                messages = [await anext(subscription) for _ in SAMPLES]
            require([message.data for message in messages] == SAMPLES, f"{[message.data for message in messages]} arrived")
            require({message.topic for message in messages} == {topic}, "another topic arrived")


async def order(bench: Bench) -> None:
    """Messages of one publisher arrive in their order, and none is missing while they are taken."""
    publisher, subscriber = await bench.open(), await bench.open()
    async with subscriber.subscribe(bench.name, queue=5000) as subscription:
        for number in range(2000):
            await publisher.publish(bench.name, number)
        require(await take(subscription, 2000) == list(range(2000)), "they are not in order")


async def patterns(bench: Bench) -> None:
    """In patterns "*" is one word and ">" one or more; other characters are themselves."""
    channel = await bench.open()
    topics = ["a", "a.b", "a.b.c", "b.a", "a.[b]", "a.b?", "a.bb", "a\\b", "a:b", "ä.ö"]
    cases = {
        "a": ["a"],
        "a.*": ["a.b", "a.[b]", "a.b?", "a.bb"],
        "a.>": ["a.b", "a.b.c", "a.[b]", "a.b?", "a.bb"],
        "*.a": ["b.a"],
        "*.*": ["a.b", "b.a", "a.[b]", "a.b?", "a.bb", "ä.ö"],
        "a.[b]": ["a.[b]"],
        "a.b?": ["a.b?"],
        "a\\b": ["a\\b"],
        "a:b": ["a:b"],
        "ä.*": ["ä.ö"],
        "*.b.*": ["a.b.c"],
    }
    for number, (pattern, expected) in enumerate(cases.items()):
        async with channel.subscribe(f"{bench.name}{number}.{pattern}") as subscription:
            for topic in topics:
                await channel.publish(f"{bench.name}{number}.{topic}", topic)
            found = await take(subscription, len(expected))
            require(found == expected, f"{pattern} gave {found}")


async def overlapping(bench: Bench) -> None:
    """Each of several patterns that match gets the message once."""
    channel = await bench.open()
    names = ["x.y", "x.*", "x.>", "*.y", ">"]
    subscriptions = [channel.subscribe(f"{bench.name}.{name}") for name in names]
    for subscription in subscriptions:
        await subscription.__aenter__()
    await channel.publish(f"{bench.name}.x.y", 1)
    await channel.publish(f"{bench.name}.x.y", 2)
    for subscription in subscriptions:
        require(await take(subscription, 2) == [1, 2], f"{subscription.pattern} got something else")
        await subscription.close()


async def leaving(bench: Bench) -> None:
    """Who has left a subscription gets nothing; who enters one gets nothing from before; others keep theirs."""
    publisher, subscriber = await bench.open(), await bench.open()
    async with publisher.subscribe(bench.name) as first:
        await publisher.publish(bench.name, "before")
        await take(first, 1)
    async with subscriber.subscribe(bench.name) as stays:
        async with subscriber.subscribe(bench.name) as leaves:
            await publisher.publish(bench.name, 1)
            require(await take(leaves, 1) == [1], "something from before arrived")
        await publisher.publish(bench.name, 2)
        require(await take(stays, 2) == [1, 2], "who stays was left out")
    async with subscriber.subscribe(bench.name) as again:
        await publisher.publish(bench.name, 3)
        require(await take(again, 1) == [3], "a second subscription gets something else")
        with raises(StopAsyncIteration):
            await anext(leaves)


async def policies(bench: Bench) -> None:
    """A full queue drops the oldest, drops the newest or closes, as its subscriber said, and counts; others do not notice."""
    publisher, subscriber = await bench.open(), await bench.open()
    oldest = subscriber.subscribe(bench.name, queue=10, overflow="drop_oldest")
    newest = subscriber.subscribe(bench.name, queue=10, overflow="drop_newest")
    closes = subscriber.subscribe(bench.name, queue=10, overflow="close")
    async with oldest, newest, closes, subscriber.subscribe(bench.name, queue=1000) as reads:
        for number in range(100):
            await publisher.publish(bench.name, number)
        require(await take(reads, 100) == list(range(100)), "who reads was left out")
        require(await take(oldest, 10) == list(range(90, 100)), "drop_oldest kept others")
        require(await take(newest, 10) == list(range(10)), "drop_newest kept others")
        require(oldest.dropped == newest.dropped == 90, f"{oldest.dropped} and {newest.dropped} were counted, not 90")
        require(await take(closes, 10) == list(range(10)), "what waited was not given")
        with raises(Busy, "10 messages"):
            await anext(closes)


async def large(bench: Bench) -> None:
    """A message of half a million bytes arrives."""
    publisher, subscriber = await bench.open(), await bench.open()
    async with subscriber.subscribe(bench.name) as subscription:
        await publisher.publish(bench.name, b"x" * 500_000)
        require(await take(subscription, 1) == [b"x" * 500_000], "another one arrived")


async def refusals(bench: Bench) -> None:
    """Topics, patterns, names and data that cannot be are refused, and nothing else happens."""
    channel = await bench.open()
    for topic in ("", "a..b", ".a", "a b", "a.*", "a.>", "a\n", "x" * 256):
        with raises(LocalProtocolError):
            await channel.publish(topic, 1)
        with raises(LocalProtocolError):
            await channel.put(topic, 1)
    for pattern in ("", "a..b", "a.>.b", "a b"):
        with raises(LocalProtocolError):
            channel.subscribe(pattern)
    with raises(LocalProtocolError, "data['user'][1]"):
        await channel.publish(bench.name, {"user": [1, object()]})
    with raises(LocalProtocolError, "data"):
        await channel.put(bench.name, {1: 2})


async def closing(bench: Bench) -> None:
    """Closing ends subscriptions and consumers that are waited in; a closed channel does nothing more and can be closed again."""
    channel = await bench.open()
    async with channel.subscribe(bench.name) as subscription, channel.work(bench.name) as jobs:
        waits = [asyncio.ensure_future(anext(each)) for each in (subscription, jobs)]
        await asyncio.sleep(0)
        await channel.close()
        results = await asyncio.gather(*waits, return_exceptions=True)
        require(all(isinstance(result, StopAsyncIteration) for result in results), f"they ended with {results}")
    with raises(ConnectionClosed):
        await channel.publish(bench.name, 1)
    await channel.close()


TOPICS = (everybody, order, patterns, overlapping, leaving, policies, large, refusals, closing)
