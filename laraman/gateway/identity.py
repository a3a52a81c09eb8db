"""What the uniqIds of a gateway begin with, as the gateway itself works it out; its own workers come to the same result."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from laraman.errors import ConfigError
from laraman.protocols.netsvr import addr_to_prefix

if TYPE_CHECKING:
    from laraman.net.address import Address

#: The address of a gateway that listens on all addresses of its machine.
ANY = "0.0.0.0"
#: Where the kernel would send a packet to, to find out this machine's own address; nothing is sent.
_FAR = ("192.0.2.1", 9)


def prefix_of(address: Address) -> str:
    """The first 12 characters of this gateway's uniqIds: the IPv4 address and the port of its task listener. Raises ConfigError."""
    host = address.host
    try:
        if host == ANY:
            host = _own_address()
        found = socket.getaddrinfo(host, address.port, socket.AF_INET, socket.SOCK_STREAM)
        return addr_to_prefix(f"{found[0][4][0]}:{address.port}")
    except OSError as exc:
        raise ConfigError(f"[tool.laraman.gateway] {address} has no IPv4 address that uniqIds could begin with; set prefix ({exc})") from None


def _own_address() -> str:
    """The address that other machines see. Raises OSError when there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_FAR)
        return str(probe.getsockname()[0])
