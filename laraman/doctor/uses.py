"""Where a project uses uvicorn: its Python is parsed, other files are read line by line; nothing is imported."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from laraman.doctor import verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laraman.doctor.verdicts import Verdict

#: Directories that are not the project's own.
NOT_OWN = {"node_modules", "__pycache__", "site-packages", "build", "dist", "venv", "env"}
#: Files that may start a server or set its variables, by name; others are not read.
STARTERS = re.compile(
    r"(.*\.)?(dockerfile|containerfile)(\..*)?|procfile(\..*)?|makefile|justfile|.*\.(sh|bash|service|toml|ini|cfg|conf|ya?ml|env|nomad|tf)|\.env.*"
    r"|requirements.*\.txt",
    re.IGNORECASE,
)
#: Most files that are read, and bytes of one.
MOST_FILES, MOST_BYTES = 20000, 1024 * 1024

_VARIABLE = re.compile(r"\b(UVICORN_[A-Z0-9_]+|WEB_CONCURRENCY|FORWARDED_ALLOW_IPS)\b")
_NAME = re.compile(r"\b(uvicorn(?:_worker)?(?:\.\w+)+)")
_COMMAND = re.compile(r"(?<![\w./-])(?:\S*/)?uvicorn(?![\w.\[=<>~!-])")
_INSTALL = re.compile(r"\b(install|add|sync)\b")  # of pip and its like
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


class Use(NamedTuple):
    place: str
    kind: str
    name: str
    verdict: Verdict


def find(directory: Path) -> list[Use]:
    """Each use in the project's own files, once for each line, in order."""
    found: dict[tuple[str, str], Use] = {}
    for path in _files(directory):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if not re.search("uvicorn|WEB_CONCURRENCY|FORWARDED_ALLOW_IPS", text, re.IGNORECASE):
            continue
        place = path.relative_to(directory).as_posix()
        uses = _in_python(text) if path.suffix == ".py" else _in_text(text)
        for line, kind, name in sorted(uses):
            found.setdefault((f"{place}:{line}", name), Use(f"{place}:{line}", kind, name, _JUDGES[kind](name)))
    return list(found.values())


_JUDGES = {
    "option": verdicts.of_option,
    "argument": verdicts.of_keyword,
    "variable": verdicts.of_variable,
    "logger": verdicts.of_logger,
    "name": verdicts.of_name,
}


def _files(directory: Path) -> Iterator[Path]:
    count = 0
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(
            name for name in directories if not name.startswith(".") and name not in NOT_OWN and not os.path.exists(f"{root}/{name}/pyvenv.cfg")
        )
        for name in sorted(names):
            path = Path(root, name)
            if (name.endswith(".py") or STARTERS.fullmatch(name)) and path.is_file() and path.stat().st_size <= MOST_BYTES:
                yield path
                count += 1
                if count >= MOST_FILES:
                    return


# Python ---------------------------------------------------------------------------------------------------------------------------


def _in_python(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, kind, name) of each use; what does not parse is read as text."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        yield from _in_text(text)
        return
    visitor = _Visitor()
    visitor.visit(tree)
    yield from visitor.found


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: set[tuple[int, str, str]] = set()
        self._names: dict[str, str] = {}  # what a name of the module stands for

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] in ("uvicorn", "uvicorn_worker"):
                self._names[alias.asname or "uvicorn"] = alias.name if alias.asname else "uvicorn"
                if alias.name != "uvicorn":
                    self.found.add((node.lineno, "name", alias.name))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module and node.module.partition(".")[0] in ("uvicorn", "uvicorn_worker"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                self._names[alias.asname or alias.name] = name
                self.found.add((node.lineno, "name", name))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._dotted(node)
        if name:
            self.found.add((node.lineno, "name", name))
        else:
            self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str:
        """What of uvicorn this stands for; "" when it is something else."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, "")
        if isinstance(node, ast.Attribute) and (base := self._dotted(node.value)):
            return f"{base}.{node.attr}"
        return ""

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        if name.endswith((".run", ".Config")):
            self.found |= {(keyword.value.lineno, "argument", keyword.arg) for keyword in node.keywords if keyword.arg}
        self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        """A command in words, as ``subprocess`` takes it."""
        words = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if "uvicorn" in words:
            self.found |= {
                (item.lineno, "option", item.value.partition("=")[0])
                for item in node.elts
                if isinstance(item, ast.Constant) and isinstance(item.value, str) and _FLAG.match(item.value)
            }
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        text = node.value
        if not isinstance(text, str) or "\n" in text:
            return
        if _VARIABLE.fullmatch(text):
            self.found.add((node.lineno, "variable", text))
        elif text == "uvicorn" or re.fullmatch(r"uvicorn\.(error|access|asgi)", text):
            if text != "uvicorn":
                self.found.add((node.lineno, "logger", text))
        elif _NAME.fullmatch(text):
            self.found.add((node.lineno, "name", text))
        elif _COMMAND.search(text):
            self.found |= {(node.lineno, "option", flag) for flag in _flags(text)}


# Other files ----------------------------------------------------------------------------------------------------------------------


def _in_text(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, kind, name) of each use. The words of a command may stand on lines of their own, after a backslash or in a list."""
    commanded = goes_on = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("#", ";", "//")):
            continue
        for match in _VARIABLE.finditer(line):
            yield number, "variable", match[0]
        for match in _NAME.finditer(line):
            yield number, "logger" if match[0] in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi") else "name", match[0]
        words = re.sub(r"[\"']", "", line)
        commanded = commanded and (goes_on or re.match(r"\s*- ", line) is not None)
        goes_on = line.rstrip().endswith(("\\", ",", "["))
        if (found := _COMMAND.search(words)) is not None and not _INSTALL.search(words[: found.start()]):
            commanded = True
            words = words[found.end() :]
        if commanded:
            for flag in _flags(words):
                yield number, "option", flag


def _flags(words: str) -> list[str]:
    """The options of a command, up to the next one."""
    _, found, after = words.partition("uvicorn ")
    return _FLAG.findall(re.split(r"&&|\|\||[|;>]", after if found else words)[0])
