"""``laraman config``: each option, its value and where that comes from."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from laraman import cli
from laraman.cli.parsing import start_parser
from laraman.config import OPTIONS
from laraman.config.gateway import GATEWAY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def shown(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, dict[str, Any]]]:
    """What ``laraman config --json`` prints."""

    def show(*arguments: str) -> dict[str, dict[str, Any]]:
        code = cli.main(["config", "--json", *arguments])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        found: dict[str, dict[str, Any]] = json.loads(captured.out)
        return found

    return show


def test_every_option_is_there(shown: Any) -> None:
    rows = shown()
    dests = {action.dest for action in start_parser()._actions} - {"help", "gateway"}
    assert dests <= set(rows)
    assert {f"gateway.{name}" for name, wanted in GATEWAY.options.items() if wanted.metadata} <= set(rows)
    assert {"sandbox.warm", "sandbox.flush", "sandbox.restore"} <= set(rows)
    assert {row["source"] for row in rows.values()} == {"default"}
    assert rows["port"]["value"] == OPTIONS["port"].default


def test_each_source_has_its_name(shown: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "pyproject.toml").write_text(
        "[tool.laraman]\nport = 1\nhost = '::1'\nbacklog = 5\n[tool.laraman.sandbox]\nflush = ['a:b']\n"
        "[tool.laraman.gateway]\nsecret = 'hush'\n[[tool.laraman.gateway.netsvr]]\nworkerAddr = '10.0.0.1:6061'\nevents = 4\n"
    )
    (place / ".env").write_text("FORWARDED_ALLOW_IPS=*\nLARAMAN_ROOT_PATH=/x\n")
    for name, text in {"LARAMAN_BACKLOG": "6", "UVICORN_LOG_LEVEL": "debug", "WEB_CONCURRENCY": "3", "LARAMAN_GATEWAY": "127.0.0.1:7000"}.items():
        monkeypatch.setenv(name, text)
    rows = shown("shop:app", "--port", "2", "--no-access-log", "--header", "A:1", "--max-requests", "9", "--env-file", ".env")
    expected = {
        "app": ("shop:app", "APP"),
        "port": (2, "--port"),
        "access_log": (False, "--no-access-log"),
        "header": (["A:1"], "--header"),
        "limit_max_requests": (9, "--limit-max-requests"),
        "host": ("::1", "pyproject.toml: [tool.laraman] host"),
        "backlog": (6, "LARAMAN_BACKLOG"),
        "log_level": ("debug", "UVICORN_LOG_LEVEL"),
        "workers": (3, "WEB_CONCURRENCY"),
        "forwarded_allow_ips": ("*", ".env: FORWARDED_ALLOW_IPS"),
        "root_path": ("/x", ".env: LARAMAN_ROOT_PATH"),
        "lifespan": ("auto", "default"),
        "sandbox.flush": (["a:b"], "pyproject.toml: [tool.laraman.sandbox] flush"),
        "gateway.embedded": (True, "LARAMAN_GATEWAY"),
        "gateway.listen": ("127.0.0.1:7000", "LARAMAN_GATEWAY"),
        "gateway.secret": ("***", "pyproject.toml: [tool.laraman.gateway] secret"),
        "gateway.netsvr.0.worker_addr": ("10.0.0.1:6061", "pyproject.toml: [tool.laraman.gateway] worker_addr"),
        "gateway.netsvr.0.events": (4, "pyproject.toml: [tool.laraman.gateway] events"),
    }
    assert {name: (rows[name]["value"], rows[name]["source"]) for name in expected} == expected
    assert "FORWARDED_ALLOW_IPS" not in os.environ


def test_a_table_for_people_without_secrets(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "main.py").write_text("app = None\n")
    words = ["--ssl-certfile", "c.pem", "--ssl-keyfile-password", "hush", "--reload", "--workers", "4", "--header", "A:1", "--header", "B:2"]
    assert cli.main(["config", *words]) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()]
    assert rows[0] == ["OPTION", "VALUE", "SOURCE"]
    assert ["app", "main:app", "found"] in rows
    assert ["header", "A:1", "B:2", "--header"] in rows
    assert ["timeout_keep_alive", "5", "default"] in rows
    assert ["factory", "off", "default"] in rows
    assert ["fd", "-", "default"] in rows
    assert ["ssl_keyfile_password", "***", "--ssl-keyfile-password"] in rows
    assert ["workers", "1", "--reload"] in rows, "what is in effect"
    assert "hush" not in captured.out
    assert captured.err == 'laraman: "workers" flag is ignored when reloading is enabled.\n'


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prot", "1"], "there is no option '--prot'; did you mean '--port'?"),
        (["--fd", "3", "--uds", "x"], "--fd and --uds exclude each other"),
        (["--env-file", "none"], "the environment file none cannot be read: No such file or directory"),
        (["--port", "x"], "--port: 'x' is not a whole number"),
    ],
)
@pytest.mark.parametrize("verb", ["config", "start"])
@pytest.mark.usefixtures("place")
def test_mistakes_are_those_of_a_start(capsys: pytest.CaptureFixture[str], verb: str, words: list[str], says: str) -> None:
    assert cli.main([verb, "shop:app", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"laraman: {says}")
    assert captured.err.count("\n") == 1


def test_its_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["config", "--help"])
    assert caught.value.code == 0
    assert "usage: laraman config [APP] [options]" in capsys.readouterr().out
