"""``laraman dev`` and ``laraman run``: FastAPI's own command's words, without uvicorn."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from laraman.cli.developing import configured
from laraman.errors import ConfigError
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from laraman.config import Config

DEV, RUN = {"reload": True}, {"host": "0.0.0.0"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").write_text("app = 1\nadmin = 2\n")
    return tmp_path


def load(verb: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Config:
    return configured(verb, list(arguments), environ or {}, DEV if verb == "dev" else RUN)


def test_what_the_verbs_mean(directory: Path) -> None:
    dev, run = load("dev"), load("run")
    assert (dev.app, dev.app_dir, dev.reload, dev.host, dev.port) == ("main:app", str(directory), True, "127.0.0.1", 8000)
    assert (run.app, run.app_dir, run.reload, run.host, run.port) == ("main:app", str(directory), False, "0.0.0.0", 8000)


def test_options_are_those_of_start(directory: Path) -> None:
    dev = load("dev", *"main.py --no-reload --host ::1 --port 81 --root-path /v1 --no-proxy-headers --workers 3 --app admin".split())
    assert (dev.app, dev.reload, dev.host, dev.port) == ("main:admin", False, "::1", 81)
    assert (dev.root_path, dev.proxy_headers, dev.workers) == ("/v1", False, 3)
    assert load("run", "--reload").reload
    with pytest.raises(ConfigError, match="there is no option '--prot'; did you mean '--port'"):
        load("dev", "--prot", "1")


def test_what_start_refuses_beforehand_is_refused_here_too(directory: Path) -> None:
    """So that a restart with it does not stop what runs."""
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load("run", "--log-config", "missing.yaml")


def test_everything_a_user_says_is_stronger_than_the_verb(directory: Path) -> None:
    assert not load("dev", environ={"LARAMAN_RELOAD": "0"}).reload
    assert load("run", environ={"UVICORN_HOST": "127.0.0.2"}).host == "127.0.0.2"
    (directory / "pyproject.toml").write_text('[tool.laraman]\nhost = "127.0.0.3"\nreload = false\n')
    assert load("run").host == "127.0.0.3"
    assert not load("dev").reload


def test_port_of_the_platform(directory: Path) -> None:
    assert load("run", environ={"PORT": "81"}).port == 81
    assert load("run", environ={"PORT": "81", "LARAMAN_PORT": "82"}).port == 82
    assert load("run", "--port", "83", environ={"PORT": "81"}).port == 83
    with pytest.raises(ConfigError, match="PORT: 'http' is no port"):
        load("run", environ={"PORT": "http"})


def test_another_address_is_not_beside_the_verbs_own(directory: Path) -> None:
    run = load("run", "--uds", "/tmp/x.sock", environ={"PORT": "81"})
    assert (run.uds, run.host, run.port) == ("/tmp/x.sock", "127.0.0.1", 8000)


def test_where_the_application_comes_from(directory: Path) -> None:
    (directory / "shop").mkdir()
    (directory / "shop" / "__init__.py").write_text("")
    (directory / "shop" / "site.py").write_text("app = 1\n")
    assert load("dev", "shop/site.py").app == "shop.site:app"
    assert load("dev", "other:make").app == "other:make"
    assert load("dev", "-e", "a.b:c").app == "a.b:c"
    (directory / "pyproject.toml").write_text('[tool.fastapi]\nentrypoint = "shop.entry:app"\n')
    assert load("dev").app == "shop.entry:app"
    assert load("dev", "--app", "admin").app == "main:admin"
    assert load("dev", "shop/site.py").app == "shop.site:app"
    (directory / "pyproject.toml").write_text('[tool.fastapi]\nentrypoint = "shop.entry:app"\n[tool.laraman]\napp = "mine:app"\n')
    assert load("dev").app == "mine:app"
    for wrong in ('[tool.fastapi]\nentrypoint = "shop"\n', "[tool.fastapi]\nentrypoint = 3\n", "[tool]\nfastapi = 3\n"):
        (directory / "pyproject.toml").write_text(wrong)
        with pytest.raises(ConfigError, match=r"pyproject\.toml: \[tool\.fastapi\] entrypoint: .* is not of the form"):
            load("dev")
    with pytest.raises(ConfigError, match="--entrypoint names the application already"):
        load("dev", "main.py", "-e", "a:b")


@pytest.mark.fork
def test_a_project_is_served(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("")
    said = "import os\nprint(__name__, os.environ['FASTAPI_ENV'], flush=True)\n"
    (tmp_path / "app" / "main.py").write_text(said + "from fastapi import FastAPI\nsite = FastAPI()\n")
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        command = [sys.executable, "-m", "laraman", "dev", "--port", "0"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: "Application startup complete." in output.read_text(), what="the start")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    text = output.read_text()
    assert "app.main development\n" in text
    assert f"Will watch for changes in these directories: ['{tmp_path.resolve()}']" in text


@pytest.mark.parametrize("verb", ["dev", "run"])
def test_help_and_errors_of_the_command(tmp_path: Path, verb: str) -> None:
    def laraman(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "laraman", verb, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)

    assert "--entrypoint" in laraman("--help").stdout
    result = laraman("nowhere.py")
    assert (result.returncode, result.stderr) == (2, "laraman: there is no file or directory 'nowhere.py'\n")
