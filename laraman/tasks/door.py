"""The door of a task worker: it accepts when nothing runs. Who does not get in waits in the kernel's queue, which all task workers share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError
from laraman.net.door import EXHAUSTED, PAUSE, Door
from laraman.net.sending import wake
from laraman.protocols.task import GONE, Task
from laraman.tasks.leash import Leash

if TYPE_CHECKING:
    import socket

    from laraman.tasks.service import Served

logger = logging.getLogger("uvicorn.error")

#: Seconds that somebody who was let in has to send the next part of a task, while others wait.
PATIENCE = 0.05
#: Seconds that who connects has to send what comes first. Others may be let in meanwhile.
GREETING_SECONDS = 5.0


class TaskDoor(Door):
    """Lets in one connection at a time, which stays while nobody else wants to come in: to connect again costs as much as a short task does.

    Who has been let in and runs nothing makes room for the next one: its connection ends with GONE, so its caller knows what was not begun.
    """

    _inside: Served | None = None
    _closed_until: asyncio.TimerHandle | None = None
    running = _knocked = False

    # Who comes -------------------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        if self.running or self._closed_until is not None:
            self._knocked = True
            self._stop_looking()
        elif (sock := self._next()) is not None:
            self.take(sock)

    def _next(self) -> socket.socket | None:
        """Who waits, if somebody does: another worker may have been faster."""
        if self._socket is None:
            return None
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                logger.error("Nothing is accepted for %g s: %s", PAUSE, exc.strerror)
                self._stop_looking()
                self._pause = self.loop.call_later(PAUSE, self.resume)
            return None
        sock.setblocking(False)
        return sock

    def take(self, sock: socket.socket) -> None:
        if self._socket is None:  # the worker stops: these have waited to its end
            with contextlib.suppress(OSError), sock:
                sock.send(Task().send((GONE, b"")))
            return
        if self._inside is not None:
            self._inside.let_go()
        self.wait_for_more()
        self._entering = self.loop.create_task(self._let_in(sock), name="task connection")

    async def _let_in(self, sock: socket.socket) -> None:
        connection: Served = self.factory()
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                connection.leash = await self._leash(sock)
            await self.loop.connect_accepted_socket(lambda: connection, sock)
        except (OSError, RemoteProtocolError) as exc:  # its caller has given up, or is none
            self.refused(None, exc)
            sock.close()
            if connection.leash is not None:
                connection.leash.close()
            self._has_not_come()

    async def _leash(self, sock: socket.socket) -> Leash:
        while True:
            try:
                return Leash(sock)
            except BlockingIOError:
                readable = self.loop.create_future()
                self.loop.add_reader(sock.fileno(), wake, readable)
                try:
                    await readable
                finally:
                    self.loop.remove_reader(sock.fileno())

    # What becomes of who is inside -----------------------------------------------------------------------------------------------

    def entered(self, connection: Served) -> None:
        self._inside = connection

    def wait_for_more(self) -> None:
        """A task is arriving: nobody takes its place for a moment."""
        if self._closed_until is not None:
            self._closed_until.cancel()
        self._closed_until = self.loop.call_later(PATIENCE, self._has_not_come)

    def _has_not_come(self) -> None:
        if self._closed_until is not None:
            self._closed_until.cancel()
            self._closed_until = None
        self._look_again()

    def begin(self) -> None:
        """A task runs."""
        self.running = True
        if self._closed_until is not None:
            self._closed_until.cancel()
            self._closed_until = None

    def end(self) -> socket.socket | None:
        """It is over, and will be answered now. Who has been waiting meanwhile, to be given to ``take`` then: nobody keeps a worker for ever."""
        self.running = False
        if not self._knocked:
            return None
        sock = self._next()
        if sock is None:
            self._look_again()
        return sock

    def left(self, connection: Served) -> None:
        if self._inside is connection:
            self._inside = None
            self._has_not_come()

    def _look_again(self) -> None:
        if self._knocked and not self.running and self._pause is None and self._socket is not None:
            self._knocked = False
            self.resume()

    def _stop_looking(self) -> None:
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        self.running = False
        if self._closed_until is not None:
            self._closed_until.cancel()
            self._closed_until = None
        super().close()
