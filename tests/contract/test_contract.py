"""Each row of the contract, with the same client against uvicorn and laraman."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract import rows_http, rows_life, rows_names, rows_scope, rows_websocket
from tests.contract.table import SAME, Row

if TYPE_CHECKING:
    from tests.contract.conftest import Stage

ROWS: list[Row] = [*rows_scope.ROWS, *rows_http.ROWS, *rows_websocket.ROWS, *rows_names.ROWS, *rows_life.ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(stage: Stage, row: Row) -> None:
    names = stage.names(row)
    with ThreadPoolExecutor() as pool:
        seen: dict[str, Any] = dict(zip(names, pool.map(lambda name: row.do(stage.of(row.on, name)), names), strict=True))
    other = row.seen if row.other is SAME else row.other
    expected = {"uvicorn": row.seen, "laraman": other, "as uvicorn": row.seen if row.back is SAME else row.back}
    assert seen == {name: expected[name] for name in names}
