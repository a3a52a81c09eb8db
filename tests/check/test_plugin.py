"""The pytest plugin, as its users meet it: installed with laraman, in a pytest of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SHOP = """
import logging
LOG = logging.getLogger("shop")  # one that is made by a test may have a level
import functools, threading
CART = []
USER = None
@functools.lru_cache
def settings(): return object()
class Order:
    last = None
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with a module ``shop``, whose tests only see what is installed."""
    pytester.makepyfile(shop=SHOP)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.syspath_prepend(str(pytester.path))
    return pytester


def run(project: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    project.makepyfile(test_shop=f"import os, sys, time, threading, pytest, shop\n{source}")
    return project.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *arguments)


def test_a_run_that_does_not_ask_for_it_imports_nothing(project: pytest.Pytester) -> None:
    source = """
def test_light():
    shop.CART.append(1)
    assert [name for name in sys.modules if name.startswith("laraman")] == ["laraman", "laraman.check", "laraman.check.plugin"]
"""
    result = run(project, source)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*laraman check*")


POLLUTING = {
    "list": ("shop.CART.append('tea')", "shop.CART: [[]] -> [[]'tea']"),
    "global": ("shop.USER = 'alice'", "shop.USER: None -> 'alice'"),
    "class": ("shop.Order.last = 5", "shop.Order.last: None -> 5"),
    "environment": ("os.environ['COLOUR'] = 'red'", "process.environment: COLOUR: unset -> 'red'"),
    "cwd": ("os.chdir('/')", "process.cwd: '*-> '/'"),
    "umask": ("os.umask(0o77)", "process.umask: * -> 0o77"),
    "path": ("sys.path.append('/srv')", "process.path: *'/srv'*"),
    "logging": ("import logging; logging.getLogger('shop').setLevel('DEBUG')", "process.loggers: shop level: 0 -> 10"),
    "timezone": ("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()", "process.timezone: *JST*"),
    "signal": ("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "process.signals: *SIGUSR1*"),
    "thread": ("threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "threads*"),
    "descriptor": ("os.open('/dev/zero', os.O_RDONLY)", "descriptors*"),
}


@pytest.mark.parametrize("name", POLLUTING)
def test_a_test_that_leaves_something_behind_is_an_error(project: pytest.Pytester, name: str) -> None:
    statement, says = POLLUTING[name]
    result = run(project, f"def test_dirty(no_pollution):\n    {statement}\n\ndef test_clean(no_pollution): pass\n")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_dirty*", "the test leaves behind:", f"  {says}"])


CLEAN = """
MINE = []

@pytest.fixture(scope="module")
def catalogue():
    os.environ["CATALOGUE"] = "1"
    shop.CART.append("tea")
    yield
    shop.CART.clear()
    del os.environ["CATALOGUE"]

@pytest.fixture
def thread():
    end = threading.Event()
    running = threading.Thread(target=end.wait)
    running.start()
    yield
    end.set()
    running.join()

def test_of_the_module(catalogue, no_pollution): pass
def test_undone(monkeypatch, thread, no_pollution, tmp_path, capsys, caplog):
    monkeypatch.setattr(shop, "USER", "bob")
    monkeypatch.setenv("COLOUR", "red")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    print("hello")
@pytest.mark.usefixtures("no_pollution")
def test_its_own(): MINE.append(1)
def test_a_bounded_cache(no_pollution): shop.settings()
def test_an_import(no_pollution): import colorsys
def test_a_loop(no_pollution):
    import asyncio
    asyncio.run(asyncio.sleep(0))
@pytest.mark.parametrize("n", [1, 2])
def test_parameters(no_pollution, n): pass
class TestClass:
    def test_method(self, no_pollution): self.value = 5
def test_fails(no_pollution): assert 0
def test_seed(no_pollution):
    import random
    random.random()
"""


def test_what_fixtures_put_back_is_nothing_left_behind(project: pytest.Pytester) -> None:
    result = run(project, CLEAN)
    result.assert_outcomes(passed=10, failed=1)


def test_the_fixture_says_when_it_is_asked_for_too_late(project: pytest.Pytester) -> None:
    result = run(project, "def test_dirty(request):\n    request.getfixturevalue('no_pollution')\n    shop.CART.append(1)\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["no_pollution is asked for too late: *"])


def test_the_option_reports_every_test_and_fails_none(project: pytest.Pytester) -> None:
    source = """
def test_clean(): pass
def test_cart(): shop.CART.append("tea")
class TestUser:
    def test_user(self, monkeypatch):
        shop.USER = "alice"
        monkeypatch.setenv("COLOUR", "red")
def test_cart_again(no_pollution): shop.CART.append("milk")
"""
    result = run(project, source, "--laraman-check")
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(
        [
            "=* laraman check *=",
            "WHAT       BEFORE   AFTER            TEST",
            "shop.CART  [[]]       [[]'tea']          test_shop.py::test_cart",
            "shop.USER  None     'alice'          test_shop.py::TestUser::test_user",
            "shop.CART  [[]'tea']  [[]'tea', 'milk']  test_shop.py::test_cart_again",
            "3 tests leave something behind",
        ]
    )


def test_the_option_says_when_there_is_nothing(project: pytest.Pytester) -> None:
    result = run(project, "def test_clean(): pass\n", "--laraman-check")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["=* laraman check *=", "no test leaves anything behind"])


def test_tests_inside_the_package_that_they_test(project: pytest.Pytester) -> None:
    package = project.mkpydir("store")
    (package / "stock.py").write_text("ITEMS = []\n")
    (package / "tests").mkdir()
    (package / "tests" / "__init__.py").touch()
    source = "from store import stock\nSEEN = []\n\ndef test_stock(no_pollution):\n    SEEN.append(1)\n    stock.ITEMS.append(1)\n"
    (package / "tests" / "test_stock.py").write_text(source)
    result = project.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["  store.stock.ITEMS: *"])
    result.stdout.no_fnmatch_line("*SEEN*")


def test_a_seed_of_the_tests_stays_what_it_is(project: pytest.Pytester) -> None:
    source = """
import random
def test_first(): random.seed(5)
def test_second(): assert random.random() == random.Random(5).random()
"""
    run(project, source, "--laraman-check").assert_outcomes(passed=2)


def test_nothing_to_collect_is_no_mistake(project: pytest.Pytester, tmp_path: Path) -> None:
    assert os.listdir(tmp_path) == []
    result = project.runpytest_subprocess("--laraman-check", str(tmp_path))
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
