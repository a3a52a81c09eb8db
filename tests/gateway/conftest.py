from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> Any:
    """Tests of this directory that await run on uvloop, as the server does."""
    return "asyncio", {"use_uvloop": True}
