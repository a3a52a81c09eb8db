"""A short run of benchmarks.chaos through each backend: nothing that was acknowledged is lost, and nothing is done twice without a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.chaos import SERVERS, Chaos
from tests.conftest import find_tool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fork

#: Jobs, and how many processes are killed: what is left then is done in peace.
JOBS, KILLS = {"hub": 3000, "redis": 2000, "nats": 2000}, 9


@pytest.mark.parametrize("through", JOBS)
def test_nothing_that_was_acknowledged_is_lost(through: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if through in SERVERS:
        find_tool(SERVERS[through])
    directory: Path = tmp_path_factory.mktemp("ch")  # short: a unix socket's path has to fit
    figures = Chaos(through, JOBS[through], seed=7, visibility=3.0, most=KILLS).run(directory)
    assert figures.acknowledged == JOBS[through]
    assert {*figures.kills} == {through, "http", "task"}
    assert (figures.lost, figures.unexplained) == ([], []), figures
    if through != "nats":  # nats-server that is killed has messages again that it had deleted
        assert figures.again == [], figures
