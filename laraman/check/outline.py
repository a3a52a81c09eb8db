"""One object as it is, without asking it: what it is, who it is, how large it is, and what it holds.

No code of the application runs here: no ``__eq__``, ``__hash__`` or ``__repr__`` of its types, no property, no ``__getattr__``. Attributes are read
from the places where the interpreter keeps them, and containers through the methods of the builtin types that they derive from.
"""

from __future__ import annotations

import contextvars
import datetime
import decimal
import functools
import gc
import io
import pathlib
import threading
import types
import uuid
import weakref
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from laraman.check.kept import Signs

#: How many elements of one container are looked at: the first and the last half of them.
ELEMENTS = 1000
#: How many characters or bytes of a value are remembered; longer ones are told apart by length and hash.
VALUE = 200
#: How deep objects of other people's types are looked into: their own containers, and those of the objects that they hold.
FOREIGN_DEPTH = 2

#: What is in the way is only looked at for its size.
Part = tuple[str, Any, int]


class Node:
    """What a snapshot remembers of one object.

    ``form``: "value" (``token`` is the value), "object" (``token`` is its serial number), "names" (attributes), "mapping", "set", "sequence",
    "pool" (members come and go), "cache", "size" (nothing but the size is looked at), "seen" (a name for what another path leads to).
    ``rule`` is how its differences are judged (``laraman.check.diff``), and ``where`` its address, which says no more than "not the same".
    ``members`` are numbers of the things that are counted, by which the line that made one is found. ``signs`` are users whose words are in it.
    """

    __slots__ = ("bounded", "children", "form", "members", "rule", "signs", "size", "text", "token", "type", "where")

    def __init__(
        self,
        form: str,
        type: str,
        token: Any = None,
        size: int | None = None,
        *,
        where: int = 0,
        rule: str = "",
        text: str = "",
        members: frozenset[int] = frozenset(),
    ) -> None:
        self.form = form
        self.type = type
        self.token = token
        self.size = size
        self.where = where
        self.rule = rule
        self.text = text
        self.members = members
        self.bounded = False
        self.signs: frozenset[str] = frozenset()
        self.children: dict[str, Node] = {}


class Serials:
    """Numbers for objects. An address is used again after its object has gone, a number is not; no object is kept alive by its number."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._last = 0

    def of(self, obj: Any) -> int | None:
        """None for objects of types without weak references: those are told apart by what they hold."""
        known = self._known.get(id(obj))
        if known is not None and known[0]() is obj:
            return known[1]
        try:
            reference = weakref.ref(obj)
        except TypeError:
            return None
        self._last += 1
        self._known[id(obj)] = (reference, self._last)
        return self._last

    def forget_the_dead(self) -> None:
        self._known = {address: known for address, known in self._known.items() if known[0]() is not None}


# Types ----------------------------------------------------------------------------------------------------------------------------

module_of: Callable[[type], Any] = type.__dict__["__module__"].__get__
qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__
mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
names_of_class: Callable[[type], types.MappingProxyType[str, Any]] = type.__dict__["__dict__"].__get__


def type_name(kind: type) -> str:
    module = module_of(kind)
    return qualname_of(kind) if module == "builtins" or not isinstance(module, str) else f"{module}.{qualname_of(kind)}"


def addresses(*kinds: type) -> frozenset[int]:
    return frozenset(map(id, kinds))


def is_one_of(obj: Any, kinds: frozenset[int]) -> bool:
    """Whether its type is one of ``addresses``. Types are not compared with each other: that may be the application's doing too."""
    return id(type(obj)) in kinds


_DESCRIPTORS = addresses(types.MemberDescriptorType, types.GetSetDescriptorType)
_WRAPPERS = addresses(staticmethod, classmethod)


def attributes(obj: Any) -> dict[str, Any]:
    """``vars(obj)`` and the slots, also where the type has other ideas of ``__dict__`` and ``__getattribute__``."""
    found: dict[str, Any] = {}
    for kind in mro_of(type(obj)):
        for name, member in list(names_of_class(kind).items()):
            if not is_one_of(member, _DESCRIPTORS) or name in found:
                continue
            try:
                value = member.__get__(obj)
            except (AttributeError, TypeError):  # a slot that is empty
                continue
            if name == "__dict__" and type(value) is dict:
                found.update((key, value) for key, value in list(value.items()) if type(key) is str)
            elif type(member) is types.MemberDescriptorType:
                found[name] = value
    return found


# Values ---------------------------------------------------------------------------------------------------------------------------

_PLAIN = addresses(type(None), bool, int, complex, type(...), type(NotImplemented), range)
_PRINTED = addresses(datetime.date, datetime.timedelta, decimal.Decimal, uuid.UUID, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath)


def value_of(obj: Any, kind: type) -> Any:
    """What stands for a value that cannot change, as something that can be compared and hashed; ``_NO_VALUE`` when it is something else."""
    if kind is str or kind is bytes:
        return obj if len(obj) <= VALUE else (len(obj), hash(obj), obj[:80])
    if id(kind) in _PLAIN:
        return obj
    if kind is float:
        return obj if obj == obj else "nan"
    if id(kind) in _PRINTED:
        return repr(obj)
    if kind is datetime.datetime or kind is datetime.time:
        zone = obj.tzinfo
        return repr(obj) if zone is None or type(zone) is datetime.timezone else _NO_VALUE
    if kind is decimal.Context:
        return (obj.prec, obj.rounding, obj.Emin, obj.Emax, obj.capitals, obj.clamp)
    return _NO_VALUE


_NO_VALUE = object()


def value_text(node: Node) -> str:
    """A value for people, short."""
    token = node.token
    if node.type in ("str", "bytes"):
        text = repr(token if not isinstance(token, tuple) else token[2])
        return text if len(text) <= 80 else text[:76] + "..." + text[-1]
    if node.type in ("int", "bool", "NoneType", "float", "complex", "range", "ellipsis"):
        return repr(token)[:80]
    return f"{node.type}{token}"[:80] if isinstance(token, tuple) else str(token)[:80]


# Containers -----------------------------------------------------------------------------------------------------------------------


def _sample(elements: list[Any]) -> Iterable[tuple[int, Any]]:
    numbered = list(enumerate(elements))
    return numbered if len(numbered) <= ELEMENTS else numbered[: ELEMENTS // 2] + numbered[-ELEMENTS // 2 :]


def _listed(iterate: Callable[[Any], Any], obj: Any) -> list[Any]:
    """The elements of a container that another thread may be changing."""
    for _ in range(5):
        try:
            return list(iterate(obj))
        except RuntimeError:  # changed size during iteration
            continue
    return []


_CONTAINERS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (dict, "mapping", dict.items),
    (list, "sequence", list.__iter__),
    (tuple, "sequence", tuple.__iter__),
    (set, "set", set.__iter__),
    (frozenset, "set", frozenset.__iter__),
    (deque, "sequence", deque.__iter__),
)
_SIZES: dict[type, Callable[[Any], int]] = {
    dict: dict.__len__,
    list: list.__len__,
    tuple: tuple.__len__,
    set: set.__len__,
    frozenset: frozenset.__len__,
    deque: deque.__len__,
}

#: Objects of these types are looked into like those of the application.
_OPEN = {"types.SimpleNamespace", "collections.UserDict", "collections.UserList", "argparse.Namespace", "starlette.datastructures.State"}
#: Packages whose objects come and go, and grow, on their own.
CLOSED = frozenset(
    "laraman logging threading _thread asyncio concurrent re typing ast inspect weakref enum selectors socket ssl uvloop anyio sniffio importlib"
    " _frozen_importlib _frozen_importlib_external multiprocessing traceback code tokenize unittest pytest _pytest hypothesis builtins".split()
)


def container_of(kind: type) -> tuple[type, str, Callable[[Any], Any]] | None:
    for entry in _CONTAINERS:
        if kind is entry[0] or issubclass(kind, entry[0]):
            return entry
    return None


class Outlines:
    """Outlines objects of an application whose own modules are ``roots`` and those below them."""

    def __init__(self, roots: tuple[str, ...], serials: Serials, signs: Signs | None = None) -> None:
        self.roots = roots
        self._signs = signs
        self._below = tuple(f"{root}." for root in roots)
        self.serials = serials

    def own(self, module: Any) -> bool:
        return isinstance(module, str) and (module in self.roots or module.startswith(self._below))

    def own_function(self, obj: types.FunctionType) -> bool:
        return self.own(obj.__globals__.get("__name__"))

    def of(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        """The outline of an object and what is to be looked at in it: label, object and level.

        The level is 0 for what belongs to the application; above, it says how deep this is in something that does not.
        """
        kind = type(obj)
        value = value_of(obj, kind)
        if value is not _NO_VALUE:
            node = Node("value", type_name(kind), value)
            if self._signs is not None and (kind is str or kind is bytes):
                node.signs = self._signs.within(obj)
            return node, []
        special = _SPECIAL.get(id(kind))
        if special is not None:
            return special(self, obj, level)
        container = container_of(kind)
        if container is not None:
            return self._container(obj, level, *container)
        if kind is type or issubclass(kind, type):
            return self._class(obj)
        if issubclass(kind, types.ModuleType):
            return self._identity(obj), []
        if issubclass(kind, threading.local):
            return self._thread_local(obj, level)
        return self._instance(obj, level)

    def _identity(self, obj: Any) -> Node:
        serial = self.serials.of(obj)
        return Node("object", type_name(type(obj)), id(obj) if serial is None else serial, where=id(obj))

    def _container(self, obj: Any, level: int, base: type, form: str, iterate: Callable[[Any], Any]) -> tuple[Node, list[Part]]:
        kind = type(obj)
        # What cannot be changed can only be replaced, whether or not the next one has the same address.
        node = Node(form, type_name(kind), size=_SIZES[base](obj), where=0 if base in (tuple, frozenset) else id(obj))
        if level:
            node.form = "size"
            if self._signs is not None:
                node.signs = self._signs.within(obj)
            return node, []
        if base is deque and deque.maxlen.__get__(obj) is not None:
            node.bounded = True
        elements = _sample(_listed(iterate, obj))
        parts: list[Part]
        if form == "mapping":
            parts = [(f"[{self.key(key)}]", value, 0) for _, (key, value) in elements]
        elif form == "set":
            parts = [(f"{{{self.key(element)}}}", element, 0) for _, element in elements]
        else:
            parts = [(f"[{index}]", element, 0) for index, element in elements]
        if kind is not base and self.own(module_of(kind)):
            parts += [(f".{name}", value, 0) for name, value in attributes(obj).items()]
        return node, parts

    def key(self, key: Any) -> str:
        """A key of a mapping, or an element of a set, for people; different ones have different texts."""
        kind = type(key)
        if kind is tuple:
            return f"({', '.join(self.key(part) for part in key)})"
        value = value_of(key, kind)
        if value is _NO_VALUE:
            serial = self.serials.of(key)
            return f"{type_name(kind)} #{id(key) if serial is None else serial}"
        if kind is str or kind is bytes:
            text = repr(key[:VALUE])
            return text if len(text) <= 60 else f"{text[:50]}...{hash(key) & 0xFFFFFF:06x}"
        return f"{value}"

    def _class(self, obj: type) -> tuple[Node, list[Part]]:
        node = self._identity(obj)
        node.type = "type"
        if not self.own(module_of(obj)):
            return node, []
        node.form = "names"
        names = [(name, value) for name, value in list(names_of_class(obj).items()) if not name.startswith("__")]
        node.size = len(names)
        return node, [(f".{name}", unwrapped(value), 0) for name, value in names]

    def _instance(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        kind = type(obj)
        node = self._identity(obj)
        if node.type in _OPEN:
            values = attributes(obj)
            return self._named(node, values.get("_state", values) if node.type.endswith(".State") else values)
        module = module_of(kind)
        if self.own(module):
            if self.serials.of(obj) is None:
                node.token = None  # the address alone does not tell it from one that was there before
            return self._named(node, attributes(obj))
        if level >= FOREIGN_DEPTH or not isinstance(module, str) or module.partition(".")[0] in CLOSED:
            return node, []
        values = attributes(obj)
        parts: list[Part] = [(label, gauge, level) for label, gauge in _gauges(node.type, values)]
        for name, value in values.items():
            if container_of(type(value)) or (value_of(value, type(value)) is _NO_VALUE and not issubclass(type(value), (type, types.FunctionType))):
                parts.append((f".{name}", value, level + 1))
        node.form = "pool"
        return node, parts

    def _named(self, node: Node, values: dict[str, Any]) -> tuple[Node, list[Part]]:
        node.form, node.size = "names", len(values)
        return node, [(f".{name}", value, 0) for name, value in list(values.items())]

    def _function(self, obj: types.FunctionType, level: int) -> tuple[Node, list[Part]]:
        node = self._identity(obj)
        if level >= FOREIGN_DEPTH:
            return node, []
        node.form = "names"
        code = obj.__code__
        cells = zip(code.co_freevars, obj.__closure__ or (), strict=True)
        parts: list[Part] = [(f".__closure__.{name}", _cell(cell), 0 if self.own_function(obj) else level + 1) for name, cell in cells]
        if self.own_function(obj):
            defaults = obj.__defaults__ or ()
            names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
            parts += [(f".__defaults__.{name}", value, 0) for name, value in zip(names, defaults, strict=True)]
            parts += [(f".__kwdefaults__.{name}", value, 0) for name, value in (obj.__kwdefaults__ or {}).items()]
        else:  # somebody's wrapper: what it wraps may be the application's
            parts = [(label, value, 0 if type(value) is types.FunctionType else deeper) for label, value, deeper in parts]
        parts += [(f".{name}", value, 0) for name, value in obj.__dict__.items()]
        node.size = len(obj.__dict__)
        return node, parts

    def _cache(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        _, _, most, size = type(obj).cache_info(obj)
        node = self._identity(obj)
        node.form, node.size, node.bounded = "cache", size, most is not None
        parts: list[Part] = [(".__wrapped__", obj.__wrapped__, level)]
        return node, parts if size != 1 else parts + [("()", result, level) for result in _results_without_arguments(obj)]

    def _thread_local(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        node = self._identity(obj)
        node.form = "pool"
        parts: list[Part] = []
        for held in gc.get_referents(obj):
            if type(held) is dict:
                for key, values in list(dict.items(held)):
                    if type(key) is weakref.ref and type(values) is dict and key() is not None:
                        parts.append((f"[thread {self.serials.of(key())}]", values, 0))
        return node, parts

    def _context(self, obj: contextvars.Context, level: int) -> tuple[Node, list[Part]]:
        return Node("mapping", "contextvars.Context", size=len(obj), where=id(obj)), [(f"['{var.name}']", value, 0) for var, value in obj.items()]

    def _context_variable(self, obj: contextvars.ContextVar[Any], level: int) -> tuple[Node, list[Part]]:
        node = Node("object", "contextvars.ContextVar", id(obj), where=id(obj))
        try:
            return node, [(".default", contextvars.Context().run(obj.get), 0)]
        except LookupError:
            return node, []

    def _method(self, obj: types.MethodType, level: int) -> tuple[Node, list[Part]]:
        return Node("names", "method"), [(".__self__", obj.__self__, level), (".__func__", obj.__func__, level)]

    def _partial(self, obj: functools.partial[Any], level: int) -> tuple[Node, list[Part]]:
        parts: list[Part] = [(".func", obj.func, level), (".args", obj.args, level), (".keywords", obj.keywords, level)]
        return Node("names", "functools.partial", self.serials.of(obj), where=id(obj)), parts

    def _property(self, obj: property, level: int) -> tuple[Node, list[Part]]:
        return Node("names", "property"), [(".fget", obj.fget, level), (".fset", obj.fset, level)]

    def _cached_property(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        return Node("names", "functools.cached_property"), [(".func", obj.func, level)]

    def _proxy(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        return self.of(gc.get_referents(obj)[0], level)

    def _gauge(self, obj: Gauge, level: int) -> tuple[Node, list[Part]]:
        return Node("size", obj.what, size=obj.size, rule="open"), []

    def _buffer(self, obj: Any, level: int) -> tuple[Node, list[Part]]:
        if type(obj) is bytearray:
            return Node("value", "bytearray", hash(bytes(obj[:4096])), len(obj), where=id(obj)), []
        try:
            content = obj.getvalue()
        except ValueError:  # closed
            content = ""
        return Node("value", type_name(type(obj)), hash(content), len(content), where=id(obj)), []


class Gauge:
    """A number of things that are open, for a time."""

    def __init__(self, what: str, size: int) -> None:
        self.what = what
        self.size = size


def _gauges(kind: str, values: dict[str, Any]) -> Iterator[tuple[str, Gauge]]:
    """What an object of SQLAlchemy has open: connections that were not given back to their pool, a transaction that was begun."""
    if kind == "sqlalchemy.engine.base.Engine" and hasattr(values.get("pool"), "checkedout"):
        yield ".pool.checkedout()", Gauge("connections", values["pool"].checkedout())
    if kind in ("sqlalchemy.orm.session.Session", "sqlalchemy.engine.base.Connection"):
        yield ".in_transaction()", Gauge("transactions", int(values.get("_transaction") is not None))


def _results_without_arguments(cache: Any) -> list[Any]:
    """What a cache holds for a call without arguments: the one object of an application that has a function for it (its settings)."""
    held = gc.get_referents(cache)
    for results in held[:2]:
        if type(results) is dict:  # without a bound: results by arguments, next to the type
            return [results[()]] if () in results else []
    return [result for arguments, result in pairwise(held) if type(arguments) is tuple and not arguments][:1]


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def unwrapped(value: Any) -> Any:
    return value.__func__ if is_one_of(value, _WRAPPERS) else value


#: By address of the type.
_SPECIAL: dict[int, Callable[[Outlines, Any, int], tuple[Node, list[Part]]]] = {
    id(types.FunctionType): Outlines._function,
    id(types.MethodType): Outlines._method,
    id(types.MappingProxyType): Outlines._proxy,
    id(functools.partial): Outlines._partial,
    id(functools._lru_cache_wrapper): Outlines._cache,
    id(functools.cached_property): Outlines._cached_property,
    id(property): Outlines._property,
    id(contextvars.Context): Outlines._context,
    id(contextvars.ContextVar): Outlines._context_variable,
    id(Gauge): Outlines._gauge,
    id(bytearray): Outlines._buffer,
    id(io.BytesIO): Outlines._buffer,
    id(io.StringIO): Outlines._buffer,
}
