"""Locks that all processes share."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import anyio

from laraman.channel.names import check_name
from laraman.errors import Busy, ConfigError, LinkDown

if TYPE_CHECKING:
    from laraman.channel.interface import Channel


class Lock:
    """``async with laraman.lock("report") as lock:`` one process at a time is inside.

    It is held by a lease of ``lease`` seconds that is renewed for as long as the block runs, and that ends by itself when the process does. When it
    could not be renewed in time the block is cancelled and LinkDown raised: somebody else may be inside. ``lock.token`` is a number that grows with
    each holder: a store that refuses smaller ones than it has seen cannot be written to by who has lost the lock and does not know yet.

    Raises TimeoutError when it was not to be had in ``timeout`` seconds. Used once; it is not reentrant.
    """

    def __init__(self, channel: Channel, name: str, lease: float, timeout: float) -> None:
        if not lease > 0 or not timeout > 0:
            raise ConfigError(f"lock {name!r}: lease and timeout must be positive")
        self.name = check_name(name, "lock")
        self.token = 0
        self._channel = channel
        self._lease = lease
        self._timeout = timeout
        self._entered = self._lost = False
        self._scope = anyio.CancelScope()
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Lock:
        if self._entered:
            raise RuntimeError(f"lock {self.name} is entered once: laraman.lock(...) for each time")
        self._entered = True
        loop = asyncio.get_running_loop()
        begun = loop.time()
        token = await (await self._channel._ready())._acquire(self.name, self._lease, self._timeout)
        if token is None:
            raise TimeoutError(f"lock {self.name} was not to be had in {self._timeout:g} s")
        self.token = token
        self._scope.__enter__()
        # The lease begins at the backend, after it was asked for; with a wait in between it is not known when, so it is renewed at once.
        waited = loop.time() - begun > self._lease / 3
        held_until = (loop.time() if waited else begun) + self._lease
        self._renewing = loop.create_task(self._renew(held_until, 0.0 if waited else self._lease / 3), name=f"lock {self.name}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> bool | None:
        assert self._renewing is not None
        self._renewing.cancel()
        cancelled = self._scope.__exit__(kind, exc, traceback)  # type: ignore[arg-type]
        if self._lost:
            if cancelled or exc is None:
                raise LinkDown(f"lock {self.name} was lost: somebody else may have it")
            return cancelled
        with anyio.CancelScope(shield=True), contextlib.suppress(LinkDown):  # then the lease ends by itself
            await self._channel._release(self.name, self.token)
        return cancelled

    async def _renew(self, until: float, soon: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(until) as limit:
                while True:
                    await asyncio.sleep(soon)
                    soon, asked = self._lease / 3, loop.time()
                    with contextlib.suppress(LinkDown, Busy):
                        if not await self._channel._renew(self.name, self.token, self._lease):
                            break
                        limit.reschedule(asked + self._lease)
        except TimeoutError:
            pass
        self._lost = True
        self._scope.cancel()
