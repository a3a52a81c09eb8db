"""Datagrams that a worker takes (UDP): each is a message on a connection of its own, and what that sends goes back to whoever sent it.

Nothing is kept of a peer between two datagrams, so ``on_connect`` and ``on_close`` are not called. Datagrams are handled side by side. While as many
as may be are being handled no more are read: the kernel's buffer is the queue, and drops what does not fit into it, as UDP does.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any

from laraman.errors import Busy, ConnectionClosed, ConnectionLost, LocalProtocolError, RemoteProtocolError
from laraman.net.connection import CLOSED, Connection

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("uvicorn.error")

#: Datagrams that are read in one turn of the loop: other processes read from the same socket, and other things want their turn.
AT_ONCE = 64
#: Datagrams that are being handled in a process above which no more are read, when its worker has no ``max_connections``.
IN_FLIGHT = 1024
#: Bytes that are read of one: more than any can have.
SIZE = 65536
#: Bytes of the kernel's buffer that one takes at least.
LEAST = 256


class DatagramConnection(Connection):
    """What is there of a peer while its datagram is handled, and as long as the handler keeps it to answer later."""

    __slots__ = ("_server",)

    def __init__(self, protocol: Any, handler: Any, server: DatagramServer, peer: Any) -> None:
        worker = server.worker
        super().__init__(protocol, handler, worker, write_timeout=worker.config.timeout_write)
        self._server = server
        self.transport = _WayBack(server, peer)
        self.opened = server.loop.time()
        self.peer = peer
        self.local = server.local
        self._closing_when_idle = True  # nothing follows

    def take(self, data: bytes) -> None:
        """Handle one datagram. A protocol that is not the built-in one may find any number of messages in it, and each must be whole."""
        self.data_received(data)
        if self.error is None and (finish := getattr(self.protocol, "receive_eof", None)) is not None:
            try:
                finish()
            except RemoteProtocolError as exc:
                self._refuse(exc)
        if self.running is None:
            self._settle()

    async def send(self, message: Any) -> None:
        """Send one message as a datagram, as soon as the kernel takes it. Raises LocalProtocolError when it is larger than one can be, ConnectionLost
        when the network does not take it."""
        while True:
            try:
                self.send_nowait(message)
                return
            except Busy:
                await self._server.writable(self._write_timeout)

    def send_nowait(self, message: Any) -> None:
        """The same, or Busy when the kernel does not take it now."""
        if self.error is not None:
            raise self._copied_error()
        data = self.protocol.send(message)
        self.transport.write(data)
        self.bytes_out += len(data)
        self.messages_out += 1

    def close(self, code: int = 1000) -> None:
        """Send no more. There is nothing that a peer could be told."""
        if self.error is None:
            self.error = ConnectionClosed("this side has closed the connection")
            self.close_code = code

    def shutdown(self) -> None:
        """The worker is draining: what is being handled may end."""

    def _settle(self) -> None:
        if not self._pending:
            self.state = CLOSED
            self._forget()
            self._server.handled(self)


class _WayBack:
    """What such a connection has for a transport: the worker's socket, and where to."""

    __slots__ = ("_peer", "_server")

    def __init__(self, server: DatagramServer, peer: Any) -> None:
        self._server = server
        self._peer = peer

    def write(self, data: bytes) -> None:
        self._server.send(data, self._peer)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def nothing(self) -> None:
        """There is nothing to end or to hold back."""

    close = abort = pause_reading = resume_reading = nothing


class DatagramServer:
    """Reads from one socket. ``protocol`` is made anew for each datagram."""

    def __init__(self, worker: Any, handler: Any, protocol: Callable[[], Any]) -> None:
        self.worker = worker
        self.loop = asyncio.get_running_loop()
        self.local: Any = None
        self._handler = handler
        self._protocol = protocol
        self._limit: int = worker.max_connections or IN_FLIGHT
        self._max_size: int = worker.max_message or SIZE
        self._handling: set[DatagramConnection] = set()
        self._socket: socket.socket | None = None
        self._reading = self._closing = False
        self._writable: asyncio.Future[None] | None = None

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """As an ``asyncio.Server`` has them."""
        return () if self._socket is None else (self._socket,)

    def open(self, sock: socket.socket) -> None:
        """Begin to read from this socket, which then belongs to the server."""
        self._socket = sock
        self.local = sock.getsockname()
        self._read(True)

    def close(self) -> None:
        """Read no more. What is being handled is still answered."""
        self._read(False)
        self._closing = True
        if not self._handling:
            self._end()

    def drain(self) -> None:
        """Take everything that the kernel has, because nobody else will; not what comes meanwhile, which may have no end."""
        if self._socket is not None:
            for _ in range(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // LEAST):
                if not self._take():
                    break

    def _end(self) -> None:
        if self._socket is not None:
            if self._writable is not None:
                self.loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and self._socket is not None:
            self._reading = wanted
            if wanted:
                self.loop.add_reader(self._socket.fileno(), self._readable)
            else:
                self.loop.remove_reader(self._socket.fileno())

    def _readable(self) -> None:
        for _ in range(AT_ONCE):
            if len(self._handling) >= self._limit:
                self._read(False)
                return
            if not self._take():
                return

    def _take(self) -> bool:
        """Read and handle one; False when there is none."""
        assert self._socket is not None
        try:
            data, peer = self._socket.recvfrom(SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:  # an answer has not arrived, which some kernels tell here
            logger.debug("udp: %s", exc)
            return True
        if len(data) > self._max_size:
            logger.warning("A datagram of %d bytes was dropped: it is larger than the %d that max_message allows", len(data), self._max_size)
            return True
        connection = DatagramConnection(self._protocol(), self._handler, self, peer)
        self._handling.add(connection)
        self.worker.connections.add(connection)
        connection.take(data)
        return True

    def handled(self, connection: DatagramConnection) -> None:
        self._handling.discard(connection)
        if not self._closing:
            self._read(True)
        elif not self._handling:
            self._end()

    # Answers ---------------------------------------------------------------------------------------------------------------------

    def send(self, data: bytes, peer: Any) -> None:
        """Raises Busy, LocalProtocolError and ConnectionLost."""
        if self._socket is None:
            raise ConnectionLost("the worker has stopped")
        try:
            self._socket.sendto(data, peer)
        except (BlockingIOError, InterruptedError):
            raise Busy("the kernel takes no more datagrams at the moment") from None
        except OSError as exc:
            if exc.errno == errno.EMSGSIZE:
                raise LocalProtocolError(f"{len(data)} bytes are more than a datagram can have") from None
            raise ConnectionLost(f"the datagram could not be sent: {exc.strerror}") from exc

    async def writable(self, timeout: float) -> None:
        """Return when the kernel takes datagrams again. Raises ConnectionLost when it does not within ``timeout`` seconds."""
        if self._socket is None:
            raise ConnectionLost("the worker has stopped")
        if self._writable is None:
            self._writable = self.loop.create_future()
            self.loop.add_writer(self._socket.fileno(), self._takes_more)
        try:
            async with asyncio.timeout(timeout or None):
                await asyncio.shield(self._writable)
        except TimeoutError:
            raise ConnectionLost(f"the kernel has taken no datagram for {timeout:g} seconds") from None

    def _takes_more(self) -> None:
        assert self._socket is not None
        self.loop.remove_writer(self._socket.fileno())
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None
