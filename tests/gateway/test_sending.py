"""Whom the sending commands reach, with what and in which order: section 8.2 of the specification, and the extensions."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laraman.protocols.netsvr import Command, request_class
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.core import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message


@pytest.mark.parametrize(("extended", "binary", "expected"), [(False, False, None), (False, True, True), (True, False, False), (True, True, True)])
@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (Command.BROADCAST, {"data": b"x"}),
        (Command.MULTICAST, {"uniq_ids": ["u"], "data": b"x"}),
        (Command.MULTICAST_BY_CUSTOMER_ID, {"customer_ids": ["c"], "data": b"x"}),
        (Command.SINGLE_CAST, {"uniq_id": "u", "data": b"x"}),
        (Command.SINGLE_CAST_BULK, {"uniq_ids": ["u"], "data": [b"x"]}),
        (Command.SINGLE_CAST_BY_CUSTOMER_ID, {"customer_id": "c", "data": b"x"}),
        (Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID, {"customer_ids": ["c"], "data": [b"x"]}),
        (Command.TOPIC_PUBLISH, {"topics": ["t"], "data": b"x"}),
        (Command.TOPIC_PUBLISH_BULK, {"topics": ["t"], "data": [b"x"]}),
    ],
)
def test_text_or_binary(command: Command, fields: dict[str, Any], extended: bool, binary: bool, expected: bool | None) -> None:
    """An extended sender always says which; a foreign one never does."""
    world = World()
    world.put("u", "s", "c", ["t"])
    kind: Any = request_class(command)
    world.tell(command, kind(binary=binary, **fields), extended)
    assert world.outlet.sent == [("u", b"x", expected)]


def test_the_data_of_state_commands_is_as_configured() -> None:
    world = World("u")
    world.tell(Command.CONN_INFO_UPDATE, pb.ConnInfoUpdate(uniq_id="u", data=b"x"), extended=True)
    assert world.outlet.sent == [("u", b"x", None)]


def test_one_call_for_each_message_so_that_it_is_encoded_once() -> None:
    calls: list[bytes] = []
    world = World()
    for uniq_id in ("u1", "u2", "u3"):
        world.put(uniq_id, customer_id=uniq_id, topics=["t", uniq_id])
    world.outlet.deliver = lambda entries, data, binary: calls.append(data)  # type: ignore[method-assign]
    world.tell(Command.BROADCAST, pb.Broadcast(data=b"1"))
    world.tell(Command.MULTICAST, pb.Multicast(uniq_ids=["u1", "u2"], data=b"2"))
    world.tell(Command.MULTICAST_BY_CUSTOMER_ID, pb.MulticastByCustomerId(customer_ids=["u1", "u2"], data=b"3"))
    world.tell(Command.TOPIC_PUBLISH, pb.TopicPublish(topics=["t", "u1"], data=b"4"))
    assert calls == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("names", "data"), [(["t", "t"], [b"x"]), (["t", "t"], [b"x", b"y", b"z"]), (["t"], []), ([], [b"x"]), (["t", "t"], []), ([], []), (["t"], [b""])]
)
def test_bulks_that_are_none(names: list[str], data: list[bytes]) -> None:
    world = World()
    world.put("t", "s", "t", ["t"])
    world.tell(Command.SINGLE_CAST_BULK, pb.SingleCastBulk(uniq_ids=names, data=data))
    world.tell(Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID, pb.SingleCastBulkByCustomerId(customer_ids=names, data=data))
    world.tell(Command.TOPIC_PUBLISH_BULK, pb.TopicPublishBulk(topics=names, data=data))
    assert world.sent == []


def test_a_topic_that_is_named_twice_counts_once() -> None:
    world = World()
    world.put("u", topics=["t", "s"])
    world.tell(Command.TOPIC_PUBLISH, pb.TopicPublish(topics=["t", "s", "t"], data=b"x"))
    assert world.sent == [("u", b"x"), ("u", b"x")]


def test_no_data_is_no_message() -> None:
    world = World()
    world.put("u", "s", "c", ["t"])
    world.tell(Command.SINGLE_CAST, pb.SingleCast(uniq_id="u"))
    world.tell(Command.BROADCAST, pb.Broadcast())
    world.tell(Command.TOPIC_PUBLISH, pb.TopicPublish(topics=["t"]))
    assert world.sent == []


UNIQ_IDS = ["u1", "u2", "u3", "u4"]
NAMES = st.sampled_from(["", "a", "b", "unknown"])
IDS = st.lists(st.sampled_from(["", "nobody", *UNIQ_IDS]), max_size=4)
CONNECTIONS = st.fixed_dictionaries({uniq_id: st.tuples(NAMES, st.sets(NAMES)) for uniq_id in UNIQ_IDS})
DATA = st.sampled_from([b"", b"x", b"y"])
SENDS = st.one_of(
    st.builds(lambda d, e: (Command.BROADCAST, pb.Broadcast(data=d, exclude=e)), DATA, IDS),
    st.builds(lambda d, i: (Command.MULTICAST, pb.Multicast(data=d, uniq_ids=i)), DATA, IDS),
    st.builds(lambda d, i: (Command.SINGLE_CAST, pb.SingleCast(data=d, uniq_id=i)), DATA, st.sampled_from(["", "nobody", *UNIQ_IDS])),
    st.builds(lambda d, c, e: (Command.SINGLE_CAST_BY_CUSTOMER_ID, pb.SingleCastByCustomerId(data=d, customer_id=c, exclude=e)), DATA, NAMES, IDS),
    st.builds(
        lambda d, c, e: (Command.MULTICAST_BY_CUSTOMER_ID, pb.MulticastByCustomerId(data=d, customer_ids=c, exclude=e)), DATA, st.lists(NAMES), IDS
    ),
    st.builds(lambda d, t, e: (Command.TOPIC_PUBLISH, pb.TopicPublish(data=d, topics=t, exclude=e)), DATA, st.lists(NAMES), IDS),
    st.builds(lambda d, i: (Command.SINGLE_CAST_BULK, pb.SingleCastBulk(data=d, uniq_ids=i)), st.lists(DATA, max_size=4), IDS),
    st.builds(
        lambda d, c: (Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID, pb.SingleCastBulkByCustomerId(data=d, customer_ids=c)),
        st.lists(DATA, max_size=4),
        st.lists(NAMES, max_size=4),
    ),
    st.builds(
        lambda d, t: (Command.TOPIC_PUBLISH_BULK, pb.TopicPublishBulk(data=d, topics=t)), st.lists(DATA, max_size=4), st.lists(NAMES, max_size=4)
    ),
)


def expected_sends(connections: dict[str, tuple[str, set[str]]], command: Command, message: Any) -> list[tuple[str, bytes]]:
    """Section 8.2 of the specification, read aloud."""

    def of_customers(names: Iterable[str]) -> list[str]:
        return [uniq_id for uniq_id, (customer_id, _) in connections.items() if customer_id and customer_id in names]

    def of_topic(name: str) -> list[str]:
        return [uniq_id for uniq_id, (_, topics) in connections.items() if name and name in topics]

    def pairs(names: list[str], data: list[bytes], find: Callable[[str], list[str]], keep_empty: bool = False) -> list[tuple[str, bytes]]:
        if len(names) == 1 and len(data) > 1:
            return [(uniq_id, datum) for datum in data for uniq_id in find(names[0]) if datum or keep_empty]
        if len(names) == len(data):
            return [(uniq_id, datum) for name, datum in zip(names, data, strict=True) for uniq_id in find(name) if datum]
        return []

    def connected(uniq_id: str) -> list[str]:
        return [uniq_id] if uniq_id in connections else []

    match command:
        case Command.SINGLE_CAST_BULK:
            return pairs(list(message.uniq_ids), list(message.data), connected)
        case Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID:
            return pairs(list(message.customer_ids), list(message.data), lambda name: of_customers([name]))
        case Command.TOPIC_PUBLISH_BULK:
            return pairs(list(message.topics), list(message.data), of_topic, keep_empty=True)
        case Command.BROADCAST:
            targets = list(connections)
        case Command.SINGLE_CAST:
            targets = connected(message.uniq_id)
        case Command.MULTICAST:
            targets = [uniq_id for uniq_id in message.uniq_ids if uniq_id in connections]
        case Command.SINGLE_CAST_BY_CUSTOMER_ID:
            targets = of_customers([message.customer_id])
        case Command.MULTICAST_BY_CUSTOMER_ID:
            targets = of_customers(message.customer_ids)
        case _:
            targets = [uniq_id for topic in dict.fromkeys(message.topics) for uniq_id in of_topic(topic)]
    excluded = getattr(message, "exclude", ())
    return [(uniq_id, message.data) for uniq_id in targets if message.data and uniq_id not in excluded]


@settings(max_examples=300, deadline=None)
@given(CONNECTIONS, SENDS)
def test_sends_reach_whom_they_should(connections: dict[str, tuple[str, set[str]]], send: tuple[Command, Message]) -> None:
    world = World()
    for uniq_id, (customer_id, topics) in connections.items():
        world.put(uniq_id, "", customer_id, topics)
    world.tell(*send)
    by_client = itemgetter(0)  # sorting is stable: what one client is sent stays in its order
    assert sorted(world.sent, key=by_client) == sorted(expected_sends(connections, *send), key=by_client)
