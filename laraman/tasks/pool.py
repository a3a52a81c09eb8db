"""The connections of one process with the task workers of a server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from laraman.errors import Busy, ConnectionLost, LinkDown, LocalProtocolError, RemoteProtocolError
from laraman.net.connection import Connection
from laraman.net.encoding import decode, encode, encode_call
from laraman.protocols import task as wire
from laraman.tasks.leash import Lifeline
from laraman.tasks.performing import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.tasks.declared import Call

logger = logging.getLogger("uvicorn.error")

#: Seconds between two attempts while the kernel's queue is full, and how many there are.
FULL_PAUSE, FULL_ATTEMPTS = 0.05, 20


class NotBegunError(Exception):
    """Nothing of the task was begun on this connection: another one may have it."""


class Pool:
    """Gives tasks to whoever is free at the socket ``path``, at most ``places`` at a time; up to ``queue`` others wait here.

    A connection that is not used is kept until the worker lets go of it.
    """

    def __init__(self, path: str, places: int, queue: int, worker: Any = None) -> None:
        self.path = path
        self.places = places
        self.worker = worker
        self._queue = queue
        self._waiting = 0
        self._free = asyncio.Semaphore(places)
        self._idle: list[Caller] = []
        self._all: set[Caller] = set()

    async def perform(self, call: Call, seconds: float | None, hear: Callable[[Caller, Any], None] | None) -> Any:
        """What the task returns. ``hear`` is told what comes before that, in order, with the connection, whose reading it may pause.

        Cancelled, it ends what runs. Raises TaskError, Busy, ConnectionLost when the process that ran it has ended, LinkDown when there is none, and
        LocalProtocolError for arguments that cannot be encoded.
        """
        return await self.run(call.task.name, request_of(call, seconds), hear)

    async def run(self, name: str, request: bytes, hear: Callable[[Caller, Any], None] | None = None) -> Any:
        """The same of a ``request_of`` the task of that name."""
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        try:
            while True:
                connection = self._idle.pop() if self._idle else await self._dial()
                with contextlib.suppress(NotBegunError):
                    return await connection.run(name, request, hear)
        finally:
            self._free.release()

    async def _wait(self) -> None:
        if self._waiting >= self._queue:
            raise Busy(f"{self._waiting} tasks wait for a task worker, and no more may")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1

    async def _dial(self) -> Caller:
        """A connection in the kernel's queue, which some worker will accept."""
        for _ in range(FULL_ATTEMPTS):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                sock.connect(self.path)
                caller = partial(Caller, self, Lifeline(sock))
                return (await asyncio.get_running_loop().create_unix_connection(caller, sock=sock))[1]
            except BlockingIOError:
                sock.close()
                await asyncio.sleep(FULL_PAUSE)
            except OSError as exc:
                sock.close()
                reason = exc.strerror if exc.errno not in (errno.ENOENT, errno.ECONNREFUSED) else "the server has ended"
                raise LinkDown(f"no task worker at {self.path}: {reason}") from None
            except BaseException:
                sock.close()
                raise
        raise Busy("the queue of the task workers is full")

    def opened(self, connection: Caller) -> None:
        self._all.add(connection)
        if self.worker is not None:
            self.worker.links.add(connection)

    def unused(self, connection: Caller) -> None:
        self._idle.append(connection)

    def lost(self, connection: Caller) -> None:
        self._all.discard(connection)
        if self.worker is not None:
            self.worker.links.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """End all connections, and with them what runs."""
        for connection in tuple(self._all):
            connection.abort()


class Caller(Connection):
    """One connection with a task worker. It is among the links of its worker."""

    __slots__ = ("_answer", "_hear", "_lifeline", "_pool", "name")

    def __init__(self, pool: Pool, lifeline: Lifeline) -> None:
        super().__init__(wire.Task(), self, None, "out")
        self.name = ""
        self._lifeline = lifeline
        self._pool = pool
        self._answer: asyncio.Future[wire.Message] | None = None
        self._hear: Callable[[Caller, Any], None] | None = None

    async def run(self, name: str, request: bytes, hear: Callable[[Caller, Any], None] | None) -> Any:
        """Raises NotBegunError."""
        if self.error is not None:
            raise NotBegunError
        self.name, self._hear = name, hear
        self._answer = asyncio.get_running_loop().create_future()
        self.send_nowait((wire.RUN, request))
        try:
            op, payload = await self._answer
        except BaseException:
            self._lifeline.cut()
            self.abort()
            raise
        finally:
            self.name, self._hear, self._answer = "", None, None
        if self.error is None:
            self._pool.unused(self)
        if op == wire.FAILED:
            raise error_of(payload)
        return decode(payload)

    # What comes ------------------------------------------------------------------------------------------------------------------

    def on_connect(self, connection: Caller) -> None:
        self._pool.opened(self)

    def on_message(self, connection: Caller, message: wire.Message) -> None:
        op, payload = message
        if op == wire.GONE:
            self._end(NotBegunError())
            self.close()
        elif op in (wire.DONE, wire.FAILED):
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(message)
        elif op in (wire.PART, wire.PROGRESS):
            if self._hear is not None:
                self._hear(self, decode(payload))
        else:
            self._refuse(RemoteProtocolError(f"a task worker does not say {op}"))

    def on_close(self, connection: Caller) -> None:
        self._lifeline.cut()
        self._pool.lost(self)
        # What could not be written as a whole was not begun; a closed connection is what both know of.
        begun = not isinstance(self.error and self.error.__cause__, BrokenPipeError)
        self._end(ConnectionLost(f"task {self.name}: the process that ran it has ended") if begun else NotBegunError())

    def _end(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def row(self) -> dict[str, Any]:
        """As a link has it: with the worker, and the task that runs."""
        worker = self._pool.worker
        whose = {} if worker is None else {"worker": worker.name, "slot": worker.slot}
        return {**super().row(), **whose, "peer": os.path.basename(self._pool.path), "name": self.name}


def request_of(call: Call, seconds: float | None) -> bytes:
    """What a task worker is sent. Raises LocalProtocolError, which names the argument."""
    try:
        return encode([call.task.name, call.args, call.kwargs, seconds])
    except LocalProtocolError:
        encode_call(call.args, call.kwargs, 0.0)  # says it better
        raise
