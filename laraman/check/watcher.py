"""Looks before and after tests: what the plugin does when it is asked to (``laraman.check.plugin``)."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.check.diff import Change, diff
from laraman.check.heap import Heap, Snapshot
from laraman.check.report import plain, table

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

COLUMNS = ("WHAT", "BEFORE", "AFTER", "TEST")
#: What grows with a test run as such: modules that are imported, objects that pytest keeps for its report.
_OF_THE_RUN = ("sys.modules", "objects")
#: The environment variable that pytest sets anew in each phase of a test.
_OF_PYTEST = "PYTEST_CURRENT_TEST"
#: An attribute of reports, in which rows come to the process that shows them.
_ROWS = "laraman_check"


class Watcher:
    """Compares the heap before the first and after the last fixture that belongs to one test alone."""

    def __init__(self, config: pytest.Config) -> None:
        self._all = bool(config.getoption("--laraman-check"))
        self._root = os.path.join(str(config.rootpath), "")
        self._tests: set[str] = set()  # directories
        self._roots: set[str] = set()
        self._heap = Heap(())
        self._item: pytest.Item | None = None
        self._before: Snapshot | None = None
        self._found: list[tuple[str, ...]] = []
        self._rows: list[tuple[str, ...]] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tests = {os.path.join(str(item.path.parent), "") for item in session.items} - {self._root}

    # Around each test ------------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> None:
        if fixturedef.scope == "function" and isinstance(request.node, pytest.Item):
            self._begin(request.node)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._begin(item)

    def _begin(self, item: pytest.Item) -> None:
        """Look, once for each test. The end is after the fixtures of this test and before those of its module."""
        if item is self._item or not (self._all or _is_strict(item)):
            return
        self._item = item
        roots = self._packages()
        if roots != self._roots:
            self._roots, self._heap = roots, Heap(sorted(roots))
        self._before = self._snapshot()
        item.addfinalizer(lambda: self._end(item))

    def _end(self, item: pytest.Item) -> None:
        assert self._before is not None
        changes = [change for change in diff(self._before, self._snapshot()) if self._counts(change)]
        self._before = None
        self._found = [(change.path, plain(change.before), plain(change.after), item.nodeid) for change in changes]
        if changes and _is_strict(item):
            lines = [f"{change.path}: {plain(change.before)} -> {plain(change.after)}" for change in changes]
            pytest.fail("the test leaves behind:\n  " + "\n  ".join(lines), pytrace=False)

    def _snapshot(self) -> Snapshot:
        """The heap. That it was looked at leaves nothing behind either: a test may count on its seed."""
        current, state = os.environ.pop(_OF_PYTEST, None), random.getstate()
        try:
            return self._heap.snapshot()
        finally:
            random.setstate(state)
            if current is not None:
                os.environ[_OF_PYTEST] = current

    def _counts(self, change: Change) -> bool:
        """Whether it is something left behind, and not a bounded cache, something given back, or the tests' own."""
        if change.bounded or change.path.startswith(_OF_THE_RUN) or (change.rule in ("counted", "open") and not change.grew):
            return False
        return not any(change.path.startswith((f"{name}.", f"{name}[")) for name, path in self._own_modules() if self._is_test(path))

    # The modules under test ------------------------------------------------------------------------------------------------------

    def _packages(self) -> set[str]:
        return {name.partition(".")[0] for name, path in self._own_modules() if not self._is_test(path)}

    def _own_modules(self) -> Iterator[tuple[str, str]]:
        """The modules below the root directory that are not installed, with their files."""
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and path.startswith(self._root) and not {"site-packages", "dist-packages"} & set(path.split(os.sep)):
                yield name, path

    def _is_test(self, path: str) -> bool:
        return path.startswith(tuple(self._tests)) or Path(path).name.startswith(("test_", "conftest."))

    # The report ------------------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            setattr(report, _ROWS, self._found)
            self._found = []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._rows += map(tuple, getattr(report, _ROWS, ()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._all:
            return
        terminalreporter.section("laraman check")
        for line in table(self._rows, terminalreporter._tw.fullwidth, COLUMNS) if self._rows else []:
            terminalreporter.line(line)
        tests = len({row[-1] for row in self._rows})
        terminalreporter.line(f"{tests} test{' leaves' if tests == 1 else 's leave'} something behind" if tests else "no test leaves anything behind")


def _is_strict(item: pytest.Item) -> bool:
    return "no_pollution" in getattr(item, "fixturenames", ())
