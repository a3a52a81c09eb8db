"""The verb ``laraman doctor``: what a project uses of uvicorn, and how its application answers under both servers."""

from __future__ import annotations

import importlib.util
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman.check.requests import read_requests
from laraman.cli.tables import print_table
from laraman.config import VERSION
from laraman.doctor.findings import Finding, explained, findings
from laraman.doctor.trial import compare
from laraman.doctor.uses import Use, find
from laraman.doctor.verdicts import MISSING
from laraman.errors import BootError, ConfigError

if TYPE_CHECKING:
    from laraman.config import Config


def run(config: Config | None, *, requests: str | None, timeout: str, as_json: bool) -> int:
    """Look, print the report, and return 1 where something is in the way. Without a configuration there is no application to try."""
    seconds = _seconds(timeout)
    given = None if requests is None else read_requests(Path(requests))
    uses = find(Path.cwd())
    found: list[Finding] = []
    names: list[str] = []
    note = ""
    if config is None:
        note = "no application was named or found, so none was tried"
    elif importlib.util.find_spec("uvicorn") is None:
        note = "uvicorn is not installed here, so the application was not tried under both"
    else:
        try:
            theirs, ours, names = compare(config, given, seconds)
            found = findings(theirs, ours, names)
        except BootError as exc:
            note = str(exc)
    failed = note.startswith("the application does not start")
    obstacles = sum(use.verdict.word == MISSING for use in uses) + sum(not finding.purpose for finding in found) + failed
    print(_json(uses, found, names, note, obstacles)) if as_json else _print(uses, found, names, note, obstacles)
    return 1 if obstacles else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ConfigError(f"--timeout: {text!r} is not a number") from None
    if not 0.1 <= seconds < math.inf:
        raise ConfigError(f"--timeout: {text} is not 0.1 or more")
    return seconds


def _json(uses: list[Use], found: list[Finding], names: list[str], note: str, obstacles: int) -> str:
    report: dict[str, Any] = {
        "uses": [{**use._asdict(), "verdict": use.verdict.word, "advice": use.verdict.advice} for use in uses],
        "played": names,
        "differences": [finding._asdict() for finding in found],
        "note": note,
        "obstacles": obstacles,
    }
    return json.dumps(report)


def _print(uses: list[Use], found: list[Finding], names: list[str], note: str, obstacles: int) -> None:
    if uses:
        columns = {"PLACE": 0, "WHAT": 1, "LARAMAN": 2, "ADVICE": 3}
        rows = [{"cells": (use.place, f"{use.kind} {use.name}", use.verdict.word, use.verdict.advice)} for use in uses]
        _table(columns, rows)
    else:
        print("The project's files do not mention uvicorn.")
    print()
    if names:
        print(f"{len(names)} played under uvicorn {version('uvicorn')} and laraman {VERSION}: {', '.join(names)}")
    unexpected = [finding for finding in found if not finding.purpose]
    if unexpected:
        columns = {"REQUEST": 0, "WHAT": 1, "UVICORN": 2, "LARAMAN": 3}
        _table(columns, [{"cells": finding[:4]} for finding in unexpected])
    for purpose in dict.fromkeys(finding.purpose for finding in found if finding.purpose):
        print(f"on purpose: {explained(purpose)}")
    if note:
        print(note)
    print("no obstacle" if not obstacles else f"{obstacles} obstacle{'s' if obstacles > 1 else ''}")


def _table(columns: dict[str, int], rows: list[dict[str, Any]]) -> None:
    print_table({name: lambda row, index=index: row["cells"][index] for name, index in columns.items()}, rows)  # type: ignore[misc]
