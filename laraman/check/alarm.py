"""An alarm for code that does not give the event loop back: it is interrupted where it is, so that a check comes to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Seconds between two interruptions of code that goes on in spite of the first.
AGAIN = 1.0
#: Interruptions after which the process is ended: code that survives so many is not going to stop.
MOST = 5
#: While something is played the application's call of it is held back, not this one.
_leave = os._exit


class Blocked(BaseException):
    """Raised in what was running when the time was over. Not an Exception: the code that it interrupts must not take it for one of its own."""


class Alarm:
    """Interrupts the main thread by SIGALRM; in other threads, and where there is no such signal, it does nothing."""

    def __init__(self) -> None:
        self._works = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        self._previous: Any = None
        self._rung = 0
        #: Where the code was that was interrupted last: file and line.
        self.place: tuple[str, int] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Have the signal's handler in place."""
        if not self._works:
            yield
            return
        previous = signal.signal(signal.SIGALRM, self._ring)
        try:
            yield
        finally:
            self.stop()
            signal.signal(signal.SIGALRM, previous)

    def start(self, seconds: float) -> None:
        """Ring in so many seconds; an earlier appointment is forgotten."""
        self._rung = 0
        if self._works:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)

    def stop(self) -> None:
        if self._works:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        self._rung += 1
        if frame is not None:
            self.place = (frame.f_code.co_filename, frame.f_lineno)
        if self._rung > MOST:
            where = "" if self.place is None else f" at {self.place[0]}:{self.place[1]}"
            os.write(2, f"laraman: the application does not give the event loop back{where}, and cannot be interrupted\n".encode())
            _leave(3)
        raise Blocked
