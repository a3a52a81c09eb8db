"""Under ``--reload``: no bytecode of sources that have just been saved.

Python takes bytecode for that of a source by the second and the size that this was saved with. A reload takes a tenth of a second: what it writes
would also be the bytecode of a second save within that second, if this has the same size, and the old code would come back until a third.
"""

from __future__ import annotations

import os
import time
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Seconds after which no save can be within the second of the last one, whatever the file system makes of its time.
SETTLED = 2.0

_write = SourceFileLoader.set_data


def of_settled_sources_only() -> None:
    """From now on, in this process."""
    SourceFileLoader.set_data = _set_data  # type: ignore[assignment, method-assign]


def _set_data(loader: SourceFileLoader, path: str, data: ReadableBuffer, **options: Any) -> None:
    """In the place of the method by which importlib writes bytecode, and nothing else; that it may not is foreseen there."""
    if time.time() - os.stat(loader.path).st_mtime >= SETTLED:
        _write(loader, path, data, **options)
