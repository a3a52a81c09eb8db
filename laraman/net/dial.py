"""Dialling an address without ever blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar
from typing import Protocol as TypingProtocol

from laraman.net.stream import Stream
from laraman.net.udp import DatagramSocket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from laraman.net.address import Address
    from laraman.net.proxy import Proxy

P = TypeVar("P", bound=asyncio.Protocol)

#: Lookups under way. A slow one is waited for again, not started again.
_lookups: dict[tuple[asyncio.AbstractEventLoop, str, int], asyncio.Future[Any]] = {}


class Opening(TypingProtocol):
    """What has to be said before a connection is open; ``receive_data`` tells when it is, ``rest`` is what came behind that."""

    request: bytes

    def receive_data(self, data: bytes) -> bool: ...

    @property
    def rest(self) -> bytes: ...


async def dial(
    address: Address,
    factory: Callable[[], P],
    timeout: float,
    *,
    context: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
    opening: Opening | None = None,
) -> P:
    """Connect to ``address``, through ``proxy`` and over TLS with ``context`` where they are given, and return the protocol that ``factory`` makes
    when ``opening`` is done.

    Raises OSError, of which TimeoutError and ssl.SSLError are two, and RemoteProtocolError: the name lookup, all attempts and all that is said before
    get ``timeout`` seconds together.
    """
    try:
        async with asyncio.timeout(timeout) as limit:
            if proxy is None and opening is None:
                return await _connect(address, factory, context)
            return await _introduced(address, factory, context, proxy, opening)
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"no connection to {address}{'' if proxy is None else f' through {proxy}'} within {timeout:g} s") from None
        raise
    except ConnectionError as exc:
        if str(exc):
            raise
        raise type(exc)(f"{address} hung up during the handshake of TLS") from None


async def _introduced(
    address: Address, factory: Callable[[], P], context: ssl.SSLContext | None, proxy: Proxy | None, opening: Opening | None
) -> P:
    if proxy is None:
        stream = await _connect(address, lambda: Stream(str(address)), context)
    else:
        stream = await _connect(proxy.address, lambda: Stream(str(proxy)), None)
    try:
        if proxy is not None:
            await proxy.open(stream, address)
            stream.peer = str(address)
            if context is not None:
                await stream.start_tls(context, server_name(address))
        if opening is not None:
            stream.write(opening.request)
            while not opening.receive_data(await stream.read()):
                pass
            stream.unread(opening.rest)
        return stream.hand_over(factory())
    except BaseException:
        stream.abort()
        raise


def server_name(address: Address) -> str:
    """Whose certificate it must be; a server behind a unix socket is "localhost"."""
    return address.host or "localhost"


async def _connect(address: Address, factory: Callable[[], P], context: ssl.SSLContext | None) -> P:
    loop = asyncio.get_running_loop()
    secured: dict[str, Any] = {} if context is None else {"ssl": context, "server_hostname": server_name(address)}
    if address.path:
        return (await loop.create_unix_connection(factory, address.path, **secured))[1]
    error = OSError(f"{address.host} has no address")
    for host in await resolve(address.host, address.port):
        try:
            if address.scheme == "udp":
                return DatagramSocket.connect(host, address.port, factory)
            return (await loop.create_connection(factory, host, address.port, **secured))[1]
        except OSError as exc:
            error = exc
    raise error


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of ``host``. Raises OSError.

    A name is looked up in a thread of its own: the loop's executor is a few threads that the application needs, a resolver that does not answer
    keeps a thread for half a minute, and links dial again and again.
    """
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    key = (asyncio.get_running_loop(), host, port)
    lookup = _lookups.get(key)
    if lookup is None:
        lookup = _lookups[key] = _look_up(host, port)
        lookup.add_done_callback(lambda _: _lookups.pop(key))
    found = await asyncio.shield(lookup)
    if isinstance(found, OSError):
        raise found
    return list(dict.fromkeys(entry[4][0] for entry in found))


def _look_up(host: str, port: int) -> asyncio.Future[Any]:
    """``getaddrinfo`` in a thread: the future's result is what it found, or the OSError it raised."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        found: Any
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            found = exc
        except UnicodeError as exc:  # a label that is empty or too long
            found = OSError(f"{host!r} is not a host name: {exc}")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(future.set_result, found)

    threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
    return future
