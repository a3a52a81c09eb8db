"""Connected datagram sockets as transports: each ``write`` is a datagram, and each datagram that comes is a call of ``data_received``."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from laraman.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

P = TypeVar("P", bound=asyncio.Protocol)

#: More than a datagram can have, and how many are read before the loop does something else.
_MAX_SIZE, _MAX_READS = 65536, 64


class DatagramSocket(asyncio.Transport):
    """What is not read stays with the kernel, and is dropped there when it is too much. What the kernel does not take is dropped here: a datagram
    may be lost anywhere, and one that comes late is worth less than one that does not.

    When the peer's machine says that nobody is at the port, the connection is lost.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock, "sockname": sock.getsockname(), "peername": sock.getpeername()})
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = None
        self._closing = False
        self._reading = False
        #: Datagrams that the kernel did not take.
        self.dropped = 0

    @classmethod
    def connect(cls, host: str, port: int, factory: Callable[[], P]) -> P:
        """``host`` is an IP address. Nothing is sent. Raises OSError."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect((host, port))
            transport = cls(sock)
            protocol = factory()
        except BaseException:
            sock.close()
            raise
        transport._protocol = protocol
        transport.resume_reading()
        protocol.connection_made(transport)
        return protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    # Reading -------------------------------------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        for _ in range(_MAX_READS):
            try:
                data = self._socket.recv(_MAX_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self._end(exc)
                return
            self._protocol.data_received(data)
            if not self._reading:
                return

    # Writing -------------------------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        try:
            self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            self.dropped += 1
        except OSError as exc:
            if exc.errno == errno.EMSGSIZE:
                raise LocalProtocolError(f"{len(data)} bytes are more than a datagram can have") from None
            self._end(exc)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""

    def can_write_eof(self) -> bool:
        return False

    # The end -------------------------------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def _end(self, exc: OSError | None) -> None:
        if not self._closing:
            self.pause_reading()
            self._closing = True
            self._loop.call_soon(self._lose, exc)

    def _lose(self, exc: OSError | None) -> None:
        self._socket.close()
        self._protocol.connection_lost(exc)
