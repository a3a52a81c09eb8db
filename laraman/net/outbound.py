"""Outbound connections: what a URL and the options beside it come to, and ``laraman.connect``, which dials one once."""

from __future__ import annotations

import asyncio
import functools
import ssl as tls
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from laraman.errors import ConfigError
from laraman.net.address import WS_PORT, WSS_PORT, parse_address
from laraman.net.connection import Connection
from laraman.net.current import current_worker
from laraman.net.dial import dial, server_name
from laraman.net.proxy import parse_proxy
from laraman.net.sockets import keep_alive
from laraman.net.websocket import WebSocketConnection
from laraman.protocols import protocol_named
from laraman.protocols.framing import MAX_MESSAGE_SIZE
from laraman.protocols.switching import Handshake
from laraman.sandbox.operation import LINK, LINK_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from laraman.protocols import Protocol

C = TypeVar("C", bound=Connection)

#: Seconds in which a connection sends what it has to when its worker has stopped.
FLUSH_SECONDS = 1.0


@functools.cache
def system_trust() -> tls.SSLContext:
    """What this machine trusts. Kept, because it takes some 20 ms to read."""
    return tls.create_default_context()


class _Outbound:
    """A request may wait for what such a connection brings, so that waits for no other operation."""

    __slots__ = ()

    message_kind = LINK_MESSAGE
    hook_kind = LINK

    dialled_by: Any

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = super().row()  # type: ignore[misc]
        if self.dialled_by is not None:
            row.update(worker=self.dialled_by.name, slot=self.dialled_by.slot)
        return row


class Dialled(_Outbound, Connection):
    """A connection that was dialled; ``dialled_by`` is the worker that shows it, or None."""

    __slots__ = ("dialled_by",)


class DialledWebSocket(_Outbound, WebSocketConnection):
    """The same for a websocket. ``subprotocol`` is the one that the server has chosen, or ""."""

    __slots__ = ("dialled_by", "subprotocol")

    subprotocol: str


class Route:
    """Where to dial and how, checked once. ``websocket`` tells which kind of connection is to be made. Raises ConfigError."""

    def __init__(
        self,
        url: str,
        protocol: Callable[[], Protocol] | None = None,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        max_message: int | None = None,
    ) -> None:
        address = self.address = parse_address(url)
        self.websocket = address.scheme == "ws"
        self._proxy = None if proxy is None else parse_proxy(proxy)
        self._headers = headers
        self._subprotocols = subprotocols
        self._max_message = max_message
        if address.fd is not None:
            raise ConfigError(f"{url}: a descriptor cannot be dialled")
        if ssl is not None and not address.tls:
            raise ConfigError(f"{url}: ssl is for addresses with +tls, and for wss")
        if self._proxy is not None and (address.path or address.scheme == "udp"):
            raise ConfigError(f"{url}: there is no way through a proxy to a unix socket or with udp")
        if self._proxy is not None and len(_ascii(url, address.host)) > 255:
            raise ConfigError("a host name has 255 bytes at most")
        if self._proxy is not None:
            self.address = replace(address, host=_ascii(url, address.host))
        if self.websocket:
            if protocol is not None:
                raise ConfigError(f"{url}: messages of a websocket have no protocol of their own")
            self._handshake()  # what is wrong with its fields shows now
        elif headers or subprotocols:
            raise ConfigError(f"{url}: headers and subprotocols are for ws and wss")
        self._make = protocol or (None if self.websocket else protocol_named(address.scheme, max_message))
        self._ssl = (ssl or system_trust()) if address.tls else None

    def _handshake(self) -> Handshake:
        address = self.address
        usual = address.path or address.port == (WSS_PORT if address.tls else WS_PORT)
        host = replace(address, host=server_name(address)).authority
        return Handshake(
            host.rpartition(":")[0] if usual else host,
            address.target,
            self._max_message or MAX_MESSAGE_SIZE,
            headers=self._headers,
            subprotocols=self._subprotocols,
        )

    async def dial(self, make: Callable[[Any], C], timeout: float) -> C:
        """Connect; ``make`` is given the codec. Raises what ``laraman.net.dial.dial`` does."""
        if self._make is not None:
            codec = self._make()
            return await dial(self.address, lambda: make(codec), timeout, context=self._ssl, proxy=self._proxy)
        handshake = self._handshake()

        def opened() -> C:
            connection = make(handshake.websocket)
            connection.subprotocol = handshake.subprotocol  # type: ignore[attr-defined]
            return connection

        return await dial(self.address, opened, timeout, context=self._ssl, proxy=self._proxy, opening=handshake)


def _ascii(url: str, host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as exc:
        raise ConfigError(f"{url}: {host!r} is not a host name: {exc}") from None


# One connection, once ---------------------------------------------------------------------------------------------------------------


async def connect(
    url: str,
    *,
    handler: Any = None,
    protocol: Callable[[], Protocol] | None = None,
    ssl: tls.SSLContext | None = None,
    proxy: str | None = None,
    timeout: float = 5.0,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    max_message: int | None = None,
) -> Connection:
    """Dial ``url`` once and return the open connection, which is not dialled again when it is lost (``laraman.link`` does that).

        connection = await laraman.connect("text+tls://example.com:9443")
        await connection.send("hello")
        answer = await connection.receive()

    ``url`` is ``tcp://``, ``text://``, ``frame://``, ``udp://``, each but udp with ``+tls`` or ``+unix`` too, ``unix:///path``, ``ws://`` or ``wss://``.
    With a ``handler`` its ``on_connect``, ``on_message``, ``on_close`` ... are called, as a Worker's are; without one messages wait for ``receive``.
    ``protocol`` makes the codec in place of the one that the scheme names. ``ssl`` is the context for TLS; without one the system's authorities are
    trusted. ``proxy`` is ``http://user:password@host:port`` or ``socks5://...``, and looks the name up. ``timeout`` is the number of seconds for
    everything until the connection is open. ``headers`` and ``subprotocols`` go with the handshake of a websocket; ``subprotocol`` of the
    connection is the one that the server has chosen. ``max_message`` bounds the peer's messages, in bytes.

    In a worker the connection is shown by ``laraman connections``, and closed when the worker stops and its requests are over.
    Raises ConfigError, OSError (TimeoutError and ssl.SSLError among them; ConnectionRefusedError when a proxy or a websocket's server does not want
    to) and RemoteProtocolError for a peer that answers nonsense.
    """
    route = Route(url, protocol, ssl, proxy, headers, subprotocols, max_message)
    kind = DialledWebSocket if route.websocket else Dialled
    worker = current_worker.get()

    def make(codec: Any) -> Connection:
        connection = kind(codec, handler, None, "out")
        connection.dialled_by = worker
        if handler is not None:
            connection.operates_for = worker
        return connection

    connection = await route.dial(make, timeout)
    keep_alive(connection.transport.get_extra_info("socket"))
    if worker is not None:
        worker.tasks.start_soon(_keep, connection, worker)
    return connection


async def _keep(connection: Connection, worker: Any) -> None:
    """Have it among what is the worker's until it ends, or the worker does."""
    worker.links.add(connection)
    try:
        await connection.wait_closed()
        await connection.wait_idle()
    except asyncio.CancelledError:
        with anyio.move_on_after(FLUSH_SECONDS, shield=True):
            connection.close(1001)
            await connection.wait_closed()
            await connection.wait_idle()
        connection.cancel()
        raise
    finally:
        worker.links.discard(connection)
