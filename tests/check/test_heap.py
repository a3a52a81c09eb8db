"""The walk: what is found under which name, that no code of the application runs, and that nothing is kept alive."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import functools
import gc
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import pytest

from laraman.check import heap as heap_module
from laraman.check.diff import describe, diff
from laraman.check.heap import Heap
from laraman.check.outline import Serials, _listed
from laraman.sandbox.operation import CURRENT, TASK, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laraman.check.outline import Node


@pytest.fixture
def module() -> Iterator[Any]:
    made = types.ModuleType("shop.views")
    sys.modules["shop.views"] = made
    yield made
    del sys.modules["shop.views"]


def source(module: Any, code: str) -> None:
    exec(compile(code, "views.py", "exec"), vars(module))


def changed(heap: Heap, change: Callable[[], object]) -> dict[str, str]:
    """Paths and kinds."""
    before = heap.snapshot()
    change()
    return {found.path: found.kind for found in diff(before, heap.snapshot()) if not found.path.startswith(("descriptors", "objects", "sys.modules"))}


def node_at(heap: Heap, root: str, *labels: str) -> Node:
    node = heap.snapshot().roots[root]
    for label in labels:
        node = node.children[label]
    return node


# Names ----------------------------------------------------------------------------------------------------------------------------

SOURCE = """
import functools, threading, types, contextvars
from collections import deque
NUMBER = 1
ITEMS = []
NESTED = {"a": [{"b": set()}]}
class Plain:
    shared = []
    def __init__(self): self.items = []
    @staticmethod
    def helper(into=[]): into.append(1)
    @functools.lru_cache(maxsize=None)
    def slow(self, number): return number
class Slotted:
    __slots__ = ("value",)
one, slotted = Plain(), Slotted()
slotted.value = 1
class Special(dict): pass
special = Special()
space = types.SimpleNamespace(user=None)
def closing():
    seen = []
    def see(one, *, more=[]): seen.append(one); more.append(one)
    return see
see = closing()
bound = one.items.append
partial = functools.partial(see, 1)
local = threading.local()
variable = contextvars.ContextVar("variable", default={})
tail = deque([1, 2])
"""

CHANGES = {
    "NUMBER = 2": {"shop.views.NUMBER": "rebound"},
    "NUMBER = '1'": {"shop.views.NUMBER": "rebound"},
    "NUMBER = True": {"shop.views.NUMBER": "rebound"},
    "ITEMS.append(1)": {"shop.views.ITEMS": "grows"},
    "ITEMS = [1]": {"shop.views.ITEMS": "grows"},
    "NESTED['a'][0]['b'].add(1)": {"shop.views.NESTED['a'][0]['b']": "grows"},
    "NESTED['a'][0]['c'] = 1": {"shop.views.NESTED['a'][0]": "grows"},
    "NESTED['a'][0] = 1": {"shop.views.NESTED['a']": "changed"},
    "NESTED.clear(); NESTED['z'] = 1": {"shop.views.NESTED": "changed"},
    "del NESTED['a']": {"shop.views.NESTED": "shrinks"},
    "Plain.shared.append(1)": {"shop.views.Plain.shared": "grows"},
    "Plain.shared = None": {"shop.views.Plain.shared": "rebound"},
    "Plain.helper()": {"shop.views.Plain.helper.__defaults__.into": "grows"},
    "one.slow(1)": {"shop.views.Plain.slow": "grows"},
    "one.items.append(1)": {"shop.views.one.items": "grows"},
    "one.more = 1": {"shop.views.one": "grows"},
    "one = Plain()": {"shop.views.one": "rebound"},
    "slotted.value = 2": {"shop.views.slotted.value": "rebound"},
    "slotted = Slotted(); slotted.value = 3": {"shop.views.slotted.value": "rebound"},
    "special['a'] = 1": {"shop.views.special": "grows"},
    "special.a = 1": {"shop.views.special": "changed"},
    "space.user = 'alice'": {"shop.views.space.user": "rebound"},
    "see(1)": {"shop.views.see.__closure__.seen": "grows", "shop.views.see.__kwdefaults__.more": "grows"},
    "see.calls = 1": {"shop.views.see": "grows"},
    "variable.get()['a'] = 1": {"shop.views.variable.default": "grows"},
    "tail[0] = 9": {"shop.views.tail": "changed"},
    "added = 1": {"shop.views": "grows"},
    "Plain.helper = staticmethod(len)": {"shop.views.Plain.helper": "patched"},
    "see = len": {"shop.views.see": "patched"},
}


@pytest.mark.parametrize("code", CHANGES)
def test_what_changes_has_a_name(module: Any, code: str) -> None:
    source(module, SOURCE)
    assert changed(Heap(["shop"]), lambda: source(module, code)) == CHANGES[code]


def test_thread_locals_of_each_thread(module: Any) -> None:
    source(module, SOURCE)
    module.local.value = 1
    steps = [threading.Event() for _ in range(4)]

    def work() -> None:
        module.local.value = 1
        steps[0].set()
        steps[1].wait()
        module.local.value = 2
        steps[2].set()
        steps[3].wait()

    thread = threading.Thread(target=work)
    thread.start()
    steps[0].wait()

    def on() -> None:
        steps[1].set()
        steps[2].wait()

    [path] = changed(Heap(["shop"]), on)
    steps[3].set()
    thread.join()
    assert path.startswith("shop.views.local[thread ")
    assert path.endswith("]['value']")


def test_the_context_and_what_is_in_it() -> None:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("tenant")
    context = contextvars.copy_context()
    context.run(variable.set, {})
    context.run(decimal.setcontext, decimal.Context(prec=9))
    heap = Heap(["shop"], {"contextvars": context})
    assert changed(heap, lambda: context.run(variable.get).update(a=1)) == {"contextvars['tenant']": "grows"}
    assert changed(heap, lambda: context.run(variable.set, 1)) == {"contextvars['tenant']": "rebound"}
    assert changed(heap, lambda: setattr(context.run(decimal.getcontext), "prec", 3)) == {"contextvars['decimal_context']": "rebound"}


def test_others_objects_are_looked_at_for_what_grows(module: Any) -> None:
    class Inner:
        def __init__(self) -> None:
            self.listeners: list[int] = []

    class Outer:
        def __init__(self) -> None:
            self.inner = Inner()
            self.count = 0

    module.registry = Outer()
    heap = Heap(["shop"])
    assert changed(heap, lambda: module.registry.inner.listeners.append(1)) == {"shop.views.registry.inner.listeners": "grows"}
    assert changed(heap, lambda: setattr(module.registry, "count", 1)) == {}


def test_a_name_that_was_imported_is_reported_where_it_is_from(module: Any, tmp_path: Any) -> None:
    source(module, "cart = []\nclass Cart: items = []\n")
    importer: Any = types.ModuleType("shop.api")
    importer.__file__ = str(tmp_path / "api.py")
    (tmp_path / "api.py").write_text("from shop.views import cart, Cart\n")
    importer.cart, importer.Cart = module.cart, module.Cart
    sys.modules["shop.api"] = importer
    try:
        heap = Heap(["shop"])
        assert changed(heap, lambda: (module.cart.append(1), module.Cart.items.append(1))) == {
            "shop.views.cart": "grows",
            "shop.views.Cart.items": "grows",
        }
        assert changed(heap, lambda: setattr(importer, "cart", None)) == {"shop.api.cart": "rebound"}
    finally:
        del sys.modules["shop.api"]


def test_functions_of_imported_modules(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import json
    import textwrap

    source(module, "import textwrap\nfrom json import JSONEncoder\n")
    heap = Heap(["shop"])
    assert changed(heap, lambda: monkeypatch.setattr(textwrap.TextWrapper, "wrap", len)) == {"textwrap.TextWrapper.wrap": "patched"}
    assert changed(heap, lambda: monkeypatch.setattr(json.JSONEncoder, "encode", object())) == {"json.encoder.JSONEncoder.encode": "patched"}
    assert changed(heap, lambda: monkeypatch.setattr(textwrap, "new", len, raising=False)) == {}


# Processes ------------------------------------------------------------------------------------------------------------------------


def test_descriptors_tasks_and_threads() -> None:
    async def main() -> None:
        heap = Heap(["tests.check.test_heap"])
        stop = threading.Event()
        before = heap.snapshot()
        CURRENT.set(Operation(TASK, "clean up"))
        task = asyncio.create_task(_forever())
        thread = threading.Thread(target=_wait, args=(stop,))
        thread.start()
        with open("/dev/null"):  # noqa: ASYNC230
            found = {change.path: change.after for change in diff(before, heap.snapshot())}
        stop.set()
        thread.join()
        task.cancel()
        assert "descriptors" in found
        assert "['/dev/null']" in "".join(heap.snapshot().roots["descriptors"].children) or "'/dev/null'" in found["descriptors"]
        assert "tests.check.test_heap._forever" in found["tasks"]
        assert "started by task clean up" in found["tasks"]
        assert "tests.check.test_heap._wait" in found["threads"]

    asyncio.run(main())


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


def _wait(stop: threading.Event) -> None:
    stop.wait()


# What a walk must not do ------------------------------------------------------------------------------------------------------------

HOSTILE = """
class Meta(type):
    def __getattribute__(cls, name): raise AssertionError(name)
    def __eq__(cls, other): raise AssertionError
    def __hash__(cls): raise AssertionError
class Hostile(dict, metaclass=Meta):
    def _no(self, *args): raise AssertionError
    __eq__ = __repr__ = __len__ = __iter__ = items = keys = __getitem__ = __bool__ = __str__ = _no
    __hash__ = None
    @property
    def __class__(self): raise AssertionError
    @property
    def trap(self): raise AssertionError
    def __getattr__(self, name): raise AssertionError(name)
    def __getattribute__(self, name): raise AssertionError(name)
class Key:
    calls = 0
    def __hash__(self):
        Key.calls += 1
        return 1
    def __eq__(self, other):
        Key.calls += 1
        return self is other
hostile = Hostile()
dict.__setitem__(hostile, "a", [])
things = [Hostile(), {Key(): Hostile}, {Key(), Key()}]
"""


def test_no_code_of_the_application_runs(module: Any) -> None:
    source(module, HOSTILE)
    heap = Heap(["shop"])
    calls = module.Key.calls
    found = changed(heap, lambda: dict.__getitem__(module.hostile, "a").append(1))
    assert found == {"shop.views.hostile['a']": "grows"}
    heap.fingerprint("shop.views.hostile['a']")
    assert describe(heap.snapshot().roots["shop.views"])
    assert module.Key.calls == calls


def test_nothing_is_kept_alive(module: Any) -> None:
    source(module, "class Thing: pass\nthing = Thing()\n")
    heap = Heap(["shop"])
    snapshots = [heap.snapshot()]
    reference = weakref.ref(module.thing)
    del module.thing
    gc.collect()
    assert reference() is None
    assert snapshots


def test_an_address_that_is_used_again_is_not_the_same_object(module: Any) -> None:
    source(module, "class Thing: pass\nthing = Thing()\n")
    heap = Heap(["shop"])
    address = id(module.thing)

    def replace() -> None:
        del module.thing
        for _ in range(1000):
            module.thing = module.Thing()
            if id(module.thing) == address:
                return
            del module.thing
        pytest.skip("the interpreter gives another address")

    assert changed(heap, replace) == {"shop.views.thing": "rebound"}


def test_rings_and_depths_end(module: Any) -> None:
    module.ring = []
    module.ring.append(module.ring)
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    module.deep = deep
    heap = Heap(["shop"])
    snapshot = heap.snapshot()
    assert any("were not looked at" in note for note in snapshot.notes)
    assert changed(heap, lambda: module.ring.append(1)) == {"shop.views.ring": "grows"}


def test_a_limit_is_told(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap_module, "NODES", 50)
    module.many = [[number] for number in range(100)]
    [note] = Heap(["shop"]).snapshot().notes
    assert "50" in note


def test_large_containers_are_sampled(module: Any) -> None:
    module.large = list(range(100_000))
    module.text = "x" * 100_000
    heap = Heap(["shop"])
    assert len(node_at(heap, "shop.views", ".large").children) == 1000
    assert changed(heap, lambda: setattr(module, "text", "x" * 99_999 + "y")) == {"shop.views.text": "rebound"}
    assert changed(heap, lambda: module.large.append(1)) == {"shop.views.large": "grows"}


def test_containers_that_others_are_changing(module: Any) -> None:
    module.busy = OrderedDict()
    module.queue = deque()
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            module.busy[number % 1000] = number
            module.busy.pop((number * 7) % 1000, None)
            module.queue.append(number)
            if len(module.queue) > 1000:
                module.queue.clear()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            Heap(["shop"]).snapshot()
    finally:
        stop.set()
        thread.join()


def test_a_container_that_changes_during_the_look_is_looked_at_again() -> None:
    tries = iter([RuntimeError, RuntimeError, None])

    def elements(container: list[int]) -> Iterator[int]:
        error = next(tries)
        if error is not None:
            raise error
        return iter(container)

    assert _listed(elements, [1, 2]) == [1, 2]


def test_a_number_is_for_one_object_only() -> None:
    class Thing:
        pass

    serials = Serials()
    numbers = [serials.of(Thing()) for _ in range(100)]  # most of them at the same address
    assert len(set(numbers)) == 100
    thing = Thing()
    assert serials.of(thing) == serials.of(thing)


def test_caches_tell_their_size_and_whether_they_end(module: Any) -> None:
    module.endless, module.small = functools.lru_cache(maxsize=None)(abs), functools.lru_cache(maxsize=4)(abs)
    module.small(1)
    heap = Heap(["shop"])
    assert (node_at(heap, "shop.views", ".endless").bounded, node_at(heap, "shop.views", ".endless").size) == (False, 0)
    assert (node_at(heap, "shop.views", ".small").bounded, node_at(heap, "shop.views", ".small").size) == (True, 1)
