"""The line of the application that changed something."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.check.heap import Heap, Snapshot


async def locate(path: str, heap: Heap, play: Callable[[], Awaitable[None]], base: Snapshot | None = None) -> str:
    """Plays one request and returns "file:line in function" of the line that changed ``path``, or "" when no line of the application did.

    ``play`` comes as the user who was not there last: what has the same value before and after cannot be seen to change. What the process
    has once for all (its directory, its locale) is first put back to what it was in ``base``.
    """
    return ""
