"""What is as it should be is not called a leak."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from app_example.main import app as example
from laraman import events
from laraman.check.heap import Heap
from tests.check.clean.main import app as clean
from tests.check.playing import get, rounds

events.forget([name for name in sys.modules if name.startswith("app_example.")])  # its listeners would hear the messages of other tests

CLEAN = ["/orders/", "/orders/tea", "/orders/tea/mail", "/openapi.json", "/docs"]
EXAMPLE = ["/", "/label", "/echo", "/chat", "/static/chat.css"]


@pytest.mark.parametrize(("app", "root", "paths"), [(clean, "tests.check.clean", CLEAN), (example, "app_example", EXAMPLE)], ids=["clean", "example"])
@pytest.mark.parametrize("alone", [True, False], ids=["each request", "all of them"])
def test_nothing_is_found(app: Any, root: str, paths: list[str], alone: bool) -> None:
    async def main() -> None:
        async with app.router.lifespan_context(app):
            heap = Heap([root], {"app": app})
            for chosen in ([path] for path in paths) if alone else [paths]:
                assert await rounds(heap, app, *chosen) == []

    asyncio.run(main())


def test_nothing_is_found_where_there_is_nothing() -> None:
    async def main() -> None:
        assert await get(clean, "/nowhere") == 404

    asyncio.run(main())
