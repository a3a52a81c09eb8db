"""Where the http worker listens: one address or several, sockets of systemd among them, each with the scheme that is spoken there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from laraman.config import Config
from laraman.errors import ConfigError
from laraman.net.activation import activated
from laraman.net.address import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEMES = ("http", "https")
_NO_ADDRESS = Config()


def scheme_of(config: Config) -> str:
    """What is spoken where an address does not say it."""
    return "https" if config.ssl_certfile or config.ssl_context_factory is not None else "http"


def http_addresses(config: Config) -> list[Address]:
    """``bind``, else ``fd``, else ``uds``, else ``host`` and ``port``; where none of them is set, the sockets of systemd when there are any.

    Raises ConfigError.
    """
    scheme = scheme_of(config)
    if config.bind:
        return _distinct(address for text in config.bind for address in _parsed(text, scheme))
    if config.fd is not None:
        return [Address(scheme, fd=config.fd)]
    if config.uds:
        return [Address(scheme, path=config.uds)]
    if (config.host, config.port) == (_NO_ADDRESS.host, _NO_ADDRESS.port) and (passed := activated()):
        return [Address(scheme, fd=descriptor) for descriptor, _ in passed]
    return [Address(scheme, config.host, config.port)]


def _parsed(text: str, scheme: str) -> list[Address]:
    kind, _, name = text.partition(":")
    if kind == "systemd":
        return _of_systemd(text, name, scheme)
    address = parse_address(text, scheme)
    if address.scheme not in _SCHEMES or address.tls:
        raise ConfigError(f"--bind {text}: {address.scheme} is not spoken there, but http, and https where there is a certificate")
    if address.scheme == "https" != scheme:
        raise ConfigError(f"--bind {text} needs a certificate: --ssl-certfile")
    return [address]


def _of_systemd(text: str, name: str, scheme: str) -> list[Address]:
    found = [descriptor for descriptor, called in activated() if not name or called == name]
    if not found:
        raise ConfigError(f"--bind {text}: no socket{f' called {name}' if name else ''} was passed to this process (LISTEN_PID, LISTEN_FDS)")
    return [Address(scheme, fd=descriptor) for descriptor in found]


def _distinct(addresses: Iterable[Address]) -> list[Address]:
    found: list[Address] = []
    for address in addresses:
        picked = not (address.port or address.path or address.fd is not None)  # port 0: another one each time
        if not picked and any(replace(other, scheme=address.scheme) == address for other in found):
            raise ConfigError(f"--bind: {address} is there twice")
        found.append(address)
    return found
