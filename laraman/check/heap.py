"""What an application has in its memory and what its process has, by name path, so that two moments can be compared (``laraman.check.diff``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Snapshot:
    """The heap at one moment. It holds no object of the application."""


class Heap:
    """``roots`` are the names of the application's own modules or their packages; ``extra`` are further objects by name path (``app.state``)."""

    def __init__(self, roots: Sequence[str], extra: Mapping[str, Any] | None = None) -> None:
        self.roots = tuple(roots)
        self.extra = dict(extra or {})

    def snapshot(self) -> Snapshot:
        return Snapshot()
