"""``laraman doctor`` as it is typed: the same application under both servers, and what a project uses of uvicorn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import clean_environment

ROOT = Path(__file__).parent.parent.parent

MAIN = """
import asyncio, itertools, os
from fastapi import FastAPI, WebSocket
import uvicorn

app = FastAPI()
count = itertools.count()

@app.get("/")
def root():
    return {"hello": 1}

@app.get("/items/{item}")
def item(item: int):
    return item

@app.get("/count")
def counted():
    return next(count)

@app.websocket("/talk")
async def talk(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text("you said " + await websocket.receive_text())
    await websocket.close(4001)

@app.websocket("/no")
async def no(websocket: WebSocket):
    await websocket.close()

if __name__ == "__main__":
    uvicorn.run(app, port=80)
"""


def doctor(directory: Path, *arguments: str, **files: str) -> tuple[int, dict[str, Any]]:
    result = run(directory, *arguments, "--json", **files)
    assert result.stderr == ""
    return result.returncode, json.loads(result.stdout)


def run(directory: Path, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "laraman", "doctor", *arguments],
        cwd=directory,
        env=clean_environment({"PYTHONPATH": str(ROOT)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_application_that_answers_alike(tmp_path: Path) -> None:
    code, report = doctor(tmp_path, main=MAIN)
    assert report["played"] == ["GET /", "GET /items/{item}", "GET /count", "WEBSOCKET /talk", "WEBSOCKET /no"]
    assert [finding for finding in report["differences"] if not finding["purpose"]] == []
    assert {finding["purpose"] for finding in report["differences"]} >= {"server", "brand", "exit codes"}
    assert [(use["place"], use["name"], use["verdict"]) for use in report["uses"]] == [
        ("main.py:32", "port", "same"),
        ("main.py:32", "uvicorn.run", "same"),
    ]
    assert (code, report["obstacles"], report["note"]) == (0, 0, "")


def test_an_application_that_sees_a_difference(tmp_path: Path) -> None:
    app = """
import sys
async def app(scope, receive, send):
    assert scope["type"] == "http"
    under = "uvicorn" if "uvicorn.main" in sys.modules else "laraman"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-under", under.encode())]})
    await send({"type": "http.response.body", "body": under.encode()})
"""
    (tmp_path / "requests.txt").write_text("GET /a\nPOST /b\n")
    code, report = doctor(tmp_path, "own:app", "--requests", "requests.txt", own=app)
    assert report["played"] == ["GET /a", "POST /b"]
    unexpected = [tuple(finding.values()) for finding in report["differences"] if not finding["purpose"]]
    assert unexpected == [(request, what, "uvicorn", "laraman", "") for request in ("GET /a", "POST /b") for what in ("header x-under", "body")]
    assert (code, report["obstacles"]) == (1, 4)


def test_an_application_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, "main:app", main="raise ValueError('no database')")
    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if "does not start" in line] == [
        "the application does not start under uvicorn: it ended with 1: Error loading ASGI app. "
        'Importing module "main" failed: ValueError: no database'
    ]
    assert "Traceback" not in result.stdout + result.stderr


def test_an_application_that_hangs_costs_the_time_it_is_given(tmp_path: Path) -> None:
    hanging = "import time\ntime.sleep(60)\n"
    result = run(tmp_path, "main:app", "--timeout", "1", main=hanging)
    assert "is not ready after 1 s" in result.stdout
    assert (result.returncode, result.stderr) == (1, "")


def test_wrong_usage(tmp_path: Path) -> None:
    for arguments, message in (
        (["--timeout", "soon"], "--timeout: 'soon' is not a number"),
        (["--requests", "nowhere"], "nowhere: cannot be read: No such file or directory"),
        (["--nonsense"], "there is no option '--nonsense'"),
    ):
        result = run(tmp_path, *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(f"laraman: {message}"), result.stderr
        assert result.stderr.count("\n") == 1


def test_without_an_application_the_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("CMD uvicorn shop:app --http2\n")
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stdout.splitlines()[1].split("  ")[0] == "Dockerfile:1"
    assert result.stdout.splitlines()[-2:] == ["no application was named or found, so none was tried", "1 obstacle"]
    (tmp_path / "Dockerfile").unlink()
    result = run(tmp_path)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "no obstacle")


def test_without_uvicorn(tmp_path: Path) -> None:
    """Its files are looked at all the same."""
    hidden = "import sys\nsys.modules['uvicorn'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    (tmp_path / "main.py").write_text(MAIN)
    result = subprocess.run(
        [sys.executable, "-m", "laraman", "doctor"],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "uvicorn is not installed here" in result.stdout, result.stderr
    assert result.returncode == 0
