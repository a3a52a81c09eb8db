"""What an application has in its memory and what its process has, by name path, so that two moments can be compared (``laraman.check.diff``).

    shop.views.LAST                     a global of one of the application's modules
    shop.models.Order.recent            an attribute of a class
    shop.services.cart.items['a']       an attribute of an object, an element of a container
    shop.views.add.__defaults__.into    a default argument;  ``.__closure__.total`` a variable that a function has closed over
    json.dumps                          a function of a module that the application imports
    contextvars['tenant']               what the context holds that operations start from
    descriptors['socket']               what else the process has: ``laraman.check.process``

A snapshot is a graph of nodes. Paths come into being when two of them are compared; what several names lead to is reported under the shortest,
and an object that one module of the application imports from another under the name it has there.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import gc
import sys
import threading
import types
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman.check import process
from laraman.check.outline import CLOSED, Node, Outlines, Part, Serials, addresses, is_one_of, module_of, names_of_class, qualname_of, unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laraman.check.kept import Signs

#: Where a walk ends: objects of one snapshot, steps from a module, functions and classes of other people's modules.
NODES, DEPTH, PATCHABLE = 200_000, 25, 30_000
#: Variables of the context that belong to the machinery around the application.
_MACHINERY = frozenset({"laraman_operation", "current_worker", "current_async_library_cvar", "__anyio_backend"})
#: What may follow a name in a path.
_BEHIND = ("", ".", "[", "{", "(")

_HEAP_TYPE = 1 << 9
_flags_of = type.__dict__["__flags__"].__get__
_FUNCTIONS = addresses(types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property)


class Snapshot:
    """The heap at one moment. It keeps no object of the application alive. ``notes`` say where a limit ended the walk."""

    __slots__ = ("notes", "roots")

    def __init__(self, roots: dict[str, Node], notes: list[str]) -> None:
        self.roots = roots
        self.notes = notes


class Heap:
    """``roots`` are the names of the application's own modules or their packages; ``extra`` are further objects by name path (``app.state``).

    ``signs`` are words of users that are recognised where they stay.

    The context that operations start from is the one in which ``snapshot`` is called, or ``extra["contextvars"]``.
    """

    def __init__(self, roots: Sequence[str], extra: Mapping[str, Any] | None = None, signs: Signs | None = None) -> None:
        self.serials = Serials()
        self.outlines = Outlines(tuple(roots), self.serials, signs)
        self.extra = dict(extra or {})
        self._imported: dict[str, frozenset[str]] = {}
        self._patchable: dict[str, tuple[list[str], list[tuple[str, list[str]]]]] = {}
        self._patchable_left = PATCHABLE
        self._functions: dict[int, Node] = {}

    def snapshot(self) -> Snapshot:
        """Everything that can be reached. Garbage is collected first: what only waits for that is no leak."""
        gc.collect()
        self.serials.forget_the_dead()
        walk = _Walk(self.outlines, self._parts_of_module)
        roots = walk.run(self._objects())
        roots.update(self._others_modules())
        roots.update(process.nodes(self.outlines))
        process.stir()
        notes = [] if not walk.left_out else [f"{walk.left_out} objects were not looked at: a walk ends after {NODES} objects and {DEPTH} steps"]
        if self._patchable_left < 0:
            notes.append(f"functions of imported modules were not all looked at: {PATCHABLE} are the most")
        return Snapshot(roots, notes)

    def fingerprint(self, path: str) -> object:
        """What ``path`` leads to at this moment, as something that is equal as long as nothing there changed."""
        for name, read in process.READERS.items():
            if path == name or path.startswith((f"{name}[", f"{name}.")):
                return _print_of(read(self.outlines), path[len(name) :])
        for name, obj in sorted(self._objects(), key=lambda root: -len(root[0])):
            if path.startswith(name) and path[len(name) : len(name) + 1] in _BEHIND:
                found = self._find(obj, 0, path[len(name) :])
                if found is not None:
                    return found
        return self._patch_at(path)

    # -- the application's own -------------------------------------------------------------------------------------------------------

    def _objects(self) -> list[tuple[str, Any]]:
        modules = [(name, module) for name, module in sorted(sys.modules.items()) if type(module) is types.ModuleType and self.outlines.own(name)]
        found: dict[str, Any] = {**dict(modules), "contextvars": _context(contextvars.copy_context()), **self.extra, **_thread_locals(self.outlines)}
        if isinstance(found["contextvars"], contextvars.Context):
            found["contextvars"] = _context(found["contextvars"])
        return list(found.items())

    def _parts_of_module(self, module: types.ModuleType) -> tuple[Node, list[Part]]:
        names = [(name, value) for name, value in list(vars(module).items()) if not name.startswith("__") and type(value) is not types.ModuleType]
        imported = self._names_imported(module)
        node = Node("names", "module", size=len(names))
        return node, [(f".{name}", value, -1 if name in imported or self._lives_elsewhere(module, value) else 0) for name, value in names]

    def _names_imported(self, module: types.ModuleType) -> frozenset[str]:
        """The names that the module has from others of the application's modules."""
        known = self._imported.get(module.__name__)
        if known is None:
            tree = ast.Module([], [])
            with contextlib.suppress(OSError, SyntaxError, ValueError, KeyError):
                tree = ast.parse(Path(str(vars(module)["__file__"])).read_bytes())
            known = frozenset(
                alias.asname or alias.name
                for statement in ast.walk(tree)
                if isinstance(statement, ast.ImportFrom) and (statement.level or self.outlines.own(statement.module))
                for alias in statement.names
            )
            self._imported[module.__name__] = known
        return known

    def _lives_elsewhere(self, module: types.ModuleType, value: Any) -> bool:
        """A class or function that is at home in another of the application's modules."""
        if not issubclass(type(value), (type, types.FunctionType)):
            return False
        home = _home_of(value)
        if home == module.__name__ or not self.outlines.own(home):
            return False
        return any(other is value for other in vars(sys.modules[home]).values()) if home in sys.modules else False

    def _find(self, obj: Any, level: int, rest: str) -> object:
        """The fingerprint of what ``rest`` leads to from ``obj``; None when it leads nowhere."""
        if type(obj) is types.ModuleType:
            node, parts = self._parts_of_module(obj)
        else:
            node, parts = self.outlines.of(obj, max(level, 0))
        if not rest:
            where = id(obj) if node.form == "value" else node.where
            return (node.type, node.token, where, node.size, tuple((label, id(part)) for label, part, _ in parts))
        for label, part, deeper in parts:
            if rest.startswith(label) and rest[len(label) : len(label) + 1] in _BEHIND:
                found = self._find(part, deeper, rest[len(label) :])
                if found is not None:
                    return found
        return None

    # -- functions and classes of the modules that the application imports -------------------------------------------------------------

    def _others_modules(self) -> dict[str, Node]:
        for name in sorted(self._names_of_others() - self._patchable.keys()):
            self._patchable[name] = self._patchable_in(sys.modules[name])
        found: dict[str, Node] = {}
        seen: set[int] = set()
        for name, (functions, classes) in self._patchable.items():
            members = vars(sys.modules[name]) if name in sys.modules else {}
            root = found[name] = Node("pool", "module")
            root.children = {f".{function}": self._patch(members.get(function)) for function in functions}
            for title, methods in classes:
                kind: Any = members.get(title)
                root.children[f".{title}"] = node = self._patch(kind)
                if id(kind) not in seen and issubclass(type(kind), type):  # a class has several names and still the same methods
                    seen.add(id(kind))
                    own = names_of_class(kind)
                    node = root.children[f".{title}"] = Node(node.form, node.type, node.token, rule=node.rule)
                    node.children = {f".{method}": self._patch(own.get(method)) for method in methods}
        return found

    def _names_of_others(self) -> set[str]:
        found = set()
        for name, module in list(sys.modules.items()):
            if type(module) is types.ModuleType and self.outlines.own(name):
                for value in list(vars(module).values()):
                    home = _home_of(value)
                    if type(home) is str and home in sys.modules and not self.outlines.own(home):
                        found.add(home)
        return found - {"__main__", "typing", "builtins"}

    def _patchable_in(self, module: types.ModuleType) -> tuple[list[str], list[tuple[str, list[str]]]]:
        functions: list[str] = []
        classes: list[tuple[str, list[str]]] = []
        for name, value in list(vars(module).items()):
            if self._patchable_left < 0:
                break
            if is_one_of(value, _FUNCTIONS):
                functions.append(name)
                self._patchable_left -= 1
            elif issubclass(type(value), type) and not self.outlines.own(module_of(value)):
                mutable = _flags_of(value) & _HEAP_TYPE
                classes.append((name, [method for method, member in names_of_class(value).items() if mutable and is_one_of(member, _FUNCTIONS)]))
                self._patchable_left -= 1 + len(classes[-1][1])
        return functions, classes

    def _patch(self, value: Any) -> Node:
        value = unwrapped(value)
        serial = self.serials.of(value)
        known = self._functions.get(serial) if serial is not None else None
        if known is None:
            known = Node("object", _function_text(value), id(value) if serial is None else serial, rule="patched")
            if serial is not None:
                self._functions[serial] = known
        return known

    def _patch_at(self, path: str) -> object:
        for name in sorted((name for name in self._patchable if path.startswith(f"{name}.")), key=len, reverse=True):
            first, _, second = path[len(name) + 1 :].partition(".")
            value: Any = vars(sys.modules[name]).get(first)
            if second and issubclass(type(value), type):
                value = names_of_class(value).get(second)
            return id(value)
        return None


class _Walk:
    """One walk over objects, nearest first. It holds what it has seen until it ends, so that addresses mean what they say."""

    def __init__(self, outlines: Outlines, module: Any) -> None:
        self._outlines = outlines
        self._module = module
        self._seen: dict[tuple[int, int], Node] = {}
        self._held: list[Any] = []
        self._queue: deque[tuple[Node, list[Part], int]] = deque()
        self._nodes = 0
        self.left_out = 0

    def run(self, roots: Iterable[tuple[str, Any]]) -> dict[str, Node]:
        found = {name: self._visit(obj, 0, 0) for name, obj in roots}
        while self._queue:
            node, parts, depth = self._queue.popleft()
            if depth > DEPTH or self._nodes > NODES:
                self.left_out += len(parts)
                continue
            node.children = {label: self._visit(part, level, depth) for label, part, level in parts}
        return found

    def _visit(self, obj: Any, level: int, depth: int) -> Node:
        key = (id(obj), level)
        node = self._seen.get(key)
        if node is not None:
            return node
        if type(obj) is types.ModuleType:
            node, parts = self._module(obj)
        else:
            node, parts = self._outlines.of(obj, max(level, 0))
        self._nodes += 1
        if node.form != "value":
            self._seen[key] = node
            self._held.append(obj)
        if level < 0 and node.form not in ("value", "object"):
            node.form, parts = "seen", []
        if parts:
            self._queue.append((node, parts, depth + 1))
        return node


def _context(context: contextvars.Context) -> dict[str, Any]:
    return {var.name: value for var, value in context.items() if var.name not in _MACHINERY}


def _thread_locals(outlines: Outlines) -> dict[str, Any]:
    """The thread-locals of everybody's modules, except those that belong to the machinery around the application."""
    found = {}
    for name, module in list(sys.modules.items()):
        package = name.partition(".")[0]
        if type(module) is types.ModuleType and not outlines.own(name) and package not in CLOSED and package not in sys.stdlib_module_names:
            for attribute, value in list(vars(module).items()):
                if issubclass(type(value), threading.local):
                    found[f"{name}.{attribute}"] = value
    return found


def _home_of(value: Any) -> Any:
    """The module that a class, a function or a module comes from."""
    kind = type(value)
    if kind is types.ModuleType:
        return value.__name__
    if kind is types.FunctionType:
        return value.__module__
    return module_of(value) if issubclass(kind, type) else None


def _function_text(value: Any) -> str:
    kind = type(value)
    if kind is types.FunctionType:
        return f"function {value.__module__}.{value.__qualname__}"
    if issubclass(kind, type):
        return f"class {module_of(value)}.{qualname_of(value)}"
    return kind.__name__


def _print_of(node: Node, rest: str) -> object:
    """The fingerprint of what ``rest`` leads to below a node; None when it leads nowhere."""
    if not rest:
        return node.members if node.rule in ("counted", "held") else (node.type, node.token, node.size)
    for label, child in node.children.items():
        if rest.startswith(label) and rest[len(label) : len(label) + 1] in _BEHIND:
            found = _print_of(child, rest[len(label) :])
            if found is not None:
                return found
    return None
