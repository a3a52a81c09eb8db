"""Checks of tables and locks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from laraman.errors import LocalProtocolError
from laraman.testing.expecting import eventually, raises, require

if TYPE_CHECKING:
    from laraman.channel.interface import Channel
    from laraman.testing.channels import Bench

#: Keys that are none too easy.
KEYS = ["a", "a.b", "a:b", "*", ">", "a b", "[x]?", "ä/ö", "k" * 500]


async def values(bench: Bench) -> None:
    """What one process sets others get, as it was; what is deleted is gone; keys are those that are there."""
    one, other = (await bench.open()).table(bench.name), (await bench.open()).table(bench.name)
    require(await one.get("none") is None and await one.get("none", 7) == 7, "there is something")
    for number, key in enumerate(KEYS):
        await one.set(key, {"number": number})
    for number, key in enumerate(KEYS):
        require(await other.get(key) == {"number": number}, f"{key} has {await other.get(key)}")
    require(sorted(await other.keys()) == sorted(KEYS), f"keys are {await other.keys()}")
    samples: list[Any] = [0, -1, 2**62, -(2**63), True, False, 1.5, "", "5", b"", b"5", b"=5", [1], {}]
    for value in samples:
        await one.set("a", value)
        found = await other.get("a")
        require(found == value and type(found) is type(value), f"{value!r} became {found!r}")
    require(await other.delete("a") and not await one.delete("a"), "delete does not say what was there")
    require("a" not in await one.keys() and await one.get("a") is None, "it is still there")


async def apart(bench: Bench) -> None:
    """Tables do not know of each other."""
    channel = await bench.open()
    one, other = channel.table(bench.name), channel.table(f"{bench.name}.b")
    third = channel.table(f"{bench.name}:b")
    await one.set("b:k", 1)
    await other.set("k", 2)
    await third.set("k", 3)
    require([await one.get("b:k"), await other.get("k"), await third.get("k")] == [1, 2, 3], "they mix")
    require([await table.keys() for table in (one, other, third)] == [["b:k"], ["k"], ["k"]], "their keys mix")


async def counting(bench: Bench) -> None:
    """Processes that count at the same time miss nothing, and each sum is returned once."""
    tables = [(await bench.open()).table(bench.name) for _ in range(3)]

    async def count(table: Any) -> list[int]:
        return [await table.increment("hits") for _ in range(40)]

    sums = [each for some in await asyncio.gather(*map(count, tables)) for each in some]
    require(sorted(sums) == list(range(1, 121)), f"{len(set(sums))} different sums, the largest {max(sums)}")
    require(await tables[0].increment("hits", -120) == 0 and await tables[1].get("hits") == 0, "it does not count down")


async def limits(bench: Bench) -> None:
    """Ints have 64 bits, all of them; counting beyond, or on something else, is LocalProtocolError and changes nothing."""
    table = (await bench.open()).table(bench.name)
    require(await table.increment("n", 2**63 - 2) == 2**63 - 2, "bits are lost")
    require(await table.increment("n", 1) == 2**63 - 1, "bits are lost")
    with raises(LocalProtocolError):
        await table.increment("n", 1)
    require(await table.get("n") == 2**63 - 1, "it was changed")
    for value in ("5", 1.5, b"5", [5]):
        await table.set("n", value)
        with raises(LocalProtocolError):
            await table.increment("n")
        require(await table.get("n") == value, "it was changed")
    with raises(LocalProtocolError):
        await table.increment("n", 2**63)
    with raises(LocalProtocolError):
        await table.set("n", None)


async def lives(bench: Bench) -> None:
    """What has a ttl ends after it, and not before; set without one lives on; a counter ends when it was begun with one."""
    table = (await bench.open()).table(bench.name)
    await table.set("short", 1, ttl=3.0)
    await table.set("kept", 1, ttl=3.0)
    await table.set("kept", 2)
    await table.increment("count", ttl=3.0)
    await table.increment("count", ttl=100)
    await table.compare_and_set("swapped", None, "x", ttl=3.0)
    await table.set("long", 1, ttl=100)
    require(sorted(await table.keys()) == ["count", "kept", "long", "short", "swapped"], f"there are {await table.keys()}")

    async def is_over() -> bool:
        return sorted(await table.keys()) == ["kept", "long"]

    await eventually(is_over, "entries with a ttl of three seconds end")
    require(await table.get("short") is None and await table.get("kept") == 2, "get and keys differ")
    require(await table.increment("count") == 1, "a counter that ended goes on")
    require(await table.compare_and_set("swapped", None, "y"), "what has ended is still compared")


async def swapping(bench: Bench) -> None:
    """Of many who compare and set the same at once one succeeds; None is a key that is not there, as old and as new."""
    tables = [(await bench.open()).table(bench.name) for _ in range(3)]
    asked = [table.compare_and_set("owner", None, f"{number}") for number, table in enumerate(tables * 3)]
    require(sum(await asyncio.gather(*asked)) == 1, "not one of them succeeded")
    owner = await tables[0].get("owner")
    require(not await tables[1].compare_and_set("owner", "somebody", "me"), "another value was taken for it")
    require(await tables[1].compare_and_set("owner", owner, 5), "its own value was not")
    require(not await tables[1].compare_and_set("owner", "5", 6) and await tables[1].compare_and_set("owner", 5, 6), "'5' and 5 are the same")
    require(await tables[2].compare_and_set("owner", 6, None) and await tables[0].get("owner") is None, "it was not deleted")
    require(not await tables[2].compare_and_set("owner", 6, 7), "what is not there was taken for 6")


async def exclusive(bench: Bench) -> None:
    """One at a time has a lock, and tokens grow with each."""
    channels = [await bench.open() for _ in range(3)]
    inside, tokens = 0, []

    async def enter(channel: Channel) -> None:
        nonlocal inside
        for _ in range(3):
            async with channel.lock(bench.name, timeout=50) as lock:
                inside += 1
                require(inside == 1, "two are inside")
                tokens.append(lock.token)
                await asyncio.sleep(0.01)
                inside -= 1

    await asyncio.gather(*map(enter, channels))
    require(len(tokens) == 9 and tokens == sorted(set(tokens)), f"tokens are {tokens}")


async def held(bench: Bench) -> None:
    """Who does not get a lock in time has TimeoutError; who waits gets it when it is free; a lock is kept for longer than its lease."""
    one, other = await bench.open(), await bench.open()
    async with one.lock(bench.name, lease=3.0):
        with raises(TimeoutError, bench.name):
            async with other.lock(bench.name, timeout=5):
                pass
    async with other.lock(bench.name, timeout=10):
        pass


async def left(bench: Bench) -> None:
    """The lock of a process that has ended without a word is free after its lease; that process has lost it, with its token."""
    dead, alive = await bench.open(), await bench.open()
    token = await dead._acquire(bench.name, 1.0, 10)
    require(token, "it is not to be had")
    async with alive.lock(bench.name, timeout=20) as lock:
        require(lock.token > (token or 0), f"{lock.token} is not more than {token}")
        require(not await dead._renew(bench.name, token or 0, 1.0), "who has lost it can renew it")
        await dead._release(bench.name, token or 0)
        with raises(TimeoutError):
            async with dead.lock(bench.name, timeout=0.5):
                pass


async def unwanted(bench: Bench) -> None:
    """Who stops waiting for a lock does not get it."""
    holder, waiter = await bench.open(), await bench.open()

    async def enter() -> None:
        async with waiter.lock(bench.name, lease=60, timeout=60):
            await asyncio.sleep(60)

    async with holder.lock(bench.name):
        waits = asyncio.create_task(enter())
        await asyncio.sleep(0.3)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    async with holder.lock(bench.name, timeout=20):
        pass


BOOKS = (values, apart, counting, limits, lives, swapping, exclusive, held, left, unwanted)
