"""Finding and importing the application."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi.app import load_app
from laraman.errors import BootError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Settings:
    app: str
    app_dir: str
    factory: bool = False
    interface: str = "auto"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write files, then load an import string from them; modules and sys.path are put back."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def _load(target: str, factory: bool = False, **files: str) -> Any:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return load_app(Settings(target, str(tmp_path), factory))  # type: ignore[arg-type]

    yield _load
    for name in set(sys.modules) - before:
        del sys.modules[name]


APP = "async def app(scope, receive, send): pass\n"


def test_a_plain_function(load: Any) -> None:
    assert load("lm_plain:app", lm_plain=APP).__name__ == "app"


def test_a_dotted_attribute_and_an_instance(load: Any) -> None:
    source = "class Site:\n    async def __call__(self, scope, receive, send): pass\nclass box:\n    site = Site()\n"
    assert type(load("lm_dotted:box.site", lm_dotted=source)).__name__ == "Site"


def test_a_function_of_any_arguments_is_an_application(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert load("lm_star:app", lm_star="async def app(*args): pass\n").__name__ == "app"
    assert not caplog.records


def test_a_factory_is_called_and_a_warning_asks_for_the_flag(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = APP + "def make(): return app\n"
    assert load("lm_factory:make", lm_factory=source).__name__ == "app"
    assert caplog.messages == ["ASGI app factory detected. Using it, but please consider setting the --factory flag explicitly."]
    caplog.clear()
    assert load("lm_factory:make", factory=True).__name__ == "app"
    assert not caplog.records


def test_an_application_class_is_instantiated_as_a_factory(load: Any) -> None:
    source = "class Site:\n    async def __call__(self, scope, receive, send): pass\n"
    assert type(load("lm_class:Site", lm_class=source)).__name__ == "Site"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("lm_nowhere:app", 'Error loading ASGI app. Could not import module "lm_nowhere".'),
        ("lm_nowhere.sub:app", 'Error loading ASGI app. Could not import module "lm_nowhere.sub".'),
        ("lm_there.sub:app", 'Error loading ASGI app. Could not import module "lm_there.sub".'),
        ("lm_there:nothing", 'Error loading ASGI app. Attribute "nothing" not found in module "lm_there".'),
        ("lm_there:app.x.y", 'Error loading ASGI app. Attribute "app.x.y" not found in module "lm_there".'),
        ("lm_there", 'Error loading ASGI app. Import string "lm_there" must be in format "<module>:<attribute>".'),
        (":app", 'Error loading ASGI app. Import string ":app" must be in format "<module>:<attribute>".'),
        ("lm_there:number", 'Error loading ASGI app. "lm_there:number" is not callable, but int.'),
        ("lm_there:wsgi", 'Error loading ASGI app. "lm_there:wsgi" takes two arguments, as WSGI applications do: those need --interface wsgi.'),
        ("lm_there:empty", 'Error loading ASGI app factory: "lm_there:empty" returned NoneType, which is not callable.'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(load: Any, target: str, text: str) -> None:
    with pytest.raises(BootError) as caught:
        load(target, lm_there=APP + "number = 1\ndef wsgi(environ, start): pass\ndef empty(): pass\n")
    assert str(caught.value) == text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import lm_missing_dependency\n", "ModuleNotFoundError: No module named 'lm_missing_dependency'"),
        ("raise RuntimeError('no\\ndatabase')\n", "RuntimeError: no database"),
        ("import sys\nsys.exit(4)\n", "SystemExit: 4"),
    ],
)
def test_an_error_inside_the_users_module_keeps_its_traceback_in_the_log(load: Any, caplog: pytest.LogCaptureFixture, source: str, line: str) -> None:
    with pytest.raises(BootError) as caught:
        load("lm_broken:app", lm_broken=source)
    assert str(caught.value) == f'Error loading ASGI app. Importing module "lm_broken" failed: {line}'
    logged = logging.Formatter().format(caplog.records[-1])
    assert "lm_broken.py" in logged
    assert "importlib" not in logged
    assert "asgi/app.py" not in logged


def test_a_syntax_error_names_its_place(load: Any) -> None:
    with pytest.raises(BootError, match=r"failed: SyntaxError: .*lm_syntax\.py, line 2\)"):
        load("lm_syntax:app", lm_syntax="ok = 1\ndef app(:\n")


def test_what_says_itself_that_it_is_configured_wrongly_is_taken_at_its_word(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    raising = "import laraman\ndef make(): raise laraman.ConfigError('no secret')\n"
    for target, source in (("lm_wrong:app", f"{raising}make()\n"), ("lm_wrongly:make", raising)):
        with pytest.raises(ConfigError, match=r"^no secret$"):
            load(target, factory=target.endswith("make"), **{target.partition(":")[0]: source})
    assert not caplog.records


def test_a_factory_that_raises(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BootError, match=r"^Error loading ASGI app factory: KeyError: 'DATABASE'$"):
        load("lm_raises:make", factory=True, lm_raises="def make(): raise KeyError('DATABASE')\n")
    assert "in make" in caplog.text
    with pytest.raises(BootError, match=r"^Error loading ASGI app factory: TypeError: app\(\) missing 3"):
        load("lm_app:app", factory=True, lm_app=APP)
