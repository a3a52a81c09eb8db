from __future__ import annotations

import itertools
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from laraman.protocols import PROTOCOLS, protocol_named
from laraman.protocols.framing import Frame, LengthPrefixed, Raw, Text
from laraman.testing import check_protocol

PLACES = st.lists(st.integers(min_value=0, max_value=500), max_size=6)
BODIES = [b"", b"a", b"\x00\x00\x00\x04", b"hello world", bytes(range(256))]
LINES = ["", "a", "hello world", "grüße", "a\rb", "\N{GRINNING FACE}"]


def cut(wire: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(wire) + 1) for place in places), len(wire)]
    return [wire[start:end] for start, end in itertools.pairwise(bounds)]


def test_raw() -> None:
    check_protocol(Raw, [b"a", b"hello"], combine=b"".join)
    assert Raw().receive_data(b"") == []


def test_text() -> None:
    check_protocol(Text, LINES)


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_length_prefixed(size: int, inclusive: bool) -> None:
    bodies = BODIES[:-1] if size == 1 else BODIES
    check_protocol(lambda: LengthPrefixed(size, inclusive=inclusive), bodies)


def test_frame_is_workermans() -> None:
    check_protocol(Frame, BODIES)
    assert Frame().send(b"hello") == b"\x00\x00\x00\x09hello"
    assert Frame().receive_data(b"\x00\x00\x00\x04") == [b""]


@given(st.lists(st.binary(max_size=40)), PLACES, st.booleans())
def test_frames_do_not_depend_on_the_cuts(bodies: list[bytes], places: list[int], inclusive: bool) -> None:
    wire = b"".join(LengthPrefixed(inclusive=inclusive).send(body) for body in bodies)
    protocol = LengthPrefixed(inclusive=inclusive)
    assert [message for piece in cut(wire, places) for message in protocol.receive_data(piece)] == bodies
    assert protocol.unread == b""
    protocol.receive_eof()


@given(
    st.lists(st.text().filter(lambda line: "\n" not in line and not line.endswith("\r"))),
    st.lists(st.integers(min_value=0, max_value=500), max_size=6),
)
def test_lines_do_not_depend_on_the_cuts(lines: list[str], places: list[int]) -> None:
    wire = b"".join(Text().send(line) for line in lines)
    protocol = Text()
    assert [message for piece in cut(wire, places) for message in protocol.receive_data(piece)] == lines
    protocol.receive_eof()


@given(st.lists(st.binary(max_size=12), max_size=8), st.sampled_from([lambda: Frame(max_size=6), lambda: Text(max_size=6)]))
def test_any_bytes_give_messages_or_a_protocol_error(pieces: list[bytes], factory: type[Frame] | type[Text]) -> None:
    protocol = factory()
    try:
        for piece in pieces:
            for message in protocol.receive_data(piece):
                assert len(message) <= 6
    except RemoteProtocolError:
        pass


def test_a_text_line_may_end_in_cr_lf() -> None:
    assert Text().receive_data(b"a\r\nb\n\r\n") == ["a", "b", ""]


def test_text_limits() -> None:
    assert Text(max_size=3).receive_data(b"abc\n") == ["abc"]
    for pieces in ([b"abcd"], [b"abcd\n"], [b"ab", b"cd"]):
        protocol = Text(max_size=3)
        for piece in pieces[:-1]:
            assert protocol.receive_data(piece) == []
        with pytest.raises(RemoteProtocolError) as caught:
            protocol.receive_data(pieces[-1])
        assert caught.value.close_code == 1009
    with pytest.raises(RemoteProtocolError) as caught:
        Text().receive_data(b"\xff\n")
    assert caught.value.close_code == 1007


def test_what_precedes_a_fault_is_delivered() -> None:
    text = Text()
    assert text.receive_data(b"fine\n\xff\nlost\n") == ["fine"]
    with pytest.raises(RemoteProtocolError):
        text.receive_data(b"")
    frame = Frame(max_size=10)
    assert frame.receive_data(Frame().send(b"fine") + b"\xff\xff\xff\xff") == [b"fine"]
    with pytest.raises(RemoteProtocolError):
        frame.receive_eof()


@pytest.mark.parametrize("message", ["a\nb", "a\r", "\ud800", "x" * 11])
def test_text_refuses_what_would_not_arrive(message: str) -> None:
    with pytest.raises(LocalProtocolError):
        Text(max_size=10).send(message)


def test_frame_limits() -> None:
    assert Frame(max_size=3).receive_data(struct.pack(">I", 7) + b"abc") == [b"abc"]
    for length in (0, 3, 8, 2**32 - 1):
        with pytest.raises(RemoteProtocolError):
            Frame(max_size=3).receive_data(struct.pack(">I", length))
    with pytest.raises(LocalProtocolError):
        Frame(max_size=3).send(b"abcd")
    assert LengthPrefixed(1, inclusive=True).send(b"x" * 254)
    with pytest.raises(LocalProtocolError):
        LengthPrefixed(1, inclusive=True).send(b"x" * 255)


@pytest.mark.parametrize("protocol", [Text(), Frame()])
def test_an_end_inside_a_message(protocol: Text | Frame) -> None:
    protocol.receive_eof()
    protocol.receive_data(b"\x00\x00")
    with pytest.raises(RemoteProtocolError):
        protocol.receive_eof()


@pytest.mark.parametrize(("protocol", "wire"), [(Text(), b"x" * 4_000_000), (Frame(), struct.pack(">I", 4_000_004) + b"x" * 4_000_000)])
def test_a_large_message_in_small_pieces_takes_linear_time(protocol: Text | Frame, wire: bytes) -> None:
    begun = time.process_time()
    for start in range(0, len(wire), 100):
        protocol.receive_data(wire[start : start + 100])
    assert time.process_time() - begun < 2


def test_protocols_have_names() -> None:
    for name in PROTOCOLS:
        assert callable(protocol_named(name)().receive_data)
    with pytest.raises(ConfigError, match=r"no protocol is called 'gopher'; known are frame, "):
        protocol_named("gopher")
