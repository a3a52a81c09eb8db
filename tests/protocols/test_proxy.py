from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import RemoteProtocolError
from laraman.protocols.proxy import MAX_BINARY, MAX_LINE, SIGNATURE, End, ProxyHeader

if TYPE_CHECKING:
    from collections.abc import Iterable

V4 = ("192.0.2.7", 56324), ("198.51.100.1", 443)
V6 = ("2001:db8::7", 56324), ("2001:db8::1", 443)


def binary(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def addresses(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    packed = [ipaddress.ip_address(host).packed for host, _ in (source, destination)]
    return b"".join(packed) + struct.pack("!HH", source[1], destination[1])


def line(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    family = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


def paths(source: bytes, destination: bytes) -> bytes:
    return source.ljust(108, b"\0") + destination.ljust(108, b"\0")


def read(pieces: Iterable[bytes]) -> tuple[ProxyHeader, int]:
    header, used = ProxyHeader(), 0
    for piece in pieces:
        used += header.receive_data(piece)
        if header.complete:
            break
    return header, used


TLVS = b"\x01\x00\x02h2" + b"\xee\x00\x05\x01abcd" + b"\x03\x00\x04\xde\xad\xbe\xef"

VALID: list[tuple[bytes, End | None, End | None]] = [
    (line(*V4), *V4),
    (line(*V6), *V6),
    (b"PROXY TCP6 2001:DB8:0:0::7 ::1 0 65535\r\n", ("2001:db8::7", 0), ("::1", 65535)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None, None),
    (binary(0x21, 0x11, addresses(*V4)), *V4),
    (binary(0x21, 0x21, addresses(*V6)), *V6),
    (binary(0x21, 0x11, addresses(*V4) + TLVS), *V4),
    (binary(0x21, 0x31, paths(b"/run/client", b"/run/proxy")), "/run/client", "/run/proxy"),
    (binary(0x21, 0x31, paths(b"", b"")), "", ""),
    (binary(0x20, 0x00, b""), None, None),
    (binary(0x20, 0x11, addresses(*V4)), None, None),
    (binary(0x20, 0x77, b"whatever"), None, None),
    (binary(0x21, 0x00, TLVS), None, None),
    (binary(0x21, 0x12, addresses(*V4)), None, None),
    (binary(0x21, 0x22, addresses(*V6)), None, None),
    (binary(0x21, 0x11, (addresses(*V4) + bytes(MAX_BINARY))[: MAX_BINARY - 16]), *V4),
]


@pytest.mark.parametrize(("data", "source", "destination"), VALID, ids=lambda value: repr(value)[:40])
def test_headers_are_read_whole_and_byte_by_byte_and_leave_the_client_s_bytes(data: bytes, source: End | None, destination: End | None) -> None:
    for pieces in ([data], [bytes([byte]) for byte in data], [data + b"GET / HTTP/1.1\r\n"], [data[:20], data[20:] + b"\x16\x03\x01"]):
        header, used = read(pieces)
        assert (header.complete, header.source, header.destination, used) == (True, source, destination, len(data)), pieces
    for end in range(len(data)):
        header, used = read([data[:end]])
        assert (header.complete, used) == (False, end), "every byte of an incomplete header belongs to it, so that it can be taken from the socket"


INVALID = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"proxy TCP4 192.0.2.7 192.0.2.8 1 2\r\n",
    b"PROXY  TCP4 192.0.2.7 192.0.2.8 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2 \r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 1\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 1 65536\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 01 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 -1 2\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.8 1 2\r\n",
    b"PROXY TCP4 192.0.02.7 192.0.2.8 1 2\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8\r1 2\r\n",
    b"PROXY UDP4 192.0.2.7 192.0.2.8 1 2\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY \r\n",
    b"PROXY " + b"A" * MAX_LINE,
    b"PROXY UNKNOWN " + b"A" * (MAX_LINE - 15) + b"\r\n",
    SIGNATURE + b"\x11\x11\x00\x0c" + addresses(*V4),
    SIGNATURE + b"\x22\x11\x00\x0c" + addresses(*V4),
    SIGNATURE + b"\x21\x41\x00\x0c" + addresses(*V4),
    SIGNATURE + b"\x21\x13\x00\x0c" + addresses(*V4),
    binary(0x21, 0x11, addresses(*V4)[:-1]),
    binary(0x21, 0x21, addresses(*V4)),
    binary(0x21, 0x31, paths(b"", b"")[:-1]),
    binary(0x21, 0x11, bytes(MAX_BINARY)),
    SIGNATURE + b"\x20\x00\xff\xff",
]


@pytest.mark.parametrize("data", INVALID, ids=repr)
def test_what_breaks_the_rules_is_refused_however_it_comes(data: bytes) -> None:
    for pieces in ([data], [bytes([byte]) for byte in data]):
        with pytest.raises(RemoteProtocolError):
            read(pieces)


def test_the_longest_line_is_taken() -> None:
    longest = b"PROXY UNKNOWN " + b"f" * (MAX_LINE - 16) + b"\r\n"
    assert len(longest) == MAX_LINE
    assert read([longest])[1] == MAX_LINE


HOSTS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
PORTS = st.integers(0, 65535)


@given(HOSTS, PORTS, PORTS, st.binary(max_size=200), st.booleans(), st.lists(st.integers(0, 400), max_size=5), st.binary(max_size=50))
def test_any_addresses_come_out_as_they_went_in_however_they_are_cut(
    hosts: tuple[object, object], source_port: int, destination_port: int, tlvs: bytes, as_line: bool, cuts: list[int], behind: bytes
) -> None:
    source, destination = (str(hosts[0]), source_port), (str(hosts[1]), destination_port)
    family = 0x21 if ":" in source[0] else 0x11
    data = line(source, destination) if as_line else binary(0x21, family, addresses(source, destination) + tlvs)
    stream = data + behind
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    header, used = read(stream[start:end] for start, end in zip([0, *ends], ends, strict=False))
    assert (header.complete, header.source, header.destination, used) == (True, source, destination, len(data))


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: SIGNATURE + tail), st.binary().map(lambda tail: b"PROXY " + tail)))
def test_noise_is_refused_or_read_and_never_anything_else(data: bytes) -> None:
    outcomes = []
    for pieces in ([data], [bytes([byte]) for byte in data]):
        try:
            header, used = read(pieces)
        except RemoteProtocolError:
            outcomes.append(None)
        else:
            outcomes.append((header.complete, header.source, used))
            assert used <= len(data)
            assert header.complete or used == len(data)
    assert outcomes[0] == outcomes[1]
