"""``--loop``: the words, factories, and what is said when there is no loop."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop

from laraman.errors import ConfigError
from laraman.process.child import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

APP = """
import asyncio

class Loop(asyncio.SelectorEventLoop):
    pass

def factory():
    return Loop()

def broken():
    raise ValueError("no loop today")

def wrong():
    return 7

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": type(asyncio.get_running_loop()).__name__.encode()})
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("auto", uvloop.Loop),
        ("uvloop", uvloop.Loop),
        ("asyncio", asyncio.SelectorEventLoop),
        ("none", asyncio.SelectorEventLoop),
        ("asyncio:SelectorEventLoop", asyncio.SelectorEventLoop),
        ("uvloop:new_event_loop", uvloop.Loop),
    ],
)
def test_words(kind: str, expected: type[asyncio.AbstractEventLoop]) -> None:
    loop = new_event_loop(kind)
    loop.close()
    assert isinstance(loop, expected)


def test_a_package_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("zuvloop")
    monkeypatch.setattr(package, "new_event_loop", asyncio.SelectorEventLoop, raising=False)
    monkeypatch.setitem(sys.modules, "zuvloop", package)
    loop = new_event_loop("zuvloop")
    loop.close()
    assert isinstance(loop, asyncio.SelectorEventLoop)


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ConfigError, match="the loop is set to uvloop, which is not installed"):
        new_event_loop("uvloop")
    loop = new_event_loop("auto")
    loop.close()
    assert isinstance(loop, asyncio.SelectorEventLoop)


def test_a_factory_of_the_application(server: Callable[..., Server]) -> None:
    running = server("main:app", "--loop", "main:factory", files={"main.py": APP})
    assert httpx.get(running.url, timeout=10).text == "Loop"


@pytest.mark.parametrize(
    ("loop", "code", "says"),
    [
        ("main:broken", 3, "no loop today"),
        ("main:wrong", 2, "the loop factory main:wrong makes no event loop, but int"),
        ("main:nothing", 2, "has no attribute 'nothing'"),
    ],
)
def test_a_factory_that_makes_none(server: Callable[..., Server], loop: str, code: int, says: str) -> None:
    running = server("main:app", "--loop", loop, files={"main.py": APP}, ready=False)
    assert running.process.wait(30) == code
    assert says in running.output
