"""Signals as data: the interpreter writes each signal's number into a pipe, and the master's selector reads it there."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

#: Everything the master reacts to.
HANDLED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)


@contextmanager
def wakeup(interrupt: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """The pipe (reader, writer), both non-blocking, for as long as the block runs. Afterwards the handlers are what they were.

    ``interrupt(number)`` is called in between, from the handler itself: what it raises comes out of whatever runs then.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        interrupt(number)

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, handler) for number in HANDLED}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # the image of the master before this one blocked them
    try:
        yield reader, writer
    finally:
        signal.set_wakeup_fd(woken)
        for number, restored in before.items():
            signal.signal(number, restored)
        os.close(reader)
        os.close(writer)
