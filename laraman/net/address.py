"""Addresses: where something listens or is dialled, and which protocol is spoken there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from laraman.errors import ConfigError

#: The ports of ``ws://`` and ``wss://`` when none is written (RFC 6455 section 3).
WS_PORT, WSS_PORT = 80, 443


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed address. A ``path`` means a unix socket, a ``fd`` an inherited descriptor; else ``host`` and ``port`` are set.

    ``tls``: the bytes go over TLS; ``wss://`` is the scheme "ws" with it. ``target`` is what a websocket client asks for, path and query.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int | None = None
    tls: bool = False
    target: str = ""

    def __str__(self) -> str:
        secured = self.scheme + ("+tls" if self.tls else "")
        if self.fd is not None:
            return f"{secured}+fd://{self.fd}"
        if self.path:
            return f"{secured}+unix://{self.path}"
        scheme = "wss" if secured == "ws+tls" else secured
        path, query, _ = self.target.partition("?")  # of the query not more: feeds have their passwords there
        target = ("" if path == "/" else path) + (query and "?...")
        return f"{scheme}://{self.authority}{target}"

    @property
    def authority(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, scheme: str = "tcp") -> Address:
    """Parse ``frame://127.0.0.1:9100``, ``text://[::1]:9101``, ``frame+unix:///run/x.sock``, ``http+fd://3``, ``unix:/run/x.sock``,
    ``fd:3`` or ``host:port``; ``frame+tls://127.0.0.1:9443`` with TLS, ``wss://example.com/path?query``.

    ``scheme`` is what an address without one means. Raises ConfigError with the reason.
    """
    if text.startswith("unix:") or text.startswith("fd:"):
        kind, _, rest = text.partition(":")
        return _unix(text, scheme, rest.removeprefix("//")) if kind == "unix" else _descriptor(text, scheme, rest.removeprefix("//"))
    named, separator, rest = text.partition("://")
    if not separator:
        named, rest = scheme, text
    named, *words = named.lower().split("+")
    if named == "wss":
        named, words = "ws", [*words, "tls"]
    kinds = [word for word in words if word != "tls"]
    if kinds not in ([], ["unix"], ["fd"]):
        raise ConfigError(f"address {text!r}: after the scheme there may be +tls, and +unix or +fd")
    if named == "udp" and words:
        raise ConfigError(f"address {text!r}: udp is spoken between hosts and ports, without TLS")
    if kinds == ["unix"]:
        address = _unix(text, named, rest)
    elif kinds == ["fd"]:
        address = _descriptor(text, named, rest)
    else:
        address = _host_and_port(text, named, rest, WSS_PORT if "tls" in words else WS_PORT)
    return replace(address, tls="tls" in words)


def _host_and_port(text: str, scheme: str, rest: str, ws_port: int) -> Address:
    if "@" in rest.partition("/")[0]:
        raise ConfigError(f"address {'...' + text[text.rindex('@') :]!r}: there can be no user and password")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"address {text!r}: {exc}") from None
    target = ""
    if scheme == "ws":
        if not rest.isascii():
            raise ConfigError(f"address {text!r}: what is not ASCII must be percent-encoded there")
        port = ws_port if port is None else port
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    elif parts.path not in ("", "/") or parts.query:
        host = None
    # urlsplit drops line ends and tabs silently, and takes anything for a host.
    if not _is_word(scheme) or not _is_word(rest) or not host or port is None or parts.fragment:
        raise ConfigError(f"address {text!r} is not of the form scheme://host:port")
    return Address(scheme, host, port, target=target)


def _unix(text: str, scheme: str, path: str) -> Address:
    if not path or "\0" in path or not _is_word(scheme):
        raise ConfigError(f"address {text!r} names no path")
    return Address(scheme, path=path, target="/" if scheme == "ws" else "")


def _descriptor(text: str, scheme: str, number: str) -> Address:
    if not (number.isascii() and number.isdecimal()) or len(number) > 9 or not _is_word(scheme):
        raise ConfigError(f"address {text!r} names no file descriptor")
    return Address(scheme, fd=int(number))


def _is_word(text: str) -> bool:
    """Something without blanks and control characters."""
    return bool(text) and text.isprintable() and " " not in text
