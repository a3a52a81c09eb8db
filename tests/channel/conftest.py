from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.channel.hubs import AHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[AHub]:
    """A hub in the test's loop; its clients are closed before it."""
    hub = AHub(tmp_path)
    await hub.start()
    yield hub
    await hub.close()
