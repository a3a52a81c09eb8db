"""Checks of calls."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from laraman.errors import LinkDown, LocalProtocolError, TaskError
from laraman.testing.expecting import eventually, raises, require

if TYPE_CHECKING:
    from laraman.channel.interface import Channel
    from laraman.testing.channels import Bench


async def reached(channel: Channel, name: str, count: int) -> None:
    """Until so many processes of a worker are called."""

    async def ask() -> bool:
        try:
            return len(await channel.call_all(name, "who")) == count
        except LinkDown:
            return False

    await eventually(ask, f"{count} processes of {name}")


async def any_member(bench: Bench) -> None:
    """A call reaches one process of the worker, and returns what it returns; each gets some of many."""
    caller = await bench.open()

    def who(slot: int, *args: Any, **kwargs: Any) -> list[Any]:
        return [slot, args, kwargs]

    for slot in range(2):
        await bench.serve(slot, who=functools.partial(who, slot))
    await reached(caller, bench.name, 2)
    result = await caller.call(bench.name, "who", 1, "two", three=[3])
    require(result[1:] == [[1, "two"], {"three": [3]}], f"it returned {result}")
    slots = {(await caller.call(bench.name, "who"))[0] for _ in range(100)}
    require(slots <= {0, 1} and slots, f"slots {slots} answered")


async def slots(bench: Bench) -> None:
    """A call to a slot reaches that one; a call to all reaches each once, and results are in the order of slots."""
    caller = await bench.open()
    for slot in (2, 0, 1):
        await bench.serve(slot, who=lambda slot=slot: slot)
    await reached(caller, bench.name, 3)
    for slot in range(3):
        require(await caller.call(f"{bench.name}[{slot}]", "who") == slot, f"slot {slot} was not reached")
    require(await caller.call_all(bench.name, "who") == [0, 1, 2], "not all were reached, or in another order")
    with raises(LinkDown):
        await caller.call(f"{bench.name}[3]", "who")


async def asynchronous(bench: Bench) -> None:
    """Methods may be async, and run at the same time; results go to who asked."""
    caller, other = await bench.open(), await bench.open()
    together = asyncio.Event()
    inside = 0

    async def meet(number: int) -> int:
        nonlocal inside
        inside += 1
        if inside == 50:
            together.set()
        await together.wait()
        return number

    await bench.serve(who=lambda: 0, meet=meet)
    await reached(caller, bench.name, 1)
    asked = [(caller, other)[number % 2].call(bench.name, "meet", number, timeout=20) for number in range(50)]
    require(await asyncio.gather(*asked) == list(range(50)), "results went astray")


async def remote_errors(bench: Bench) -> None:
    """What a method raises is TaskError at the caller, with type, message and traceback; a method that is not there too; call_all returns it."""
    caller = await bench.open()

    def divide(a: int, b: int) -> float:
        return a / b

    await bench.serve(who=lambda: 0, divide=divide)
    await reached(caller, bench.name, 1)
    try:
        await caller.call(bench.name, "divide", 1, 0)
        raise AssertionError("nothing was raised")
    except TaskError as exc:
        require((exc.type, exc.message) == ("ZeroDivisionError", "division by zero"), f"it was {exc}")
        require("return a / b" in exc.traceback, f"its traceback is {exc.traceback}")
    with raises(TaskError, "TypeError"):
        await caller.call(bench.name, "divide", 1)
    (answer,) = await caller.call_all(bench.name, "divide", 1, 0)
    require(isinstance(answer, TaskError), f"call_all returned {answer!r}")


async def unknown(bench: Bench) -> None:
    """A method that the process does not have is an error that names it."""
    caller = await bench.open()
    await bench.serve(who=lambda: 0)
    await reached(caller, bench.name, 1)
    for ask in (caller.call(bench.name, "nosuch"), caller.call(f"{bench.name}[0]", "nosuch")):
        with raises(Exception, "nosuch"):
            await ask


async def unencodable(bench: Bench) -> None:
    """Arguments and results that cannot be encoded are errors at the caller, which name the value."""
    caller = await bench.open()
    await bench.serve(who=lambda: 0, bad=lambda: {"deep": object()})
    await reached(caller, bench.name, 1)
    with raises(LocalProtocolError, "object"):
        await caller.call(bench.name, "who", object())
    with raises(TaskError, "deep"):
        await caller.call(bench.name, "bad")


async def late(bench: Bench) -> None:
    """A call that takes too long is TimeoutError, and cancelled where it runs; so is one that the caller gives up."""
    caller = await bench.open()
    begun, ended = asyncio.Queue[int](), asyncio.Queue[int]()

    async def linger() -> None:
        begun.put_nowait(1)
        try:
            await asyncio.sleep(100)
        finally:
            ended.put_nowait(1)

    await bench.serve(who=lambda: 0, linger=linger)
    await reached(caller, bench.name, 1)
    async with asyncio.timeout(20):
        with raises(TimeoutError, "linger"):
            await caller.call(bench.name, "linger", timeout=0.5)
        await ended.get()
        call = asyncio.create_task(caller.call(bench.name, "linger", timeout=60))
        await begun.get()
        await begun.get()
        await asyncio.sleep(0.2)
        call.cancel()
        await ended.get()
    (answer,) = await caller.call_all(bench.name, "linger", timeout=0.5)
    require(isinstance(answer, TimeoutError), f"call_all returned {answer!r}")


async def nobody(bench: Bench) -> None:
    """A call that nobody can answer is LinkDown at once, to one and to all."""
    caller = await bench.open()
    async with asyncio.timeout(10):
        for ask in (caller.call(bench.name, "who", timeout=60), caller.call(f"{bench.name}[1]", "who", timeout=60)):
            with raises(LinkDown, bench.name):
                await ask
        with raises(LinkDown, bench.name):
            await caller.call_all(bench.name, "who", timeout=60)


async def gone(bench: Bench) -> None:
    """When the process that was called goes, its callers have LinkDown long before their time is over, and others are called then."""
    caller = await bench.open()
    begun = asyncio.Event()

    async def linger() -> None:
        begun.set()
        await asyncio.sleep(100)

    leaves = await bench.serve(0, who=lambda: 0, linger=linger)
    await reached(caller, bench.name, 1)
    call = asyncio.create_task(caller.call(bench.name, "linger", timeout=100))
    await begun.wait()
    await asyncio.sleep(0.2)
    await leaves.close()
    async with asyncio.timeout(20):
        with raises(LinkDown):
            await call
    await bench.serve(1, who=lambda: 1)
    await reached(caller, bench.name, 1)
    require(await caller.call(bench.name, "who") == 1, "somebody else answered")


async def replaced(bench: Bench) -> None:
    """A process that leaves its place answers what it has been asked, and may ask others; who calls then reaches its successor alone."""
    caller = await bench.open()
    begun, end = asyncio.Event(), asyncio.Event()

    async def linger() -> int:
        begun.set()
        await end.wait()
        return 0

    leaves = await bench.serve(0, who=lambda: 0, linger=linger)
    await reached(caller, bench.name, 1)
    call = asyncio.create_task(caller.call(bench.name, "linger", timeout=20))
    await begun.wait()
    await bench.serve(0, who=lambda: 1)
    await leaves.leave_place()
    for member in (bench.name, f"{bench.name}[0]"):
        found = {await channel.call(member, "who", timeout=20) for channel in (caller, leaves) for _ in range(20)}
        require(found == {1}, f"{member} is {found}")
    require(await caller.call_all(bench.name, "who", timeout=20) == [1], "call_all reaches others")
    await asyncio.sleep(2)  # callers look whether whom they wait for is still there
    end.set()
    require(await call == 0, "its last answer was lost")


async def many(bench: Bench) -> None:
    """A thousand calls, sixteen at a time, all have their own answers."""
    caller = await bench.open()
    await bench.serve(who=lambda: 0, echo=lambda number: number)
    await reached(caller, bench.name, 1)
    answers: list[Any] = []

    async def ask(numbers: range) -> None:
        for number in numbers:
            answers.append((number, await caller.call(bench.name, "echo", number, timeout=30)))

    await asyncio.gather(*(ask(range(start, 1000, 16)) for start in range(16)))
    require(len(answers) == 1000 and all(number == answer for number, answer in answers), "answers went astray")


ANSWERS = (any_member, slots, asynchronous, remote_errors, unknown, unencodable, late, nobody, gone, replaced, many)
