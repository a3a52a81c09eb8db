"""Which files are a reason to reload, what has become of them, and the watcher's declaration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi import http_workers
from laraman.config import Config
from laraman.errors import ConfigError
from laraman.process.files import Snapshot, Sources
from laraman.process.template import Template
from laraman.process.watch import Watcher

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def write(*paths: Path, text: str = "") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def sources(**options: Any) -> Sources:
    return Sources.of(Config(reload=True, **options))


# Directories ----------------------------------------------------------------------------------------------------------------------


def test_the_working_directory_unless_others_are_named(here: Path) -> None:
    for name in ("a/b", "c"):
        (here / name).mkdir(parents=True)
    assert sources().directories == (str(here),)
    assert sources(reload_dirs=("c", "a/b")).directories == (str(here / "a/b"), str(here / "c"))
    assert sources(reload_dirs=("a/b", "a", "a")).directories == (str(here / "a"),), "what is in another one is watched already"
    assert sources(reload_includes=("c", "*.html")).directories == (str(here / "c"),), "a pattern that names a directory is one to watch"
    assert sources(reload_includes=("*",)).directories == (str(here),), "one that may match a directory does not"
    assert sources(reload_dirs=("a",), reload_includes=("[c-z]",)).directories == (str(here / "a"), str(here / "c"))
    assert sources(reload_dirs=("a", "c"), reload_excludes=("a",)).directories == (str(here / "c"),)
    assert sources(reload_dirs=("a/b",), reload_excludes=("a",)).directories == (str(here),)
    assert sources(reload_includes=(".*",)).directories == (str(here),)


def test_a_directory_that_is_none(here: Path) -> None:
    write(here / "file.py")
    for wrong in ("nowhere", "file.py"):
        with pytest.raises(ConfigError, match=f"--reload-dir: there is no directory '{wrong}'"):
            sources(reload_dirs=(wrong,))


def test_links_in_the_way_to_it_are_resolved(here: Path) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    found = sources(reload_dirs=("link",))
    assert found.directories == (str(here / "real"),)
    assert found.matter(str(here / "real" / "a.py"))


# Patterns -------------------------------------------------------------------------------------------------------------------------

#: Options, and what matters then. These are uvicorn's answers too, unless the third says otherwise.
TABLE: list[tuple[dict[str, tuple[str, ...]], str, bool, bool | None]] = [
    ({}, "app.py", True, None),
    ({}, "a/b/app.py", True, None),
    ({}, "app.pyc", False, None),
    ({}, "page.html", False, None),
    ({}, ".hidden.py", False, None),
    ({}, "~app.py", False, None),
    ({}, ".venv/lib/app.py", False, True),
    ({}, "venv/lib/site-packages/app.py", False, True),
    ({"reload_includes": (".*",)}, ".hidden.py", True, None),
    ({"reload_includes": (".*",)}, ".hidden/app.py", True, None),
    ({"reload_includes": ("*.html",)}, "a/page.html", True, None),
    ({"reload_includes": ("*.html",)}, "app.py", True, None),
    ({"reload_includes": ("*",)}, "Makefile", True, None),
    ({"reload_includes": ("*",)}, "__pycache__/app.cpython-311.pyc", False, True),
    ({"reload_includes": ("templates/*.html",)}, "web/templates/page.html", True, None),
    ({"reload_includes": ("templates/*.html",)}, "web/page.html", False, None),
    ({"reload_includes": (".env",)}, ".env", True, None),
    ({"reload_includes": (".env",)}, ".envrc", False, None),
    ({"reload_excludes": ("*.py",)}, "app.py", False, None),
    ({"reload_excludes": ("test_*.py",)}, "tests/test_app.py", False, None),
    ({"reload_excludes": ("migrations/*",)}, "a/migrations/1.py", False, None),
    ({"reload_excludes": ("migrations/*",)}, "a/models.py", True, None),
    ({"reload_includes": ("*.txt",), "reload_excludes": ("*.txt",)}, "a.txt", False, None),
    ({"reload_excludes": ("sub",)}, "sub/a/app.py", False, True),
    ({"reload_excludes": ("sub",)}, "submarine/app.py", True, None),
]


@pytest.mark.parametrize(("options", "path", "matters", "in_uvicorn"), TABLE)
def test_patterns_mean_what_they_mean_for_uvicorn(
    here: Path, options: dict[str, tuple[str, ...]], path: str, matters: bool, in_uvicorn: bool | None
) -> None:
    (here / "sub").mkdir()
    assert sources(**options).matter(str(here / path)) is matters
    uvicorn = pytest.importorskip("uvicorn")
    filters = pytest.importorskip("uvicorn.supervisors.watchfilesreload")
    lists = {name: list(patterns) for name, patterns in options.items()}
    theirs = filters.FileFilter(uvicorn.Config("app:app", reload=True, log_config=None, **lists))
    assert theirs(here / path) is (matters if in_uvicorn is None else in_uvicorn)


# Looking --------------------------------------------------------------------------------------------------------------------------


def test_what_changes_comes_and_goes(here: Path) -> None:
    write(here / "app.py", here / "a" / "b.py", here / "page.html", here / ".git" / "c.py", here / "node_modules" / "d.py", text="1")
    snapshot = Snapshot(sources())
    assert snapshot.changes() == []
    write(here / "page.html", here / ".git" / "c.py", here / "node_modules" / "d.py", text="22")
    assert snapshot.changes() == []
    write(here / "app.py", here / "new" / "x.py", text="22")
    (here / "a" / "b.py").unlink()
    assert sorted(snapshot.changes()) == [str(here / name) for name in ("a/b.py", "app.py", "new/x.py")]
    assert snapshot.changes() == []


def test_replaced_by_one_of_the_same_size_and_older(here: Path) -> None:
    write(here / "app.py", here / "old.txt", text="1")
    os.utime(here / "old.txt", (1, 1))
    os.utime(here / "app.py", (2, 2))
    snapshot = Snapshot(sources())
    os.rename(here / "old.txt", here / "app.py")
    assert snapshot.changes() == [str(here / "app.py")]
    os.chmod(here / "app.py", 0o400)
    assert snapshot.changes() == [str(here / "app.py")], "the application may read it now, or may not"


def test_links_are_followed_and_loops_end(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "lib" / "a.py", outside / "b.py", text="1")
    (here / "lib").symlink_to(outside / "lib")
    (here / "b.py").symlink_to(outside / "b.py")
    (here / "gone.py").symlink_to(outside / "nowhere.py")
    (outside / "lib" / "back").symlink_to(here)
    (here / "self").symlink_to(here)
    snapshot = Snapshot(sources())
    write(outside / "lib" / "a.py", outside / "b.py", text="22")
    assert sorted(snapshot.changes()) == [str(here / "b.py"), str(here / "lib" / "a.py")]
    write(outside / "nowhere.py", text="1")
    assert snapshot.changes() == [str(here / "gone.py")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_not_there(here: Path) -> None:
    write(here / "closed" / "a.py", here / "app.py", text="1")
    (here / "closed").chmod(0)
    try:
        snapshot = Snapshot(sources())
        write(here / "app.py", text="22")
        assert snapshot.changes() == [str(here / "app.py")]
    finally:
        (here / "closed").chmod(0o700)


# Declarations ---------------------------------------------------------------------------------------------------------------------


def test_what_runs_under_reload(here: Path) -> None:
    watcher, template, http = http_workers(Config(app="app:app", reload=True, workers=4, timeout_graceful_shutdown=30.0))
    assert isinstance(watcher, Watcher)
    assert isinstance(template, Template)
    assert (watcher.exclusive, template.exclusive, template.bare) == (True, True, True), "a reload leaves them"
    assert (http.count, http.stop_timeout, http.template) == (1, 2.0, template.name)
    _, _, hurried = http_workers(Config(app="app:app", reload=True, timeout_graceful_shutdown=0.5))
    assert hurried.stop_timeout == 0.5
    _, whole, _ = http_workers(Config(app="app:app", reload=True, preload=True))
    assert isinstance(whole, Template)
    assert (whole.bare, whole.exclusive) == (False, False)


def test_elsewhere_there_is_no_template(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.asgi.sys.platform", "darwin")
    _, http = http_workers(Config(app="app:app", reload=True))
    assert http.template == ""
