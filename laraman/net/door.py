"""Doors: what accepts connections with which something has to happen before their first byte, the header of a proxy or the handshake of TLS, and
those of a worker that takes only so many.

The loop's own servers do TLS too, but nobody hears of a handshake that is under way, so a worker that stops would cut it off; and they read what
comes, but the bytes behind a PROXY header belong to the handshake.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from laraman.errors import RemoteProtocolError
from laraman.net.connection import name_text
from laraman.protocols.proxy import MAX_BINARY, ProxyHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from laraman.net.tls import Tls

logger = logging.getLogger("uvicorn.error")

#: Connections that are accepted in one turn of the loop: other workers take from the same queue, and handshakes cost time.
AT_ONCE = 16
#: Seconds in which nothing is accepted when there are no descriptors left.
PAUSE = 1.0
#: Seconds that an arrival gets when the worker stops, and a client to answer the end of TLS.
HURRY, LINGER = 2.0, 2.0

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Door:
    """Accepts on one listening socket; ``factory`` makes the protocol of a connection, for which ``announced`` is set to a proxy's header.

    ``worker`` is whose ``connections`` those under way are among. With ``trusted`` every connection begins with a PROXY header, and who is not in it
    is turned away: whoever could come past the proxy could be anybody. ``timeout`` is in seconds, from the acceptance to the end of the handshake.
    While the worker has ``places`` and none is free nothing is accepted: others wait in the kernel's queue.
    """

    def __init__(
        self,
        worker: Any,
        factory: Callable[[], Any],
        *,
        tls: Tls | None = None,
        trusted: Container[str | None] | None = None,
        timeout: float = math.inf,
        places: Places | None = None,
    ) -> None:
        self.worker = worker
        self.factory = factory
        self.tls = tls
        self.trusted = trusted
        self.timeout = timeout
        self.places = places
        self.loop = asyncio.get_running_loop()
        #: Who has been accepted and is not let in yet.
        self.arrivals: set[Arrival] = set()
        self._socket: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._warned = False

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """As an ``asyncio.Server`` has them."""
        return () if self._socket is None else (self._socket,)

    def open(self, listening: socket.socket) -> None:
        """Begin to accept on this socket, which then belongs to the door."""
        self._socket = listening
        self.resume()

    def close(self) -> None:
        """Accept no more. What is under way goes on."""
        if self._pause is not None:
            self._pause.cancel()
        if self.places is not None:
            self.places.waiting.discard(self)
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def take(self, sock: socket.socket) -> None:
        """Let this accepted socket in; it then belongs to the door."""
        Arrival(self, sock)

    def resume(self) -> None:
        """Accept again."""
        assert self._socket is not None
        self._pause = None
        self.loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._socket is not None
        for _ in range(AT_ONCE):
            if self.places is not None and not self.places.free:
                self.loop.remove_reader(self._socket.fileno())
                self.places.waiting.add(self)
                return
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    logger.error("Nothing is accepted for %g s: %s", PAUSE, exc.strerror)
                    self.loop.remove_reader(self._socket.fileno())
                    self._pause = self.loop.call_later(PAUSE, self.resume)
                    return
                continue  # that client has given up
            sock.setblocking(False)
            self.take(sock)

    def refused(self, peer: Any, reason: object) -> None:
        """Say why somebody was not let in. Strangers can cause it as often as they like, so only the first one of a proxy's is a warning."""
        expected = self.trusted is not None and isinstance(reason, (RemoteProtocolError, PermissionError))
        level = logging.WARNING if expected and not self._warned else logging.DEBUG
        self._warned = self._warned or expected
        logger.log(level, "The connection from %s was refused: %s", name_text(peer) or "a unix socket", reason)


class Places(set[Any]):
    """The connections of a worker that takes at most ``count``; ``waiting`` are the doors that are to accept again when one is gone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.waiting: set[Door] = set()

    @property
    def free(self) -> int:
        return max(0, self.count - len(self))

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        if self.waiting and self.free:
            waiting, self.waiting = self.waiting, set()
            for door in waiting:
                door.resume()


class Arrival:
    """One connection that is accepted and not let in yet. It is among its worker's connections: it counts, shows itself, and hears of the end."""

    #: The worker's clock need not look: it has a time limit of its own.
    deadline = math.inf

    def __init__(self, door: Door, sock: socket.socket) -> None:
        self._door = door
        self._sock = sock
        self._handed_over = False
        self._limit: asyncio.Timeout | None = None
        self._opened = door.loop.time()
        self._peer: Any = None
        door.arrivals.add(self)
        door.worker.connections.add(self)
        self._task = door.loop.create_task(self._enter(), name="arrival")

    async def _enter(self) -> None:
        door = self._door
        when = door.timeout if door.timeout < math.inf else None
        try:
            self._peer = self._sock.getpeername()
            async with asyncio.timeout(when) as self._limit:
                await self._let_in(when)
        except (OSError, RemoteProtocolError, asyncio.CancelledError) as exc:
            door.refused(self._peer, f"nothing came of it within {when} s" if isinstance(exc, TimeoutError) and not exc.args else exc)
            exc.__traceback__ = None  # its frames know what waited for it: a ring, and asyncio's 256 KiB for TLS would wait in it for the collector
        finally:
            self._limit = None
            if not self._handed_over:
                self._sock.close()
            door.arrivals.discard(self)
            door.worker.connections.discard(self)

    async def _let_in(self, timeout: float | None) -> None:
        door = self._door
        connection = door.factory()
        if door.trusted is not None:
            connection.announced = await self._read_header(door.trusted)
        self._handed_over = True
        options: dict[str, Any] = {}
        if door.tls is not None:
            options = {"ssl": door.tls.context, "ssl_handshake_timeout": timeout, "ssl_shutdown_timeout": LINGER}
        await door.loop.connect_accepted_socket(lambda: connection, self._sock, **options)

    # A proxy's header ------------------------------------------------------------------------------------------------------------

    async def _read_header(self, trusted: Container[str | None]) -> ProxyHeader:
        """Take the header from the socket and not a byte more. Raises PermissionError, RemoteProtocolError, ConnectionError."""
        if (self._peer[0] if isinstance(self._peer, tuple) else None) not in trusted:
            raise PermissionError("it is not one of the proxies that are trusted (--forwarded-allow-ips)")
        header = ProxyHeader()
        while not header.complete:
            data = await self._peek()
            if not data:
                raise ConnectionAbortedError("it ended before the header of the PROXY protocol did")
            self._sock.recv(header.receive_data(data))
        return header

    async def _peek(self) -> bytes:
        while True:
            with suppress(BlockingIOError, InterruptedError):
                return self._sock.recv(MAX_BINARY, socket.MSG_PEEK)
            readable = self._door.loop.create_future()
            self._door.loop.add_reader(self._sock.fileno(), _wake, readable)
            try:
                await readable
            finally:
                self._door.loop.remove_reader(self._sock.fileno())

    # As one of its worker's connections ------------------------------------------------------------------------------------------

    @property
    def transport(self) -> Arrival:
        return self

    def tick(self, now: float) -> None:
        pass

    def shutdown(self) -> None:
        """The worker is draining."""
        if self._limit is not None:
            when = self._limit.when()
            soon = self._door.loop.time() + HURRY
            self._limit.reschedule(soon if when is None else min(when, soon))

    def cancel(self) -> None:
        self._task.cancel()

    abort = cancel

    def row(self) -> dict[str, Any]:
        worker = self._door.worker
        return {
            "pid": os.getpid(),
            "worker": worker.name,
            "slot": worker.slot,
            "direction": "in",
            "protocol": "tls" if self._door.tls is not None else "proxy",
            "local": "",
            "peer": name_text(self._peer),
            "state": "ARRIVING",
            **dict.fromkeys(("bytes_in", "bytes_out", "messages_in", "messages_out"), 0),
            "age": round(self._door.loop.time() - self._opened, 3),
        }


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
