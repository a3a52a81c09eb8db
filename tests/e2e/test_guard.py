"""The guard in a real server: what a request changes for all others is said, put back, refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import wait_until
from tests.e2e.tools import get

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

APP = """\
import asyncio, locale, os, socket, threading, time

from fastapi import BackgroundTasks, FastAPI

app = FastAPI()
kept = set()

def state():
    return f"{os.environ.get('CURRENCY')} {socket.getdefaulttimeout()} {os.getcwd() == '/'}"

@app.get("/state")
async def read():
    return state()

@app.get("/environment/{currency}")
async def environment(currency):
    os.environ["CURRENCY"] = currency
    return state()

@app.get("/directory")
def directory():
    os.chdir("/")
    return state()

@app.get("/timeout/{seconds}")
async def timeout(seconds: float):
    socket.setdefaulttimeout(seconds)
    return state()

@app.get("/late")
async def late(tasks: BackgroundTasks):
    tasks.add_task(socket.setdefaulttimeout, 5)
    return state()

async def forgotten():
    await asyncio.sleep(3600)

@app.get("/task")
async def task():
    kept.add(asyncio.create_task(forgotten()))

@app.get("/thread")
def thread():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True, name="forgotten").start()

@app.get("/leaves-nothing")
def nothing():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return state()
"""
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def start(server: Callable[..., Server], *arguments: str) -> Server:
    return server("app:app", "--workers", "1", *arguments, files={"app.py": APP})


def said(running: Server, *parts: str) -> str:
    """Wait for the guard's line that has all of these parts."""

    def there() -> str:
        return next((line for line in running.output.splitlines() if "Guard: " in line and all(part in line for part in parts)), "")

    return wait_until(there, what=f"a line of the guard with {parts}: {running.output}")


def guard_lines(running: Server) -> list[str]:
    return [line.partition("Guard: ")[2] for line in running.output.splitlines() if "Guard: " in line]


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(APP.splitlines(), 1) if text in line)


@LOOPS
def test_warn_is_the_default(server: Callable[..., Server], loop: str) -> None:
    running = start(server, "--loop", loop)
    for currency in ("EUR", "USD"):
        assert get(running.port, f"/environment/{currency}") == (200, f'"{currency} None False"')
    where = f"at app.py:{line_of('os.environ[')} in environment"
    said(running, "GET /environment/{currency} changed the environment, CURRENCY: unset -> 'EUR', " + where)
    assert get(running.port, "/directory") == (200, '"USD None True"')
    said(running, "GET /directory changed the working directory", f"at app.py:{line_of('os.chdir')} in directory")
    assert get(running.port, "/timeout/3")[0] == 200
    said(running, "GET /timeout/{seconds} changed the default timeout of sockets, seconds: None -> 3.0")  # when the worker is idle
    assert get(running.port, "/task")[0] == get(running.port, "/thread")[0] == 200
    said(running, "GET /task is over and has left behind a task:", f" app.py:{line_of('def forgotten')} in forgotten")
    where = f"started at app.py:{line_of('name=')} in thread"
    said(running, "GET /thread is over and has left behind the thread 'forgotten', " + where)
    assert get(running.port, "/leaves-nothing")[0] == 200
    assert len(guard_lines(running)) == 5, running.output


@LOOPS
def test_restore(server: Callable[..., Server], loop: str) -> None:
    running = start(server, "--loop", loop, "--guard", "restore")
    assert get(running.port, "/environment/EUR") == (200, '"EUR None False"')
    assert get(running.port, "/state") == (200, '"None None False"')
    assert get(running.port, "/directory") == (200, '"None None True"')
    assert get(running.port, "/timeout/3") == (200, '"None 3.0 False"')
    assert get(running.port, "/late") == (200, '"None None False"')
    wait_until(lambda: len(guard_lines(running)) >= 4)
    assert get(running.port, "/state") == (200, '"None None False"')
    assert [line.rpartition("; ")[2] for line in guard_lines(running)] == ["it is put back"] * 2 + ["it was put back"] * 2


@LOOPS
def test_strict(server: Callable[..., Server], loop: str) -> None:
    running = start(server, "--loop", loop, "--guard", "strict")
    for path in ("/environment/EUR", "/directory", "/timeout/3", "/timeout/3"):
        assert get(running.port, path) == (500, "Internal Server Error"), path
        assert get(running.port, "/state") == (200, '"None None False"')
    assert "laraman.errors.Pollution: GET /timeout/{seconds} changed the default timeout of sockets, seconds: None -> 3.0" in running.output
    assert get(running.port, "/late") == (200, '"None None False"')
    assert "ERROR" in said(running, "GET /late changed the default timeout of sockets, seconds: None -> 5.0", "; it was put back")
    assert get(running.port, "/leaves-nothing") == (200, '"None None False"')


def test_off(server: Callable[..., Server]) -> None:
    running = start(server, "--guard", "off")
    assert get(running.port, "/environment/EUR")[0] == get(running.port, "/directory")[0] == get(running.port, "/timeout/3")[0] == 200
    assert get(running.port, "/state") == (200, '"EUR 3.0 True"')
    assert guard_lines(running) == []
