"""Write the generated parts of the README: the option table, and the tables of the last benchmark in the history."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import table  # noqa: E402
from laraman.config import gateway_table, options_table, sandbox_table, workers_table  # noqa: E402
from laraman.doctor.differences import table as differences_table  # noqa: E402

README = ROOT / "README.md"
HISTORY = ROOT / "benchmarks" / "history.jsonl"


def benchmark() -> str:
    """What was measured last of each scenario as tables, with what it was measured on."""
    if not HISTORY.exists():
        return "Not measured yet."
    runs = [json.loads(line) for line in HISTORY.read_text().splitlines()]
    last = {scenario: run for run in runs for scenario in run["results"]}
    parts = []
    for run in runs:
        tables = [table(scenario, run["results"][scenario]) for scenario, found in last.items() if found is run]
        if tables:
            parts.append("\n\n".join([*tables, _measured(run)]))
    return "\n\n".join(parts)


def _measured(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    machine = run["machine"]
    seconds = f" of {run['seconds']} s" if "seconds" in run else ""
    return (
        f"Measured {run['date'][:10]} at commit {run['commit']}, {run['rounds']} rounds{seconds}, "
        f"{machine['cpu']} with {machine['cores']} CPUs, Linux {machine['kernel']}, Python {run['python']}: {versions}."
    )


def generate(text: str) -> str:
    """The README's text with its generated parts as they should be."""
    tables = {
        "options": options_table(),
        "gateway": gateway_table(),
        "workers": workers_table(),
        "sandbox": sandbox_table(),
        "differences": differences_table(),
    }
    for name, content in {**tables, "benchmark": benchmark()}.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(f"{begin}\n")
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"README.md has no part called {name}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(generate(README.read_text()))
