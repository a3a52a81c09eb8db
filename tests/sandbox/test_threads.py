"""What calls leave behind in pool threads, with anyio's threads, the loop's default executor and the application's own pools."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import asgiref.sync
import pytest
import uvloop
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from laraman.config.sandbox import SandboxConfig
from laraman.sandbox import reset as reset_module
from laraman.sandbox.reset import Resets
from laraman.sandbox.threads import Cleaning, call

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

local = threading.local()
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Resetting(threading.local):
    """Has its own idea of what is clean."""

    user = "nobody"

    def reset(self) -> None:
        self.user = "reset"


resetting = Resetting()


def visit(user: str) -> tuple[str, str, int]:
    """What is found in the thread; leaves ``user`` there."""
    found = (getattr(local, "user", "unset"), variable.get(), threading.get_ident())
    local.user = user
    variable.set(user)
    return found


def fail() -> None:
    local.user = "failed"
    raise RuntimeError("no")


def clear() -> None:
    local.__dict__.clear()


@pytest.fixture
def _cleaning() -> Iterator[None]:
    names = (anyio.to_thread.run_sync, ThreadPoolExecutor.submit)
    cleaning = Cleaning([clear])
    assert anyio.to_thread.run_sync is not names[0]
    yield
    cleaning.close()
    assert (anyio.to_thread.run_sync, ThreadPoolExecutor.submit) == names
    local.__dict__.clear()


async def by_anyio(function: Callable[..., Any], *args: Any) -> Any:
    return await anyio.to_thread.run_sync(function, *args, limiter=anyio.CapacityLimiter(1))


async def by_asyncio(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


async def by_executor(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


RUNS = [by_anyio, by_asyncio, by_executor]
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


async def calls(run: Callable[..., Coroutine[Any, Any, Any]]) -> list[Any]:
    """Two users, one after the other, in the same thread."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    first = await run(visit, "alice")
    second = await run(visit, "bob")
    assert first[2] == second[2] != threading.get_ident()
    with pytest.raises(RuntimeError, match="no"):
        await run(fail)
    return [first[:2], second[:2], (await run(visit, "carol"))[:2]]


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.usefixtures("_cleaning")
def test_a_call_finds_nothing_of_the_one_before(run: Any, loop_factory: Any) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(calls(run)) == [("unset", "unset")] * 3


@pytest.mark.parametrize("run", RUNS)
def test_without_it_they_find_each_other(run: Any) -> None:
    with asyncio.Runner() as runner:
        assert runner.run(calls(run))[1][0] == "alice"


@pytest.mark.usefixtures("_cleaning")
def test_pools_of_the_application_are_cleaned_and_keep_what_their_threads_began_with() -> None:
    def begin() -> None:
        variable.set("pool")

    with ThreadPoolExecutor(1, initializer=begin) as pool:
        assert [pool.submit(visit, user).result()[:2] for user in ("alice", "bob")] == [("unset", "pool")] * 2
        assert pool.submit(visit, user="carol").result()[1] == "pool"


@pytest.mark.usefixtures("_cleaning")
def test_asgirefs_threads_are_its_own() -> None:
    """The calls of one request share a thread there, and may rely on it."""

    async def main() -> list[Any]:
        async with asgiref.sync.ThreadSensitiveContext():
            return [(await asgiref.sync.sync_to_async(visit)(user))[0] for user in ("alice", "alice again")]

    assert asyncio.run(main()) == ["unset", "alice"]


@pytest.mark.usefixtures("_cleaning")
def test_a_call_knows_whether_it_is_over() -> None:
    outer = call()
    with ThreadPoolExecutor(1) as pool:
        running, over = pool.submit(lambda: (made := call(), made is not None and made.over)).result()
    assert outer is None
    assert over is False
    assert running is not None
    assert running.over


def test_the_context_of_the_caller_goes_into_the_thread_as_before() -> None:
    async def main() -> list[str]:
        variable.set("request")
        return [await run(variable.get) for run in RUNS]

    cleaning = Cleaning([])
    try:
        assert contextvars.copy_context().run(asyncio.run, main()) == ["request", "request", "unset"]
    finally:
        cleaning.close()


def test_somebody_elses_wrapper_is_left_alone() -> None:
    original = anyio.to_thread.run_sync
    cleaning = Cleaning([])
    ours = anyio.to_thread.run_sync

    async def theirs(*args: Any, **options: Any) -> Any:
        return await ours(*args, **options)

    anyio.to_thread.run_sync = theirs
    try:
        cleaning.close()
        assert anyio.to_thread.run_sync is theirs
    finally:
        anyio.to_thread.run_sync = original


def test_synchronous_endpoints_start_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users of an application of FastAPI whose locals are named under flush; nothing else is done in the loop's thread."""
    monkeypatch.setattr(reset_module, "find_adapters", lambda: iter(()))
    app = FastAPI()

    @app.get("/{user}")
    def endpoint(user: str) -> list[str]:
        found = [getattr(local, "user", "unset"), resetting.user]
        local.user = resetting.user = user
        return found

    async def main() -> list[Any]:
        resets = await Resets.prepare(SandboxConfig(flush=(f"{__name__}:local", f"{__name__}:resetting")), {})
        try:
            async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
                anyio.to_thread.current_default_thread_limiter().total_tokens = 1
                return [(await client.get(f"/{user}")).json() for user in ("alice", "bob", "carol")]
        finally:
            resets.close()

    assert asyncio.run(main()) == [["unset", "nobody"], ["unset", "reset"], ["unset", "reset"]]


def test_several_may_be_open_and_close_in_any_order() -> None:
    names, done = (anyio.to_thread.run_sync, ThreadPoolExecutor.submit), []

    def called() -> list[str]:
        done.clear()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(int, "7").result(10) == 7
        return list(done)

    first, second, third = (Cleaning([lambda name=name: done.append(name)]) for name in "abc")  # type: ignore[misc]
    assert called() == ["a", "b", "c"]
    for cleaning, left in ((first, ["b", "c"]), (third, ["b"]), (third, ["b"]), (second, [])):
        cleaning.close()
        assert called() == left
    assert (anyio.to_thread.run_sync, ThreadPoolExecutor.submit) == names


def test_nothing_is_wrapped_while_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reset_module, "find_adapters", lambda: iter(()))
    names = (anyio.to_thread.run_sync, ThreadPoolExecutor.submit)
    asyncio.run(Resets.prepare(SandboxConfig(flush=("sys:gettrace",)), {}))
    assert (anyio.to_thread.run_sync, ThreadPoolExecutor.submit) == names


def test_a_cleaning_that_raises_is_reported_once_and_the_call_returns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reset_module, "find_adapters", lambda: iter(()))
    monkeypatch.setattr(Resetting, "reset", lambda self: 1 / 0)

    async def main() -> tuple[Any, str]:
        resets = await Resets.prepare(SandboxConfig(flush=(f"{__name__}:resetting",)), {})
        try:
            return [await by_asyncio(int, "1"), await by_asyncio(int, "2")], resets.failed
        finally:
            resets.close()

    assert asyncio.run(main()) == ([1, 2], f"flush {__name__}:resetting failed")
    assert len(caplog.records) == 1
