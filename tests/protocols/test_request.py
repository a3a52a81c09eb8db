"""JSON behind a length: what goes in comes out, and what is no JSON comes out as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.request import Request
from laraman.testing import check_protocol

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_contract() -> None:
    check_protocol(Request, [{"op": "broadcast"}, ["é", None], b"my name is siam", 7])


@given(st.lists(VALUES, max_size=4), st.integers(1, 50))
def test_whatever_json_holds_comes_through_in_any_pieces(values: list[Any], size: int) -> None:
    ours, theirs = Request(), Request()
    data = b"".join(map(ours.send, values))
    assert [value for start in range(0, len(data), size) for value in theirs.receive_data(data[start : start + size])] == values
    theirs.receive_eof()


def test_the_replies_of_the_seed_to_the_byte() -> None:
    replies = [Request().send({"res": res, "msg": msg}) for res, msg in (("fail", "长度有误"), ("ok", "长度相同"), ("fail", "长度不相等"))]
    assert [reply[:4].hex() for reply in replies] == ["00000023", "00000021", "00000026"]
    assert replies[0][4:] == '{"res":"fail","msg":"长度有误"}'.encode()
    assert [len(reply) - 4 for reply in replies] == [35, 33, 38]


@pytest.mark.parametrize(
    "body",
    [
        *(b"my name is siam", b"", b"\xff\xfe", b"{", b"NaN", b"[1, Infinity]", b"[" * 100_000, b"1" * 5000),
        *(b"\xef\xbb\xbf{}", b"[\0]", '"é"'.encode("utf-16")),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_json_is_bytes(body: bytes) -> None:
    assert Request().receive_data(framed(body)) == [body]
    assert Request().send(body) == framed(body)


def test_half_a_character_is_escaped() -> None:
    assert Request().send("\ud800") == framed(b'"\\ud800"')
    assert Request().receive_data(framed(b'"\\ud800"')) == ["\ud800"]


@pytest.mark.parametrize("message", [object(), {"at": {1, 2}}, float("nan"), {(1, 2): 3}])
def test_what_json_cannot_hold_is_not_sent(message: Any) -> None:
    with pytest.raises(LocalProtocolError, match="must be bytes or JSON"):
        Request().send(message)


def test_a_length_beyond_the_limit_is_refused_before_its_body_comes() -> None:
    protocol = Request(max_size=100)
    with pytest.raises(RemoteProtocolError, match="101 is outside") as refused:
        protocol.receive_data((101).to_bytes(4, "big"))
    assert refused.value.close_code == 1009
    with pytest.raises(LocalProtocolError):
        protocol.send(b"x" * 101)


def test_with_once_nothing_behind_the_first_is_read() -> None:
    protocol = Request(once=True)
    assert protocol.receive_data(framed(b"1") + b"\n" + b"\xff" * 100) == [1]
    assert protocol.receive_data(framed(b"2")) == []
    assert protocol.unread == 0
    protocol.receive_eof()


def test_an_end_inside_a_request() -> None:
    for data, waiting in ((b"\0\0", 2), (b"\0\0\0\x0fmy name", 11)):
        protocol = Request(once=True)
        assert protocol.receive_data(data) == []
        assert protocol.unread == waiting
        with pytest.raises(RemoteProtocolError):
            protocol.receive_eof()
