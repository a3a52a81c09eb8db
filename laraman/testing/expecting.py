"""What checks say."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


def require(holds: object, text: str) -> None:
    if not holds:
        raise AssertionError(text)


@contextmanager
def raises(kind: type[Exception], text: str = "") -> Iterator[None]:
    """What is inside raises this, and says that."""
    try:
        yield
    except kind as exc:
        require(text in str(exc), f"{kind.__name__} says {str(exc)!r}, which does not contain {text!r}")
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


async def eventually(ask: Callable[[], Awaitable[Any]], text: str, seconds: float = 20.0) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (answer := await ask()):
        require(asyncio.get_running_loop().time() < deadline, f"{text}: not within {seconds:g} s")
        await asyncio.sleep(0.02)
    return answer
