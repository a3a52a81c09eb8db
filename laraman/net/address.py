"""Addresses: where something listens or is dialled, and which protocol is spoken there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from laraman.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed address. A ``path`` means a unix socket, a ``fd`` an inherited descriptor; else ``host`` and ``port`` are set."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int | None = None

    def __str__(self) -> str:
        if self.fd is not None:
            return f"{self.scheme}+fd://{self.fd}"
        if self.path:
            return f"{self.scheme}+unix://{self.path}"
        return f"{self.scheme}://[{self.host}]:{self.port}" if ":" in self.host else f"{self.scheme}://{self.host}:{self.port}"


def parse_address(text: str, scheme: str = "tcp") -> Address:
    """Parse ``frame://127.0.0.1:9100``, ``text://[::1]:9101``, ``frame+unix:///run/x.sock``, ``http+fd://3``, ``unix:/run/x.sock``,
    ``fd:3`` or ``host:port``.

    ``scheme`` is what an address without one means. Raises ConfigError with the reason.
    """
    if text.startswith("unix:") or text.startswith("fd:"):
        kind, _, rest = text.partition(":")
        return _unix(text, scheme, rest.removeprefix("//")) if kind == "unix" else _descriptor(text, scheme, rest.removeprefix("//"))
    named, separator, rest = text.partition("://")
    if not separator:
        named, rest = scheme, text
    named = named.lower()
    if named.endswith("+unix"):
        return _unix(text, named.removesuffix("+unix"), rest)
    if named.endswith("+fd"):
        return _descriptor(text, named.removesuffix("+fd"), rest)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"address {text!r}: {exc}") from None
    # urlsplit drops line ends and tabs silently, and takes anything for a host.
    if (
        not _is_word(named)
        or not _is_word(rest)
        or not host
        or port is None
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or parts.username is not None
    ):
        raise ConfigError(f"address {text!r} is not of the form scheme://host:port")
    return Address(named, host, port)


def _unix(text: str, scheme: str, path: str) -> Address:
    if not path or "\0" in path or not _is_word(scheme):
        raise ConfigError(f"address {text!r} names no path")
    return Address(scheme, path=path)


def _descriptor(text: str, scheme: str, number: str) -> Address:
    if not (number.isascii() and number.isdecimal()) or len(number) > 9 or not _is_word(scheme):
        raise ConfigError(f"address {text!r} names no file descriptor")
    return Address(scheme, fd=int(number))


def _is_word(text: str) -> bool:
    """Something without blanks and control characters."""
    return bool(text) and text.isprintable() and " " not in text
