"""Each row of the contract, with the same client against uvicorn and laraman."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.doctor.differences import DIFFERENCES
from tests.contract import rows_http, rows_life, rows_names, rows_options, rows_scope, rows_websocket
from tests.contract.page import ELSEWHERE, PAGE
from tests.contract.table import SAME, Row

if TYPE_CHECKING:
    from tests.contract.conftest import Stage

ROOT = Path(__file__).parent.parent.parent
ROWS: list[Row] = [row for part in (rows_options, rows_names, rows_life, rows_scope, rows_http, rows_websocket) for row in part.ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(stage: Stage, row: Row) -> None:
    names = stage.names(row)
    with ThreadPoolExecutor() as pool:
        seen: dict[str, Any] = dict(zip(names, pool.map(lambda name: row.do(stage.of(row.on, name)), names), strict=True))
    other = row.seen if row.other is SAME else row.other
    expected = {"uvicorn": row.seen, "laraman": other, "as uvicorn": row.seen if row.back is SAME else row.back}
    assert seen == {name: expected[name] for name in names}


def test_the_table_is_complete() -> None:
    """Nothing on the page is without a row, and no row without a place on the page."""
    listed = {f"{section} {key}" for section, keys in PAGE.items() for key in keys}
    found = {key for row in ROWS for key in row.keys if not key.startswith("1.13 ")} | {*ELSEWHERE}
    assert {*PAGE} == {f"1.{number}" for number in range(13)}
    assert sorted(listed - found) == []
    assert sorted(key for key in found - listed if not key.startswith(("1.1 --no-", "1.10 reason", "1.10 serves"))) == []
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).exists()] == []


def test_no_row_is_there_twice() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []


def test_differences_have_reasons_and_reasons_have_rows() -> None:
    different = [row for row in ROWS if row.differs]
    assert {row.differs for row in different} == {*DIFFERENCES}
    assert [row.name for row in ROWS if row.other is not SAME and not row.differs] == []
    for name, difference in DIFFERENCES.items():
        rows = [row for row in different if row.differs == name]
        assert any(key.partition(" ")[0] == difference.row for row in rows for key in row.keys), f"{name}: no row of {difference.row}"
        assert any(row.back is SAME for row in rows) == bool(difference.option), f"{name}: is there an option that gives uvicorn's behaviour back?"
