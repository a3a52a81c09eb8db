"""The pytest plugin: installed with laraman, idle until it is asked for.

    pytest --laraman-check          after the run, a table of what each test has left behind
    def test_order(no_pollution)    a test that leaves something behind is an error
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "laraman-watcher"


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "report what each test leaves behind in the modules under test and in the process"
    parser.getgroup("laraman").addoption("--laraman-check", action="store_true", help=help)


@pytest.fixture
def no_pollution(request: pytest.FixtureRequest) -> None:
    """Whatever the test leaves behind is an error: in the state of the modules under test, and in what the process has once for all.

    It is looked at when the fixtures of the test are gone, so what they put back (``monkeypatch``) is nothing left behind.
    """
    if "no_pollution" not in getattr(request.node, "fixturenames", ()):  # nobody has looked before the test
        pytest.fail("no_pollution is asked for too late: it has to be an argument of the test or of a fixture, or in usefixtures", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--laraman-check"):
        _watch(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    if _is_used(session.items) and not session.config.pluginmanager.has_plugin(NAME):
        _watch(session.config)


def _is_used(items: Iterable[pytest.Item]) -> bool:
    return any(no_pollution.__name__ in getattr(item, "fixturenames", ()) for item in items)


def _watch(config: pytest.Config) -> None:
    from laraman.check.watcher import Watcher  # not before: a run that does not ask for it pays nothing

    config.pluginmanager.register(Watcher(config), NAME)
