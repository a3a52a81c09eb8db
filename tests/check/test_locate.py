"""The line that did it, wherever it runs."""

from __future__ import annotations

import asyncio
import linecache
import os
import sys
import types
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest

from laraman.check.heap import Heap
from laraman.check.locate import locate

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = """
import asyncio, functools, os, threading, anyio.to_thread
from concurrent.futures import ThreadPoolExecutor
LOG, OTHER, STATE = [], [], {"user": ""}
def helper(value):
    return value
def add():
    OTHER.append(1)
    LOG.append(1)  # add
    OTHER.append(2)
async def plain():
    add()
async def in_pool():
    await anyio.to_thread.run_sync(add)
async def in_executor():
    await asyncio.to_thread(add)
async def in_thread():
    thread = threading.Thread(target=add)
    thread.start()
    thread.join()
async def in_task():
    await asyncio.create_task(later())
async def later():
    await asyncio.sleep(0)
    LOG.append(1)  # later
async def argument():
    LOG.append(helper(1))  # argument
async def through_library():
    functools.reduce(lambda one, two: one, [1, 2])
    list(map(LOG.append, [1]))  # through_library
async def with_pool():
    with ThreadPoolExecutor(1) as pool:
        LOG.extend(pool.map(helper, [1]))  # with_pool
async def after_wait():
    await asyncio.sleep(0)
    STATE["user"] = await value()  # after_wait
async def value():
    await asyncio.sleep(0)
    return "alice"
async def last_of_two():
    STATE["user"] = "bob"
    STATE["user"] = "alice"  # last_of_two
async def raising():
    LOG.append(1)  # raising
    raise ValueError
async def descriptor():
    one = os.open("/dev/null", os.O_RDONLY)
    STATE["file"] = os.open("/dev/null", os.O_RDONLY)  # descriptor
    os.close(one)
    two = os.open("/dev/null", os.O_RDONLY)
    os.close(two)
async def directory():
    os.chdir("/")  # directory
"""
PLACES = {line.partition("# ")[2]: number for number, line in enumerate(SOURCE.splitlines(), 1) if "# " in line}


@pytest.fixture
def module() -> Iterator[Any]:
    made = types.ModuleType("shop.views")
    sys.modules["shop.views"] = made
    exec(compile(SOURCE, os.path.abspath("views.py"), "exec"), vars(made))
    yield made
    del sys.modules["shop.views"]
    linecache.clearcache()


@pytest.mark.parametrize(
    ("function", "path", "place"),
    [
        ("plain", "LOG", "add"),
        ("in_pool", "LOG", "add"),
        ("in_executor", "LOG", "add"),
        ("in_thread", "LOG", "add"),
        ("in_task", "LOG", "later"),
        ("argument", "LOG", "argument"),
        ("through_library", "LOG", "through_library"),
        ("with_pool", "LOG", "with_pool"),
        ("after_wait", "STATE['user']", "after_wait"),
        ("last_of_two", "STATE['user']", "last_of_two"),
    ],
)
def test_line(module: Any, function: str, path: str, place: str) -> None:
    async def main() -> str:
        # threads of both pools that are older than the search.
        await asyncio.gather(*(anyio.to_thread.run_sync(int) for _ in range(3)), *(asyncio.to_thread(int) for _ in range(3)))
        return await locate(f"shop.views.{path}", Heap(["shop"]), getattr(module, function))

    assert asyncio.run(main()) == f"views.py:{PLACES[place]} in {place if place in vars(module) else function}"


def test_nothing_that_stays() -> None:
    async def main() -> str:
        return await locate("shop.views.LOG", Heap(["shop"]), lambda: asyncio.sleep(0))

    assert asyncio.run(main()) == ""


def test_a_request_that_raises(module: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"^$"):
            await locate("shop.views.LOG", Heap(["shop"]), module.raising)
        assert sys.gettrace() is before

    before = sys.gettrace()
    asyncio.run(main())


def test_a_descriptor_that_stays(module: Any) -> None:
    async def main() -> str:
        return await locate("descriptors['/dev/null']", Heap(["shop"]), module.descriptor)

    assert asyncio.run(main()) == f"views.py:{PLACES['descriptor']} in descriptor"
    os.close(module.STATE["file"])


@pytest.mark.usefixtures("put_back")
def test_what_was_changed_before_is_put_back_and_seen_again(module: Any) -> None:
    async def main() -> str:
        heap = Heap(["shop"])
        base = heap.snapshot()
        await module.directory()
        place = await locate("process.cwd", heap, module.directory, base)
        assert os.getcwd() == before
        return place

    before = os.getcwd()
    assert asyncio.run(main()) == f"views.py:{PLACES['directory']} in directory"
