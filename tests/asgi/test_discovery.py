"""Where an application is found that nobody names."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from laraman.asgi.discovery import Found, find_app, find_attribute, locate
from laraman.errors import ConfigError
from tests.asgi.test_app import APP

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "source",
    [
        "app = object()\n",
        "app: object = object()\n",
        "app = application = object()\n",
        "other, app = 1, 2\n",
        "def app(): pass\n",
        APP,
        "class app: pass\n",
        "from shop import app\n",
        "from shop import site as app\n",
        "if True:\n    pass\nelse:\n    app = 1\n",
        "try:\n    pass\nexcept Exception:\n    app = 1\n",
        "with open('x') as f:\n    app = 1\n",
        "def app(:\n",
    ],
)
def test_find_app_reads_without_importing(tmp_path: Path, source: str) -> None:
    (tmp_path / "main.py").write_text(source)
    assert find_app(tmp_path) == "main:app"


@pytest.mark.parametrize(
    "source", ["", "application = 1\n", "def f():\n    app = 1\n", "class C:\n    app = 1\n", "app: int\n", "x.app = 1\n", "app.x = 1\n"]
)
def test_find_app_finds_nothing(tmp_path: Path, source: str) -> None:
    (tmp_path / "main.py").write_text(source)
    assert find_app(str(tmp_path)) == ""


def test_find_app_takes_the_first_conventional_file(tmp_path: Path) -> None:
    found = []
    (tmp_path / "app").mkdir()
    for name in ("app/main.py", "asgi.py", "api.py", "app.py", "main.py"):
        (tmp_path / name).write_text("app = 1\n")
        found.append(find_app(tmp_path))
    assert found == ["app.main:app", "asgi:app", "api:app", "app:app", "main:app"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("app = FastAPI()\napi = FastAPI()\n", "app"),
        ("app = make()\napi = FastAPI()\n", "app"),
        ("api = FastAPI()\nadmin = FastAPI()\n", "api"),
        ("api = APIRouter()\nsite = FastAPI()\n", "site"),
        ("api = make()\n", "api"),
        ("zoo = fastapi.FastAPI()\nbar = fastapi.FastAPI(title='b')\n", "bar"),
        ("site = Starlette(routes=[])\n", "site"),
        ("site: FastAPI = make()\n", "site"),
        ("class Site(FastAPI):\n    pass\nsite = Site()\n", "site"),
        ("if True:\n    site = FastAPI()\n", "site"),
        ("site = dict(FastAPI())\n", ""),
        ("def make():\n    site = FastAPI()\n", ""),
    ],
)
def test_the_object_is_app_or_api_or_an_instance(tmp_path: Path, source: str, name: str) -> None:
    (tmp_path / "main.py").write_text(source)
    assert find_attribute(tmp_path / "main.py") == name
    assert find_app(tmp_path) == (f"main:{name}" if name else "")


@pytest.mark.parametrize(
    ("files", "path", "expected", "directory"),
    [
        (["main.py"], "", "main:app", ""),
        (["api.py", "app/main.py"], "", "api:app", ""),
        (["app/main.py"], "", "main:app", "app"),
        (["app/__init__.py", "app/main.py"], "", "app.main:app", ""),
        (["app/__init__.py", "app/app.py"], "", "app.app:app", ""),
        (["app/__init__.py", "app/api.py"], "", "app.api:app", ""),
        (["main.py", "shop/site.py"], "shop/site.py", "site:app", "shop"),
        (["shop/__init__.py", "shop/web/__init__.py", "shop/web/site.py"], "shop/web/site.py", "shop.web.site:app", ""),
        (["src/shop/__init__.py", "src/shop/web/__init__.py"], "src/shop/web", "shop.web:app", "src"),
        (["src/shop/__init__.py"], "src/shop/__init__.py", "shop:app", "src"),
        (["backend/main.py"], "backend", "main:app", "backend"),
    ],
)
def test_package_roots(tmp_path: Path, files: list[str], path: str, expected: str, directory: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name.endswith("__init__.py") and name != files[-1] else "app = 1\n")
    found = locate(str(tmp_path / path) if path else "", directory=str(tmp_path))
    assert found == Found(expected, str(tmp_path.resolve() / directory))


def test_a_name_is_believed(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("globals()['site'] = 1\n")
    assert locate(str(tmp_path / "main.py"), "site").app == "main:site"
    assert locate("", "site", str(tmp_path)).app == "main:site"


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file or directory '.*nowhere'"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"no application found in main\.py, .* of '"):
        locate("", directory=str(tmp_path))
    (tmp_path / "main.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"no application found in .*main\.py: .*--app"):
        locate(str(tmp_path / "main.py"))


def test_the_master_may_use_it() -> None:
    """The command line looks for the application in the master, which has no event loop."""
    code = "import sys, laraman.asgi.discovery; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
