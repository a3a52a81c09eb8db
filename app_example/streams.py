"""The server-sent events of the page: a clock and the latest prices, once a second."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app_example.feed import feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Set when the worker is about to stop. A stream that looks at it ends by itself, so no deploy waits for an open browser tab.
closing = asyncio.Event()


async def clock() -> AsyncIterator[str]:
    """One event a second until the client leaves or the worker stops."""
    while not closing.is_set():
        now = datetime.now(UTC).isoformat(timespec="seconds")
        yield f"event: clock\ndata: {json.dumps({'now': now, 'prices': feed.prices})}\n\n"
        try:
            async with asyncio.timeout(1):
                await closing.wait()
        except TimeoutError:
            continue
    yield "event: bye\ndata: {}\n\n"
