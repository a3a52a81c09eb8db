"""Adapters with the real libraries: SQLAlchemy on sqlite, Django, structlog, decimal."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import gc
import logging
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
import sqlalchemy
import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool

from laraman.config.sandbox import SandboxConfig
from laraman.sandbox import adapters
from laraman.sandbox.operation import CURRENT, REQUEST, TASK, Operation
from laraman.sandbox.reset import Resets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

SELECT = sqlalchemy.text("SELECT 1")


async def operate(resets: Resets, function: Callable[[], Any], operation: Operation | None = None) -> Any:
    """Run it as the Sandbox would: in a task and a context of its own, with the resets at its end."""
    operation = operation or Operation(TASK, "test")

    async def main() -> Any:
        try:
            result = function()
            return await result if hasattr(result, "__await__") else result
        finally:
            waiting = resets.after(operation)
            if waiting is not None:
                await waiting
            operation.ended = True

    context = contextvars.copy_context()
    context.run(CURRENT.set, operation)
    return await asyncio.get_running_loop().create_task(main(), context=context)


def play(main: Callable[[Resets], Awaitable[Any]], config: SandboxConfig | None = None) -> Any:
    """Prepare resets for what is imported, and take them away again."""

    async def prepared() -> Any:
        resets = await Resets.prepare(config or SandboxConfig(), {})
        try:
            result = await main(resets)
            assert resets.failed == ""
            return result
        finally:
            resets.close()

    return asyncio.run(prepared())


# SQLAlchemy -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    made = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/test.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=5)
    with made.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE users (name TEXT)"))
    yield made
    made.dispose()


def insert(session: Session, name: str = "alice") -> None:
    session.execute(sqlalchemy.text("INSERT INTO users VALUES (:name)"), {"name": name})


def users(engine: sqlalchemy.Engine) -> list[str]:
    """With the only connection there is, so that one that was not given back is noticed."""
    with engine.connect() as connection:
        return list(connection.scalars(sqlalchemy.text("SELECT name FROM users")))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "SQLAlchemy" in record.getMessage()]


def endpoint() -> None: ...


def request() -> Operation:
    route = types.SimpleNamespace(path="/users/{id}", endpoint=endpoint)
    return Operation(REQUEST, {"type": "http", "method": "GET", "path": "/users/1", "route": route, "endpoint": endpoint})


def test_a_session_left_in_a_transaction_is_rolled_back_and_reported_once(engine: sqlalchemy.Engine, caplog: pytest.LogCaptureFixture) -> None:
    kept = Session(engine)  # as a module might

    async def main(resets: Resets) -> None:
        for _ in range(3):
            await operate(resets, lambda: insert(kept), request())
            assert not kept.in_transaction()
            assert users(engine) == []

    play(main)
    line = endpoint.__code__.co_firstlineno
    place = f"tests/sandbox/test_adapters.py:{line} in endpoint"
    assert warnings_in(caplog) == [f"GET /users/{{id}} ({place}) left a session of SQLAlchemy in a transaction: it is rolled back and closed"]


def test_a_session_nobody_holds_any_more_gives_its_connection_back(engine: sqlalchemy.Engine) -> None:
    gc.collect()
    gc.disable()  # its garbage is a cycle, and would come back whenever it likes
    try:

        async def main(resets: Resets) -> list[str]:
            await operate(resets, lambda: insert(Session(engine)))
            return users(engine)

        assert play(main) == []
    finally:
        gc.enable()


def test_sessions_that_end_what_they_begin_are_none_of_our_business(engine: sqlalchemy.Engine, caplog: pytest.LogCaptureFixture) -> None:
    sessions: list[Any] = []

    def use() -> None:
        with Session(engine) as session:
            insert(session)
            session.commit()
            insert(session, "bob")
            with session.begin_nested():
                insert(session, "carol")
            session.rollback()
        operation = adapters.current()
        assert operation is not None
        assert sessions[0]._open[operation] == {}  # a websocket session may have a million of them

    async def main(resets: Resets) -> list[str]:
        sessions[:] = [close.__self__ for close in resets._close if isinstance(getattr(close, "__self__", None), adapters.Sessions)]
        for _ in range(2):
            await operate(resets, use)
        return users(engine)

    assert play(main) == ["alice", "alice"]
    assert warnings_in(caplog) == []


def test_a_session_begun_outside_of_operations_is_left_alone(engine: sqlalchemy.Engine) -> None:
    with Session(engine) as outside:
        insert(outside)

        async def main(resets: Resets) -> bool:
            insert(outside, "bob")
            await operate(resets, lambda: insert(outside, "carol"))
            await operate(resets, outside.begin_nested)
            return outside.in_transaction()

        assert play(main) is True


def test_of_two_operations_each_ends_its_own(engine: sqlalchemy.Engine) -> None:
    first, second = Session(engine), Session(sqlalchemy.create_engine("sqlite://"))

    async def main(resets: Resets) -> None:
        first_over = asyncio.Event()

        async def lasts() -> None:
            second.execute(SELECT)
            await first_over.wait()
            assert second.in_transaction()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(operate(resets, lasts))
            await asyncio.sleep(0)
            await operate(resets, lambda: insert(first))
            assert not first.in_transaction()
            first_over.set()
        assert not second.in_transaction()

    play(main)
    second.get_bind().dispose()


def test_a_session_begun_in_a_thread_is_closed_when_the_call_is_over(engine: sqlalchemy.Engine) -> None:
    closed_in: list[int] = []

    class Watched(Session):
        def close(self) -> None:
            closed_in.append(threading.get_ident())
            super().close()

    kept = Watched(engine)

    async def main(resets: Resets) -> list[str]:
        await operate(resets, lambda: asyncio.to_thread(insert, kept))
        assert not kept.in_transaction()
        assert len(closed_in) == 1
        assert closed_in[0] != threading.get_ident()  # the database may take its time
        return users(engine)

    assert play(main) == []


def test_code_that_outlives_the_operation_keeps_its_session(engine: sqlalchemy.Engine) -> None:
    other = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.StaticPool, connect_args={"check_same_thread": False})
    in_task, in_thread = Session(engine), Session(other)

    async def main(resets: Resets) -> None:
        go, begun, thread_go = asyncio.Event(), asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        still: list[bool] = []
        running: list[asyncio.Task[None]] = []

        async def task() -> None:
            insert(in_task)
            begun.set()
            await go.wait()
            still.append(in_task.in_transaction())
            in_task.close()

        def thread(ready: asyncio.Event) -> None:
            in_thread.execute(SELECT)
            loop.call_soon_threadsafe(ready.set)
            thread_go.wait(10)
            still.append(in_thread.in_transaction())
            in_thread.close()

        async def start() -> None:
            ready = asyncio.Event()
            running.append(asyncio.create_task(task()))
            running.append(asyncio.create_task(asyncio.to_thread(thread, ready)))
            await begun.wait()
            await ready.wait()

        await operate(resets, start)
        go.set()
        thread_go.set()
        await asyncio.gather(*running)
        assert still == [True, True]

    play(main)
    other.dispose()


def test_what_begins_when_the_operation_is_over_is_not_held(engine: sqlalchemy.Engine) -> None:
    async def main(resets: Resets) -> None:
        operation, go = Operation(TASK, "test"), asyncio.Event()
        left: list[asyncio.Task[None]] = []

        async def task() -> None:
            await go.wait()
            with Session(engine) as session:
                insert(session)
                sessions = next(close.__self__ for close in resets._close if isinstance(getattr(close, "__self__", None), adapters.Sessions))
                assert operation not in sessions._open

        await operate(resets, lambda: left.append(asyncio.create_task(task())), operation)
        go.set()
        await left[0]

    play(main)


@pytest.mark.parametrize("dropped", [False, True])
def test_async_sessions_are_closed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture, dropped: bool) -> None:
    async def main(resets: Resets) -> int:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db", pool_size=1, max_overflow=0, pool_timeout=5)
        kept: list[AsyncSession] = []

        async def use() -> None:
            session = AsyncSession(engine)
            await session.execute(SELECT)
            if not dropped:
                kept.append(session)

        for _ in range(2):
            await operate(resets, use)
            assert not any(session.in_transaction() for session in kept)
            async with engine.connect() as connection:
                assert (await connection.execute(SELECT)).scalar() == 1
        checked_out = engine.pool.checkedout()  # type: ignore[attr-defined]
        await engine.dispose()
        return int(checked_out)

    assert play(main) == 0
    assert len(warnings_in(caplog)) == 1


registry = scoped_session(sessionmaker())
scope: contextvars.ContextVar[str] = contextvars.ContextVar("scope", default="")
by_scope = scoped_session(sessionmaker(), scopefunc=scope.get)
async_registry = async_scoped_session(async_sessionmaker(), scopefunc=asyncio.current_task)


def test_registries_of_sessions_are_emptied_where_they_are_used(engine: sqlalchemy.Engine) -> None:
    flush = tuple(f"{__name__}:{name}" for name in ("registry", "by_scope", "async_registry"))

    def in_thread() -> tuple[bool, int]:
        known = registry.registry.has()
        registry(bind=engine)
        insert(registry())
        return known, threading.get_ident()

    async def use(name: str) -> bool:
        scope.set(name)
        known = registry.registry.has() or by_scope.registry.has() or async_registry.registry.has()
        registry()
        session = by_scope()
        async_registry()
        await anyio.to_thread.run_sync(int)
        assert by_scope() is session  # it is of the operation, not of the call
        return known

    async def main(resets: Resets) -> None:
        from concurrent.futures import ThreadPoolExecutor

        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        assert [await operate(resets, lambda: use("one")) for _ in range(2)] == [False, False]
        assert not async_registry.registry.registry
        first, second = [await operate(resets, lambda: asyncio.to_thread(in_thread)) for _ in range(2)]
        assert first == second
        assert first[0] is False
        assert users(engine) == []

    play(main, SandboxConfig(flush=flush))


def test_closing_listens_no_more() -> None:
    sessions = adapters.Sessions()
    listening = [sqlalchemy.event.contains(Session, "after_transaction_create", sessions._began)]
    sessions.close()
    listening.append(sqlalchemy.event.contains(Session, "after_transaction_create", sessions._began))
    listening.append(sqlalchemy.event.contains(Session, "after_transaction_end", sessions._ended))
    assert listening == [True, False, False]


# Django ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def django(tmp_path: Path) -> Any:
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "django.db")}},
            USE_I18N=True,
            USE_TZ=True,
            TIME_ZONE="UTC",
            LANGUAGE_CODE="en",
        )
    import django

    django.setup()
    import django.db

    return django


def test_django_leaves_nothing_in_threads(django: Any) -> None:
    from django.utils import timezone, translation

    closed = []

    def visit() -> tuple[str, str, int]:
        found = (translation.get_language(), timezone.get_current_timezone_name(), threading.get_ident())
        translation.activate("fr")
        timezone.activate("Europe/Paris")
        django.db.connection.ensure_connection()
        connection = django.db.connection.connection
        original = django.db.connection.close
        django.db.connection.close = lambda: (closed.append(connection), original())
        return found

    async def main(resets: Resets) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        return [await operate(resets, lambda: loop.run_in_executor(None, visit)) for _ in range(2)]

    first, second = play(main)
    assert first == second
    assert first[:2] == ("en", "UTC")
    assert len(closed) >= 2


def test_django_leaves_nothing_in_tasks(django: Any) -> None:
    from django.utils import timezone, translation

    def visit() -> tuple[str, str]:
        found = (translation.get_language(), timezone.get_current_timezone_name())
        translation.activate("fr")
        timezone.activate("Europe/Paris")
        return found

    async def main(resets: Resets) -> list[Any]:
        return [await operate(resets, visit) for _ in range(2)]

    assert play(main) == [("en", "UTC")] * 2


def test_connections_of_the_loops_thread_are_closed_where_django_was_told_to_allow_them(django: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    async def main(resets: Resets) -> bool:
        await operate(resets, django.db.connection.ensure_connection)
        return django.db.connection.connection is None

    assert play(main) is True


# structlog, decimal ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["contextvars", "threadlocal"])
def test_what_a_thread_binds_to_its_log_lines_goes(module: str, recwarn: pytest.WarningsRecorder) -> None:
    bindings = getattr(structlog, module)

    def visit() -> dict[str, Any]:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = dict(getattr(bindings, f"get_{module}")())
            getattr(bindings, f"bind_{module}")(user="alice")
        return found

    async def main(resets: Resets) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        return [await operate(resets, lambda: loop.run_in_executor(None, visit)) for _ in range(3)]

    assert play(main) == [{}] * 3


def test_a_threads_decimal_context_goes() -> None:
    def visit() -> int:
        found = decimal.getcontext().prec
        decimal.getcontext().prec = 3
        return found

    async def main(resets: Resets) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        return [await loop.run_in_executor(None, visit) for _ in range(2)]

    assert play(main) == [decimal.DefaultContext.prec] * 2


# Who is there ---------------------------------------------------------------------------------------------------------------------


def test_what_is_not_imported_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sqlalchemy.orm", "django.conf", "structlog", "decimal"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert list(adapters.find_adapters()) == []


def test_only_sqlalchemy_asks_for_something_after_each_operation(django: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sqlalchemy.orm")
    assert [(adapter.name, adapter.each) for adapter in adapters.find_adapters()] == [("Django", ()), ("structlog", ()), ("decimal", ())]


def test_random_numbers_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins: numpy and torch are too large to be installed for this."""
    seeded: list[str] = []
    adapters.after_fork()
    monkeypatch.setitem(sys.modules, "numpy.random", types.SimpleNamespace(seed=lambda: seeded.append("numpy")))
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(seed=lambda: seeded.append("torch")))
    adapters.after_fork()
    assert seeded == ["numpy", "torch"]


def test_messages_name_no_endpoint_where_there_is_none(engine: sqlalchemy.Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main(resets: Resets) -> None:
        await operate(resets, lambda: insert(Session(engine)))

    play(main)
    assert warnings_in(caplog) == ["task test left a session of SQLAlchemy in a transaction: it is rolled back and closed"]
