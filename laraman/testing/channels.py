"""The kit for backends of the channel."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from laraman.testing.channel_answers import ANSWERS
from laraman.testing.channel_books import BOOKS
from laraman.testing.channel_queues import QUEUES
from laraman.testing.channel_topics import TOPICS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.channel.interface import Channel

#: Seconds that a check may take: only what is broken takes them.
CHECK_SECONDS = 60.0
#: Checks that run at a time: more of them wait for each other.
AT_A_TIME = 8
#: What is checked, by what it says.
CHECKS: dict[str, Callable[[Bench], Awaitable[Any]]] = {
    (check.__doc__ or check.__name__).split(".\n")[0].rstrip("."): check for check in (*TOPICS, *QUEUES, *ANSWERS, *BOOKS)
}


class Bench:
    """What a check has: as many channels as it opens, and a ``name`` that no other has, for its topics, queues, tables, locks and workers."""

    def __init__(self, factory: Callable[..., Channel], stack: AsyncExitStack) -> None:
        self.name = f"check{secrets.token_hex(6)}"
        self._factory = factory
        self._stack = stack

    async def open(self, **options: Any) -> Channel:
        return await self._stack.enter_async_context(self._factory(**options))

    async def serve(self, slot: int = 0, **methods: Callable[..., Any]) -> Channel:
        """A process of the worker ``name``, which has methods and can be called."""
        channel = await self.open(name=self.name, slot=slot)
        for name, function in methods.items():
            channel.add_method(name, function)
        await channel._serve(list(channel.methods))
        return channel


async def check_channel(factory: Callable[..., Channel], report: Callable[[str], Any] = print) -> int:
    """Check that a backend of the channel keeps its contract (``laraman.channel.interface``). How many checks there were.

    ``factory(name="", slot=None, limit=100_000)`` makes a channel, each as that of another process: ``functools.partial(channel.connect, url)``. The
    checks run some at a time, in a running loop, and leave empty queues and a few entries of tables behind. Raises AssertionError, which says which
    have failed and why.
    """
    free = asyncio.Semaphore(AT_A_TIME)

    async def check(name: str) -> str:
        async with free:
            return await _check(name, factory)

    failures = [failure for failure in await asyncio.gather(*map(check, CHECKS)) if failure]
    if failures:
        raise AssertionError(f"{len(failures)} of {len(CHECKS)} checks of a channel failed:\n" + "\n".join(failures))
    report(f"channel: {len(CHECKS)} checks passed")
    return len(CHECKS)


async def _check(name: str, factory: Callable[..., Channel]) -> str:
    """What is wrong; empty when nothing is."""
    try:
        async with asyncio.timeout(CHECK_SECONDS), AsyncExitStack() as stack:
            await CHECKS[name](Bench(factory, stack))
    except Exception as exc:
        return f"\n{name}: {type(exc).__name__}: {exc}\n{''.join(traceback.format_tb(exc.__traceback__)[-3:])}"
    return ""
