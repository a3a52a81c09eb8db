from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.ipc import Envelope, Ipc
from laraman.testing import check_protocol

SAMPLES: list[Envelope] = [
    {"op": "ready"},
    {"op": "stop", "reason": "reload", "deadline": None},
    {"op": "connections", "id": 7, "rows": [{"peer": "ü"}]},
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_contract() -> None:
    check_protocol(Ipc, SAMPLES)


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.text())
def test_round_trip(envelope: Envelope, op: str) -> None:
    envelope["op"] = op
    assert Ipc().receive_data(Ipc().send(envelope)) == [envelope]


@given(st.binary(max_size=60))
def test_a_frame_holds_an_envelope_or_is_refused(body: bytes) -> None:
    try:
        received = Ipc().receive_data(framed(body))
    except RemoteProtocolError:
        return
    assert all(isinstance(envelope["op"], str) for envelope in received)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{}", b'{"op":1}', b"\xff", b"[" * 100_000, b'{"op":' + b"9" * 10_000 + b"}", b'{"op":"a"}{"op":"b"}']
)
def test_what_is_no_envelope(body: bytes) -> None:
    ipc = Ipc()
    assert ipc.receive_data(framed(b'{"op":"a"}') + framed(body)) == [{"op": "a"}]
    for call in (lambda: ipc.receive_data(b""), ipc.receive_eof):
        with pytest.raises(RemoteProtocolError):
            call()


def test_size_is_limited() -> None:
    with pytest.raises(RemoteProtocolError):
        Ipc(max_size=10).receive_data(framed(b'{"op":"too long"}'))
    with pytest.raises(LocalProtocolError):
        Ipc(max_size=10).send({"op": "too long"})


def test_unread_can_be_handed_on() -> None:
    wire = Ipc().send({"op": "beat"})
    first = Ipc()
    assert first.receive_data(wire + wire[:3]) == [{"op": "beat"}]
    second = Ipc()
    second.receive_data(first.unread)
    assert second.receive_data(wire[3:]) == [{"op": "beat"}]


@pytest.mark.parametrize("envelope", [{}, {"op": None}, {"op": "a", "x": {1, 2}}, {"op": "a", "x": b"bytes"}])
def test_only_envelopes_are_sent(envelope: Envelope) -> None:
    with pytest.raises(LocalProtocolError):
        Ipc().send(envelope)


def test_no_endless_envelope() -> None:
    envelope: Envelope = {"op": "a"}
    envelope["self"] = envelope
    with pytest.raises(LocalProtocolError):
        Ipc().send(envelope)
