"""What an application needs of known libraries, read from its source."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from laraman.asgi.frameworks import modules_needed

if TYPE_CHECKING:
    from pathlib import Path


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "module", "needed"),
    [
        ({"main.py": "from fastapi import FastAPI\nimport os, httpx\n"}, "main", ["fastapi", "httpx"]),
        ({"main.py": "def f():\n    from starlette.routing import Route\n"}, "main", ["starlette.routing"]),
        ({"main.py": "import numpy\nfrom gevent import monkey\n"}, "main", []),
        ({"main.py": "from shop import make\n", "shop/__init__.py": "from .site import *\n", "shop/site.py": "import jinja2\n"}, "main", ["jinja2"]),
        ({"main.py": "from shop import site\n", "shop/__init__.py": "", "shop/site.py": "import pydantic\n"}, "main", ["pydantic"]),
        ({"a/__init__.py": "import fastapi\n", "a/web.py": "from . import core\n", "a/core.py": "import httpx\n"}, "a.web", ["fastapi", "httpx"]),
        ({"a/__init__.py": "", "a/b/__init__.py": "", "a/b/c.py": "from ..d import x\n", "a/d.py": "import orjson\n"}, "a.b.c", ["orjson"]),
        ({"main.py": "import other\n", "other.py": "import main, attrs\n"}, "main", ["attrs"]),
        ({"main.py": "import fastapi\n", "fastapi.py": ""}, "main", []),
        ({"main.py": "import sys\nsys.path.insert(0, 'vendor')\nimport fastapi\n"}, "main", []),
        ({"main.py": "import fastapi, setup\n", "setup.py": "import sys\nsys.path[:0] = ['vendor']\n"}, "main", []),
        ({"main.py": "import site\nsite.addsitedir('vendor')\nimport fastapi\n"}, "main", []),
        ({"main.py": "import sys\nsys.path.append('lib')\nimport fastapi\n"}, "main", ["fastapi"]),
        ({"main.py": "import fastapi\ndef f(:\n"}, "main", []),
        ({}, "main", []),
    ],
)
def test_imports_are_followed_through_the_application(tmp_path: Path, files: dict[str, str], module: str, needed: list[str]) -> None:
    write(tmp_path, files)
    assert modules_needed(module, tmp_path) == needed


def test_what_it_imports_and_what_not(tmp_path: Path) -> None:
    write(tmp_path, {"main.py": "import starlette.routing, starlette.nothing\nprint('ran')\n"})
    call = f"import_frameworks('main:app', {str(tmp_path)!r})"
    code = f"import sys; from laraman.asgi.frameworks import import_frameworks; {call}; print('starlette.routing' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (result.stdout, result.stderr) == ("True\n", "")
