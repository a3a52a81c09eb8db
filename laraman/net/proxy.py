"""Dialling through a proxy: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928), each with a user and password (RFC 7617, RFC 1929).

The proxy looks names up. Nothing here has a deadline: whoever dials has one for everything.
"""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from laraman.errors import ConfigError, RemoteProtocolError
from laraman.net.address import Address
from laraman.protocols.switching import Switch

if TYPE_CHECKING:
    from laraman.net.stream import Stream

#: RFC 1928 section 6.
_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "kind of address not supported",
}
_NO_PASSWORD, _PASSWORD, _NONE_OF_THESE = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4


@dataclass(frozen=True, slots=True)
class Proxy:
    """``scheme`` is "http" or "socks5"; ``user`` is empty where the proxy asks for none."""

    scheme: str
    address: Address
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"proxy {self.scheme}://{self.address.authority}"

    async def open(self, stream: Stream, address: Address) -> None:
        """Have it connect ``stream`` with ``address``.

        Raises ConnectionRefusedError with the proxy's reason, RemoteProtocolError for an answer that is none.
        """
        try:
            await (_connect if self.scheme == "http" else _socks)(self, stream, address)
        except RemoteProtocolError as exc:
            raise RemoteProtocolError(f"{self}: {exc}") from None


def parse_proxy(text: str) -> Proxy:
    """``http://host:port`` or ``socks5://user:password@host:port``, what is special in user and password percent-encoded; ``socks5h`` is the same.

    Raises ConfigError, which does not repeat the text: there may be a password in it.
    """
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        port = host = None
    if not host or not port or parts.scheme not in ("http", "socks5", "socks5h") or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError("a proxy is http://host:port or socks5://host:port, with user:password@ before the host if it asks for them")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    scheme = parts.scheme.removesuffix("h")
    if scheme == "socks5" and user and not (len(user.encode()) < 256 and 0 < len(password.encode()) < 256):
        raise ConfigError("user and password of a socks5 proxy have between 1 and 255 bytes")
    if scheme == "http" and ":" in user:
        raise ConfigError("there can be no colon in the user of an http proxy")
    return Proxy(scheme, Address("tcp", host, port), user, password)


async def _connect(proxy: Proxy, stream: Stream, address: Address) -> None:
    headers = {"Host": address.authority}
    if proxy.user:
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(f'{proxy.user}:{proxy.password}'.encode()).decode()}"
    switch = Switch("CONNECT", address.authority, headers.items())
    stream.write(switch.request)
    while (answer := switch.receive_data(await stream.read())) is None:
        pass
    if not 200 <= answer.status < 300:
        raise ConnectionRefusedError(f"{proxy} answers {answer}")
    stream.unread(switch.rest)


async def _socks(proxy: Proxy, stream: Stream, address: Address) -> None:
    methods = bytes((_NO_PASSWORD, _PASSWORD)) if proxy.user else bytes((_NO_PASSWORD,))
    stream.write(bytes((5, len(methods))) + methods)
    version, method = await stream.read(2)
    if version != 5 or method not in (*methods, _NONE_OF_THESE):
        raise RemoteProtocolError("what it answers is not SOCKS5")
    if method == _NONE_OF_THESE:
        raise ConnectionRefusedError(f"{proxy} {'does not take a user and password' if proxy.user else 'asks for a user and password'}")
    if method == _PASSWORD:
        await _say_password(proxy, stream)
    stream.write(b"\x05\x01\x00" + _destination(address) + address.port.to_bytes(2, "big"))
    version, reply, _, kind = await stream.read(4)
    if version != 5:
        raise RemoteProtocolError("what it answers is not SOCKS5")
    if reply:
        raise ConnectionRefusedError(f"{proxy} answers: {_REPLIES.get(reply, f'failure {reply}')}")
    lengths = {_IPV4: 4, _IPV6: 16}
    if kind != _NAME and kind not in lengths:
        raise RemoteProtocolError("what it answers is not SOCKS5")
    length = lengths[kind] if kind in lengths else (await stream.read(1))[0]
    await stream.read(length + 2)  # where it has connected from


async def _say_password(proxy: Proxy, stream: Stream) -> None:
    user, password = proxy.user.encode(), proxy.password.encode()
    stream.write(b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password)
    version, status = await stream.read(2)
    if version != 1:
        raise RemoteProtocolError("what it answers is not SOCKS5")
    if status:
        raise ConnectionRefusedError(f"{proxy} does not accept this user and password")


def _destination(address: Address) -> bytes:
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        name = address.host.encode()
        return bytes((_NAME, len(name))) + name
    return bytes((_IPV4 if ip.version == 4 else _IPV6,)) + ip.packed
