"""Changes that Python announces: their line is known, and they can be stopped."""

from __future__ import annotations

import bdb
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from laraman.errors import Pollution
from laraman.sandbox.guard import audit
from laraman.sandbox.guard.watches import WATCHES
from laraman.sandbox.operation import CURRENT
from tests.sandbox.guarding import Lines, end, lines, make, request, run_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["lines", "make"]


def trace(*arguments: Any) -> None:
    return None


def set_variable() -> None:
    os.environ["GUARDED"] = "yes"


def put_variable() -> None:
    os.putenv("GUARDED", "yes")


def delete_variable() -> None:
    del os.environ["GUARDED_BEFORE"]


def change_directory() -> None:
    os.chdir("/")


def change_directory_by_descriptor() -> None:
    root = os.open("/", os.O_RDONLY)
    try:
        os.fchdir(root)
    finally:
        os.close(root)


def set_trace() -> None:
    sys.settrace(trace)


def set_profile() -> None:
    sys.setprofile(trace)


def set_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(1, hard) if hard >= 0 else 1, hard))


ANNOUNCED: list[tuple[Callable[[], None], str]] = [
    (set_variable, "the environment, GUARDED: unset -> 'yes'"),
    (put_variable, "the environment, GUARDED: unset -> 'yes'"),
    (delete_variable, "the environment, GUARDED_BEFORE: 'old' -> unset"),
    (change_directory, "the working directory, "),
    (change_directory_by_descriptor, "the working directory, "),
    (set_trace, "the tracing hooks, trace: None -> a function"),
    (set_profile, "the tracing hooks, profile: None -> a function"),
    (set_limit, "the resource limits, RLIMIT_CORE: "),
]
EACH = pytest.mark.parametrize(("change", "expected"), [pytest.param(*row, id=row[0].__name__) for row in ANNOUNCED])


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("GUARDED_BEFORE", "old")
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    yield
    os.unsetenv("GUARDED")
    if resource.getrlimit(resource.RLIMIT_CORE) != limit:
        resource.setrlimit(resource.RLIMIT_CORE, limit)


def line_of(function: Callable[..., Any], offset: int = 1) -> str:
    return f"test_audit.py:{function.__code__.co_firstlineno + offset} in {function.__qualname__}"


def state() -> list[Any]:
    return [watch.read() for watch in WATCHES if watch.told]


@EACH
def test_the_line_is_named_once(change: Callable[[], None], expected: str, make: Any, lines: Lines) -> None:
    guard = make("warn")
    operation = request()
    run_in(operation, change)
    offset = {set_limit: 2, change_directory_by_descriptor: 3}.get(change, 1)
    assert len(lines.texts) == 1
    assert lines.texts[0].startswith(f"Guard: GET /orders changed {expected}")
    assert lines.texts[0].endswith(line_of(change, offset))
    end(guard, operation)
    guard.look_back()  # which finds what it knows
    assert len(lines.texts) == 1


@EACH
def test_restore_puts_back_what_was_announced(change: Callable[[], None], expected: str, make: Any, lines: Lines) -> None:
    before = state()
    guard = make("restore")
    operation = request()
    run_in(operation, change)
    run_in(operation, lambda: end(guard, operation))  # in its context, as in the server: putting back is nobody's change
    guard.look_back()
    assert state() == before
    assert len(lines.texts) == 1
    assert lines.texts[0].endswith("; it is put back") == (change is not set_limit)


@EACH
def test_strict_stops_it(change: Callable[[], None], expected: str, make: Any, lines: Lines) -> None:
    before, limit = state(), resource.getrlimit(resource.RLIMIT_CORE)
    guard = make("strict")
    operation = request()
    with pytest.raises(Pollution) as caught:
        run_in(operation, change)
    assert str(caught.value).startswith(f"GET /orders changed {expected}")
    assert (state(), resource.getrlimit(resource.RLIMIT_CORE)) == (before, limit)
    end(guard, operation)
    assert lines.texts == []


def test_what_is_put_back_is_nobodys_change(make: Any, lines: Lines) -> None:
    guard = make("restore")
    for _ in range(2):
        operation = request()
        run_in(operation, lambda: os.environ.update(TZ="Asia/Kathmandu") or time.tzset())
        end(guard, operation)  # outside of every operation, as the timer does it
        assert guard._touched == {}
        assert "TZ" not in os.environ


def test_what_is_not_an_operations_is_let_through_and_kept(make: Any, lines: Lines) -> None:
    guard = make("restore")
    set_variable()  # by a task of the application's own
    ended = request("/ended")
    ended.ended = True
    run_in(ended, change_directory)  # by a task that lives on
    end(guard, request())
    assert (os.environ["GUARDED"], os.getcwd()) == ("yes", "/")
    assert lines.texts == []


def test_a_thread_that_does_not_know_its_operation(make: Any, lines: Lines) -> None:
    """Executors do not always hand the context on: found after the operation, and put back."""
    guard = make("restore")
    operation = request()
    with ThreadPoolExecutor(1) as pool:
        run_in(operation, lambda: pool.submit(set_variable).result())
    assert lines.texts == []
    end(guard, operation)
    assert "GUARDED" not in os.environ
    assert lines.texts == ["Guard: GET /orders changed the environment, GUARDED: unset -> 'yes'; it was put back"]


def test_sync_endpoints_in_threads_are_named_with_their_line(make: Any, lines: Lines) -> None:
    make("warn")

    async def handle() -> None:
        CURRENT.set(request("/sync"))
        await anyio.to_thread.run_sync(set_variable)

    anyio.run(handle)
    assert lines.texts[0].startswith("Guard: GET /sync changed the environment")
    assert lines.texts[0].endswith(line_of(set_variable))


def test_what_changes_nothing_is_not_said(make: Any, lines: Lines) -> None:
    guard = make("strict")

    def nothing() -> None:
        os.environ["GUARDED_BEFORE"] = "old"
        os.environ.setdefault("GUARDED_BEFORE", "new")
        os.environ.pop("GUARDED_NEVER", None)
        os.unsetenv("GUARDED_NEVER")
        os.chdir(".")
        resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
        resource.prlimit(0, resource.RLIMIT_CORE)

    run_in(request(), nothing)
    guard.look_back()
    assert lines.texts == []


def test_everyday_things_trip_nothing(make: Any, lines: Lines, tmp_path: Path) -> None:
    guard = make("strict")

    def everyday() -> None:
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([sys.executable, "-c", "pass"], cwd=directory, env={"A": "b"}, check=True, timeout=60)
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    operation = request()
    run_in(operation, everyday)
    guard.check(operation)
    end(guard, operation)
    guard.look_back()
    guard.look_back()
    assert lines.texts == []


class Debugger(bdb.Bdb):
    def user_line(self, frame: Any) -> None:
        self.set_quit()


def test_a_debugger_may_be_used(make: Any, lines: Lines) -> None:
    make("strict")
    with contextlib.suppress(bdb.BdbQuit):
        run_in(request(), lambda: Debugger().runcall(int))
    assert lines.texts == []


def test_a_forked_child_is_on_its_own(make: Any, lines: Lines) -> None:
    make("strict")

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir("/")
                os.environ["GUARDED"] = "yes"
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert run_in(request(), fork) == 0


def test_an_error_of_the_guard_is_not_the_applications(make: Any, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make("strict")
    monkeypatch.setattr(guard, "changing", lambda *arguments: 1 / 0)
    run_in(request(), set_variable)
    assert os.environ["GUARDED"] == "yes"
    assert lines.texts == ["The guard failed at os.putenv"]


def test_nobody_listens_any_more(make: Any, lines: Lines) -> None:
    make("strict")
    audit.deafen()
    run_in(request(), set_variable)
    assert (lines.texts, audit._handlers) == ([], {})


SITE = """
import os
def helper():
    os.environ["GUARDED"] = "library"
"""
INSTALLED = "import os, sys, logging\nsys.path.insert(0, sys.argv[1] + '/site-packages')\nimport a_library\n" + """
from laraman.sandbox.guard import Guard
from laraman.sandbox.operation import CURRENT, Operation, REQUEST
logging.basicConfig(format="%(message)s", stream=sys.stdout)
Guard("warn").start()
CURRENT.set(Operation(REQUEST, {"method": "GET", "path": "/"}))
def view():
    a_library.helper()
{call}
"""


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("view()", "__main__.py:11 in view"),
        ("import contextvars; contextvars.copy_context().run(eval, 'a_library.helper()', vars())", "<string>:1 in <module>"),
    ],
)
def test_the_line_is_the_applications_if_there_is_one(tmp_path: Path, call: str, place: str) -> None:
    package = tmp_path / "site-packages" / "a_library"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SITE)
    (tmp_path / "__main__.py").write_text(INSTALLED.replace("{call}", call))
    result = subprocess.run([sys.executable, str(tmp_path), str(tmp_path)], capture_output=True, text=True, timeout=60, cwd="/")
    assert result.stderr == ""
    assert result.stdout.startswith("Guard: GET / changed the environment, GUARDED: unset -> 'library', at ")
    assert result.stdout.rstrip().endswith(place)


def test_installed_code_alone_is_named_too(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "a_library"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SITE)
    (tmp_path / "site-packages" / "an_app.py").write_text(INSTALLED.replace("{call}", "view()"))
    command = [sys.executable, "-m", "an_app", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site-packages")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", env=environ)
    assert result.stderr == ""
    assert result.stdout.rstrip().endswith("a_library/__init__.py:4 in helper")
