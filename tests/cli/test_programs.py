"""Which import strings name Workers, as their source tells, and what a start makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from laraman import cli
from laraman.cli import serving
from laraman.cli.programs import names_workers

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = "from laraman import Worker\n"


@pytest.mark.parametrize(
    "source",
    [
        PLAIN + "it = Worker('a')",
        "import laraman\nit = laraman.Worker('a')",
        "import laraman as lm\nit = [lm.Worker('a'), lm.Worker('b')]",
        "from laraman.process.worker import Worker as W\nit = (W('a'),)",
        PLAIN + "a = Worker('a')\nb = Worker('b')\nit = [a, b, a]",
        PLAIN + "it = [Worker(f'a{n}') for n in range(4)]",
        PLAIN + "it: list[Worker] = make()",
        PLAIN + "def it() -> list[Worker]: ...",
        PLAIN + "def it() -> 'tuple[Worker, ...]': ...",
        "import laraman\ndef it() -> laraman.Worker: ...",
        PLAIN + "class Own(Worker): ...\nit = Own('a')",
        PLAIN + "import typing\ndef it() -> typing.Iterator['Worker']: ...",
        PLAIN + "def it(): ...\nother, it = it = [Worker('a')]",
    ],
)
def test_workers(tmp_path: Path, source: str) -> None:
    (tmp_path / "program.py").write_text(source)
    assert names_workers("program:it", str(tmp_path))
    assert not names_workers("program:other", str(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "from arq import Worker\nit = Worker('a')",
        PLAIN + "it = []",
        PLAIN + "it = [Worker('a'), 3]",
        PLAIN + "it = make()",
        PLAIN + "def it(): return [Worker('a')]",
        PLAIN + "it = it",
        PLAIN + "a = b\nb = [a]\nit = [b]",
        PLAIN + "def it() -> 'Worker[': ...",
        PLAIN + "async def it() -> list[Worker]: ...",
        PLAIN + "it = Worker('a'",
        PLAIN + "from typing import Callable\ndef it() -> Callable[[Worker], object]: ...",
        PLAIN + "it: App[Worker] = make()",
        PLAIN + "it: Worker = Worker('a')\nit = make()",
        PLAIN + "it = Worker('a')\ndef it(): ...",
        PLAIN + "it = Worker('a')\nasync def it(scope, receive, send): ...",
        PLAIN + "it = Worker('a')\nclass it: ...",
        PLAIN + "it = Worker('a')\nfrom shop import it",
        PLAIN + "from arq import Worker\nit = Worker('a')",
        PLAIN + "class Worker: ...\nit = Worker('a')",
        "from .laraman import Worker\nit = Worker('a')",
        "",
    ],
)
def test_no_workers(tmp_path: Path, source: str) -> None:
    (tmp_path / "program.py").write_text(source)
    assert not names_workers("program:it", str(tmp_path))


def test_modules_are_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declares = PLAIN + "it = Worker('a')"
    for name, text in {"pack/__init__.py": "1 / 0", "pack/inner/__init__.py": declares, "pack/deep.py": declares}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert names_workers("pack.inner:it", "")
    assert names_workers("pack.deep:it", "")
    assert not names_workers("pack.none:it", "")
    assert not names_workers("pack.deep.more:it", "")
    assert not names_workers("math:it", "")
    assert not names_workers("none", "")


PROGRAM = (
    PLAIN
    + """
class Echo: ...
one = Worker("one", "text://127.0.0.1:0", handler="{module}:Echo")
twice = [one, one]
number: list[Worker] = 3
nothing: list[Worker] = []
def raises() -> list[Worker]:
    raise OSError("no disk")
typo = [Worker("a", handlr="x:y")] if {typo} else []
"""
)


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("twice", [], "two workers are called 'one'"),
        ("number", [], "is neither a Worker nor a list of Workers, nor a function that returns such: it is 3"),
        ("nothing", [], "is neither a Worker nor a list of Workers, nor a function that returns such: it is []"),
        ("raises", [], "raised OSError: no disk ("),
        ("on", ["--interface", "workers"], "has no 'on'; did you mean 'one'?"),
        ("one", ["--preload"], "--preload is for an application, and there is none"),
    ],
)
def test_mistakes_of_a_program_are_one_line(place: Path, capsys: pytest.CaptureFixture[str], name: str, words: list[str], says: str) -> None:
    (place / f"lines_{name}.py").write_text(PROGRAM.format(module=f"lines_{name}", typo=False))
    assert cli.main(["start", f"lines_{name}:{name}", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("laraman: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "text", "says"),
    [
        ("misspelt", PROGRAM.format(module="misspelt", typo=True), "worker 'a' has no option 'handlr'; did you mean 'handler'?"),
        ("raising", PLAIN + "it = Worker('a')\n1 / 0", "the module 'raising' cannot be imported: ZeroDivisionError: division by zero ("),
    ],
)
def test_a_program_that_does_not_import(place: Path, capsys: pytest.CaptureFixture[str], module: str, text: str, says: str) -> None:
    (place / f"{module}.py").write_text(text)
    assert cli.main(["start", f"{module}:{'it' if 'it =' in text else 'one'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"laraman: {says}")
    assert error.count("\n") == 1


def test_what_runs(place: Path) -> None:
    (place / "program.py").write_text(PLAIN + "it = Worker('a')")
    config = serving.configured(["program:it"])
    assert (config.interface, config.listeners) == ("workers", ("program",))
    assert serving.workers_of(config) == []
    assert [worker.name for worker in serving.workers_of(serving.configured(["program:it", "--reload"]))] == ["watch"]
    (place / "pyproject.toml").write_text("[tool.laraman.workers.own]\ncount = 2\n")
    assert [worker.name for worker in serving.workers_of(serving.configured([]))] == ["own"]
    assert [worker.name for worker in serving.workers_of(serving.configured(["shop:app"]))] == ["http", "own"]


def test_declared_workers_are_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "pyproject.toml").write_text(
        "[tool.laraman.workers.own]\naddress = 'text://127.0.0.1:1'\nssl_keyfile_password = 'hush'\n[tool.laraman.workers.http]\ncount = 2\n"
    )
    assert cli.main(["config", "--json"]) == 0
    rows: dict[str, Any] = json.loads(capsys.readouterr().out)
    source = "pyproject.toml: [tool.laraman.workers.own]"
    assert rows["workers.own.address"] == {"value": ["text://127.0.0.1:1"], "source": f"{source} address"}
    assert rows["workers.own.ssl_keyfile_password"] == {"value": "***", "source": f"{source} ssl_keyfile_password"}
    assert rows["workers"] == {"value": 2, "source": "pyproject.toml: [tool.laraman] workers"}
