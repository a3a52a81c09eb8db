from __future__ import annotations

import enum
import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.net import encoding
from laraman.net.encoding import decode, encode, encode_call

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
DATA = st.recursive(SCALARS | st.datetimes(timezones=st.just(UTC)), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(DATA)
def test_what_goes_in_comes_out(data: Any) -> None:
    assert decode(encode(data)) == data


class Colour(enum.StrEnum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


def test_what_is_nearly_one_of_them_becomes_it() -> None:
    assert decode(encode((1, (2,)))) == [1, [2]]
    assert decode(encode([bytearray(b"x"), memoryview(b"y"), Colour.RED, Point(1, 2)])) == [b"x", b"y", "red", [1, 2]]
    assert decode(encode({Colour.RED: 1})) == {"red": 1}
    there = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    assert decode(encode(there)) == there
    assert decode(encode(there)).tzinfo is UTC


def ring() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (object(), r"^data is <object .*: object cannot be sent \(None, bool, int"),
        ({"user": [1, {"tags": {1, 2}}]}, r"^data\['user'\]\[1\]\['tags'\] is \{1, 2\}: set cannot be sent"),
        ((1, 1 + 2j), r"^data\[1\] is \(1\+2j\): complex"),
        ({"a": {7: 1}}, r"^data\['a'\] has the key 7, which is int, not str$"),
        ([{b"k": 1}], r"^data\[0\] has the key b'k', which is bytes"),
        ([defaultdict(int, {7: 1})], r"^data\[0\] has the key 7, which is int"),
        (2**64, r"^data is 18446744073709551616, which has more than 64 bits$"),
        ([-(2**63) - 1], r"^data\[0\] is -9223372036854775809, which has more"),
        ({"t": datetime(2026, 1, 1)}, r"^data\['t'\] is datetime\.datetime\(2026, 1, 1, 0, 0\), which has no time zone$"),
        (["\ud800"], r"^data\[0\] is '\\ud800', which is not encodable"),
        (ring(), r"^data\[0\]\[0\].*is nested too deep$"),
    ],
)
def test_what_cannot_be_encoded_is_named_with_its_place(data: Any, fault: str) -> None:
    with pytest.raises(LocalProtocolError, match=fault):
        encode(data)
    assert encode([1]) == b"\x91\x01"  # and leaves nothing behind


def test_of_a_call_the_argument_is_named() -> None:
    assert decode(encode_call((1, "a"), {"x": None}, 2.5)) == [[1, "a"], {"x": None}, 2.5]
    with pytest.raises(LocalProtocolError, match=r"^args\[1\]\['a'\] is \{1\}: set"):
        encode_call((1, {"a": {1}}), {}, 1.0)
    with pytest.raises(LocalProtocolError, match=r"^kwargs\['x'\] is Ellipsis"):
        encode_call((1,), {"x": ...}, 1.0)


def test_what_is_too_large_says_how_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_PAYLOAD", 100)
    assert len(encode("x" * 98)) == 100
    with pytest.raises(LocalProtocolError, match=r"^data: 101 bytes when encoded, more than the 100 that"):
        encode("x" * 99)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\x81\x01\x02", b"\xa1\xff"])
def test_what_is_no_msgpack(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{len(payload)} bytes that are not msgpack: "):
        decode(payload)


def test_every_thread_has_an_encoder() -> None:
    encoded: list[bytes] = []
    thread = threading.Thread(target=lambda: encoded.append(encode({"a": 1})))
    thread.start()
    thread.join()
    assert encoded == [encode({"a": 1})]
