"""Every row of the catalogue is found in the leaky application: under its name, as its kind, with the line that did it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from laraman.check.heap import Heap
from laraman.check.locate import locate
from laraman.sandbox.surroundings import Sandbox
from tests.check.leaky import LEAKS, Leak
from tests.check.leaky.app import app
from tests.check.playing import get, rounds

ROOTS = ["tests.check.leaky"]
pytestmark = pytest.mark.usefixtures("put_back")


def test_the_table_has_every_row() -> None:
    assert sorted(LEAKS) == list(range(1, 31))
    assert [route.path for route in app.routes if route.path.startswith("/leaks/")] == [leak.route for leak in LEAKS.values()]


@pytest.mark.parametrize("leak", LEAKS.values(), ids=lambda leak: f"{leak.row}-{leak.path.rpartition('.')[2]}")
def test_row(leak: Leak) -> None:
    async def main() -> None:
        async with app.router.lifespan_context(app):
            heap = Heap(ROOTS, {"app": app})
            base = heap.snapshot()
            found = await rounds(heap, app, leak.route)
            finding = next((finding for finding in found if leak.is_at(finding.path)), None)
            assert finding is not None, found
            assert finding.kind == leak.kind
            assert finding.request == leak.route
            assert {other.path for other in found} - {finding.path, leak.also} == set()
            file, _, _ = (await locate(finding.path, heap, lambda: _get(leak.route), base)).partition(" in ")
            assert file.endswith(f"tests/check/leaky/{leak.place}")

    asyncio.run(main())


async def _get(route: str) -> None:
    """As the user who was not there last."""
    await get(app, route, "bob")


@pytest.mark.parametrize("leak", [leak for leak in LEAKS.values() if leak.prevented], ids=lambda leak: str(leak.row))
def test_row_that_the_server_prevents(leak: Leak) -> None:
    async def main() -> None:
        async with app.router.lifespan_context(app):
            sandbox = Sandbox()

            async def served(*call: object) -> None:
                await sandbox.run(app, *call)

            assert await rounds(Heap(ROOTS, {"app": app}), served, leak.route) == []

    asyncio.run(main())


def test_all_at_once() -> None:
    """Also when each round is all the requests. What leaves tracing on comes last."""

    async def main() -> None:
        async with app.router.lifespan_context(app):
            found = await rounds(Heap(ROOTS, {"app": app}), app, *(leak.route for leak in LEAKS.values()))
            hidden = {29}  # living objects are of interest when nothing else grows
            missing = [leak.row for leak in LEAKS.values() if leak.row not in hidden and not any(leak.is_at(finding.path) for finding in found)]
            assert missing == []

    asyncio.run(main())


def test_threads_are_not_traced_after_the_search() -> None:
    async def main() -> None:
        async with app.router.lifespan_context(app):
            await get(app, "/leaks/11")
            heap = Heap(ROOTS)
            await locate("tests.check.leaky.app.LAST_USER", heap, lambda: _get("/leaks/11"))
            assert sys.gettrace() is before
            assert await asyncio.to_thread(sys.gettrace) is None

    before = sys.gettrace()
    asyncio.run(main())
