"""What proxies say about the client of a request: ``X-Forwarded-For`` and ``-Proto`` as uvicorn reads them, or ``Forwarded`` (RFC 7239).

Believed is only what trusted proxies say. Each one appends whom it was asked by, so the lists are read from the right, and what stands left of the
first address that is not trusted may have been written by the client itself.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address

    from laraman.asgi.app import ASGIApp, Receive, Scope, Send

SCHEMES = ("http", "https", "ws", "wss")

#: Peers whose trust is remembered, and the longest name that is: a DNS name's.
_REMEMBERED, _LONGEST = 4096, 253

# One parameter of Forwarded (RFC 7239 section 4), its value a token or a quoted string (RFC 9110 section 5.6), and what separates it from the next.
# In a token ``:``, ``[`` and ``]`` are taken too: proxies forget the quotes around a port, and there is nothing else that it could mean.
_PAIR = re.compile(r"""[ \t]*+(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+)|"((?:[^"\\]|\\.)*+)"))?[ \t]*+([;,]|\Z)""")
_QUOTED = re.compile(r"\\(.)")


class TrustedHosts:
    """Proxies that are trusted: ``"*"`` for all, else addresses, networks, and names that are compared as they stand.

    A peer without an address, on a unix socket, is trusted with ``"*"`` only. An IPv4 address in IPv6's clothes (``::ffff:127.0.0.1``, what a socket
    for both families shows) is the IPv4 address.
    """

    def __init__(self, hosts: str | Iterable[str]) -> None:
        names = [name.strip() for name in hosts.split(",")] if isinstance(hosts, str) else list(hosts)
        self.everybody = names == ["*"]
        self.literals: set[str] = set()
        self._addresses: set[IPv4Address | IPv6Address] = set()
        self._networks: list[Any] = []
        for name in names:
            self._add(name)
        self._is_trusted = lru_cache(maxsize=_REMEMBERED)(self._look_up)

    def _add(self, name: str) -> None:
        try:
            if "/" in name:
                self._networks.append(ip_network(name))
            else:
                self._addresses.add(ip_address(name))
        except ValueError:
            self.literals.add(name)

    def __contains__(self, host: object) -> bool:
        if self.everybody:
            return True
        if not isinstance(host, str) or not host:
            return False
        # A longer one is no address; remembering it would let a client fill the memory.
        return self._is_trusted(host) if len(host) <= _LONGEST else host in self.literals

    def _look_up(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return host in self.literals
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None and self._holds(address.ipv4_mapped):
            return True
        return self._holds(address)

    def _holds(self, address: IPv4Address | IPv6Address) -> bool:
        return address in self._addresses or any(address in network for network in self._networks)


def reader(trusted: TrustedHosts, *, forwarded: bool = False) -> Callable[[Scope], None]:
    """The function that corrects ``client`` and ``scheme`` of an http or websocket scope whose peer is trusted."""
    return (lambda scope: _read_forwarded(scope, trusted)) if forwarded else (lambda scope: _read_x_forwarded(scope, trusted))


# X-Forwarded-* ------------------------------------------------------------------------------------------------------------------------


def _read_x_forwarded(scope: Scope, trusted: TrustedHosts) -> None:
    proto: bytes | None = None
    hosts: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"x-forwarded-proto":
            proto = value
        elif name == b"x-forwarded-for":
            hosts.append(value)
    if proto is not None:
        _set_scheme(scope, proto.decode("latin-1").strip())
    if hosts:
        host, port = _client(b", ".join(hosts).decode("latin-1"), trusted)
        if host:  # an empty field says nothing
            scope["client"] = (host, port)


def _set_scheme(scope: Scope, scheme: str) -> None:
    if scheme in SCHEMES:
        scope["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme


def _client(text: str, trusted: TrustedHosts) -> tuple[str, int]:
    """The first from the right that is not trusted; the leftmost where all are."""
    hosts = [part.strip() for part in text.split(",")]
    for each in reversed(hosts):
        host, port = host_and_port(each)
        if host not in trusted:
            return host, port
    return host_and_port(hosts[0])


def host_and_port(text: str) -> tuple[str, int]:
    """``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[2001:db8::1]:80``; port 0 where there is none. Anything else stays as it is."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return text, 0
        return host, _port(rest[1:]) or 0
    host, colon, number = text.partition(":")
    port = _port(number) if colon else None
    return (text, 0) if port is None else (host, port)


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None


# Forwarded ----------------------------------------------------------------------------------------------------------------------------


def _read_forwarded(scope: Scope, trusted: TrustedHosts) -> None:
    fields = [value for name, value in scope["headers"] if name == b"forwarded"]
    if not fields:
        return
    elements = parse_forwarded(b", ".join(fields).decode("latin-1"))
    for element in reversed(elements):
        host, port = host_and_port(element.get("for", ""))
        if host in trusted and element is not elements[0]:
            continue
        # RFC 7239 section 6: ``unknown`` and ``_hidden`` are names as well; they are no addresses, so nobody trusts them.
        if host:
            scope["client"] = (host, port)
        _set_scheme(scope, element.get("proto", "").lower())
        return


def parse_forwarded(text: str) -> list[dict[str, str]]:
    """The elements of a Forwarded field, names in lower case. None at all when one of them is malformed: then nothing of it can be believed."""
    elements: list[dict[str, str]] = [{}]
    position = 0
    while match := _PAIR.match(text, position):
        name, token, quoted, separator = match.groups()
        if name is not None:
            if name.lower() in elements[-1]:
                return []
            elements[-1][name.lower()] = token if token is not None else _QUOTED.sub(r"\1", quoted)
        if not separator:
            return [element for element in elements if element]
        if separator == ",":
            elements.append({})
        position = match.end()
    return []


class ProxyHeadersMiddleware:
    """Corrects ``client`` and ``scheme`` by what trusted proxies say; for applications that import it from uvicorn. The server does it itself."""

    def __init__(self, app: ASGIApp, trusted_hosts: str | list[str] = "127.0.0.1") -> None:
        self.app: Any = app
        self.trusted_hosts = TrustedHosts(trusted_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            client = scope.get("client")
            if (client[0] if client else None) in self.trusted_hosts:
                _read_x_forwarded(scope, self.trusted_hosts)
        await self.app(scope, receive, send)
