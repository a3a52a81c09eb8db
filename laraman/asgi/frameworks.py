"""Under ``--reload``: what the application stands on, imported once for all the workers to come, which then import the application alone.

Only libraries whose import starts nothing and reads no environment, because the application's own code may set that before it imports them. Which
modules of them it needs is read from its source, never by running it.
"""

from __future__ import annotations

import ast
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("uvicorn.error")

KNOWN = frozenset("anyio attrs fastapi httpx jinja2 msgspec orjson pydantic pydantic_settings sqlalchemy sqlmodel starlette".split())
#: What may put other modules before the installed ones, say a directory with copies. Appending to ``sys.path`` hides nothing.
_CHANGES = re.compile(rb"sys\.(path(?!\.append\b|\w)|meta_path|path_hooks)|addsitedir")
#: In the place of a module's name: this one does that.
_ELSEWHERE = "sys.path"
#: The most files of an application that are read.
MAX_FILES = 500


def import_frameworks(app: str, directory: str) -> None:
    """Import the modules of `KNOWN` libraries that the application at this import string imports. What fails is left to the application to meet."""
    for name in modules_needed(app.partition(":")[0], Path(directory)):
        try:
            import_module(name)
        except Exception:
            logger.debug("%s cannot be imported before the application", name, exc_info=True)


def modules_needed(module: str, directory: Path) -> list[str]:
    """The modules of `KNOWN` libraries that this module of the application imports, itself or through other modules of its own, in that order.

    None where these might be others, because the application has its own of that name, or changes where modules are found.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    left = [module]
    while left and len(seen) < MAX_FILES:
        name = left.pop(0)
        if name in seen:
            continue
        seen.add(name)
        for target in _imports(name, directory):
            if target == _ELSEWHERE:
                return []
            if target.partition(".")[0] not in KNOWN:
                left.append(target)
            elif _is_own(target.partition(".")[0], directory):  # the application's own, under the same name
                return []
            else:
                found[target] = None
    return list(found)


def _is_own(name: str, directory: Path) -> bool:
    return (directory / name).is_dir() or (directory / f"{name}.py").is_file()


def _imports(module: str, directory: Path) -> Iterator[str]:
    """What the source of this module, if it is in this directory, imports; of ``from a import b`` both ``a`` and, in case it is a module, ``a.b``.

    `_ELSEWHERE` where its source matches `_CHANGES`.
    """
    path = directory.joinpath(*module.split("."))
    package = (path / "__init__.py").is_file()
    try:
        source = (path / "__init__.py" if package else path.with_suffix(".py")).read_bytes()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    if _CHANGES.search(source):
        yield _ELSEWHERE
    above = module.split(".") if package else module.split(".")[:-1]
    if not package and above:
        yield ".".join(above)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
            if not base:
                continue
            yield base
            if base.partition(".")[0] not in KNOWN:
                yield from (f"{base}.{alias.name}" for alias in node.names)
