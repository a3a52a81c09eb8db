"""What an application under check may do to this process is undone."""

from __future__ import annotations

import random
import textwrap
from typing import TYPE_CHECKING

import pytest

from laraman.sandbox.guard.watches import WATCHES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def put_back() -> Iterator[None]:
    before = [(watch, watch.read()) for watch in WATCHES]
    fill, state = textwrap.fill, random.getstate()
    yield
    textwrap.fill = fill
    random.setstate(state)
    for watch, value in before:
        if watch.read() != value:
            watch.restore(value)
