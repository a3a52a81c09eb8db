"""The floors of the design: imports only go down, floors 0 and 1 do no I/O, and the master's process never sees asyncio.

``TYPE_CHECKING`` imports are free: they run nowhere. An import inside a function counts as an edge (it hides no dependency), but not
towards a cycle (it is how one is cut).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import laraman

ROOT = Path(laraman.__file__).parent

FLOORS = {
    "errors": 0,
    "events": 0,
    "config": 0,
    "log": 0,
    "protocols": 1,
    "net": 2,
    "sandbox": 2,
    "process": 3,
    "asgi": 4,
    "gateway": 4,
    "tasks": 4,
    "channel": 4,
    "admin": 4,
    "check": 5,
    "cli": 5,
    "compat": 5,
    "doctor": 5,
    "ipc_client": 5,
    "running": 5,
    "testing": 5,
    "workers": 5,
    "__main__": 5,
    "": 5,  # laraman/__init__.py: the public names
}
WITH_IO = {"anyio", "asyncio", "select", "selectors", "socket", "ssl", "threading", "uvloop"}


class Import(NamedTuple):
    source: str  # module that imports
    target: str  # module that is imported
    line: int
    in_function: bool


def room(module: str) -> str:
    """``laraman.net.link`` is in the room ``net``."""
    return module.partition(".")[2].partition(".")[0]


def sources() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("laraman", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources()


def imports_in(module: str, code: str) -> list[Import]:
    found: list[Import] = []
    package = module if module in MODULES and MODULES[module].name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, in_function)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append(Import(module, inner if inner in MODULES else base, node.lineno, in_function))
        inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(code), False)
    return found


EDGES = [edge for module, path in MODULES.items() for edge in imports_in(module, path.read_text())]
OURS = [edge for edge in EDGES if edge.target == "laraman" or edge.target.startswith("laraman.")]


def show(edges: list[Import]) -> str:
    return "\n".join(f"{edge.source}:{edge.line} imports {edge.target}" for edge in edges)


def test_every_module_is_on_a_floor() -> None:
    assert [module for module in MODULES if room(module) not in FLOORS] == []


def test_imports_only_go_down() -> None:
    upward = [edge for edge in OURS if FLOORS[room(edge.target)] > FLOORS[room(edge.source)]]
    assert not upward, show(upward)


def test_siblings_of_floor_4_do_not_know_each_other() -> None:
    on_4 = [edge for edge in OURS if FLOORS[room(edge.source)] == FLOORS[room(edge.target)] == 4]
    across = [edge for edge in on_4 if room(edge.source) != room(edge.target)]
    assert not across, show(across)


def test_floors_0_and_1_do_no_io() -> None:
    wrong = [edge for edge in EDGES if FLOORS[room(edge.source)] <= 1 and edge.target.partition(".")[0] in WITH_IO]
    assert not wrong, show(wrong)


def test_protocols_have_no_clock() -> None:
    wrong = [edge for edge in EDGES if room(edge.source) == "protocols" and edge.target in ("time", "datetime")]
    assert not wrong, show(wrong)


def test_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for edge in OURS:
        if not edge.in_function and edge.source != edge.target:
            graph.setdefault(edge.source, set()).add(edge.target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", ["laraman", "laraman.cli", "laraman.process.master", "laraman.process.worker", "app_example.listeners"])
def test_the_master_stays_free_of_event_loops(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'asyncio', 'anyio', 'uvloop', 'httptools'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_the_check_sees_what_it_should() -> None:
    code = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import laraman.cli\n"
        "import asyncio\n"
        "from . import ipc\n"
        "from ..net import address\n"
        "def f():\n    from laraman.asgi import http\n"
    )
    seen = [(edge.target, edge.in_function) for edge in imports_in("laraman.protocols.framing", code)]
    assert seen == [
        ("typing", False),
        ("asyncio", False),
        ("laraman.protocols.ipc", False),
        ("laraman.net.address", False),
        ("laraman.asgi.http", True),
    ]
