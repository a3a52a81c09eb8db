"""``laraman check`` as it is typed: exit codes, what is on stdout, and that nothing an application does makes it hang or show a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.check.leaky import LEAKS
from tests.conftest import clean_environment

ROOT = Path(__file__).parent.parent.parent


def run(directory: Path, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "laraman", "check", *arguments],
        cwd=directory,
        env=clean_environment({"PYTHONPATH": str(ROOT)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# What it finds --------------------------------------------------------------------------------------------------------------------


def test_every_leak_of_the_catalogue_with_its_request_and_its_line() -> None:
    result = run(ROOT, "tests.check.leaky.app:app", "--json")
    assert (result.returncode, result.stderr) == (1, "")
    report = json.loads(result.stdout)
    assert {(one["method"], one["status"]) for one in report["requests"]} == {("GET", 200)}
    assert (len(report["requests"]), report["rounds"], report["notes"]) == (len(LEAKS), 5, [])
    found = {finding["path"]: finding for finding in report["findings"]}
    expected = [leak for leak in LEAKS.values() if not leak.prevented]
    for leak in expected:
        [path] = [path for path in found if leak.is_at(path)]
        finding = found.pop(path)
        assert (finding["kind"], finding["request"]) == (leak.kind, f"GET {leak.route}"), leak
        place = "tests/check/framework.py:11" if leak.row == 12 else f"tests/check/leaky/{leak.place}"  # here both are the application's
        assert finding["place"].partition(" in ")[0] == place, leak
    assert found == {}


@pytest.mark.parametrize("arguments", [("tests.check.clean.main:app",), ()], ids=["fastapi-template", "app_example"])
def test_clean_applications_leak_nothing(arguments: tuple[str, ...]) -> None:
    result = run(ROOT, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("0 leaks in ")
    assert "500" not in result.stdout


APP = """
import asyncio, os, sys, threading, time
from fastapi import FastAPI, Request
app = FastAPI()
CART = []
print("imported")

@app.post("/cart")
async def add(request: Request):
    print("hello")
    os.system("echo from a shell")
    CART.append((await request.json())["what"])

@app.get("/")
async def home(): return "home"

@app.get("/exit")
async def leave(): sys.exit(3)

@app.get("/thread")
def stay():
    threading.Thread(target=time.sleep, args=(600,)).start()
"""


def test_requests_of_a_file_and_stdout_is_the_reports(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    entries: list[dict[str, Any]] = [{"path": "/"}, {"method": "POST", "path": "/cart", "json": {"what": "{marker}"}}]
    (tmp_path / "requests.json").write_text(json.dumps(entries))
    result = run(tmp_path, "--requests", "requests.json", "--rounds", "4", "--json")
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    [finding] = report["findings"]
    assert (finding["path"], finding["kind"], finding["request"], finding["place"]) == ("main.CART", "grows", "POST /cart", "main.py:12 in add")
    assert report["requests"] == [{"method": "GET", "path": "/", "status": 200}, {"method": "POST", "path": "/cart", "status": 200}]
    assert report["rounds"] == 4
    assert {"imported", "hello", "from a shell"} == set(result.stderr.split("\n")) - {""}


def test_what_is_ignored_does_not_fail_the_command(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "requests.json").write_text('[{"method": "POST", "path": "/cart", "json": {"what": "tea"}}]')
    result = run(tmp_path, "--requests", "requests.json", "--ignore", "main.CA*", "--ignore=main.CARD")
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[0] == "note: --ignore main.CARD: nothing of that name was found"
    assert "0 leaks in 1 request, 5 rounds, 1 ignored (" in result.stdout


def test_a_table_with_notes(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "requests.txt").write_text("GET /exit\nPOST /cart\nGET /nowhere\n")
    result = run(tmp_path, "--requests", "requests.txt")
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[:-1] == [
        "note: GET /exit: calls sys.exit(3) (main.py:18)",
        "note: POST /cart: played, answered 500: JSONDecodeError: Expecting value: line 1 column 1 (char 0) (main.py:12)",
        "note: GET /nowhere: played, answered 404",
        "",
    ]
    assert result.stdout.splitlines()[-1].startswith("0 leaks in 3 requests, 5 rounds (")


def test_threads_that_stay_do_not_keep_the_command(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "requests.txt").write_text("GET /thread\n")
    result = run(tmp_path, "--requests", "requests.txt", timeout=60)
    assert result.returncode == 1, result.stderr
    assert "threads" in result.stdout


STUBBORN = """
import asyncio
async def app(scope, receive, send):
    while scope["type"] == "http":
        try: await asyncio.sleep(600)
        except BaseException: pass
"""


def test_an_application_that_will_not_end_is_left(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(STUBBORN)
    result = run(tmp_path, "--timeout", "0.5", timeout=60)
    assert result.returncode == 0
    assert result.stdout.startswith("note: GET /: does not end, not even when its client has left and it is cancelled\n")
    assert result.stderr == ""


UNSTOPPABLE = """
import time
async def app(scope, receive, send):
    while scope["type"] == "http":
        try: time.sleep(600)
        except BaseException: pass
"""


def test_an_application_that_cannot_be_interrupted_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(UNSTOPPABLE)
    result = run(tmp_path, "--timeout", "0.5", timeout=60)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("laraman: the application does not give the event loop back at ")
    assert result.stderr.count("\n") == 1


# What it refuses ------------------------------------------------------------------------------------------------------------------

RAISING = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
@asynccontextmanager
async def lifespan(app):
    raise ValueError("the database is away")
    yield
app = FastAPI(lifespan=lifespan)
"""


@pytest.mark.parametrize(
    ("source", "arguments", "code", "says"),
    [
        (None, (), 2, "no application: name it"),
        (APP, ("--round", "5"), 2, "there is no option '--round'; did you mean '--rounds'?"),
        (APP, ("--workers", "2"), 2, "there is no option '--workers'"),
        (APP, ("--rounds", "two"), 2, "--rounds: 'two' is not a whole number"),
        (APP, ("--rounds", "2"), 2, "--rounds: 2 is not 3 or more"),
        (APP, ("--timeout", "nan"), 2, "--timeout: nan is not 0.1 or more"),
        (APP, ("--requests", "none.txt"), 2, "none.txt: cannot be read: No such file or directory"),
        (APP, ("--requests", "main.py"), 2, "main.py, line 2: "),
        (APP, ("--listener", "nowhere"), 2, "there is no listener module 'nowhere'"),
        (APP, ("nowhere:app",), 3, 'Could not import module "nowhere"'),
        (APP, ("main:nothing",), 3, 'Attribute "nothing" not found in module "main"'),
        ("import nothing_like_it\napp = 1\n", (), 3, "No module named 'nothing_like_it'"),
        (RAISING, (), 3, "Application startup failed: "),
        (RAISING, ("--lifespan", "on"), 3, "the database is away"),
    ],
)
def test_one_line_and_the_exit_code(tmp_path: Path, source: str | None, arguments: tuple[str, ...], code: int, says: str) -> None:
    if source is not None:
        (tmp_path / "main.py").write_text(source)
    result = run(tmp_path, *arguments)
    lines = [line for line in result.stderr.splitlines() if line != "imported"]
    assert (result.returncode, result.stdout, len(lines)) == (code, "", 1), result.stderr
    assert lines[0].startswith("laraman: ")
    assert says in lines[0]


def test_a_wrong_name_in_the_sandboxs_table(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "pyproject.toml").write_text('[tool.laraman.sandbox]\nflush = ["main:CARD"]\n')
    result = run(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "CART" in result.stderr
    (tmp_path / "pyproject.toml").write_text('[tool.laraman.sandbox]\nflush = ["main:CART"]\n')
    (tmp_path / "requests.json").write_text('[{"method": "POST", "path": "/cart", "json": {"what": "tea"}}]')
    assert run(tmp_path, "--requests", "requests.json").returncode == 0
