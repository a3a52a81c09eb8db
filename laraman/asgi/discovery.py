"""The application, found where nobody names it: by conventional files, as FastAPI's own command finds it, and by what their source says.

Source is read, never run: the command line looks for the application in the master. So what is known of a value is how it is written.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where an application is looked for when none is named, in this order.
CONVENTIONAL_FILES = ("main.py", "app.py", "api.py", "asgi.py", "app/main.py", "app/app.py", "app/api.py")
#: Classes whose instances are applications whatever they are called.
CLASSES = frozenset({"FastAPI", "Flask", "Litestar", "Quart", "Starlette"})


class Found(NamedTuple):
    """An import string, and the directory that it is imported from."""

    app: str
    directory: str


class _Binding(NamedTuple):
    name: str
    value: ast.expr | None = None
    annotation: ast.expr | None = None


def find_app(directory: str | os.PathLike[str]) -> str:
    """The import string, in ``directory``, of the application in the first conventional file that defines one, or "" when none does.

    A file that does not parse counts: importing it then says where its error is, while "no application found" would send its author
    looking in the wrong place.
    """
    for name in CONVENTIONAL_FILES:
        if attribute := find_attribute(Path(directory) / name):
            return f"{name.removesuffix('.py').replace('/', '.')}:{attribute}"
    return ""


def locate(path: str, name: str = "", directory: str = "") -> Found:
    """The application of a file or of a package's directory, or with an empty ``path`` of the first conventional file in ``directory``, as FastAPI's
    command has it: the module's name begins at the outermost directory with an ``__init__.py``. ``name`` is its attribute, when it is known.

    Raises ConfigError when there is none.
    """
    here = Path(path or directory or os.curdir)
    if not here.exists():
        raise ConfigError(f"there is no file or directory {str(here)!r}")
    if here.is_file():
        candidates = [here]
    else:
        conventional = [here / file for file in CONVENTIONAL_FILES]
        candidates = [file for file in (here / "__init__.py", *conventional) if file.is_file()]
    for file in candidates:
        if attribute := name or find_attribute(file):
            return _imported_as(file.resolve(), attribute)
    where = str(here) if here.is_file() else f"{', '.join(CONVENTIONAL_FILES)} of {str(here.resolve())!r}"
    raise ConfigError(f"no application found in {where}: name the file, or the object in it with --app")


def _imported_as(file: Path, attribute: str) -> Found:
    module = file.parent if file.stem == "__init__" else file.with_suffix("")
    names, directory = [module.name], module.parent
    while (directory / "__init__.py").is_file():
        names.insert(0, directory.name)
        directory = directory.parent
    return Found(f"{'.'.join(names)}:{attribute}", str(directory))


def find_attribute(path: Path) -> str:
    """The name of the application in this file: ``app`` if there is one, else ``api`` or another that is an instance of one of `CLASSES`, else
    ``api``; "" when there is none, ``app`` when the file does not parse."""
    try:
        body = ast.parse(path.read_bytes()).body
    except OSError:
        return ""
    except (SyntaxError, ValueError, RecursionError):
        return "app"
    bindings = list(_bindings(body))
    classes = CLASSES | {node.name for node in body if isinstance(node, ast.ClassDef) and any(_last_name(base) in CLASSES for base in node.bases)}
    names = {binding.name for binding in bindings}
    instances = {binding.name for binding in bindings if _made_by(binding.value) in classes or _last_name(binding.annotation) in classes}
    candidates = [*(["app"] if "app" in names else []), *(["api"] if "api" in instances else []), *sorted(instances)]
    return next(iter([*candidates, *(["api"] if "api" in names else [])]), "")


def _made_by(value: ast.expr | None) -> str:
    return _last_name(value.func) if isinstance(value, ast.Call) else ""


def _last_name(node: ast.expr | None) -> str:
    """``FastAPI`` of ``FastAPI`` and of ``fastapi.FastAPI``."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _bindings(body: list[ast.stmt]) -> Iterator[_Binding]:
    """What these statements bind in the module, also under ``if``, ``try`` and ``with``."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield _Binding(statement.name)
            case ast.Import() | ast.ImportFrom():
                yield from (_Binding(alias.asname or alias.name) for alias in statement.names)
            case ast.Assign():
                yield from (_Binding(name, statement.value) for target in statement.targets for name in _names_stored(target))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield _Binding(name, value, statement.annotation)
            case _:
                blocks = (getattr(statement, part, []) for part in ("body", "orelse", "finalbody"))
                handlers = (handler.body for handler in getattr(statement, "handlers", []))
                for block in (*blocks, *handlers):
                    yield from _bindings(block)


def _names_stored(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
