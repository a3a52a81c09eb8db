"""Tasks of the benchmarks."""

from __future__ import annotations

import laraman


@laraman.task
def nothing() -> None:
    """In the task worker's thread."""


@laraman.task
async def nothing_async() -> None:
    """In its loop."""


@laraman.task
def count(number: int) -> int:
    """Use a CPU, and the interpreter's lock, for ``number`` rounds."""
    total = 0
    for value in range(number):
        total += value & 7
    return total


def plain(name: str, *args: int) -> object:
    """The same, for who pickles functions."""
    return globals()[name].function(*args)
