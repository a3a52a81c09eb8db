"""What ends a process whatever it is doing, also while a function of its holds the interpreter's lock: the kernel.

A caller that is gone is a SIGIO, and a time that is over a SIGALRM; nothing handles either, so the kernel ends the process. Both are for the time
in which a plain function runs, and need nothing of Python then.

Who connects sends along the end of a pipe through which nothing ever comes, and keeps the other one: O_ASYNC makes its end a signal (Linux). The
connection itself could not do this: the kernel wakes who waits for data before it sends the signal that there is some, so the signal of a request can
come when the request is being worked on already. Elsewhere than on Linux the loop sees the end of the connection, as soon as it can.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket

from laraman.errors import ConnectionLost, RemoteProtocolError

#: What comes with the end of the pipe: a descriptor cannot travel alone.
GREETING = b"\n"


class Lifeline:
    """The caller's side. ``sock`` has just been connected, and nothing has been sent on it. Raises OSError."""

    def __init__(self, sock: socket.socket) -> None:
        theirs, self._ours = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            socket.send_fds(sock, [GREETING], [theirs])
        except OSError:
            self.cut()
            raise
        finally:
            os.close(theirs)

    def cut(self) -> None:
        """Nobody waits any more. Idempotent."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1


class Leash:
    """The worker's side. Raises OSError, BlockingIOError as long as nothing has come, and RemoteProtocolError when something else has."""

    def __init__(self, sock: socket.socket) -> None:
        greeting, descriptors, _, _ = socket.recv_fds(sock, len(GREETING), 1, socket.MSG_CMSG_CLOEXEC)
        if greeting != GREETING or len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise RemoteProtocolError("a task's caller sends the end of a pipe first")
        self._descriptor = descriptors[0]
        self._flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        self._poll = select.poll()
        self._poll.register(self._descriptor, 0)
        fcntl.fcntl(self._descriptor, fcntl.F_SETOWN, os.getpid())

    def hold(self) -> None:
        """From now on this process ends when the caller is gone. Raises ConnectionLost when it is already."""
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._flags | os.O_ASYNC)
        if self._poll.poll(0):
            self.loose()
            raise ConnectionLost("its caller has gone")

    def loose(self) -> None:
        if self._descriptor >= 0:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._flags)

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def limit(seconds: float | None) -> None:
    """This process ends in so many seconds unless another limit is set before; None is no limit."""
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)


def end() -> None:
    """End this process as the kernel would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(os.getpid(), signal.SIGIO)
