"""Every command of the task port: against recorded answers of a real gateway, against the specification's sentences, and against naive targets."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from laraman.gateway import commands as module
from laraman.gateway.limits import Limits
from laraman.protocols.netsvr import EVENTS, REGISTRATION, Command, Netsvr, request_class, response_class
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.core import World

if TYPE_CHECKING:
    from google.protobuf.message import Message


VECTORS = {
    vector["name"]: bytes.fromhex(vector["hex"])
    for vector in json.loads((Path(__file__).parents[1] / "protocols/netsvr_vectors.json").read_text())
    if vector["gateway"] == "8.0.6" and vector["channel"] == "task"
}
TASK_COMMANDS = [command for command in Command if command not in EVENTS | REGISTRATION]
U96, U97, U98 = "7f00000165ce6b00fc9793b07b96", "7f00000165ce6b00fc9793b07b97", "7f00000165ce6b00fc9893b07b98"


def plain(value: Any) -> Any:
    """A message as a dict whose lists are sorted: their order is random upstream."""
    if hasattr(value, "ListFields"):
        return plain(MessageToDict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return sorted((plain(item) for item in value), key=repr) if isinstance(value, list) else value


def recorded(name: str) -> Message:
    ((_, message),) = Netsvr("business").receive_data(VECTORS[name])
    assert message is not None
    return message


# Recorded -------------------------------------------------------------------------------------------------------------------------


def bound_pair() -> World:
    """Two connections of one customer, as most recordings have them."""
    world = World()
    world.put(U97, "S2", "cu2", ["d", "c"])
    world.put(U96, "S1", "cu2", ["c"])
    return world


def bound_pair_and_guest() -> World:
    world = bound_pair()
    world.put(U98)
    world.replay(VECTORS["topicSubscribe"])
    assert world.sent == [(U98, b"sub!")]
    return world


@pytest.mark.parametrize("name", ["connInfo.all", "connInfo.no_flags", "connInfo.session_only"])
def test_recorded_conn_info(name: str) -> None:
    world = World(U96, U97)
    world.replay(VECTORS["connInfoUpdate.all"])
    assert world.sent == [(U96, b"welcome")]
    assert plain(world.replay(VECTORS[f"{name}.req"])) == plain(recorded(f"{name}.resp"))


@pytest.mark.parametrize("name", "customerIdList customerIdCount uniqIdList uniqIdCount checkOnline topicList topicCount".split())
def test_recorded_lists(name: str) -> None:
    assert plain(bound_pair().replay(VECTORS[f"{name}.req"])) == plain(recorded(f"{name}.resp"))


@pytest.mark.parametrize(
    "name",
    [
        "topicUniqIdList",
        "topicUniqIdCount.some",
        "topicUniqIdCount.all",
        "topicCustomerIdList",
        "topicCustomerIdCount.some",
        "topicCustomerIdCount.all",
        "connInfoByCustomerId",
        "connInfoByCustomerId.no_flags",
    ],
)
def test_recorded_queries(name: str) -> None:
    assert plain(bound_pair_and_guest().replay(VECTORS[f"{name}.req"])) == plain(recorded(f"{name}.resp"))


def test_recorded_customers_of_topics_but_for_those_who_do_not_subscribe() -> None:
    """netsvr 8 names U96 as well, another connection of the same customer; 7 does not, and we do not."""
    ours, theirs = bound_pair_and_guest().replay(VECTORS["topicCustomerIdToUniqIdsList.req"]), recorded("topicCustomerIdToUniqIdsList.resp")
    assert plain(theirs) == {"items": {"d": {"items": {"cu2": {"uniqIds": [U96, U97]}}}, "guestonly": {}}}
    assert plain(ours) == {"items": {"d": {"items": {"cu2": {"uniqIds": [U97]}}}, "guestonly": {}}}


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("singleCast", [(U96, b"one")]),
        ("broadcast", [(U97, b"all"), (U96, b"all"), (U98, b"all")]),
        ("multicast", [(U96, b"multi"), (U98, b"multi"), (U96, b"multi")]),
        ("multicastByCustomerId", [(U97, b"mc"), (U96, b"mc")]),
        ("singleCastByCustomerId", [(U97, b"sc"), (U96, b"sc")]),
        ("singleCastBulk.pairs", [(U96, b"x1"), (U97, b"x2")]),
        ("singleCastBulk.one_to_many", [(U96, b"y1"), (U96, b"y2"), (U96, b"y3")]),
        ("singleCastBulk.mismatch", []),
        ("singleCastBulkByCustomerId.one_to_many", [(U97, b"k1"), (U96, b"k1"), (U97, b"k2"), (U96, b"k2")]),
        ("singleCastBulkByCustomerId.pairs", [(U97, b"k3"), (U96, b"k3")]),
        ("topicPublish", [(U97, b"pub"), (U96, b"pub"), (U97, b"pub"), (U98, b"pub")]),
        ("topicPublishBulk.pairs", [(U97, b"p1"), (U96, b"p1"), (U98, b"p2")]),
        ("topicPublishBulk.one_to_many", [(U98, b"q1"), (U98, b""), (U98, b"q2")]),
        ("topicUnsubscribe", [(U98, b"bye")]),
        ("topicDelete", [(U97, b"deleted"), (U96, b"deleted"), (U98, b"deleted")]),
        ("connInfoDelete.topic", [(U96, b"d1")]),
        ("connInfoDelete.session_customer", []),
    ],
)
def test_recorded_one_way_commands(name: str, sent: list[tuple[str, bytes]]) -> None:
    world = bound_pair_and_guest()
    assert world.replay(VECTORS[name]) is None
    assert world.outlet.kicked == []
    assert world.sent == sent


def test_recorded_changes_of_state() -> None:
    world = bound_pair_and_guest()
    world.replay(VECTORS["connInfoUpdate.topics_only"])
    assert world.state(U96) == ("S1", "cu2", {"c"})
    world.replay(VECTORS["topicUnsubscribe"])
    assert world.state(U98) == ("", "", {"guestonly"})
    world.replay(VECTORS["topicDelete"])
    assert set(world.registry.topics) == {"guestonly"}
    world.replay(VECTORS["connInfoDelete.session_customer"])
    assert world.state(U96) == ("", "", set())


def test_recorded_kicks() -> None:
    world = bound_pair_and_guest()
    world.replay(VECTORS["forceOffline.data"])
    assert world.outlet.kicked == [(U98, b"kick", "forceOffline")]
    world.put(U96, customer_id="cu1")
    world.replay(VECTORS["forceOfflineByCustomerId"])
    assert world.outlet.kicked[1:] == [(U96, b"k2", "forceOfflineByCustomerId")]


@pytest.mark.parametrize(("name", "limits"), [("read", (10_000, 50_000)), ("write", (10_000, 50_000)), ("disabled", (0, 50_000))])
def test_recorded_limits(name: str, limits: tuple[int, int]) -> None:
    assert plain(World(limits=Limits(*limits)).replay(VECTORS[f"limit.{name}.req"])) == plain(recorded(f"limit.{name}.resp"))


# State ----------------------------------------------------------------------------------------------------------------------------


def test_update_applies_what_is_not_empty() -> None:
    world = World()
    world.put("u", "s", "c", ["t"])
    world.tell(Command.CONN_INFO_UPDATE, pb.ConnInfoUpdate(uniq_id="u", new_customer_id="d", data=b"hi"))
    assert world.state("u") == ("s", "d", {"t"})
    assert set(world.registry.customers) == {"d"}
    assert world.sent == [("u", b"hi")]


def test_update_replaces_all_topics_and_skips_empty_names() -> None:
    world = World()
    world.put("u", topics=["a", "b"])
    world.tell(Command.CONN_INFO_UPDATE, pb.ConnInfoUpdate(uniq_id="u", new_topics=["b", "", "c"]))
    assert world.state("u") == ("", "", {"b", "c"})


def test_delete_sends_even_when_nothing_was_flagged() -> None:
    world = World()
    world.put("u", "s", "c", ["t"])
    world.tell(Command.CONN_INFO_DELETE, pb.ConnInfoDelete(uniq_id="u", data=b"x"))
    assert world.state("u") == ("s", "c", {"t"})
    assert world.sent == [("u", b"x")]


@pytest.mark.parametrize(("command", "kind"), [(Command.TOPIC_SUBSCRIBE, pb.TopicSubscribe), (Command.TOPIC_UNSUBSCRIBE, pb.TopicUnsubscribe)])
def test_topics_of_nobody_and_no_topics_send_nothing(command: Command, kind: Any) -> None:
    world = World("u")
    world.tell(command, kind(uniq_id="u", data=b"x"))
    world.tell(command, kind(topics=["t"], data=b"x"))
    world.tell(command, kind(uniq_id="nobody", topics=["t"], data=b"x"))
    assert world.sent == []
    world.tell(command, kind(uniq_id="u", topics=["t"], data=b"x"))
    assert world.sent == [("u", b"x")]


def test_topic_delete_sends_once_to_each_that_lost_one() -> None:
    world = World("idle")
    world.put("u", topics=["a", "b", "c"])
    world.put("v", topics=["c"])
    world.tell(Command.TOPIC_DELETE, pb.TopicDelete(topics=["a", "b", "a"], data=b"gone"))
    assert world.sent == [("u", b"gone")]
    assert world.state("u")[2] == {"c"}


def test_what_is_sent_before_a_kick_comes_before_it() -> None:
    world = World("u")
    world.tell(Command.SINGLE_CAST, pb.SingleCast(uniq_id="u", data=b"last words"))
    world.tell(Command.FORCE_OFFLINE, pb.ForceOffline(uniq_ids=["u"]))
    assert world.outlet.order == ["send", "kick"]


def test_kick_of_customers_reaches_each_connection_once() -> None:
    world = World("guest")
    for uniq_id, customer_id in (("u1", "c"), ("u2", "c"), ("u3", "d")):
        world.put(uniq_id, customer_id=customer_id)
    world.tell(Command.FORCE_OFFLINE_BY_CUSTOMER_ID, pb.ForceOfflineByCustomerId(customer_ids=["c", "", "c", "x"]))
    assert world.outlet.kicked == [("u1", b"", "forceOfflineByCustomerId"), ("u2", b"", "forceOfflineByCustomerId")]


def resident_size() -> int:
    """Bytes of this process's memory that is in use: protobuf's is not Python's, which could count itself."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class TestForceOfflineGuest:
    def world(self) -> World:
        world = World("guest", "late")
        world.put("with-session", session="s")
        world.put("with-customer", customer_id="c")
        return world

    def message(self, delay: int = 0) -> pb.ForceOfflineGuest:
        return pb.ForceOfflineGuest(uniq_ids=["guest", "late", "with-session", "with-customer", "nobody"], delay=delay, data=b"bye")

    @pytest.mark.parametrize("delay", [0, -1])
    def test_at_once(self, delay: int) -> None:
        world = self.world()
        world.tell(Command.FORCE_OFFLINE_GUEST, self.message(delay))
        assert world.outlet.kicked == [("guest", b"bye", "forceOfflineGuest"), ("late", b"bye", "forceOfflineGuest")]
        assert world.outlet.timers == []

    def test_who_logs_in_during_the_delay_stays(self) -> None:
        world = self.world()
        world.tell(Command.FORCE_OFFLINE_GUEST, self.message(3))
        ((seconds, call),) = world.outlet.timers
        assert (seconds, world.outlet.kicked) == (3, [])
        world.put("late", session="s")
        call()
        assert world.outlet.kicked == [("guest", b"bye", "forceOfflineGuest")]

    def test_pending_ones_are_bounded(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        world = self.world()
        message = self.message(3)
        monkeypatch.setattr(module, "MAX_DELAYED", 2 * (message.ByteSize() + module.DELAYED_COST))
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            for _ in range(5):
                world.tell(Command.FORCE_OFFLINE_GUEST, message)
        assert len(world.outlet.timers) == 2
        assert len(caplog.records) == 1
        world.outlet.timers[0][1]()
        world.tell(Command.FORCE_OFFLINE_GUEST, message)
        assert len(world.outlet.timers) == 3

    def test_pending_ones_take_no_more_memory_than_is_counted(self) -> None:
        world = self.world()
        message = pb.ForceOfflineGuest(uniq_ids=["", *["guest"]] * 50_000, delay=3)
        before = resident_size()
        for _ in range(100):
            world.tell(Command.FORCE_OFFLINE_GUEST, pb.ForceOfflineGuest.FromString(message.SerializeToString()))
        assert resident_size() - before < 2 * 100 * message.ByteSize()


# Queries --------------------------------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    world = World()
    world.metrics.opens += 4
    world.metrics.messages_over_rate += 1
    world.metrics.tick(2.0)
    items = world.ask(Command.METRICS).items
    assert sorted(items) == list(range(1, 14))
    assert items[1] == pb.MetricsRespItem(item=1, count=4, mean_rate=2, rate1=2, rate5=2, rate15=2)
    assert (items[2], items[13].count) == (pb.MetricsRespItem(item=2), 1)


def test_state_is_there_for_the_next_query() -> None:
    world = World("u")
    for number in range(3):
        world.tell(Command.TOPIC_SUBSCRIBE, pb.TopicSubscribe(uniq_id="u", topics=[f"t{number}"]))
        assert world.ask(Command.TOPIC_COUNT).count == number + 1


def test_what_is_asked_twice_is_answered_once() -> None:
    world = World()
    world.put("u", "s", "c", ["t"])
    info = world.ask(Command.CONN_INFO, pb.ConnInfoReq(uniq_ids=["u", "u"], req_topic=True))
    assert plain(info) == {"items": {"u": {"topics": ["t"]}}}
    by_customer = world.ask(Command.CONN_INFO_BY_CUSTOMER_ID, pb.ConnInfoByCustomerIdReq(customer_ids=["c", "c"], req_uniq_id=True))
    assert plain(by_customer) == {"items": {"c": {"items": [{"uniqId": "u"}]}}}
    members = world.ask(Command.TOPIC_UNIQ_ID_LIST, pb.TopicUniqIdListReq(topics=["t", "t"]))
    assert plain(members) == {"items": {"t": {"uniqIds": ["u"]}}}


@pytest.mark.parametrize("command", [command for command in TASK_COMMANDS if response_class(command) and request_class(command)])
def test_an_empty_request_has_an_empty_reply(command: Command) -> None:
    world = World()
    world.put("u", "s", "c", ["t"])
    kind = request_class(command)
    assert kind is not None
    assert world.ask(command, kind()).ByteSize() == 0


# Anything -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", TASK_COMMANDS)
def test_every_command_is_answered_as_the_specification_says(command: Command) -> None:
    kind = request_class(command)
    reply = World().commands.handle(command, None if kind is None else kind())
    assert (reply and type(reply)) is response_class(command)


@pytest.mark.parametrize("command", [command for command in TASK_COMMANDS if request_class(command)])
def test_a_body_that_cannot_be_decoded_is_not_answered(command: Command) -> None:
    world = World("u")
    assert world.commands.handle(command, None) is None
    assert (world.outlet.sent, world.outlet.kicked, list(world.registry.entries)) == ([], [], ["u"])


@pytest.mark.parametrize("command", sorted(EVENTS | REGISTRATION))
def test_the_other_commands_are_not_ours(command: Command) -> None:
    with pytest.raises(KeyError):
        World().commands.handle(command, pb.RegisterReq())


@given(st.sampled_from([command for command in TASK_COMMANDS if request_class(command)]), st.binary(max_size=60))
def test_no_body_makes_it_fail(command: Command, body: bytes) -> None:
    world = World()
    world.put("u", "s", "c", ["t"])
    frame = (len(body) + 4).to_bytes(4, "big") + command.to_bytes(4, "big") + body
    ((received, message),) = Netsvr("gateway", port="task").receive_data(frame)
    reply = world.commands.handle(received, message)
    assert (reply is None) is (message is None or response_class(command) is None)
