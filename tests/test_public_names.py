"""``import laraman`` gives every public name, each when it is asked for, and brings in no event loop by itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import laraman

SOURCE = Path(laraman.__file__)


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=SOURCE.parent.parent, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_public_name_is_there() -> None:
    assert [name for name in laraman.__all__ if not hasattr(laraman, name)] == []
    assert set(laraman.__all__) <= set(dir(laraman))
    with pytest.raises(AttributeError, match="module 'laraman' has no attribute 'nonsense'"):
        _ = laraman.nonsense


def test_what_type_checkers_see_is_what_there_is() -> None:
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(laraman.__all__)
    assert len(laraman.__all__) == len(set(laraman.__all__))


def test_names_come_from_where_type_checkers_think() -> None:
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        module = __import__(str(node.module), fromlist=["*"])
        for alias in node.names:
            assert getattr(laraman, alias.asname or alias.name) is getattr(module, alias.name)


def test_only_the_link_and_the_server_bring_in_an_event_loop() -> None:
    heavy = ("link", "Link", "Backoff", "Server", "connect", "concurrently", "defer", "map", "submit")
    light = [name for name in laraman.__all__ if name not in heavy]
    check = "print(*sorted({'asyncio', 'anyio'} & set(sys.modules)))"
    assert fresh(f"import sys, laraman; [getattr(laraman, name) for name in {light!r}]; {check}") == ""
    assert fresh(f"import sys, laraman; {check}; laraman.link; print(callable(laraman.link))") == "True"
