"""What ends a process whatever it is doing, also while a function of its holds the interpreter's lock: the kernel.

A caller that hangs up is a SIGIO, and a time that is over a SIGALRM; nothing handles either, so the kernel ends the process. Both are for the time
in which a plain function runs, and need nothing of Python then. SIGIO comes where there is O_ASYNC (Linux); elsewhere the loop sees the end of
the connection, as soon as it can.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from typing import Any

from laraman.errors import ConnectionLost


class Leash:
    """Holds this process to the other end of ``sock``, a connection on which nothing is received or sent meanwhile: anything that happens there would
    be its end.
    """

    def __init__(self, sock: Any) -> None:
        self._held = False
        self._descriptor = sock.fileno()
        self._flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        self._poll = select.poll()
        self._poll.register(self._descriptor, getattr(select, "POLLRDHUP", 0))
        fcntl.fcntl(self._descriptor, fcntl.F_SETOWN, os.getpid())

    def hold(self) -> None:
        """Raises ConnectionLost when the other end has hung up already."""
        if not self._held:
            self._held = True
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._flags | os.O_ASYNC)
        if self._poll.poll(0):
            self.loose()
            raise ConnectionLost("its caller has hung up")

    def loose(self) -> None:
        """Idempotent."""
        if self._held:
            self._held = False
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._flags)


def limit(seconds: float | None) -> None:
    """This process ends in so many seconds unless another limit is set before; None is no limit."""
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)


def end() -> None:
    """End this process as the kernel would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(os.getpid(), signal.SIGIO)
