"""Those who hear of a stop because they have put a function of their own in the place of ``uvicorn.Server.handle_exit``.

sse-starlette does, so that its streams end when the server wants to; whatever server that is, they call the original in the end. uvicorn itself is
never imported here and nothing of it is changed.
"""

from __future__ import annotations

import logging
import signal
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger("uvicorn.error")

#: Where the originals are; of the second, when its names stand for uvicorn's.
_ORIGINALS = ("uvicorn.server", "laraman.asgi.server")


def tell(server: Any = None, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
    """Call what stands in for ``handle_exit``, if anything does; but not for a ``server`` of that class, whose handler it is already."""
    found = getattr(sys.modules.get("uvicorn.server"), "Server", None)
    handler = getattr(found, "handle_exit", None)
    if handler is None or handler.__module__ in _ORIGINALS or isinstance(server, found):  # type: ignore[arg-type]
        return
    try:
        handler(SimpleNamespace(should_exit=True, force_exit=False, _captured_signals=[]), number, frame)
    except Exception:
        logger.exception("What stands in for uvicorn's Server.handle_exit raised")
