"""What is different between two snapshots of the heap, and which of the differences over several rounds are leaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laraman.check.heap import Snapshot


@dataclass(frozen=True, slots=True)
class Change:
    """``path`` is not what it was. ``kind``: "rebound", "changed", "grows", "shrinks", "patched"; ``before`` and ``after`` are short texts."""

    path: str
    kind: str
    before: str
    after: str
    size_before: int | None = None
    size_after: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A leak. ``place`` is "file:line in function" or "" (``laraman.check.locate`` finds it), ``rounds`` the sizes after each round, if it has one."""

    path: str
    kind: str
    before: str
    after: str
    request: str = ""
    place: str = ""
    rounds: tuple[int, ...] = ()


def diff(before: Snapshot, after: Snapshot) -> list[Change]:
    return []


class Series:
    """Snapshots around the rounds of one request (or of one list of requests).

        series = Series(heap.snapshot(), request="GET /orders")      # BEFORE the first time ever that the request is played
        for user in ("alice", "bob", "alice", "bob", "alice", "bob"):     # users take turns; five rounds or more
            await play(user)
            series.add(heap.snapshot(), user)
        series.findings()
    """

    def __init__(self, base: Snapshot, request: str = "") -> None:
        self.request = request

    def add(self, snapshot: Snapshot, user: str = "") -> None:
        pass

    def findings(self) -> list[Finding]:
        return []
