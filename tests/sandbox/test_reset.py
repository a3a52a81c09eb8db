"""Resets with real modules: names, warm, flush by type, restore, registration, and what happens when a reset fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from laraman import events
from laraman.config.sandbox import SandboxConfig
from laraman.errors import BootError, ConfigError
from laraman.sandbox import reset as reset_module
from laraman.sandbox.operation import TASK, Operation
from laraman.sandbox.reset import Resets, Resettable, resettable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

APP = '''
import asyncio, collections, functools, threading

calls = []
awaited = []
plain = {}
items, members, queue, data, counted = [], set(), collections.deque(), bytearray(), collections.Counter()
table = collections.UserDict()
COUNT = 0
SETTINGS = {"debug": False, "hosts": ["a"]}

@functools.lru_cache
def cached(number):
    calls.append(number)
    return number

class Thing:
    def __init__(self):
        self.state = "used"
    def reset(self):
        self.state = "fresh"
    @property
    def fresh(self):
        return []

class Async:
    resets = 0
    async def reset(self):
        await asyncio.sleep(0)
        self.resets += 1

class State(threading.local):
    def __init__(self):
        self.user = None

class Needy(threading.local):
    def __init__(self, user):
        self.user = user

thing, asynchronous, local, state, needy = Thing(), Async(), threading.local(), State(), Needy("x")

def empty():
    calls.append("empty")

async def empty_async():
    await asyncio.sleep(0)
    awaited.append("empty_async")

def needs(argument): ...

def breaks():
    calls.append("breaks")
    raise RuntimeError("no")

async def breaks_async():
    raise RuntimeError("no, async")

async def hangs():
    await asyncio.sleep(3600)

def warm_up():
    SETTINGS["warm"] = True
    return 1

class Nested:
    inner = SETTINGS
'''


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A package ``resetapp`` with a module ``state``."""
    package = tmp_path / "resetapp"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "state.py").write_text(APP)
    (package / "broken.py").write_text("import nonsense_that_is_not_there\n")
    (package / "raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import resetapp.state  # type: ignore[import-not-found]

    yield resetapp.state
    for name in [name for name in sys.modules if name.partition(".")[0] == "resetapp"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No adapters: which libraries other tests have imported is not the matter here."""
    monkeypatch.setattr(reset_module, "find_adapters", lambda: iter(()))


class Locale:
    """A watch."""

    value = "C"
    restored = 0

    def read(self) -> str:
        return self.value

    def restore(self, value: str) -> None:
        self.value = value
        self.restored += 1


def names(*words: str) -> tuple[str, ...]:
    return tuple(f"resetapp.state:{word}" for word in words)


def run(config: SandboxConfig, use: Callable[[Resets], Any] = lambda resets: None, times: int = 1, watches: Any = None) -> Resets:
    """Prepare, use, and let one operation end after another, and the worker be idle."""

    async def main() -> Resets:
        resets = await Resets.prepare(config, watches or {})
        try:
            for _ in range(times):
                use(resets)
                for waiting in (resets.after(Operation(TASK, "test")), resets.when_idle()):
                    if waiting is not None:
                        await waiting
            return resets
        finally:
            resets.close()

    return asyncio.run(main())


# Names ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "text"),
    [
        ("flush", "resetapp.state:plane", r"sandbox.flush: 'resetapp.state:plane': resetapp.state has no 'plane'; did you mean 'plain'\?"),
        ("warm", "resetapp.stade:plain", r"sandbox.warm: .*: there is no module 'resetapp.stade'; did you mean 'resetapp.state'\?"),
        ("restore", "resetap.state:plain", r"sandbox.restore: .*: there is no module 'resetap'; did you mean 'resetapp'\?"),
        ("restore", "resetapp.state:Nested.iner", r"resetapp.state.Nested has no 'iner'; did you mean 'inner'\?"),
        ("flush", "resetapp.state.plain:x", r"there is no module 'resetapp.state.plain'"),
        ("flush", "resetapp.state:COUNT", "'resetapp.state:COUNT' is a int, which can be neither emptied nor called"),
        ("flush", "resetapp.state:Thing", "'resetapp.state:Thing' is a type"),
        ("flush", "resetapp.state:needs", "cannot be called without arguments"),
        ("flush", "resetapp.state:needy", r"give it a reset\(\)"),
        ("restore", "resetapp.state:Thing", "is a type, and these are not entered"),
        ("restore", "resetapp.state:needs", "is a function, and these are not entered"),
        ("restore", "resetapp.state:local", r"sandbox.restore: 'resetapp.state:local': local cannot be copied, a _thread\._local"),
        ("restore", "resetapp.state:plain.clear", "is a builtin_function_or_method, and these are not entered"),
        ("restore", "resetapp.state:thing.reset", "is a method, and these are not entered"),
        ("restore", "resetapp.state:thing.fresh", "is another object each time"),
    ],
)
def test_what_is_wrong_with_a_name_is_said_in_one_line(app: Any, option: str, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as raised:
        run(SandboxConfig(**{option: (name,)}))
    assert "\n" not in str(raised.value)


def test_names_are_looked_at_before_anything_runs(app: Any) -> None:
    with pytest.raises(ConfigError, match="plane"):
        run(SandboxConfig(warm=names("warm_up"), flush=names("plane")))
    assert "warm" not in app.SETTINGS


@pytest.mark.parametrize("module", ["broken", "raises"])
def test_a_module_that_raises_is_no_wrong_name(app: Any, module: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BootError, match=f"importing resetapp.{module} failed with (ModuleNotFoundError|ZeroDivisionError)"):
        run(SandboxConfig(warm=(f"resetapp.{module}:x",)))
    assert caplog.records[0].exc_info


# warm -----------------------------------------------------------------------------------------------------------------------------


def test_warm_calls_what_takes_nothing_and_awaits_it(app: Any) -> None:
    run(SandboxConfig(warm=names("empty", "empty_async", "needs", "plain", "Nested.inner", "cached")))
    assert (app.calls, app.awaited) == (["empty"], ["empty_async"])


@pytest.mark.parametrize("name", ["breaks", "breaks_async"])
def test_warm_that_raises_refuses_the_boot_by_name(app: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BootError, match=f"sandbox.warm: resetapp.state:{name} raised RuntimeError: no"):
        run(SandboxConfig(warm=names(name)))
    assert caplog.records[0].exc_info


# flush ----------------------------------------------------------------------------------------------------------------------------


def test_containers_and_caches_are_emptied_in_place(app: Any) -> None:
    def use(resets: Resets) -> None:
        assert resets.each
        assert not resets.idle
        app.plain["k"] = app.table["k"] = 1
        app.items.append(1)
        app.members.add(1)
        app.queue.append(1)
        app.data.append(1)
        app.counted["k"] += 1
        app.cached(1)

    run(SandboxConfig(flush=names("plain", "items", "members", "queue", "data", "counted", "table", "cached")), use, times=2)
    assert [len(each) for each in (app.plain, app.items, app.members, app.queue, app.data, app.counted, app.table)] == [0] * 7
    assert app.cached.cache_info().currsize == 0
    assert app.calls == [1, 1]


def test_reset_methods_functions_and_locals(app: Any) -> None:
    def use(resets: Resets) -> None:
        app.local.user = app.state.user = "alice"
        app.state.more = 1

    resets = run(SandboxConfig(flush=names("thing", "asynchronous", "empty", "empty_async", "local", "state", "plain.clear")), use, times=2)
    assert app.thing.state == "fresh"
    assert app.asynchronous.resets == 2
    assert (app.calls, app.awaited) == (["empty"] * 2, ["empty_async"] * 2)
    assert vars(app.local) == {}
    assert vars(app.state) == {"user": None}  # as its __init__ left it
    assert resets.failed == ""


def test_nothing_named_means_nothing_to_do(app: Any) -> None:
    resets = run(SandboxConfig(warm=names("plain")))
    assert not resets.each
    assert not resets.idle


def test_a_reset_that_raises_is_reported_once_and_the_others_run(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    flush = names("breaks", "empty", "breaks_async", "empty_async", "plain")
    resets = run(SandboxConfig(flush=flush), lambda _: app.plain.update(k=1), times=3)
    assert app.calls == ["breaks", "empty"] * 3
    assert app.awaited == ["empty_async"] * 3
    assert app.plain == {}
    assert resets.failed == "flush resetapp.state:breaks_async failed"
    messages = [(record.getMessage(), record.exc_info is not None) for record in caplog.records if record.levelno >= logging.ERROR]
    assert messages == [(f"flush resetapp.state:{name} failed; this process is replaced", True) for name in ("breaks", "breaks_async")]


def test_an_async_reset_has_a_deadline(app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reset_module, "RESET_SECONDS", 0.01)
    resets = run(SandboxConfig(flush=names("hangs", "empty")))
    assert resets.failed == "flush resetapp.state:hangs failed"
    assert app.calls == ["empty"]


def test_a_cancellation_waits_for_the_other_resets(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Resets:
        resets = await Resets.prepare(SandboxConfig(flush=names("hangs", "empty_async", "empty")), {})
        waiting = resets.after(Operation(TASK, "test"))
        assert waiting is not None
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return resets

    resets = asyncio.run(main())
    assert (app.calls, app.awaited) == (["empty"], ["empty_async"])
    assert resets.failed  # that one is half done


# restore --------------------------------------------------------------------------------------------------------------------------


def test_restore_puts_back_what_was_there_after_warm(app: Any) -> None:
    settings = app.SETTINGS

    def use(resets: Resets) -> None:
        assert resets.idle
        assert app.SETTINGS["warm"] is True
        app.SETTINGS["hosts"].append("b")
        app.SETTINGS = {}
        app.COUNT += 1
        app.Nested.inner = None

    run(SandboxConfig(warm=names("warm_up"), restore=names("SETTINGS", "COUNT", "Nested.inner")), use, times=2)
    assert app.SETTINGS is app.Nested.inner is settings
    assert settings == {"debug": False, "hosts": ["a"], "warm": True}
    assert app.COUNT == 0


def test_restore_by_the_guards_word(app: Any) -> None:
    watch = Locale()
    with pytest.raises(ConfigError, match=r"'local' is no import string, and nothing the guard watches; did you mean 'locale'\?"):
        run(SandboxConfig(restore=("local",)), watches={"locale": watch})
    resets = run(SandboxConfig(restore=("locale",)), lambda _: setattr(watch, "value", (watch.restored and "C") or "tr"), 2, {"locale": watch})
    assert resets.idle
    assert (watch.value, watch.restored) == ("C", 1)


def test_the_guards_words_are_there_without_the_guard(app: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'recursion'"):
        run(SandboxConfig(restore=("recursions",)))
    limit = sys.getrecursionlimit()
    try:
        run(SandboxConfig(restore=("recursion", "logging")), lambda _: sys.setrecursionlimit(limit + 1))
        assert sys.getrecursionlimit() == limit
    finally:
        sys.setrecursionlimit(limit)


def test_factories_of_logging_are_put_back(app: Any) -> None:
    """They wrap the one before, and so a handler that sets one makes a longer chain with each request."""
    factory, logger_class = logging.getLogRecordFactory(), logging.getLoggerClass()

    class Other(logging.Logger): ...

    def use(resets: Resets) -> None:
        logging.setLogRecordFactory(lambda *args, **fields: factory(*args, **fields))
        logging.setLoggerClass(Other)

    try:
        run(SandboxConfig(restore=("logging",)), use)
        assert (logging.getLogRecordFactory(), logging.getLoggerClass()) == (factory, logger_class)
    finally:
        logging.setLogRecordFactory(factory)
        logging.setLoggerClass(logger_class)


# resettable -----------------------------------------------------------------------------------------------------------------------


class Mine:
    resets = 0

    def reset(self) -> None:
        self.resets += 1

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_registered_objects_are_reset_and_not_kept() -> None:
    version = events.version
    one, two = resettable(Mine()), resettable(Mine())
    assert resettable(one) is one
    assert events.version > version
    assert isinstance(one, Resettable)
    resets = run(SandboxConfig(), lambda resets: None, times=2)
    assert resets.each
    assert (one.resets, two.resets) == (2, 2)
    before = len(reset_module._registered)
    del one, two
    gc.collect()
    assert len(reset_module._registered) == before - 2


def test_a_class_is_registered_only_with_a_method_of_its_own() -> None:
    class Whole:
        resets = 0

        @classmethod
        def reset(cls) -> None:
            cls.resets += 1

    resettable(Whole)
    run(SandboxConfig())
    assert Whole.resets == 1
    for wrong in (Mine, object(), types.SimpleNamespace(reset=1)):
        with pytest.raises(TypeError, match=r"has no reset\(\)"):
            resettable(wrong)
    del Whole
    gc.collect()
