"""What a check has found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laraman.check.diff import Finding
    from laraman.check.requests import Request

#: Of the report of a check.
COLUMNS = ("WHAT", "BEFORE", "AFTER", "REQUEST", "PLACE")
#: Characters below which no column is cut, whatever the terminal's width is.
LEAST = 12
GAP = "  "

#: Answers after which the code behind a route may not have run.
NOT_RUN = (404, 405, 422)


@dataclass(frozen=True, slots=True)
class Played:
    """A request that was played, the status of its first answer (None when there was none) and what was unusual."""

    request: Request
    status: int | None
    note: str

    @property
    def remark(self) -> str:
        """What a reader of the report should know about it; empty when all was well."""
        name, status, note = self.request.name, self.status, self.note
        if status is not None and (status >= 500 or status in NOT_RUN):
            return f"{name}: played, answered {status}{f': {note}' if note else ''}"
        return f"{name}: {note}" if note else ""


@dataclass(frozen=True, slots=True)
class Report:
    """``findings`` are leaks, each with the further requests that cause it."""

    findings: tuple[tuple[Finding, tuple[str, ...]], ...]
    requests: tuple[Played, ...]
    rounds: int
    notes: tuple[str, ...]
    seconds: float
    ignored: int = 0

    def without(self, patterns: Sequence[str]) -> Report:
        """The same without the findings whose path a pattern names; ``*`` stands for anything. A pattern that names none is told in a note."""
        used: set[str] = set()
        kept = []
        for finding, others in self.findings:
            named = [pattern for pattern in patterns if _names(pattern, finding.path)]
            used.update(named)
            if not named:
                kept.append((finding, others))
        notes = (*self.notes, *(f"--ignore {pattern}: nothing of that name was found" for pattern in dict.fromkeys(patterns) if pattern not in used))
        return replace(self, findings=tuple(kept), notes=notes, ignored=len(self.findings) - len(kept))

    @property
    def exit_code(self) -> int:
        return 1 if self.findings else 0

    def json(self) -> str:
        """``{"findings": [...], "requests": [...], "rounds": N, "ignored": N, "notes": [...]}``, in one line."""
        findings = [{**_fields(finding), "others": others} for finding, others in self.findings]
        requests = [{"method": one.request.method, "path": one.request.path, "status": one.status} for one in self.requests]
        return json.dumps({"findings": findings, "requests": requests, "rounds": self.rounds, "ignored": self.ignored, "notes": self._notes()})

    def _notes(self) -> list[str]:
        return [*(remark for one in self.requests if (remark := one.remark)), *self.notes]

    def table(self, width: int | None) -> str:
        """The table and the summary, in lines of at most ``width`` characters where that is possible; None for no limit."""
        lines = table([row(finding, others) for finding, others in self.findings], width) if self.findings else []
        notes = [f"note: {plain(note)}" for note in self._notes()]
        blocks = ["\n".join(block) for block in (lines, notes) if block]
        return "\n\n".join([*blocks, self._summary()])

    def _summary(self) -> str:
        leaks, requests, rounds = _count(len(self.findings), "leak"), _count(len(self.requests), "request"), _count(self.rounds, "round")
        ignored = f", {self.ignored} ignored" if self.ignored else ""
        return f"{leaks} in {requests}, {rounds}{ignored} ({self.seconds:.1f} s)"


def _names(pattern: str, path: str) -> bool:
    """Brackets are those of the path: ``shop.seen['a']``."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), path, re.DOTALL) is not None


def _fields(finding: Finding) -> dict[str, Any]:
    names = ("path", "kind", "before", "after", "request", "place", "rounds")
    return {name: getattr(finding, name) for name in names}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# Tables ---------------------------------------------------------------------------------------------------------------------------


def row(finding: Finding, others: Sequence[str] = ()) -> tuple[str, ...]:
    """The cells of a finding."""
    request = f"{finding.request} and {len(others)} more" if others else finding.request
    return tuple(plain(cell) or "-" for cell in (finding.path, finding.before, finding.after, request, finding.place))


def plain(text: str) -> str:
    """In one line, and nothing in it moves a terminal's cursor: values come from strangers."""
    return text if text.isprintable() else ascii(text)[1:-1]


def table(rows: Sequence[tuple[str, ...]], width: int | None, columns: Sequence[str] = COLUMNS) -> list[str]:
    """Lines with aligned columns; where they do not fit into ``width``, the widest columns are cut. Places are not: they are what one looks for."""
    cells = [columns, *rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    if width is not None:
        left = width - len(GAP) * (len(columns) - 1) - widths[-1]
        widths[:-1] = _fitted(widths[:-1], left)
    return [GAP.join(_cut(cell, size).ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in cells]


def _fitted(widths: list[int], room: int) -> list[int]:
    """Take from the widest, character by character, until they fit or are as narrow as they may be."""
    fitted = list(widths)
    while sum(fitted) > room and max(fitted) > LEAST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
