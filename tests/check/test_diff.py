"""Differences, and which of them are leaks."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laraman.check.diff import ROUNDS, Finding, Series, _secrets_of_environment, describe, diff
from laraman.check.heap import Snapshot, _Walk
from laraman.check.outline import Node, Outlines, Serials

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.check.outline import Part

USERS = ("alice", "bob", "alice", "bob", "alice")


class Small:
    """Snapshots of one object under the name ``root``: the walk without modules and processes."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._outlines = Outlines(("shop",), Serials())

    def snapshot(self) -> Snapshot:
        return Snapshot(_Walk(self._outlines, _no_module).run([("root", self.root)]), [])


def _no_module(module: types.ModuleType) -> tuple[Node, list[Part]]:
    raise AssertionError(module)


def played(root: Any, play: Callable[[int, str], object], users: tuple[str, ...] = USERS) -> list[Finding]:
    """What is found when each round does ``play(number, user)``."""
    heap = Small(root)
    series = Series(heap.snapshot(), "GET /")
    for number, user in enumerate(users):
        play(number, user)
        series.add(heap.snapshot(), user)
    return series.findings()


def paths(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.path, finding.kind) for finding in findings]


# Leaks ----------------------------------------------------------------------------------------------------------------------------


def test_growth_in_every_round() -> None:
    root: dict[str, list[int]] = {"log": []}
    [finding] = played(root, lambda number, user: root["log"].append(number))
    assert finding == Finding("root['log']", "grows", "[]", "[..., 1, 2, 3, 4]", "GET /", "", (1, 2, 3, 4, 5))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (5, 5, 6, 7, 8), (1, 2, 3, 4, 4), (1, 2, 3, 2, 3), (3, 2, 1, 0, 0)])
def test_no_growth_in_some_round(sizes: tuple[int, ...]) -> None:
    root: dict[str, Any] = {"log": []}
    assert played(root, lambda number, user: root.update(log=[None] * sizes[number])) == []


def test_what_is_another_one_for_another_user() -> None:
    root = {"user": "nobody"}
    [finding] = played(root, lambda number, user: root.update(user=user))
    assert (finding.path, finding.kind, finding.before, finding.after) == ("root['user']", "rebound", "'bob'", "'alice'")


def test_what_is_another_one_for_another_user_only() -> None:
    """Two rounds of each: nothing changes between those of the same user."""
    root = {"user": "nobody"}
    users = ("alice", "alice", "bob", "bob", "alice", "bob", "alice")
    assert paths(played(root, lambda number, user: root.update(user=user), users)) == [("root['user']", "rebound")]


def test_what_changes_in_every_round_of_one_user() -> None:
    root = {"order": ""}
    assert paths(played(root, lambda number, user: root.update(order=f"n{number}"), ("",) * 5)) == [("root['order']", "rebound")]


@pytest.mark.parametrize("values", ["abbbb", "aaaab", "abbab", "abaab"])
def test_what_changes_now_and_then(values: str) -> None:
    root = {"value": ""}
    assert played(root, lambda number, user: root.update(value=values[number])) == []


def test_elements_that_change() -> None:
    root: dict[str, Any] = {"last": ["", ""], "now": {"x"}}
    found = played(root, lambda number, user: (root["last"].pop(0), root["last"].append(number), root["now"].clear(), root["now"].add(user)))
    assert paths(found) == [("root['last']", "changed"), ("root['now']", "changed")]


def test_first_use() -> None:
    root: dict[str, Any] = {"client": None, "cache": {}}

    def play(number: int, user: str) -> None:
        root["client"] = root["client"] or types.SimpleNamespace(name="client")
        root["cache"].setdefault(user, number)

    assert played(root, play) == []


def test_what_is_below_a_replaced_object_is_not_reported() -> None:
    root: dict[str, Any] = {"session": None}
    found = played(root, lambda number, user: root.update(session=types.SimpleNamespace(user=user, items=[number] * number)))
    assert paths(found) == [("root['session']", "rebound")]


def test_one_object_under_many_names_is_one_finding() -> None:
    log: list[int] = []
    root = {"a": {"deep": log}, "z": log}
    assert paths(played(root, lambda number, user: log.append(number))) == [("root['z']", "grows")]


def test_bounded_containers_may_fill_up() -> None:
    from collections import deque

    root: dict[str, Any] = {"latest": deque(maxlen=100)}
    assert played(root, lambda number, user: root["latest"].append(number)) == []


def test_a_number_that_only_rises_is_a_counter() -> None:
    root: dict[str, Any] = {"hits": 0, "last": 0.5, "user": 7}

    def play(number: int, user: str) -> None:
        root["hits"] += 1
        root["last"] += 0.25
        root["user"] = {"alice": 7, "bob": 8}[user]

    assert paths(played(root, play)) == [("root['user']", "rebound")]


def test_a_pool_that_turns_round_changes_nothing() -> None:
    pool, names = [{1: 1}, {2: 2}], ["tea", "milk"]

    def play(number: int, user: str) -> None:
        pool.reverse()
        names.reverse()

    assert paths(played({"pool": pool, "names": names}, play)) == [("root['names']", "changed")]


def test_too_few_rounds_say_so() -> None:
    with pytest.raises(ValueError, match=f"3 rounds are too few: a leak has to be seen in {ROUNDS}"):
        played({}, lambda number, user: None, USERS[:3])


def snapshot_of(path: str, **node: Any) -> Snapshot:
    node.setdefault("form", "size")
    node.setdefault("type", "thing")
    return Snapshot({path: Node(**node)}, [])


@pytest.mark.parametrize(
    ("rule", "sizes", "kinds"),
    [
        ("counted", (2, 3, 4, 5, 6, 7), ["left open"]),
        ("counted", (2, 3, 4, 4, 5, 6), []),
        ("counted", (2, 3, 3, 3, 3, 3), []),
        ("open", (0, 1, 1, 1, 1, 1), ["left open"]),
        ("open", (1, 1, 1, 1, 1, 1), []),
        ("open", (0, 1, 1, 1, 1, 0), []),
        ("held", (2, 3, 4, 5, 6, 7), ["grows"]),
    ],
)
def test_rules_for_numbers_of_things(rule: str, sizes: tuple[int, ...], kinds: list[str]) -> None:
    series = Series(snapshot_of("things", size=sizes[0], rule=rule))
    for size, user in zip(sizes[1:], USERS, strict=True):
        series.add(snapshot_of("things", size=size, rule=rule), user)
    assert [finding.kind for finding in series.findings()] == kinds


@pytest.mark.parametrize(("states", "found"), [((1, 2, 3, 4, 5, 6), 0), ((1, 2, 2, 2, 2, 2), 1), ((1, 7, 8, 7, 8, 7), 1)])
def test_a_random_state_that_comes_back(states: tuple[int, ...], found: int) -> None:
    series = Series(snapshot_of("random", form="value", token=states[0], rule="seeded"))
    for state, user in zip(states[1:], USERS, strict=True):
        series.add(snapshot_of("random", form="value", token=state, rule="seeded"), user)
    assert len(series.findings()) == found


def test_living_objects_are_not_reported_beside_what_holds_them() -> None:
    def snapshot(size: int, log: int) -> Snapshot:
        return Snapshot({"objects['a']": Node("size", "object", size=size, rule="held"), "shop.LOG": Node("sequence", "list", size=log)}, [])

    series = Series(snapshot(0, 0))
    for number, user in enumerate(USERS, 1):
        series.add(snapshot(number, number), user)
    assert paths(series.findings()) == [("shop.LOG", "grows")]


# Texts ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["API_KEY", "client_secret", "token", "password", "Authorization"])
def test_secrets_are_not_shown(name: str) -> None:
    root: dict[str, Any] = {name: "hunter1", "user": {name: "hunter2"}, "space": types.SimpleNamespace(**{name: "hunter3"})}
    before = Small(root).snapshot()
    root.update({name: "hunter4", "user": {name: "hunter5", "more": 1}})
    changes = diff(before, Small(root).snapshot())
    assert len(changes) >= 2
    assert "hunter" not in repr(changes)
    assert "hunter" not in describe(before.roots["root"])


def test_a_secret_of_the_environment_is_not_shown_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "a1b2c3d4")
    monkeypatch.setenv("PASSWORD", "on")
    _secrets_of_environment.cache_clear()
    try:
        root: dict[str, Any] = {"seen": []}
        [finding] = played(root, lambda number, user: root["seen"].append("key a1b2c3d4 on" if number % 2 else "on"))
        assert finding.after == "[..., (not shown), 'on', (not shown), 'on']"
    finally:
        _secrets_of_environment.cache_clear()


def test_texts_are_short() -> None:
    root = {"many": ["x" * 1000] * 1000, "deep": {"a" * 500: {"b" * 500: ["c" * 500] * 9}}}
    node = Small(root).snapshot().roots["root"]
    assert all(len(describe(child)) <= 120 for child in (node, *node.children.values()))


# Any structure --------------------------------------------------------------------------------------------------------------------

KEYS = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=2)) | st.binary(max_size=3) | st.booleans() | st.none()
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=10) | st.decimals() | st.datetimes()
STRUCTURES = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(KEYS, max_size=4)
        | st.builds(lambda value: types.SimpleNamespace(value=value), inner)
    ),
    max_leaves=25,
)


@given(STRUCTURES)
def test_nothing_is_different_from_itself(structure: Any) -> None:
    heap = Small(structure)
    assert diff(heap.snapshot(), heap.snapshot()) == []


@settings(deadline=None)
@given(STRUCTURES, st.data())
def test_a_growth_anywhere_is_found_at_its_path(structure: Any, data: st.DataObject) -> None:
    """However deep a list is in a structure, an element more in it is found, and nothing else."""
    grown: list[int] = []
    root, path = [grown], "root[0]"
    wrapped: Any = root
    for kind in data.draw(st.lists(st.sampled_from(["list", "dict", "space", "tuple"]), max_size=6)):
        if kind == "dict":
            wrapped, path = {"other": structure, "in": wrapped}, path.replace("root", "root['in']", 1)
        elif kind == "list":
            wrapped, path = [structure, wrapped], path.replace("root", "root[1]", 1)
        elif kind == "tuple":
            wrapped, path = (wrapped, structure), path.replace("root", "root[0]", 1)
        else:
            wrapped, path = types.SimpleNamespace(inner=wrapped, other=structure), path.replace("root", "root.inner", 1)
    heap = Small(wrapped)
    before = heap.snapshot()
    grown.append(1)
    assert [(change.path, change.kind, change.size_before, change.size_after) for change in diff(before, heap.snapshot())] == [(path, "grows", 0, 1)]


@settings(deadline=None)
@given(STRUCTURES, STRUCTURES)
def test_what_differs_is_found(one: Any, other: Any) -> None:
    """Structures are different exactly where their values are, as far as builtin types tell."""
    heap = Small({"it": one})
    before = heap.snapshot()
    heap.root["it"] = other
    if _plain(one) != _plain(other):
        assert diff(before, heap.snapshot()) != []


def _plain(structure: Any) -> Any:
    """As something that compares by type and value."""
    if isinstance(structure, dict):
        return {(type(key).__name__, repr(key)): _plain(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return (type(structure).__name__, [_plain(element) for element in structure])
    if isinstance(structure, set):
        return {(type(element).__name__, repr(element)) for element in structure}
    if isinstance(structure, types.SimpleNamespace):
        return ("space", _plain(structure.value))
    return (type(structure).__name__, repr(structure))
