"""Which Worker this process is. Apart from what needs an event loop: declarations ask for it, and the master imports those too."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

#: The Worker of this process, None outside of one.
current_worker: ContextVar[Any] = ContextVar("current_worker", default=None)
