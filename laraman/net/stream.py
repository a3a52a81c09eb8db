"""The bytes of a dialled connection while what has to be said first is said: to a proxy, to a websocket's server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from laraman.errors import RemoteProtocolError

if TYPE_CHECKING:
    import ssl

P = TypeVar("P", bound=asyncio.Protocol)


class Stream(asyncio.Protocol):
    """Reads when it is asked to, then gives its transport away. ``peer`` is who is spoken to, for errors."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._transport: Any = None
        self._buffer = b""
        self._ended = self._lost = False
        self._heir: asyncio.Protocol | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = self._lost = True
        if self._heir is not None:  # asyncio has noted whom to tell of the end of TLS before the transport was handed over
            self._heir.connection_lost(exc)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def read(self, count: int = 0) -> bytes:
        """So many bytes, or at least one if no ``count`` is given. Raises ConnectionResetError when the peer has hung up before."""
        while len(self._buffer) < max(count, 1):
            if self._ended:
                raise ConnectionResetError(f"{self.peer} closed the connection before it had answered")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        count = count or len(self._buffer)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was read too far."""
        self._buffer = data + self._buffer

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """From now on over TLS with the server called ``name``. Raises OSError, of which ssl.SSLError is one."""
        if self._buffer:
            raise RemoteProtocolError(f"{self.peer} sends something before it can know that it is wanted")
        self._transport = await asyncio.get_running_loop().start_tls(self._transport, self, context, server_hostname=name)

    def hand_over(self, protocol: P) -> P:
        """Let ``protocol`` go on, with what has arrived for it already."""
        if self._lost or (self._ended and not self._buffer):
            raise ConnectionResetError(f"{self.peer} closed the connection")
        self._heir = protocol
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._buffer:
            protocol.data_received(self._buffer)
        return protocol

    def abort(self) -> None:
        self._transport.abort()
