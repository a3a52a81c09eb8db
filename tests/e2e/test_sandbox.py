"""``[tool.laraman.sandbox]`` with the real command: what it resets, and what it says to those who write it wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

APP = """
import functools, os, threading
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from laraman import sandbox

memo, warmed = {}, []
lock = threading.Lock()

class Settings:
    def __init__(self):
        self.currency, self.rates = "EUR", {"USD": 1.1}

SETTINGS = Settings()

@functools.lru_cache
def get_settings():
    warmed.append("get_settings")
    return SETTINGS

class Fragile:
    broken = False
    def reset(self):
        if self.broken:
            raise OSError("it is stuck")

fragile = sandbox.resettable(Fragile())

async def change(request):
    found = {"pid": os.getpid(), "memo": len(memo), "currency": SETTINGS.currency, "rates": SETTINGS.rates, "warmed": warmed}
    response = JSONResponse(found)
    memo["user"] = "alice"
    SETTINGS.currency = "GBP"
    SETTINGS.rates["GBP"] = 0.9
    return response

async def wreck(request):
    fragile.broken = True
    return JSONResponse({"pid": os.getpid()})

app = Starlette(routes=[Route("/change", change), Route("/wreck", wreck)])
"""


def files(**table: list[str]) -> dict[str, str]:
    lines = "".join(f"{name} = {json.dumps(names)}\n" for name, names in table.items())
    return {"app.py": APP, "pyproject.toml": f"[tool.laraman.sandbox]\n{lines}"}


def get(server: Server, path: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(server.url + path, timeout=DEADLINE).raise_for_status().json()
    return found


@pytest.mark.parametrize("arguments", [(), ("--isolation", "serial"), ("--preload",)], ids=["concurrent", "serial", "preload"])
def test_what_is_named_is_reset_between_requests(server: Callable[..., Server], arguments: tuple[str, ...]) -> None:
    running = server("app:app", *arguments, files=files(warm=["app:get_settings"], flush=["app:memo"], restore=["app:SETTINGS"]))
    for _ in range(3):
        found = get(running, "/change")
        del found["pid"]
        assert found == {"memo": 0, "currency": "EUR", "rates": {"USD": 1.1}, "warmed": ["get_settings"]}


@pytest.mark.parametrize("arguments", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"flush": ["app:meno"]}, "sandbox.flush: 'app:meno': app has no 'meno'; did you mean 'memo'?"),
        ({"warm": ["ap:memo"]}, "'ap:memo'"),
        ({"restore": ["locales"]}, "did you mean 'locale'?"),
        ({"restore": ["app:lock"]}, "sandbox.restore: 'app:lock': lock cannot be copied, a _thread.lock"),
        ({"flush": ["memo"]}, "'memo' is not of the form package.module:attribute"),
    ],
)
def test_a_wrong_name_is_one_clear_line_and_exit_code_2(
    server: Callable[..., Server], table: dict[str, list[str]], says: str, arguments: tuple[str, ...]
) -> None:
    running = server("app:app", *arguments, files=files(**table), ready=False)
    assert running.process.wait(DEADLINE) == 2
    assert says in running.output
    assert "Traceback" not in running.output


def test_a_reset_that_raises_is_reported_and_the_worker_replaced(server: Callable[..., Server]) -> None:
    running = server("app:app", files=files(flush=["app:memo"]))
    before = get(running, "/wreck")["pid"]
    wait_until(lambda: get(running, "/change")["pid"] != before, what="the successor")
    assert "it is stuck" in running.output
    assert get(running, "/change")["memo"] == 0
