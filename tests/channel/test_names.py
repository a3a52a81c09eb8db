from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.channel.names import _matched, check_key, check_method, check_name, check_pattern, matches, parse_member
from laraman.errors import LocalProtocolError

WORDS = st.lists(st.sampled_from(["a", "b", "é", "$x", "1-2"]), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("pattern", "topic", "same"),
    [
        ("orders.new", "orders.new", True),
        ("orders.new", "orders.old", False),
        ("orders.*", "orders.new", True),
        ("orders.*", "orders", False),
        ("orders.*", "orders.new.eu", False),
        ("*.new", "orders.new", True),
        ("orders.>", "orders.new.eu", True),
        ("orders.>", "orders", False),
        (">", "orders", True),
        ("*.>", "orders", False),
    ],
)
def test_patterns_match_as_those_of_nats(pattern: str, topic: str, same: bool) -> None:
    assert matches(check_pattern(pattern), check_name(topic)) is same


@given(WORDS, st.integers(0, 4), st.sets(st.integers(0, 3)))
def test_a_topic_matches_whatever_of_it_is_left_open(words: list[str], kept: int, stars: set[int]) -> None:
    topic = ".".join(words)
    opened = ["*" if place in stars else word for place, word in enumerate(words)]
    assert matches(check_pattern(".".join(opened)), topic)
    assert kept >= len(words) or matches(check_pattern(".".join([*opened[:kept], ">"])), topic)


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a.*", ">", "a\n", "\ud800", "a" * 256, "é" * 128, None, 7, ["a"], b"a"])
def test_what_is_no_topic_is_named(name: Any) -> None:
    with pytest.raises(LocalProtocolError, match=re.escape(f"topic {name!r} is not words")):
        check_name(name)


@pytest.mark.parametrize("pattern", ["", ">.a", "a.>.b", "a*", "a.**", "a>", " ", None])
def test_what_is_no_pattern_is_named(pattern: Any) -> None:
    with pytest.raises(LocalProtocolError, match=re.escape(f"pattern {pattern!r} is not words")):
        check_pattern(pattern)


def test_members_and_their_slots() -> None:
    assert parse_member("http") == ("http", None)
    assert parse_member("http[12]") == ("http", 12)
    for wrong in ("", "http[", "http[x]", "http[-1]", "http]", "a b", "a@b", None):
        with pytest.raises(LocalProtocolError, match="is no name of a worker"):
            parse_member(wrong)  # type: ignore[arg-type]


def test_methods_and_keys() -> None:
    assert check_method("app.jobs:run") == "app.jobs:run"
    for wrong in ("", "a b", "a@b", "a\n", "x" * 201, None):
        with pytest.raises(LocalProtocolError, match="is no name of a method"):
            check_method(wrong)  # type: ignore[arg-type]
    assert check_key("user 7: é", "table t") == "user 7: é"
    for key in ("", "x" * 1001, "a\n", None):
        with pytest.raises(LocalProtocolError, match="table t: key"):
            check_key(key, "table t")  # type: ignore[arg-type]


def test_what_is_too_long_is_neither_kept_nor_said() -> None:
    before = _matched.cache_info().currsize
    for check in (check_name, check_pattern, check_method, parse_member, lambda name: check_key(name, "q")):
        with pytest.raises(LocalProtocolError) as caught:
            check("x" * 1_000_000)
        assert len(str(caught.value)) < 600
    assert _matched.cache_info().currsize == before
