"""Mementos: whatever happens to an object, it is what it was again, and so is the identity of each of its parts."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import io
import itertools
import logging
import random
import socket
import threading
import types
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laraman.errors import ConfigError
from laraman.sandbox.memento import Memento

if TYPE_CHECKING:
    from collections.abc import Callable


class Box:
    """An object with a `__dict__`."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("__weakref__", "_private", "left", "right")

    def __init__(self, left: Any = None) -> None:
        self.left = left
        self._private = 1


class Both(Slotted):
    """Slots of its base, and a `__dict__`."""


class Listed(list[Any]):
    pass


class Names(str):
    pass


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Frozen:
    tags: list[str]


class Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    debug: bool = False
    hosts: list[str] = ["a"]
    nested: dict[str, Any] = {"k": {"deep": 1}}
    _private: dict[str, int] = pydantic.PrivateAttr(default_factory=dict)


def remember(value: Any) -> tuple[Memento, types.SimpleNamespace]:
    """Of an attribute ``IT`` of something like a module."""
    holder = types.SimpleNamespace(IT=value)
    return Memento("app:IT", holder, "IT"), holder


def cycle() -> list[Any]:
    made: list[Any] = [{}]
    made[0]["self"] = made
    return made


def shape(value: Any, seen: dict[int, int] | None = None) -> Any:
    """All that can be seen of it, with identities."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return ("again", id(value))
    parts: list[Any] = [id(value), type(value)]
    if isinstance(value, (bytearray, set)):
        seen[id(value)] = 1
        parts.append(bytes(value) if isinstance(value, bytearray) else sorted(map(id, value)))
    elif isinstance(value, dict):
        seen[id(value)] = 1
        parts.append([(id(key), shape(inner, seen)) for key, inner in value.items()])
    elif isinstance(value, (list, tuple, collections.deque)):
        seen[id(value)] = 1
        parts.append([shape(inner, seen) for inner in value])
    if isinstance(value, (Box, Slotted, Listed)):
        seen[id(value)] = 1
        parts.append([(name, shape(getattr(value, name), seen)) for name in ("left", "right", "_private") if hasattr(value, name)])
        parts.append([(name, shape(inner, seen)) for name, inner in getattr(value, "__dict__", {}).items()])
    return parts


MUTATIONS: list[tuple[str, Any, Callable[[Any], Any]]] = [
    ("value of a dict", {"a": 1}, lambda it: it.update(a=2)),
    ("a value that is equal only", {"a": 1}, lambda it: it.update(a=True)),
    ("a key that is equal only", {1: "a"}, lambda it: it.pop(1) and it.update({True: "a"})),
    ("a key more", {"a": 1}, lambda it: it.update(b=2)),
    ("a key less", {"a": 1, "b": 2}, lambda it: it.pop("a")),
    ("order", {"a": 1, "b": 2}, lambda it: it.update(a=it.pop("a"))),
    ("an ordered dict's own order", collections.OrderedDict(a=1, b=2), lambda it: it.move_to_end("a")),
    ("a default dict", collections.defaultdict(list, a=[1]), lambda it: it["b"].append(1)),
    ("a counter", collections.Counter("aab"), lambda it: it.update("c")),
    ("a user dict", collections.UserDict(a=[1]), lambda it: it["a"].append(2)),
    ("a list", [1, 2], lambda it: it.append(3)),
    ("a list's order", [3, 1, 2], lambda it: it.sort()),
    ("a list in a tuple in a list", [([1],)], lambda it: it[0][0].clear()),
    ("a list in a class derived from list", Listed([[1]]), lambda it: it[0].append(2)),
    ("an attribute of a list", Listed([1]), lambda it: setattr(it, "mark", 1)),
    ("an attribute of a string", [Names("x")], lambda it: setattr(it[0], "mark", 1)),
    ("a deque", collections.deque([1, 2], maxlen=2), lambda it: it.append(3)),
    ("a set", {1, 2}, lambda it: it.add(3)),
    ("a set with other members", {1, 2}, lambda it: it.symmetric_difference_update({1, 3})),
    ("objects in a frozenset", frozenset({box := Box(x=1)}), lambda it: setattr(next(iter(it)), "x", 2)),
    ("an object that is a key", {Box(x=1): 1}, lambda it: setattr(next(iter(it)), "x", 2)),
    ("a bytearray", [bytearray(b"ab")], lambda it: it[0].extend(b"c")),
    ("an attribute", Box(x=1), lambda it: setattr(it, "x", 2)),
    ("an attribute more", Box(x=1), lambda it: setattr(it, "y", 2)),
    ("an attribute less", Box(x=1), lambda it: delattr(it, "x")),
    ("all attributes", Box(x=1), lambda it: setattr(it, "__dict__", {"z": 1})),
    ("a slot", Slotted(), lambda it: setattr(it, "left", 2)),
    ("a slot that was empty", Slotted(), lambda it: setattr(it, "right", 2)),
    ("a slot that is emptied", Slotted(), lambda it: delattr(it, "_private")),
    ("what a slot holds", Slotted([1]), lambda it: it.left.append(2)),
    ("slots and attributes", Both([1]), lambda it: (it.left.append(2), setattr(it, "more", 1), setattr(it, "_private", 5))),
    ("a frozen dataclass", Frozen(["a"]), lambda it: (it.tags.append("b"), object.__setattr__(it, "tags", []))),
    ("a model", Settings(), lambda it: (it.hosts.append("b"), it.nested["k"].update(deep=2), it.__dict__.update(debug=True))),
    ("what a model keeps to itself", Settings(), lambda it: it._private.update(x=1)),
    ("a namespace", types.SimpleNamespace(a=[1]), lambda it: (it.a.append(1), setattr(it, "b", 1))),
    ("a cycle", cycle(), lambda it: it[0].clear()),
    ("an array in a list", [array.array("i", [1, 2])], lambda it: it[0].append(3)),
    ("a random generator", random.Random(1), lambda it: it.random()),
    ("a file in memory", Box(x=io.StringIO("text")), lambda it: it.x.write("more")),
]


@pytest.mark.parametrize(("value", "mutate"), [pytest.param(value, mutate, id=name) for name, value, mutate in MUTATIONS])
def test_what_was_changed_is_put_back(value: Any, mutate: Callable[[Any], Any]) -> None:
    memento, holder = remember(value)
    before = shape(value)
    assert not memento.changed()
    assert not memento.restore()
    for _ in range(2):
        mutate(value)
        assert memento.changed()
        assert memento.restore()
        assert not memento.changed()
        assert holder.IT is value
    if not isinstance(value, list) or not isinstance(value[0], array.array):
        assert shape(value) == before
    else:
        assert value[0].tolist() == [1, 2]


def test_state_of_c_objects_is_put_back() -> None:
    generator, text = random.Random(1), io.StringIO("text")
    expected = random.Random(1).random()
    memento, _ = remember([generator, text])
    for _ in range(2):
        assert generator.random() == expected
        text.write("TEXTS")
        memento.restore()
        assert text.getvalue() == "text"


def test_a_state_that_the_object_keeps_is_a_copy() -> None:
    class Keeps(random.Random):
        def __init__(self) -> None:
            self.seen = [1]

        def __reduce__(self) -> Any:
            return Keeps, (), {"seen": self.seen}

        def __setstate__(self, state: Any) -> None:
            self.seen = state["seen"]

    value = Keeps()
    memento, _ = remember(value)
    for _ in range(2):
        value.seen.append(2)
        assert memento.restore()
        assert value.seen == [1]


def test_a_set_that_was_put_back_is_not_changed_though_its_order_may_be() -> None:
    value = set(range(20))
    value.intersection_update({2, 9})
    value |= set(range(20))
    value.difference_update(set(range(20)) - {2, 9})
    before = list(value)
    memento, _ = remember(value)
    value.add(3)
    memento.restore()
    assert value == {2, 9}
    assert list(value) != before  # or this test shows nothing
    assert not memento.changed()


def test_an_opaque_object_is_the_same_for_everybody_who_held_it() -> None:
    numbers = array.array("i", [1])
    value = {"a": numbers, "b": [numbers]}
    memento, _ = remember(value)
    for _ in range(2):
        value["a"].append(2)  # type: ignore[attr-defined]
        memento.restore()
        assert value["a"] == array.array("i", [1])
        assert value["b"][0] is value["a"]  # type: ignore[index]
    memento, holder = remember(itertools.count(5))
    assert [next(holder.IT), memento.restore(), next(holder.IT)] == [5, True, 5]


def test_the_name_is_put_back() -> None:
    memento, holder = remember(1)
    holder.IT = 2
    assert memento.changed()
    assert memento.restore()
    assert holder.IT == 1
    del holder.IT
    memento.restore()
    assert holder.IT == 1


def test_values_that_nobody_can_change_and_code_are_kept() -> None:
    def function() -> None: ...

    function.counter = 0  # type: ignore[attr-defined]
    logger = logging.getLogger("memento")
    memento, _ = remember([function, Box, Box.__init__, "".join, Colour.RED, logger, threading, len, None, ...])
    function.counter = 1  # type: ignore[attr-defined]
    logger.setLevel("DEBUG")
    assert not memento.changed()
    logger.setLevel(logging.NOTSET)


def test_only_what_differs_is_written() -> None:
    written = []

    class Watched(Box):
        def __setattr__(self, name: str, value: Any) -> None:
            written.append(name)
            super().__setattr__(name, value)

    value = Watched(a=1, b=[1])
    memento, _ = remember(value)
    value.b.append(2)  # type: ignore[attr-defined]
    memento.restore()
    assert written == []


def opened() -> Any:
    with socket.socket() as made:
        return made


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Box(client=Box(lock=threading.Lock())), r"^IT\.client\.lock cannot be copied, a _thread\.lock: "),
        ({"k": [threading.RLock()]}, r"^IT\['k'\]\[0\] cannot be copied, a _thread\.RLock: "),
        (Slotted(opened()), r"^IT\.left cannot be copied, a socket\.socket: "),
        (Settings(nested={"made": (number for number in ())}), r"^IT\.nested\['made'\] cannot be copied, a generator: "),
        (Box(event=threading.Event()), r"^IT\.event\._cond\._lock cannot be copied"),
        ((array.array("i"),), r"^IT\[0\], a array\.array, cannot be put back"),
        ({(itertools.count(),): 1}, r"^IT\.key\(.*\)\[0\], a itertools\.count, cannot be put back"),
    ],
)
def test_what_cannot_be_copied_is_named(value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        remember(value)


def test_nesting_deeper_than_the_stack() -> None:
    value: list[Any] = []
    deepest = value
    for _ in range(5000):
        value = [value]
    memento, _ = remember(value)
    deepest.append(1)
    memento.restore()
    assert deepest == []


# Anything -------------------------------------------------------------------------------------------------------------------------

leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.text(max_size=2), st.binary(max_size=2).map(bytearray))
keys = st.one_of(st.integers(0, 3), st.booleans(), st.text(max_size=1))
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(collections.deque),
        st.lists(inner, max_size=4).map(Listed),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict),
        st.sets(keys, max_size=4),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(lambda attributes: Box(**attributes)),
        inner.map(Slotted),
        inner.map(Both),
        inner.map(lambda shared: [shared, {"same": shared}]),
    ),
    max_leaves=12,
)


def parts(value: Any) -> list[Any]:
    """Everything in it that can be changed."""
    found: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        it = waiting.pop()
        if id(it) in found or isinstance(it, (int, str, type(None))):
            continue
        found[id(it)] = it
        if isinstance(it, dict):
            waiting += it.values()
        elif isinstance(it, (list, tuple, set, collections.deque)):
            waiting += it
        for name in ("left", "right", *getattr(it, "__dict__", ())):
            waiting += [getattr(it, name)] if hasattr(it, name) else []
    return [it for it in found.values() if not isinstance(it, tuple)]


def mutate(it: Any, pick: random.Random, new: Any) -> None:
    """Some change to one object."""
    if isinstance(it, dict):
        act = pick.choice(["clear", "set", "reorder", "add"])
        if act == "clear" or not it:
            it.clear()
        elif act == "set":
            it[pick.choice(list(it))] = new
        elif act == "reorder":
            key = pick.choice(list(it))
            it[key] = it.pop(key)
        it.update({99: new} if act == "add" else {})
    elif isinstance(it, bytearray):
        it.append(1)
    elif isinstance(it, set):
        pick.choice([it.clear, lambda: it.add("new"), lambda: it.discard(0)])()
    elif isinstance(it, (list, collections.deque)):
        pick.choice([it.clear, it.reverse, lambda: it.append(new), lambda: it.extend([new, new])])()
    elif isinstance(it, Slotted):
        setattr(it, pick.choice(["left", "right", "_private"]), new)
    if isinstance(it, (Box, Both, Listed)):
        setattr(it, pick.choice("abz"), new)
        if pick.random() < 0.3:
            vars(it).pop(pick.choice(list(vars(it))))


@settings(deadline=None, max_examples=300)
@given(nested, st.randoms(use_true_random=False), nested, st.integers(1, 12))
def test_anything_changed_in_any_way_is_what_it_was(value: Any, pick: random.Random, new: Any, times: int) -> None:
    memento, holder = remember(value)
    before = shape(value)
    for _ in range(2):
        for _ in range(times):
            found = parts(holder.IT)
            if found:
                mutate(pick.choice(found), pick, new)
            if pick.random() < 0.1:
                holder.IT = new
        memento.restore()
        assert holder.IT is value
        assert shape(value) == before
        assert not memento.changed()
