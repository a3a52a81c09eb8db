from __future__ import annotations

import asyncio
import contextlib
import decimal
import gc
import locale
import logging
import multiprocessing.pool
import os
import signal
import socket
import sys
import threading
import time
import types
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest

from laraman.errors import Pollution
from laraman.process.tasks import Tasks
from laraman.sandbox.guard import audit, leftovers
from laraman.sandbox.guard import guard as guard_module
from laraman.sandbox.guard.watches import SHOWN, WATCHES, Watch, describe_variable, glance
from laraman.sandbox.operation import CURRENT, REQUEST, Operation
from tests.conftest import wait_until
from tests.sandbox.guarding import Lines, end, lines, make, request, run_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

__all__ = ["lines", "make"]

def tzset() -> None:
    os.environ["TZ"] = "Asia/Kathmandu" if time.timezone == 0 else "UTC"
    time.tzset()


def hook(*arguments: Any) -> None:
    """An excepthook, a signal's handler, a profile function."""


class Filter(logging.Filter):
    def __repr__(self) -> str:
        return "<Filter>"


named = logging.getLogger("tests.sandbox.guarded")


def a_logger() -> None:
    named.setLevel(logging.ERROR)
    named.addFilter(Filter())


#: For every watch: a change, and what is to be said about it.
CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "environment": (lambda: os.environ.update(GUARDED="yes"), "the environment, GUARDED: unset -> 'yes'"),
    "cwd": (lambda: os.chdir("/"), "-> '/'"),
    "timezone": (tzset, "the time zone, time.tzname: "),
    "locale": (lambda: locale.setlocale(locale.LC_ALL, "POSIX" if "UTF" in locale.setlocale(locale.LC_CTYPE) else "C.UTF-8"), "the locale, LC_ALL: "),
    "decimal": (lambda: setattr(decimal.DefaultContext, "prec", 5), "decimal.DefaultContext, prec: 28 -> 5"),
    "warnings": (lambda: warnings.simplefilter("always", ImportWarning), "added ('always', None, <class 'ImportWarning'>"),
    "logging": (lambda: logging.disable(logging.CRITICAL), "logging for all, logging.disable: 0 -> 50"),
    "path": (lambda: sys.path.append("/nowhere"), "sys.path, entries: added '/nowhere'"),
    "streams": (lambda: setattr(sys, "excepthook", hook), "sys.excepthook: sys.excepthook -> tests.sandbox.test_guard.hook"),
    "sockets": (lambda: socket.setdefaulttimeout(3.5), "the default timeout of sockets, seconds: None -> 3.5"),
    "recursion": (lambda: sys.setrecursionlimit(4321), "-> 4321"),
    "switching": (lambda: sys.setswitchinterval(0.02), "the switch interval of threads, seconds: 0.005 -> 0.02"),
    "garbage": (lambda: gc.set_threshold(123), "the garbage collector, threshold: "),
    "tracing": (lambda: sys.setprofile(hook), "the tracing hooks, profile: None -> tests.sandbox.test_guard.hook"),
    "umask": (lambda: os.umask(0o027), "-> 0o27"),
    "signals": (lambda: signal.signal(signal.SIGUSR2, hook), "the signal handlers, SIGUSR2: "),
    "loggers": (a_logger, "loggers, tests.sandbox.guarded level: 0 -> 40, filters: added <Filter>"),
}
ALL = pytest.mark.parametrize("watch", [pytest.param(watch, id=watch.name) for watch in WATCHES])


def test_every_watch_is_tested() -> None:
    assert list(CHANGES) == [watch.name for watch in WATCHES]


@ALL
def test_a_reading_stands_for_itself(watch: Watch, make: Any) -> None:
    before = watch.read()
    assert watch.read() == before
    CHANGES[watch.name][0]()
    after = watch.read()
    assert before != after
    watch.restore(before)
    assert watch.read() == before != after


@ALL
def test_a_change_is_said_once_and_is_the_new_state(watch: Watch, make: Any, lines: Lines) -> None:
    guard = make("warn")
    audit.deafen()  # found by comparing alone
    operation = request(endpoint=a_logger)
    CHANGES[watch.name][0]()
    end(guard, operation)
    guard.look_back()
    found = [text for text in lines.texts if f"changed {watch.title}, " in text]
    assert len(found) == 1, lines.texts
    assert found[0].startswith("Guard: GET /orders changed ")
    assert CHANGES[watch.name][1] in found[0]
    assert "(endpoint " in found[0]
    assert found[0].endswith(f"test_guard.py:{a_logger.__code__.co_firstlineno} in a_logger)")
    assert lines.records[0].levelno == logging.WARNING
    assert lines.records[0].name == "uvicorn.error"
    said = len(lines.records)
    end(guard, request())
    guard.look_back()
    assert len(lines.records) == said


@ALL
def test_restore_puts_it_back_and_says_so(watch: Watch, make: Any, lines: Lines) -> None:
    before = watch.read()
    guard = make("restore")
    audit.deafen()
    CHANGES[watch.name][0]()
    end(guard, request())
    if not watch.fast:
        guard.look_back()
    assert watch.read() == before
    assert any(watch.title in text and text.endswith("; it was put back") for text in lines.texts), lines.texts


@ALL
def test_strict_puts_it_back_and_refuses_the_operation(watch: Watch, make: Any, lines: Lines) -> None:
    before = watch.read()
    guard = make("strict")
    audit.deafen()
    guard.check(request())
    CHANGES[watch.name][0]()
    if not watch.fast:
        guard._touched[watch.name] = guard_module._ANYBODY  # for what is announced; the others are too dear for every operation
    with pytest.raises(Pollution, match=r"^GET /orders changed .*; it was put back$"):
        guard.check(request())
    assert watch.read() == before
    guard.check(request())
    assert lines.texts == []


def test_strict_logs_what_is_found_after_the_response(make: Any, lines: Lines) -> None:
    guard = make("strict")
    operation = request()
    guard.check(operation)
    sys.setrecursionlimit(4321)
    end(guard, operation)
    assert [record.levelno for record in lines.records] == [logging.ERROR]
    assert sys.getrecursionlimit() != 4321


def test_what_cannot_be_put_back_is_said_and_kept(make: Any, lines: Lines, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    home = os.getcwd()
    os.chdir(gone)
    try:
        guard = make("restore")
        os.chdir("/")
        gone.rmdir()
        guard._touched.clear()
        guard.since.append(request().trace)
        guard.look_back()
        assert "it cannot be put back: [Errno 2]" in lines.texts[0]
        guard.since.append(request().trace)
        guard.look_back()
        assert len(lines.texts) == 1
        assert guard._known["cwd"] == "/"
    finally:
        os.chdir(home)


# Whose change it is ---------------------------------------------------------------------------------------------------------------


def test_what_changes_while_there_is_no_operation_is_the_applications_own(make: Any, lines: Lines) -> None:
    guard = make("restore")
    socket.setdefaulttimeout(9)
    guard.look_back()
    end(guard, request())
    assert (lines.texts, socket.getdefaulttimeout()) == ([], 9)


def test_one_of_several(make: Any, lines: Lines) -> None:
    guard = make("warn", in_flight=lambda: 2)
    for number in range(7):
        end(guard, request(f"/{number}"))
        end(guard, request(f"/{number}"))
    socket.setdefaulttimeout(9)
    for _ in range(guard_module.SAID):
        assert lines.texts == []
        guard.look_back()
    assert lines.texts == [
        "Guard: one of GET /0, GET /1, GET /2, GET /3, GET /4 and 2 more or one of 2 in flight"
        " changed the default timeout of sockets, seconds: None -> 9.0"
    ]


def test_after_a_find_the_next_one_is_exact(make: Any, lines: Lines) -> None:
    guard = make("warn")
    for number in range(guard_module.LOOK_EVERY):
        if number == 7:
            socket.setdefaulttimeout(9)
        end(guard, request(f"/{number}"))
    assert f"and {guard_module.LOOK_EVERY - guard_module.NAMED} more changed" in lines.texts[0]
    for number in range(guard_module.CLOSELY):
        if number == 7:
            socket.setdefaulttimeout(8)
        end(guard, request(f"/{number}"))
    assert lines.texts[1:] == ["Guard: GET /7 changed the default timeout of sockets, seconds: 9.0 -> 8.0"]
    for number in range(guard_module.CLOSELY + guard_module.LOOK_EVERY):  # that was a find too
        end(guard, request(f"/{number}"))
    assert guard.due == guard_module.LOOK_EVERY


def test_a_place_is_reported_once_and_their_number_is_bounded(make: Any, lines: Lines) -> None:
    guard = make("warn")
    guard.due = 1
    guard._closely = 10**6
    for number in range(4):
        socket.setdefaulttimeout(1 + number)
        end(guard, request("/same"))
    assert len(lines.texts) == 1
    for number in range(2 * guard_module.MAX_PLACES):
        socket.setdefaulttimeout(100 + number)
        end(guard, request(f"/{number}"))
    assert len(lines.texts) == guard_module.MAX_PLACES + 1
    assert lines.texts[-1] == f"Guard: that was place number {guard_module.MAX_PLACES}; no more are reported"


def test_whoever_sends_a_request_writes_no_lines(make: Any, lines: Lines) -> None:
    guard = make("warn")
    socket.setdefaulttimeout(9)
    end(guard, request("/\nINFO: all is well"))
    guard.look_back()
    assert r"GET /\nINFO: all is well changed" in lines.texts[0]


def test_restore_leaves_others_their_moment_but_not_for_ever(make: Any, lines: Lines) -> None:
    others = 1
    guard = make("restore", in_flight=lambda: others)
    socket.setdefaulttimeout(9)
    end(guard, request("/a"))
    assert (socket.getdefaulttimeout(), lines.texts) == (9, [])
    others = 0
    end(guard, request("/b"))
    assert socket.getdefaulttimeout() is None
    assert lines.texts == ["Guard: one of GET /a, GET /b changed the default timeout of sockets, seconds: None -> 9.0; it was put back"]
    others = 1
    socket.setdefaulttimeout(7)
    for _ in range(guard_module.PUT_BACK):
        assert (socket.getdefaulttimeout(), len(lines.texts)) == (7, 1)
        guard.look(request("/a"))
    assert socket.getdefaulttimeout() is None
    assert lines.texts[1].startswith("Guard: one of GET /a or one of 1 in flight changed ")


@pytest.mark.parametrize("mode", ["warn", "restore", "strict"])
def test_a_change_for_a_moment_is_nobodys_fault(make: Any, lines: Lines, mode: str) -> None:
    guard = make(mode, in_flight=lambda: 2)
    for number in range(100):
        operation = request(f"/{number}")
        if number % 4 == 0:
            before, warnings.filters = warnings.filters, [("ignore", None, Warning, None, 0), *warnings.filters]  # type: ignore[assignment]
        elif number % 4 == 3:
            warnings.filters = before
        if guard.every:
            guard.check(operation)
        end(guard, operation)
        if not guard.every:
            guard.look_back()
    assert lines.texts == []
    assert guard._waiting == {}


def test_strict_fails_nobody_for_what_may_have_been_another(make: Any, lines: Lines) -> None:
    others = 2
    guard = make("strict", in_flight=lambda: others)
    socket.setdefaulttimeout(9)
    guard.check(request("/a"))
    end(guard, request("/a"))
    others = 1  # itself
    guard.check(request("/b"))
    assert socket.getdefaulttimeout() is None
    assert lines.texts == ["Guard: one of GET /a, GET /b changed the default timeout of sockets, seconds: None -> 9.0; it was put back"]


def test_the_same_change_of_several_is_said_once(make: Any, lines: Lines) -> None:
    guard = make("warn")
    for number in range(4):
        for seconds in (9, None):
            guard.since += [request(f"/{number}").trace, request(f"/{number}/{seconds}").trace]
            socket.setdefaulttimeout(seconds)
            guard.look_back()
    assert len(lines.texts) == 2


@pytest.mark.parametrize("mode", ["warn", "restore"])
def test_a_logger_that_a_late_import_makes_may_have_a_level(make: Any, lines: Lines, mode: Any) -> None:
    """SQLAlchemy does that when it is imported."""
    name = f"tests.sandbox.guarded.made.{mode}"
    guard = make(mode)
    run_in(operation := request(), lambda: logging.getLogger(name).setLevel(logging.WARNING))
    end(guard, operation)
    guard.look_back()
    assert lines.texts == []
    run_in(operation := request(), lambda: logging.getLogger(name).setLevel(logging.ERROR))
    end(guard, operation)
    guard.look_back()
    assert f"loggers, {name} level: 30 -> 40" in lines.texts[0]
    assert logging.getLogger(name).level == (logging.ERROR if mode == "warn" else logging.WARNING)


@pytest.mark.parametrize("mode", ["warn", "restore", "strict"])
def test_a_late_import_may_have_filters_of_warnings_for_its_own(make: Any, lines: Lines, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib3 and numpy do that when they are imported. A filter for everything is nobody's own, and one that comes without an import neither."""
    guard = make(mode)

    class Own(Warning): ...

    def late(name: str) -> None:
        monkeypatch.setitem(sys.modules, f"tests.sandbox.imported.{name}", types.ModuleType(name))

    def imports() -> None:
        late("one")
        warnings.simplefilter("always", Own, append=True)
        warnings.filterwarnings("ignore", message="numpy.dtype size changed")

    def changes() -> None:
        late("two")
        warnings.simplefilter("ignore", FutureWarning)

    for number, change in enumerate((imports, changes, lambda: warnings.simplefilter("error", Own))):
        run_in(operation := request(f"/{number}"), change)
        end(guard, operation)
        guard.look_back()
    assert len(lines.texts) == 2, lines.texts
    assert "FutureWarning" in lines.texts[0]
    assert "added ('error', None, " in lines.texts[1]
    assert any(entry[2] is Own for entry in warnings.filters)


def test_what_an_import_seems_to_have_done_is_not_taken_for_it_while_others_run(make: Any, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight = [1]
    guard = make("warn", in_flight=lambda: in_flight[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="for a moment")
        monkeypatch.setitem(sys.modules, "tests.sandbox.imported.three", types.ModuleType("three"))
        end(guard, request())
        guard.look_back()
    in_flight[0] = 0
    end(guard, request())
    guard.look_back()
    assert lines.texts == []


def test_late_imports_and_their_loggers_are_no_change(make: Any, lines: Lines) -> None:
    guard = make("warn")
    logging.getLogger("tests.sandbox.imported.late").addHandler(logging.NullHandler())
    guard.since.append(request().trace)
    guard.look_back()
    assert lines.texts == []


def test_what_is_imported_late_is_no_change_either(make: Any, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as early:
        early.delitem(sys.modules, "decimal")
        guard = make("restore")
    end(guard, request())
    assert guard._known["decimal"] == guard.watches["decimal"].read()
    decimal.DefaultContext.prec = 5
    end(guard, request())
    assert (decimal.DefaultContext.prec, len(lines.texts)) == (28, 1)


@pytest.mark.parametrize("watch", [pytest.param(watch, id=watch.name) for watch in WATCHES if watch.fast])
def test_a_glance_sees_what_is_fast(watch: Watch, make: Any) -> None:
    before = glance()
    assert glance() == before
    kept = watch.read()
    CHANGES[watch.name][0]()
    assert glance() != before
    watch.restore(kept)
    assert glance() == before


# What is shown --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["API_KEY", "Secret_x", "GITHUB_TOKEN", "PGPASSWORD", "AUTH_HEADER", "AWS_CREDENTIALS", "MYSQL_PWD", "SESSION_ID"])
def test_secrets_are_not_shown(name: str) -> None:
    assert describe_variable(name, "hunter1", "hunter2") == f"{name}: changed (value not shown)"
    assert describe_variable(name, None, "hunter2") == f"{name}: set (value not shown)"
    assert describe_variable(name, "hunter1", None) == f"{name}: unset (value not shown)"


def test_urls_with_a_user_are_not_shown_and_long_values_are_shortened() -> None:
    assert describe_variable("DATABASE", None, "postgres://me:hunter2@db/x") == "DATABASE: set (value not shown)"
    assert describe_variable("DSN", None, "host=db password=hunter2") == "DSN: set (value not shown)"
    text = describe_variable("LONG", None, "x" * 1000)
    assert len(text) == len("LONG: unset -> ") + SHOWN
    assert describe_variable("A\nB", None, "x\n") == r"A\nB: unset -> 'x\n'"


# The timer ------------------------------------------------------------------------------------------------------------------------


def in_loop(test: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await test(asyncio.get_running_loop())

    asyncio.run(run())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "IDLE", 0.01)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_the_idle_worker_is_looked_at_and_then_left_alone(make: Any, lines: Lines, quick: None) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop)
        await until(lambda: guard._timer is None)  # the look after the start
        os.umask(0o027)
        end(guard, request())
        assert guard._timer is not None
        await until(lambda: lines.texts)
        assert "GET /orders changed the umask, " in lines.texts[0]
        await until(lambda: guard._timer is None)
        assert guard.since == []

    in_loop(test)


def test_a_busy_worker_is_waited_for_a_while(make: Any, lines: Lines, quick: None) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop, in_flight=lambda: 1)
        await until(lambda: guard._timer is None)
        end(guard, request("/a"))
        os.umask(0o027)
        looks = []
        looking, guard.look_back = guard.look_back, lambda: (looks.append(guard._waited), looking())
        waits = []
        arming, guard._arm = guard._arm, lambda: (waits.append(guard._waited), arming())
        await until(lambda: guard._timer is None)
        assert waits == [*range(1, guard_module.PATIENCE + 1), *[0] * (guard_module.SAID - 1)]
        assert len(looks) == guard_module.SAID
        assert "one of GET /a or one of 1 in flight changed the umask" in lines.texts[0]

    in_loop(test)


def test_under_load_there_is_a_look_now_and_then_and_at_everything_more_rarely(make: Any, lines: Lines) -> None:
    guard = make("warn")
    os.umask(0o027)
    for number in range(guard_module.LOOK_AT_ALL_EVERY):
        assert lines.texts == [], number
        end(guard, request())
    assert "the umask" in lines.texts[0]
    said = len(lines.texts)
    os.umask(0o077)
    for number in range(guard_module.LOOK_AT_ALL_EVERY // 2):
        end(guard, request(f"/{number}"))
    assert len(lines.texts) == said


# Threads and tasks ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_thread() -> Any:
    over = threading.Event()
    threads: list[threading.Thread] = []

    def start() -> None:
        threads.append(threading.Thread(target=over.wait, name="left"))
        threads[0].start()

    try:
        yield start
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_thread_that_is_left_behind(make: Any, lines: Lines) -> None:
    guard = make("warn")
    operation = request()
    with a_thread() as start:
        run_in(operation, start)
        guard.look_back()
        guard.look_back()
        assert lines.texts == []  # the operation is running
        operation.ended = True
        guard.look_back()
        assert lines.texts == []  # it may be just ending
        assert guard._leftovers.pending
        guard.look_back()
        line = start.__code__.co_firstlineno + 2
        assert len(lines.texts) == 1
        assert lines.texts[0].startswith("Guard: GET /orders is over and has left behind the thread 'left', started at ")
        assert lines.texts[0].endswith(f"test_guard.py:{line} in a_thread.<locals>.start")
        guard.look_back()
        assert len(lines.texts) == 1


def test_a_thread_that_ends_in_time_or_is_not_an_operations(make: Any, lines: Lines) -> None:
    guard = make("warn")
    operation = request()
    with a_thread() as start:
        run_in(operation, start)
        operation.ended = True
        guard.look_back()
    with a_thread() as start:
        run_in(None, start)
        guard.look_back()
        guard.look_back()
        assert lines.texts == []
        assert guard._leftovers._threads == []


def test_the_threads_of_pools_are_not_its_own(make: Any, lines: Lines) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop)
        operation = request()

        async def use() -> None:
            CURRENT.set(operation)
            await anyio.to_thread.run_sync(time.monotonic)
            await asyncio.to_thread(time.monotonic)

        await asyncio.create_task(use())
        assert {thread.name.partition("_")[0] for thread in threading.enumerate()} >= {"AnyIO worker thread", "asyncio"}
        operation.ended = True
        guard.look_back()
        guard.look_back()
        assert lines.texts == []

    in_loop(test)


def test_the_threads_that_the_standard_librarys_pools_need(make: Any, lines: Lines) -> None:
    guard = make("warn")
    operation = request()
    pools: list[Any] = []
    run_in(operation, lambda: pools.append(multiprocessing.pool.ThreadPool(1)))
    try:
        assert pools[0].apply(int) == 0
        operation.ended = True
        guard.look_back()
        guard.look_back()
        assert (lines.texts, guard._leftovers.pending) == ([], False)
    finally:
        pools[0].terminate()
        pools[0].join()


def test_a_library_may_have_threads_but_not_ever_more_of_them(make: Any, lines: Lines) -> None:
    guard = make("warn")
    operation = request()
    over = threading.Event()
    namespace: dict[str, Any] = {"threading": threading, "over": over, "threads": []}
    code = "def connect():\n    threads.append(threading.Thread(target=over.wait, name='connection'))\n    threads[-1].start()"
    exec(compile(code, "/venv/lib/site-packages/driver.py", "exec"), namespace)
    connect = namespace["connect"]

    def use() -> None:
        for _ in range(leftovers.LIBRARY_THREADS):
            connect()

    try:
        run_in(operation, use)
        operation.ended = True
        for pending in (True, False, False):
            guard.look_back()
            assert (lines.texts, guard._leftovers.pending) == ([], pending)
        run_in(late := request("/late"), use)
        late.ended = True
        guard.look_back()
        guard.look_back()
        assert len(lines.texts) == 1
        assert "has left behind the thread 'connection', started at " in lines.texts[0]
        assert lines.texts[0].endswith("<locals>.use")
    finally:
        over.set()
        for thread in namespace["threads"]:
            thread.join()


async def forgotten() -> None:
    await asyncio.sleep(3600)


def test_a_task_that_is_left_behind(make: Any, lines: Lines, quick: None) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop)
        operation = request()
        tasks = [run_in(operation, lambda: loop.create_task(forgotten())) for _ in range(3)]
        mine = loop.create_task(forgotten())
        await asyncio.sleep(0)
        guard.look_back()
        guard.look_back()
        assert lines.texts == []
        end(guard, operation)
        await until(lambda: lines.texts)  # by the timer, which comes again for what may be just ending
        line = forgotten.__code__.co_firstlineno
        assert len(lines.texts) == 1
        assert lines.texts[0].startswith("Guard: GET /orders is over and has left behind a task: ")
        assert lines.texts[0].endswith(f"test_guard.py:{line} in forgotten")
        await until(lambda: guard._timer is None)
        assert len(lines.texts) == 1
        guard.look_back()
        assert not guard._leftovers.pending
        for task in (*tasks, mine):
            task.cancel()

    in_loop(test)


def test_a_task_that_is_just_ending(make: Any, lines: Lines) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop)
        operation = request()
        task = run_in(operation, lambda: loop.create_task(forgotten()))
        await asyncio.sleep(0)
        operation.ended = True
        guard.look_back()
        task.cancel()
        await asyncio.wait([task])
        guard.look_back()
        assert lines.texts == []

    in_loop(test)


def test_what_the_server_runs_for_the_application_is_not_left_behind(make: Any, lines: Lines) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop)
        operation = request()
        async with anyio.create_task_group() as group:
            run_in(operation, lambda: Tasks(group).start_soon(forgotten))
            await asyncio.sleep(0)
            operation.ended = True
            guard.look_back()
            guard.look_back()
            group.cancel_scope.cancel()
        assert lines.texts == []

    in_loop(test)


def test_a_library_that_wraps_tasks_does_not_hide_whose_they_are(make: Any, lines: Lines) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        guard = make("warn", loop=loop)
        operation = request()
        async with anyio.create_task_group() as group:
            run_in(operation, lambda: group.start_soon(forgotten))
            await asyncio.sleep(0)
            operation.ended = True
            guard.look_back()
            guard.look_back()
            group.cancel_scope.cancel()
        assert lines.texts[0].endswith(" in forgotten")

    in_loop(test)


def test_nothing_that_is_over_is_kept(make: Any) -> None:
    guard = make("restore")
    operation = Operation(REQUEST, {"type": "http", "method": "GET", "path": "/"})
    reference = weakref.ref(operation)
    with a_thread() as start:
        run_in(operation, start)
    end(guard, operation)
    del operation
    wait_until(lambda: gc.collect() is None or reference() is None)
