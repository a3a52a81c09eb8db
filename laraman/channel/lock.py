"""Locks that all processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laraman.channel.interface import Channel


class Lock:
    """``async with laraman.lock("report") as lock:`` one process at a time is inside.

    It is held by a lease of ``lease`` seconds that is renewed for as long as the block runs, and that ends by itself when the process does. When it
    could not be renewed in time the block is cancelled and LinkDown raised: somebody else may be inside. ``lock.token`` is a number that grows with
    each holder: a store that refuses smaller ones than it has seen cannot be written to by who has lost the lock and does not know yet.

    Raises TimeoutError when it was not to be had in ``timeout`` seconds.
    """

    def __init__(self, channel: Channel, name: str, lease: float, timeout: float) -> None:
        self.name = name
        self.token = 0

    async def __aenter__(self) -> Lock:
        raise NotImplementedError

    async def __aexit__(self, *exc_info: object) -> bool | None:
        raise NotImplementedError
