"""The header of the PROXY protocol, versions 1 and 2: with it a proxy says, before the client's own bytes, who the client is.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 (a line of text) and 2.2 (binary). Both are recognised by their first bytes.
Of version 2 the additions behind the addresses (TLVs) are skipped, and so is its optional checksum.
"""

from __future__ import annotations

import re
import struct
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

#: An end of the connection as a socket names it: host and port, or the path of a unix socket.
End = tuple[str, int] | str

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: The longest header of version 1, its CRLF included, and the longest of version 2 that is taken; the protocol would allow 65551.
MAX_LINE, MAX_BINARY = 107, 4096

_FIXED = 16  # bytes of version 2 that say how many follow
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6, _UNIX = 0x11, 0x21, 0x31
_ADDRESSES = {_TCP4: 12, _TCP6: 36, _UNIX: 216}  # bytes of each family's addresses
_NO_STREAMS = (0x00, 0x12, 0x22, 0x32)  # unspecified and datagrams: to be taken, and their addresses to be left alone
_LINE = re.compile(rb"PROXY (TCP[46]) ([0-9A-Fa-f.:]{2,39}) ([0-9A-Fa-f.:]{2,39}) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\Z")


class ProxyHeader:
    """One header. ``source`` and ``destination`` are the client's connection to the proxy, once the header is ``complete``.

    They stay None where the proxy speaks for itself (LOCAL: its health checks) or does not know (UNKNOWN): then the socket's own ends count.
    """

    __slots__ = ("_buffer", "complete", "destination", "source")

    def __init__(self) -> None:
        self._buffer = b""
        self.complete = False
        self.source: End | None = None
        self.destination: End | None = None

    def receive_data(self, data: bytes) -> int:
        """Take bytes in; how many of them belong to the header. Those behind it are the client's own.

        Raises RemoteProtocolError when this is no header, or one that breaks the rules.
        """
        before = len(self._buffer)
        whole = self._buffer + data
        end = self._end(whole)
        self._buffer = whole[:end]
        return len(self._buffer) - before

    def _end(self, whole: bytes) -> int:
        """Where the header ends in ``whole``, or how much of it is here when it is not complete."""
        if whole[:12] == SIGNATURE[: len(whole)]:
            return self._binary(whole)
        if whole[:6] == b"PROXY "[: len(whole)]:
            return self._line(whole)
        raise RemoteProtocolError("no header of the PROXY protocol")

    # Version 1 -------------------------------------------------------------------------------------------------------------------

    def _line(self, whole: bytes) -> int:
        end = whole.find(b"\r\n", 0, MAX_LINE)
        if end < 0:
            if len(whole) >= MAX_LINE or b"\n" in whole or b"\r" in whole[:-1]:
                raise RemoteProtocolError("a line of the PROXY protocol that does not end")
            return len(whole)
        self._read_line(whole[:end])
        self.complete = True
        return end + 2

    def _read_line(self, line: bytes) -> None:
        if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
            return
        match = _LINE.match(line)
        if match is None:
            raise RemoteProtocolError("invalid line of the PROXY protocol")
        family, source, destination, source_port, destination_port = (part.decode() for part in match.groups())
        read = IPv4Address if family == "TCP4" else IPv6Address
        self.source = _checked(read, source, int(source_port))
        self.destination = _checked(read, destination, int(destination_port))

    # Version 2 -------------------------------------------------------------------------------------------------------------------

    def _binary(self, whole: bytes) -> int:
        if len(whole) < _FIXED:
            return len(whole)
        command: int
        family: int
        length: int
        command, family, length = struct.unpack_from("!BBH", whole, len(SIGNATURE))
        end = _FIXED + length
        if command not in (_LOCAL, _PROXY):
            raise RemoteProtocolError(f"version and command {command:#04x} of the PROXY protocol")
        if end > MAX_BINARY:
            raise RemoteProtocolError("a header of the PROXY protocol that is too large")
        if command == _PROXY and family not in _NO_STREAMS and length < _ADDRESSES.get(family, MAX_BINARY):
            raise RemoteProtocolError(f"family {family:#04x} of the PROXY protocol with {length} bytes")
        if len(whole) < end:
            return len(whole)
        if command == _PROXY and family in _ADDRESSES:
            self._read_addresses(family, whole[_FIXED:end])
        self.complete = True
        return end

    def _read_addresses(self, family: int, block: bytes) -> None:
        if family == _UNIX:
            self.source, self.destination = _path(block[:108]), _path(block[108:216])
        elif family == _TCP4:
            source, destination, source_port, destination_port = struct.unpack_from("!4s4sHH", block)
            self.source, self.destination = (str(IPv4Address(source)), source_port), (str(IPv4Address(destination)), destination_port)
        else:
            source, destination, source_port, destination_port = struct.unpack_from("!16s16sHH", block)
            self.source, self.destination = (str(IPv6Address(source)), source_port), (str(IPv6Address(destination)), destination_port)


def _checked(read: Callable[[str], IPv4Address | IPv6Address], host: str, port: int) -> tuple[str, int]:
    try:
        address = read(host)
    except AddressValueError as exc:
        raise RemoteProtocolError(f"invalid address in the PROXY protocol: {exc}") from None
    if port > 65535:
        raise RemoteProtocolError(f"invalid port {port} in the PROXY protocol")
    return str(address), port


def _path(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "surrogateescape")
