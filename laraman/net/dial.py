"""Dialling an address without ever blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.address import Address

P = TypeVar("P", bound=asyncio.Protocol)

#: Lookups under way. A slow one is waited for again, not started again.
_lookups: dict[tuple[asyncio.AbstractEventLoop, str, int], asyncio.Future[Any]] = {}


async def dial(address: Address, factory: Callable[[], P], timeout: float) -> P:
    """Connect to ``address`` and return the protocol that ``factory`` made for it.

    Raises OSError, of which TimeoutError is one: the name lookup and all attempts together get ``timeout`` seconds.
    """
    try:
        async with asyncio.timeout(timeout) as limit:
            return await (_dial_unix(address, factory) if address.path else _dial_tcp(address, factory))
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"no connection to {address} within {timeout:g} s") from None
        raise


async def _dial_unix(address: Address, factory: Callable[[], P]) -> P:
    _, protocol = await asyncio.get_running_loop().create_unix_connection(factory, address.path)
    return protocol


async def _dial_tcp(address: Address, factory: Callable[[], P]) -> P:
    loop = asyncio.get_running_loop()
    error = OSError(f"{address.host} has no address")
    for host in await resolve(address.host, address.port):
        try:
            _, protocol = await loop.create_connection(factory, host, address.port)
        except OSError as exc:
            error = exc
        else:
            return protocol
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
