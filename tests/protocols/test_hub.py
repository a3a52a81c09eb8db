from __future__ import annotations

import pytest

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.hub import (
    JOB,
    MAX_FRAME_SIZE,
    MAX_NAME_SIZE,
    Hub,
    Message,
    Op,
    frame,
    head,
    pack_value,
    sized,
    take,
    take_text,
    take_value,
    text,
)
from laraman.testing import check_protocol

SAMPLES: list[Message] = [
    (Op.HELLO, 1, "http", b"\1\0\0\0\0\0\0\0\1"),
    (Op.PUBLISH, 0, "orders.neu.ü", b"data"),
    (Op.OK, 0xFFFFFFFF, "", b""),
]


def test_contract() -> None:
    check_protocol(Hub, SAMPLES)


def test_a_frame_may_be_made_in_pieces() -> None:
    message = (Op.MESSAGE, 7, "a.b", b"data")
    rest = sized("a.b", "topic") + b"data"
    assert frame(*message) == Hub().send(message) == head(Op.MESSAGE, 7, len(rest)) + rest


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (b"\xff\xff\xff\xff" + bytes(7), "larger than"),
        (b"\0\0\0\7\1\0\0\0\1\0\1", "cannot hold its own name"),
        (b"\0\0\0\1\1\0\0\0\1\0\0", "cannot hold its own name"),
        (b"\0\0\0\x08\1\0\0\0\1\0\1\xff", "not UTF-8"),
    ],
)
def test_what_is_no_frame(wire: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        Hub().receive_data(wire)


def test_a_fault_behind_a_good_frame_is_found_by_the_next_call() -> None:
    hub = Hub()
    assert hub.receive_data(frame(Op.OK, 1, "", b"") + b"\xff\xff\xff\xff" + bytes(7)) == [(Op.OK, 1, "", b"")]
    with pytest.raises(RemoteProtocolError, match="larger than"):
        hub.receive_data(b"x")


def test_a_large_frame_is_put_together_once() -> None:
    hub, data = Hub(), bytes(4 * 1024 * 1024)
    wire = frame(Op.PUT, 1, "q", data)
    received = [message for at in range(0, len(wire), 65536) for message in hub.receive_data(wire[at : at + 65536])]
    assert received == [(Op.PUT, 1, "q", data)]


@pytest.mark.parametrize(("name", "body"), [("q", bytes(MAX_FRAME_SIZE)), ("q" * (MAX_NAME_SIZE + 1), b""), ("\ud800", b"")])
def test_what_may_not_be_sent(name: str, body: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        Hub().send((Op.PUT, 1, name, body))


@pytest.mark.parametrize("value", [None, 0, -(2**63), 2**63 - 1, b"", b"data"])
def test_values(value: int | bytes | None) -> None:
    assert take_value(pack_value(value)) == value


def test_values_that_are_none() -> None:
    with pytest.raises(LocalProtocolError, match="64 bits"):
        pack_value(2**63)
    for body in (b"i123", b"x" + bytes(8), b"i" + bytes(9)):
        with pytest.raises(RemoteProtocolError):
            take_value(body)


def test_keys_and_numbers_that_are_cut_off() -> None:
    whole = text("key")
    assert take_text(b"--" + whole + b"data", 2) == ("key", 7)
    for body in (b"", whole[:1], whole[:-1], b"\0\1\xff"):
        with pytest.raises(RemoteProtocolError):
            take_text(body)
    with pytest.raises(RemoteProtocolError):
        take(JOB, bytes(11))
