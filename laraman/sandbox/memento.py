"""Mementos: what a shared object was when the worker was ready, and the way back to it, in place.

A memento walks from one named object through dict, list, set, deque, bytearray, tuple, frozenset and through instances with ``__dict__`` or
``__slots__`` (dataclasses, pydantic's models), and remembers what each container holds, not a copy of it. Restoring writes back where that
differs, so that every object keeps its identity and everybody who holds a part of it holds the right part. Modules, classes and functions are
not entered; numbers, strings and other immutable values are kept as they are. An object of C code that is none of these is deep-copied, and put
back through what held it (or by its own ``__setstate__``). What cannot be copied, a lock, a socket, an open file, is a ConfigError at boot that
names the way to it.

Safe when nothing else uses the object: when no operation is in flight.
"""

from __future__ import annotations

import contextvars
import copy
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import logging
import pathlib
import re
import struct
import types
import uuid
import weakref
from collections import OrderedDict, defaultdict, deque
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
#: Kept by reference: immutable, or code, or shared by its nature (a logger is the same for everybody who asks for its name).
_KEPT = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(NotImplemented), type(Ellipsis)),
    *(*_CODE, types.CodeType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType),
    *(types.MappingProxyType, types.GenericAlias, types.UnionType, property),
    *(staticmethod, classmethod, functools.partial, type(functools.lru_cache(lambda: None)), re.Pattern, struct.Struct),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction, uuid.UUID, enum.Enum),
    *(pathlib.PurePath, ipaddress._BaseAddress, ipaddress._BaseNetwork, weakref.ReferenceType, contextvars.ContextVar, logging.Logger),
)
#: Containers whose shallow content is all there is to them (and a `__dict__`, if the class is derived).
_CONTAINERS = (dict, list, set, deque, bytearray, tuple, frozenset)
#: What an instance of these holds beyond ``__dict__`` and ``__slots__`` is known here, or there is nothing.
_KNOWN_BASES = frozenset({object, OrderedDict, defaultdict, *_CONTAINERS, int, float, str, bytes, complex})
_POINTER = struct.calcsize("P")
#: In slots that have no value.
_UNSET = object()


class _Entry(Protocol):
    """One object, and what it held."""

    def changed(self) -> bool: ...
    def restore(self) -> None: ...


class _Mapping:
    """A dict, or the ``__dict__`` of an instance: keys and values, in their order."""

    def __init__(self, of: Any, read: Callable[[Any], dict[Any, Any]] | None = None) -> None:
        self._of = of
        self._read = read
        found = of if read is None else read(of)
        self._type: Any = OrderedDict if isinstance(found, OrderedDict) else dict  # its own order is not that of the dict beneath
        self._keys = list(self._type.keys(found))
        self._values = list(self._type.values(found))

    def changed(self) -> bool:
        found = self._of if self._read is None else self._read(self._of)
        if len(found) != len(self._keys):
            return True
        return not (all(map(is_, self._type.keys(found), self._keys)) and all(map(is_, self._type.values(found), self._values)))

    def restore(self) -> None:
        """Where only values differ, only these are written: another thread never sees a key missing that was always there."""
        found = self._of if self._read is None else self._read(self._of)
        kind = self._type
        keys = list(kind.keys(found))
        if len(keys) != len(self._keys) or not all(map(is_, keys, self._keys)):
            kind.clear(found)
        for key, value in zip(self._keys, self._values, strict=True):
            kind.__setitem__(found, key, value)

    def replace(self, old: Any, new: Any) -> None:
        self._values[:] = [new if value is old else value for value in self._values]


class _Sequence:
    """A list or a deque."""

    def __init__(self, of: Any) -> None:
        self._of = of
        self._type: Any = deque if isinstance(of, deque) else list
        self._values = list(self._type.__iter__(of))

    def changed(self) -> bool:
        return self._type.__len__(self._of) != len(self._values) or not all(map(is_, self._type.__iter__(self._of), self._values))

    def restore(self) -> None:
        self._type.clear(self._of)
        self._type.extend(self._of, self._values)

    def replace(self, old: Any, new: Any) -> None:
        self._values[:] = [new if value is old else value for value in self._values]


class _Set:
    """A set. Its order means nothing, but as long as nobody writes to it, it stays."""

    def __init__(self, of: set[Any]) -> None:
        self._of = of
        self._values = list(set.__iter__(of))

    def changed(self) -> bool:
        return set.__len__(self._of) != len(self._values) or not all(map(is_, set.__iter__(self._of), self._values))

    def restore(self) -> None:
        set.clear(self._of)
        set.update(self._of, self._values)
        self._values = list(set.__iter__(self._of))

    def replace(self, old: Any, new: Any) -> None:
        self._values[:] = [new if value is old else value for value in self._values]


class _Bytes:
    """A bytearray."""

    def __init__(self, of: bytearray) -> None:
        self._of = of
        self._value = bytes(of)

    def changed(self) -> bool:
        return self._of != self._value

    def restore(self) -> None:
        self._of[:] = self._value


class _Slot:
    """What one ``__slots__`` descriptor holds. Written past ``__setattr__``, which a frozen class forbids."""

    def __init__(self, of: Any, descriptor: types.MemberDescriptorType) -> None:
        self._of = of
        self._descriptor = descriptor
        self._value = self._now()

    def _now(self) -> Any:
        try:
            return self._descriptor.__get__(self._of)
        except AttributeError:
            return _UNSET

    def changed(self) -> bool:
        return self._now() is not self._value

    def restore(self) -> None:
        if self._value is not _UNSET:
            self._descriptor.__set__(self._of, self._value)
        elif self.changed():
            self._descriptor.__delete__(self._of)

    def replace(self, old: Any, new: Any) -> None:
        self._value = new if self._value is old else self._value


class _Attribute:
    """The name under which the object is known, in its module or in what is on the way to it."""

    def __init__(self, of: Any, name: str, value: Any) -> None:
        self._of = of
        self._name = name
        self._value = value

    def changed(self) -> bool:
        return getattr(self._of, self._name, _UNSET) is not self._value

    def restore(self) -> None:
        setattr(self._of, self._name, self._value)

    def replace(self, old: Any, new: Any) -> None:
        self._value = new if self._value is old else self._value


class _Opaque:
    """An object of C code: its state, as pickle sees it, and a copy."""

    def __init__(self, of: Any) -> None:
        self._of = of
        self._copy = copy.deepcopy(of)
        self._state = _state(self._copy)
        self._parents: list[Any] = []

    def held_by(self, parent: Any) -> None:
        """``parent`` has ``replace``, and what it held is written back after this."""
        self._parents.append(parent)

    @property
    def in_place(self) -> bool:
        return len(self._state) > 2 and self._state[2] is not None and hasattr(self._of, "__setstate__")

    def changed(self) -> bool:
        try:
            return bool(_state(self._of) != self._state)
        except ValueError:  # arrays of numbers that compare element by element: the long way
            return True

    def restore(self) -> None:
        if self.in_place:
            self._of.__setstate__(copy.deepcopy(self._state[2]))
            return
        old, self._of = self._of, copy.deepcopy(self._copy)
        for parent in self._parents:
            parent.replace(old, self._of)


def _state(of: Any) -> tuple[Any, ...]:
    """What makes it up. Iterators in it say nothing and are left out."""
    found = of.__reduce_ex__(4)
    return (found,) if isinstance(found, str) else tuple(found[:3])


class Memento:
    """``name`` ("app.settings:SETTINGS") is what ``getattr(holder, attribute)`` is now.

    Raises ConfigError when a part of it cannot be copied, with the way to that part.
    """

    def __init__(self, name: str, holder: Any, attribute: str) -> None:
        self.name = name
        value = getattr(holder, attribute)
        if issubclass(type(value), _CODE):
            raise ConfigError(f"{name!r} is a {_kind(value)}, and these are not entered: name the object that changes")
        if getattr(holder, attribute) is not value:
            raise ConfigError(f"{name!r} is another object each time it is asked for: name where it is kept")
        root = _Attribute(holder, attribute, value)
        #: By what is to be written first: opaque objects, because these may change what their holders hold.
        self._opaque: list[_Opaque] = []
        self._entries: list[_Entry] = [root]
        self._walk(value, attribute, root)

    def changed(self) -> bool:
        """Whether anything is not what it was. Less than a microsecond for each container, and 50 ns for each thing in it."""
        return any(entry.changed() for entry in self._opaque) or any(entry.changed() for entry in self._entries)

    def restore(self) -> bool:
        """Put everything back that is not what it was; returns whether there was something."""
        differs = False
        for entry in (*self._opaque, *self._entries):  # in this order, one by one: the first ones may make the others differ
            if entry.changed():
                entry.restore()
                differs = True
        return differs

    # The walk --------------------------------------------------------------------------------------------------------------------

    def _walk(self, root: Any, path: str, holder: _Entry) -> None:
        """Without recursion: what people nest may be deeper than Python's stack."""
        seen: dict[int, Any] = {}
        waiting: list[tuple[Any, str, Any]] = [(root, path, holder)]
        while waiting:
            value, path, holder = waiting.pop()
            if isinstance(known := seen.get(id(value)), _Opaque):
                self._hold(known, holder, path)
            elif known is None and (not issubclass(type(value), _KEPT) or _has_attributes(value)):
                entered = _is_transparent(type(value))
                seen[id(value)] = value if entered else self._copied(value, path, holder)
                if entered:
                    waiting.extend(self._enter(value, path))

    def _enter(self, value: Any, path: str) -> Iterator[tuple[Any, str, Any]]:
        """Remember what it holds, and say what that is: the thing, the way to it, what holds it."""
        kind = type(value)
        entry: Any = None
        if issubclass(kind, dict):
            entry = self._remember(_Mapping(value))
            for key, inner in dict.items(value):
                yield key, f"{path}.key({key!r:.40})", None
                yield inner, f"{path}[{key!r:.40}]", entry
        elif issubclass(kind, (list, deque, set, tuple, frozenset)):
            if issubclass(kind, (list, deque)):
                entry = self._remember(_Sequence(value))
            elif issubclass(kind, set):
                entry = self._remember(_Set(value))
            base: Any = next(base for base in _CONTAINERS if issubclass(kind, base))
            for index, inner in enumerate(base.__iter__(value)):
                yield inner, f"{path}[{index}]", entry
        elif issubclass(kind, bytearray):
            self._remember(_Bytes(value))
        if kind.__dictoffset__:
            entry = self._remember(_Mapping(value, _attributes))
            for name, inner in _attributes(value).items():
                yield inner, f"{path}.{name}", entry
        for descriptor in _slots(kind):
            slot = _Slot(value, descriptor)
            self._entries.append(slot)
            if slot._value is not _UNSET:
                yield slot._value, f"{path}.{descriptor.__name__}", slot

    def _remember(self, entry: Any) -> Any:
        self._entries.append(entry)
        return entry

    def _copied(self, value: Any, path: str, holder: Any) -> Any:
        try:
            if copy.deepcopy(value) is value:
                return value  # by its own word nobody can change it
            entry = _Opaque(value)
        except Exception as exc:
            raise ConfigError(f"{path} cannot be copied, a {_kind(value)}: {exc}") from None
        self._opaque.append(entry)
        self._hold(entry, holder, path)
        return entry

    def _hold(self, entry: _Opaque, holder: Any, path: str) -> None:
        if holder is not None:
            entry.held_by(holder)
        elif not entry.in_place:
            raise ConfigError(f"{path}, a {_kind(entry._of)}, cannot be put back: what holds it cannot be changed")


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _attributes(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    return found


def _has_attributes(value: Any) -> bool:
    """Of an immutable value of a class of the application's own, like a str with attributes. Others are not entered whatever they have."""
    kind = type(value)
    return issubclass(kind, (int, float, complex, str, bytes)) and not issubclass(kind, enum.Enum) and bool(kind.__dictoffset__ or any(_slots(kind)))


def _slots(kind: type) -> Iterator[types.MemberDescriptorType]:
    for base in kind.__mro__:
        if "__slots__" in vars(base):
            yield from (found for found in vars(base).values() if isinstance(found, types.MemberDescriptorType))


def _is_transparent(kind: type) -> bool:
    """Whether an instance holds nothing that cannot be seen: then its size is that of its slots. What C code added cannot be read or written."""
    base: type | None = kind
    while base is not None and base not in _KNOWN_BASES:
        above = base.__base__
        assert above is not None
        names = vars(base)
        visible = sum(isinstance(found, types.MemberDescriptorType) for found in names.values()) if "__slots__" in names else 0
        visible += sum(name in names for name in ("__dict__", "__weakref__"))
        if base.__basicsize__ - above.__basicsize__ > visible * _POINTER or base.__itemsize__ != above.__itemsize__:
            return False
        base = above
    return True
