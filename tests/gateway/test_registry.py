"""The registry against a model that has no index: a dict of connections, searched from end to end."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from laraman.errors import IllegalTransition
from laraman.gateway.registry import Entry, Registry

UNIQ_IDS = st.sampled_from(["u1", "u2", "u3", "u4"])
NAMES = st.sampled_from(["", "a", "b", "c"])
TOPICS = st.lists(NAMES, max_size=4)


@dataclass
class Known:
    """What the model knows of a connection."""

    session: str = ""
    customer_id: str = ""
    topics: set[str] = field(default_factory=set)


class AgainstTheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.model: dict[str, Known] = {}

    def both(self, uniq_id: str) -> tuple[Entry, Known] | None:
        entry = self.registry.get(uniq_id)
        assert (entry is None) is (uniq_id not in self.model)
        return None if entry is None else (entry, self.model[uniq_id])

    @rule(uniq_id=UNIQ_IDS)
    def opens(self, uniq_id: str) -> None:
        if uniq_id in self.model:
            with pytest.raises(IllegalTransition):
                self.registry.open(uniq_id, None)
        else:
            entry = self.registry.open(uniq_id, uniq_id.upper())
            assert (entry.uniq_id, entry.client, entry.guest) == (uniq_id, uniq_id.upper(), True)
            self.model[uniq_id] = Known()

    @rule(uniq_id=UNIQ_IDS)
    def closes(self, uniq_id: str) -> None:
        last = self.model.pop(uniq_id, None)
        entry = self.registry.close(uniq_id)
        assert (entry is None) is (last is None)
        if entry is not None and last is not None:
            assert (entry.session, entry.customer_id, entry.topics or set()) == (last.session, last.customer_id, last.topics)

    @rule(uniq_id=UNIQ_IDS, session=NAMES, customer_id=NAMES, topics=TOPICS)
    def updates(self, uniq_id: str, session: str, customer_id: str, topics: list[str]) -> None:
        if found := self.both(uniq_id):
            entry, known = found
            self.registry.update(entry, session, customer_id, topics)
            known.session = session or known.session
            known.customer_id = customer_id or known.customer_id
            known.topics = set(topics) - {""} if topics else known.topics

    @rule(uniq_id=UNIQ_IDS, session=st.booleans(), customer_id=st.booleans(), topics=st.booleans())
    def deletes(self, uniq_id: str, session: bool, customer_id: bool, topics: bool) -> None:
        if found := self.both(uniq_id):
            entry, known = found
            self.registry.delete(entry, session, customer_id, topics)
            known.session = "" if session else known.session
            known.customer_id = "" if customer_id else known.customer_id
            known.topics = set() if topics else known.topics

    @rule(uniq_id=UNIQ_IDS, topics=TOPICS)
    def subscribes(self, uniq_id: str, topics: list[str]) -> None:
        if found := self.both(uniq_id):
            self.registry.subscribe(found[0], topics)
            found[1].topics |= set(topics) - {""}

    @rule(uniq_id=UNIQ_IDS, topics=TOPICS)
    def unsubscribes(self, uniq_id: str, topics: list[str]) -> None:
        if found := self.both(uniq_id):
            self.registry.unsubscribe(found[0], topics)
            found[1].topics -= set(topics)

    @rule(topics=TOPICS)
    def deletes_topics(self, topics: list[str]) -> None:
        losers = [uniq_id for uniq_id, known in self.model.items() if known.topics & set(topics)]
        for known in self.model.values():
            known.topics -= set(topics)
        assert sorted(entry.uniq_id for entry in self.registry.delete_topics(topics)) == sorted(losers)

    @invariant()
    def agree_on_connections(self) -> None:
        found = {entry.uniq_id: Known(entry.session, entry.customer_id, entry.topics or set()) for entry in self.registry.entries.values()}
        assert found == self.model
        assert all(entry.guest is not bool(entry.session or entry.customer_id) for entry in self.registry.entries.values())
        assert all(entry.topics != set() for entry in self.registry.entries.values())

    @invariant()
    def agree_on_customers(self) -> None:
        for customer_id in ("", "a", "b", "c"):
            expected = {uniq_id for uniq_id, known in self.model.items() if customer_id and known.customer_id == customer_id}
            found = [entry.uniq_id for entry in self.registry.by_customer(customer_id)]
            assert (len(found), set(found)) == (len(expected), expected)
        assert set(self.registry.customers) == {known.customer_id for known in self.model.values()} - {""}

    @invariant()
    def agree_on_topics(self) -> None:
        for topic in ("", "a", "b", "c"):
            expected = {uniq_id for uniq_id, known in self.model.items() if topic in known.topics}
            found = [entry.uniq_id for entry in self.registry.by_topic(topic)]
            assert (len(found), set(found)) == (len(expected), expected)
        assert set(self.registry.topics) == set().union(*(known.topics for known in self.model.values()))


AgainstTheModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstTheModel = AgainstTheModel.TestCase


def test_a_closed_connection_keeps_its_last_state() -> None:
    registry = Registry()
    registry.update(registry.open("u", None), "s", "c", ["t"])
    entry = registry.close("u")
    assert entry is not None
    assert (entry.session, entry.customer_id, entry.topics) == ("s", "c", {"t"})
    assert (registry.entries, registry.customers, registry.topics) == ({}, {}, {})


def test_a_refused_open_leaves_the_connection_alone() -> None:
    registry = Registry()
    entry = registry.open("u", "first")
    with pytest.raises(IllegalTransition, match="u is open already"):
        registry.open("u", "second")
    assert registry.get("u") is entry
    assert entry.client == "first"


def test_connections_come_in_the_order_of_their_arrival() -> None:
    registry = Registry()
    for uniq_id in ("u3", "u1", "u2"):
        registry.update(registry.open(uniq_id, None), customer_id="c", topics=["t"])
    for found in (registry.entries.values(), registry.by_customer("c"), registry.by_topic("t")):
        assert [entry.uniq_id for entry in found] == ["u3", "u1", "u2"]


def test_a_guest_is_one_small_object() -> None:
    """10,000 idle clients: no dict and no set of their own. Beside the entry there are its id and the service's client."""
    entry = Registry().open("7f00000117ae6b00fc9793b07b96", None)
    assert sys.getsizeof(entry) <= 96
    assert [thing for thing in gc.get_referents(entry) if gc.is_tracked(thing) and thing is not Entry] == []
