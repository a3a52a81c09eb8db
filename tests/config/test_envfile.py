"""--env-file: what it sets, what it may not, and that a server and its successor have it."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from dotenv import load_dotenv

from laraman.config import Config, envfile
from laraman.errors import ConfigError
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

APP = """
import json, os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    words = {name: os.environ.get(name) for name in ("COLOUR", "SIZE", "SHAPE", "UVICORN_LIMIT_CONCURRENCY")}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(words).encode()})
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_it_is_read_as_uvicorn_reads_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python-dotenv itself is the measure, which is what uvicorn calls."""
    file.write_text(
        "A=1\nexport B = 'two words'  # and a comment\n\n# a comment\nC=\"x\\ny\"\nSET_BEFORE=no\nD=${A}${SET_BEFORE}\nNOTHING\nE=\nF='multi\nline'\n"
    )
    monkeypatch.setenv("SET_BEFORE", "yes")
    before = dict(os.environ)
    found = envfile.read(str(file), os.environ)
    assert dict(os.environ) == before
    assert found == {"A": "1", "B": "two words", "C": "x\ny", "D": "1yes", "E": "", "F": "multi\nline"}
    with monkeypatch.context() as patch:
        for name in found:
            patch.setenv(name, "")
            patch.delenv(name)
        load_dotenv(file)
        assert {name: os.environ[name] for name in set(os.environ) - set(before)} == found


def test_it_is_before_variables_that_are_read_and_after_those_that_are_set(file: Path) -> None:
    file.write_text("WEB_CONCURRENCY=3\nFORWARDED_ALLOW_IPS=10.0.0.1\nLARAMAN_BACKLOG=7\nLARAMAN_HOST=::1\n")
    config = Config.load({"env_file": str(file)}, {"LARAMAN_HOST": "0.0.0.0"}, None)
    assert (config.workers, config.forwarded_allow_ips, config.backlog, config.host) == (3, "10.0.0.1", 7, "0.0.0.0")
    assert Config.load({"env_file": str(file)}, {"WEB_CONCURRENCY": "4"}, None).workers == 4
    assert Config.load({"env_file": str(file), "workers": "5"}, {}, None).workers == 5
    assert Config.load({}, {"UVICORN_ENV_FILE": str(file)}, None).workers == 3


def test_uvicorn_s_options_are_not_set_by_it(file: Path) -> None:
    """uvicorn has read its variables when it comes to the file."""
    file.write_text("UVICORN_PORT=1\nUVICORN_APP=shop:app\nUVICORN_WORKERS=many\n")
    assert Config.load({"env_file": str(file)}, {}, None) == Config(env_file=str(file))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"A=1\n\n# comment\nno value here\nB=2\n", 4),
        (b"A='1\nB=2\n", 1),
        (b"A=1\n \n\t BAD LINE\n", 3),
        (b"A=\"x\ny\"\n\n\n=1 2\n'\n", 5),
        (b"A=1\r\n\r\nBAD LINE\r\n", 3),
    ],
)
def test_a_mistake_is_named_with_its_line(file: Path, text: bytes, line: int) -> None:
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: line {line} is neither NAME=value nor a comment$"):
        Config.load({"env_file": str(file)}, {}, None)


def test_a_bad_value_is_named_with_the_file(file: Path) -> None:
    file.write_text("WEB_CONCURRENCY=many\n")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: WEB_CONCURRENCY: 'many' is neither"):
        Config.load({"env_file": str(file)}, {}, None)


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read: No such file"), (b"A=\xff", r"is not UTF-8 \(at byte 2\)")])
def test_a_file_that_cannot_be_read(file: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^the environment file {re.escape(str(file))} {reason}"):
        Config.load({"env_file": str(file)}, {}, None)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Config.load({"env_file": str(file.parent)}, {}, None)


def test_any_name_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^the environment file 'a\\nb' cannot be read: No such file or directory$"):
        Config.load({"env_file": "a\nb"}, {}, None)


def test_without_python_dotenv(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("A=1\n")
    monkeypatch.setitem(sys.modules, "dotenv.main", None)
    with pytest.raises(ConfigError, match=r"needs python-dotenv: pip install 'laraman\[dotenv\]'"):
        Config.load({"env_file": str(file)}, {}, None)


def test_workers_have_it_and_a_restart_reads_it_again(server: Callable[..., Server]) -> None:
    text = "COLOUR=red\nSIZE=big\nSHAPE=round\nUVICORN_LIMIT_CONCURRENCY=1\nWEB_CONCURRENCY=2\n"
    running = server("main:app", "--env-file", ".env", files={"main.py": APP, ".env": text}, environ={"SHAPE": "square"})

    def words() -> dict[str, str | None]:
        found: dict[str, str | None] = httpx.get(running.url, timeout=10).json()
        return found

    assert running.output.count("Loading environment from '.env'") == 1
    assert len(running.processes()) == 2
    assert words() == {"COLOUR": "red", "SIZE": "big", "SHAPE": "square", "UVICORN_LIMIT_CONCURRENCY": "1"}

    for mistake, says in (("COLOUR red", "line 1 is neither NAME=value nor a comment"), ("WEB_CONCURRENCY=x", "WEB_CONCURRENCY: 'x' is neither")):
        (running.directory / ".env").write_text(mistake)
        refused = running.cli("restart")
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"laraman: restart failed: .env: {says}")

    (running.directory / ".env").write_text("COLOUR=green\n")
    restarted = running.cli("restart")
    assert restarted.returncode == 0, restarted.stderr
    wait_until(lambda: len(running.processes()) == 1, what="the default number of workers")
    assert words() == {"COLOUR": "green", "SIZE": None, "SHAPE": "square", "UVICORN_LIMIT_CONCURRENCY": None}
    assert running.output.count("Loading environment from '.env'") == 2
