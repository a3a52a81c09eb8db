"""What a row of the contract is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SAME: Any = object()


@dataclass(frozen=True)
class Row:
    """``ids`` are those of the contract's page that it stands for, separated by commas. ``do`` is what the client does, ``seen`` what uvicorn shows.

    Where laraman shows something else, that is ``other``, and ``differs`` names the reason among laraman.doctor.differences. Where that has an
    option, laraman is asked a third time, with all such options, and has to show what uvicorn does; ``back`` is what it shows then, if that is
    nearly the same.
    """

    ids: str
    what: str
    do: Callable[[Any], Any]
    seen: Any
    other: Any = SAME
    differs: str = ""
    back: Any = SAME
    on: str = "plain"

    @property
    def name(self) -> str:
        return f"{self.ids}: {self.what}"

    @property
    def keys(self) -> list[str]:
        return [key.strip() for key in self.ids.split(",")]
