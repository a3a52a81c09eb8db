"""--user and --group, and a worker's own: as the kernel tells it to others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.e2e.tools import get, wait_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

USER, GROUP, OTHER = 61234, 61235, 61236

#: In the master, while it may read everything: those who run the tests may have a Python that others cannot read.
WARM = """
import importlib
from contextlib import suppress
from laraman.process.template import LATER
for name in (*LATER, "laraman.asgi.service", "laraman.asgi.websocket", "uvloop", "httptools", "wsproto"):
    with suppress(ImportError):
        importlib.import_module(name)
"""
#: Says as whom it is imported.
APP = """
import os

class Own: ...

IMPORTED = " ".join(map(str, (*os.getresuid(), *os.getresgid(), *os.getgroups())))

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": IMPORTED.encode()})
"""
OWN = """
[tool.laraman.workers.own]
address = "text://127.0.0.1:0"
handler = "app:Own"
group = "61236"
"""


@pytest.fixture
def readable() -> Iterator[Path]:
    """A directory that everybody can read."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("only root can start workers as somebody else, and CI is not root")
        pytest.skip("only root can start workers as somebody else")
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def ids(pid: int) -> dict[str, list[int]]:
    """Real, effective, saved and filesystem's user and group, all groups, and the capabilities that are left."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: [int(word) for word in lines[name].split()] for name in ("Uid", "Gid", "Groups")}
    return {**found, "Capabilities": [int(lines[name], 16) for name in ("CapEff", "CapPrm")]}


def whose(uid: int, gid: int) -> dict[str, list[int]]:
    return {"Uid": [uid] * 4, "Gid": [gid] * 4, "Groups": [gid], "Capabilities": [0, 0]}


@pytest.mark.parametrize("how", [(), ("--preload",)], ids=["plain", "preload"])
def test_workers_are_somebody_else(server: Callable[..., Server], readable: Path, how: tuple[str, ...]) -> None:
    (readable / "app.py").write_text(APP)
    words = ("--user", str(USER), "--group", str(GROUP), "--app-dir", str(readable), "--listener", "warm", *how)
    running = server("app:app", *words, files={"pyproject.toml": OWN}, environ={"PYTHONPATH": str(_beside(readable))})
    http, own = running.processes("http")[0]["pid"], running.processes("own")[0]["pid"]
    everybody = {row["worker"]: ids(row["pid"]) for row in running.status()["processes"]}
    names = {"http", "own", *(["http-template"] if how else [])}
    assert everybody == {**dict.fromkeys(names, whose(USER, GROUP)), "own": whose(USER, 61236)}
    assert ids(running.pid)["Uid"] == [0] * 4
    assert os.listdir(f"/proc/{http}/fd")
    assert Path(f"/proc/{http}/fd").stat().st_uid == USER, "it may look at itself"
    told = " ".join(map(str, [USER] * 3 + [GROUP] * 4))
    assert get(running.port) == (200, told)

    assert running.cli("reload").returncode == 0
    assert ids(wait_workers(running, 1, without={http})[0]) == whose(USER, GROUP)
    os.kill(running.processes("http")[0]["pid"], signal.SIGKILL)
    wait_until(lambda: [ids(row["pid"]) for row in running.processes() if row["state"] == "ready"] == [whose(USER, GROUP)])
    assert get(running.port) == (200, told)
    running.process.kill()  # the kernel tells them so: the change of user has not lost that
    running.process.wait(DEADLINE)
    wait_until(lambda: not running.survivors())
    assert not Path(f"/proc/{own}").exists()


def _beside(readable: Path) -> Path:
    """Where the master's own listener is, so that the children do not import it afresh."""
    directory = readable / "site-packages"
    directory.mkdir()
    (directory / "warm.py").write_text(WARM)
    return directory


def start(readable: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    (readable / "app.py").write_text(APP)
    return subprocess.run(
        [*before, sys.executable, "-m", "laraman", "start", "app:app", "--port", "0", *words],
        cwd=readable,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_who_cannot_is_told_so_in_one_line(readable: Path) -> None:
    refused = start(readable, "--user", str(USER))
    assert (refused.returncode, refused.stderr) == (2, f"ERROR:    user {USER} has no entry that would tell its group: name one with --group\n")
    refused = start(readable, "--user", "nobody-at-all")
    assert (refused.returncode, refused.stderr) == (2, "laraman: --user: there is no user 'nobody-at-all'\n")
    # Root without the right to become somebody else.
    crippled = ("setpriv", "--bounding-set", "-setuid")
    refused = start(readable, "--user", str(USER), "--group", str(GROUP), before=crippled)
    text = f"Worker http:0 could not start: cannot become user {USER} with group {GROUP}: Operation not permitted"
    assert refused.returncode == 2
    assert [line for line in refused.stderr.splitlines() if not line.startswith("INFO:")] == [f"ERROR:    {text}"]
    refused = start(readable, "--user", str(USER), "--group", str(GROUP), "-d", before=crippled)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == text
