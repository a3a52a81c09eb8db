"""Programs of Workers: what ``laraman start module:workers`` finds there.

Which kind of thing an import string names is read from the module's source: to import an application in the master only to look at it would end
every reload. Once it is known, the module is a listener module like any other: the master imports it, and each child does so afresh.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from laraman.config.options import did_you_mean
from laraman.errors import ConfigError
from laraman.process.worker import Worker


def names_workers(app: str, directory: str) -> bool:
    """Whether the import string ``app`` names Workers, as far as its module's source tells: a Worker, a list or tuple of them, or a function whose
    annotation says that it returns them. False for what cannot be read."""
    module, _, attribute = app.partition(":")
    path = _source(module, directory)
    try:
        source = path.read_bytes() if path else b""
        body = ast.parse(source).body if b"Worker" in source else []
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    return _Module(body).names_workers(attribute)


def _source(module: str, directory: str) -> Path | None:
    """The file that importing ``module`` would run last; nothing is imported to find it."""
    path: Iterable[str] | None = [str(Path(directory or ".").absolute()), *sys.path]
    spec = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, list(path)) if path is not None else None
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


#: Types whose parameter says what there are several of.
_SEVERAL = frozenset({"list", "tuple", "List", "Tuple", "Sequence", "Collection", "Iterable", "Iterator", "Generator"})


class _Module:
    """What the top level of a module says of its names, of each at last."""

    def __init__(self, body: list[ast.stmt]) -> None:
        self._classes = {"laraman.Worker"}
        self._values: dict[str, ast.expr] = {}
        self._annotations: dict[str, ast.expr] = {}
        for statement in body:
            self._read(statement)

    def _read(self, statement: ast.stmt) -> None:
        match statement:
            case ast.ImportFrom(module=module, level=level):
                ours = level == 0 and (module or "").partition(".")[0] == "laraman"
                for alias in statement.names:
                    self._bind(alias.asname or alias.name, is_class=ours and alias.name == "Worker")
            case ast.Import():
                self._classes.update(f"{alias.asname}.Worker" for alias in statement.names if alias.name == "laraman" and alias.asname)
            case ast.ClassDef(name=name):
                self._bind(name, is_class=any(ast.unparse(base) in self._classes for base in statement.bases))
            case ast.AsyncFunctionDef(name=name):
                self._bind(name)
            case ast.FunctionDef(name=name, returns=annotation) | ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                self._bind(name, annotation=annotation)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Name):
                        self._bind(target.id, value)
            case _:
                pass

    def _bind(self, name: str, value: ast.expr | None = None, annotation: ast.expr | None = None, *, is_class: bool = False) -> None:
        """From here on the name is this, and not what it was."""
        self._classes.discard(name)
        if is_class:
            self._classes.add(name)
        for known, found in ((self._values, value), (self._annotations, annotation)):
            known.pop(name, None)
            if found is not None:
                known[name] = found

    def names_workers(self, name: str) -> bool:
        if annotation := self._annotations.get(name):
            return self._mentions(annotation)
        return name in self._values and self._makes(self._values[name])

    def _mentions(self, annotation: ast.expr) -> bool:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return False
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).rpartition(".")[2] in _SEVERAL:
            several = annotation.slice
            return any(self._mentions(item) for item in (several.elts if isinstance(several, ast.Tuple) else (several,)))
        return ast.unparse(annotation) in self._classes

    def _makes(self, value: ast.expr, through: tuple[str, ...] = ()) -> bool:
        """``through`` are the names by which it was found, so that none is gone round for ever."""
        match value:
            case ast.Call(func=function):
                return ast.unparse(function) in self._classes
            case ast.List(elts=[_, *_] as items) | ast.Tuple(elts=[_, *_] as items):
                return all(self._makes(item, through) for item in items)
            case ast.ListComp(elt=item):
                return self._makes(item, through)
            case ast.Name(id=name) if name in self._values and name not in through:
                return self._makes(self._values[name], (*through, name))
            case _:
                return False


def program_workers(app: str) -> list[Worker]:
    """The Workers that the import string names, whose module has been imported. Raises ConfigError; what a function of its raises comes out."""
    module, _, attribute = app.partition(":")
    try:
        found: Any = getattr(sys.modules[module], attribute)
    except AttributeError:
        raise ConfigError(f"{module!r} has no {attribute!r}{did_you_mean(attribute, vars(sys.modules[module]))}") from None
    if callable(found):
        found = found()
    workers = [found] if isinstance(found, Worker) else list(found) if isinstance(found, Iterable) else []
    if not workers or not all(isinstance(worker, Worker) for worker in workers):
        raise ConfigError(f"{app} is neither a Worker nor a list of Workers, nor a function that returns such: it is {found!r:.100}")
    return workers
