"""What the verbs print: columns of words and numbers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from laraman.protocols.ipc import Envelope


def print_status(answer: Envelope) -> None:
    server = answer["server"]
    addresses = " ".join(server["addresses"]) or "no address"
    what = f"{server['app']}  " if server["app"] else ""
    print(
        f"laraman {server['version']}  {server['name']}  pid {server['pid']}  {what}{addresses}  "
        f"up {_duration(server['uptime'])}  generation {server['generation']}  {server['state']}\n"
    )
    columns = {
        "WORKER": lambda row: row["worker"],
        "SLOT": lambda row: row["slot"],
        "PID": lambda row: row["pid"],
        "STATE": lambda row: row["state"],
        "GEN": lambda row: row["generation"],
        "RSS": lambda row: _size(row["rss"]),
        "UPTIME": lambda row: _duration(row["uptime"]),
        "REQUESTS": lambda row: row["requests"],
        "IN-FLIGHT": lambda row: row["in_flight"],
        "CONN-IN": lambda row: row["connections_in"],
        "CONN-OUT": lambda row: row["connections_out"],
        "RESTARTS": lambda row: row["restarts"],
        "LAST EXIT": lambda row: row["last_exit"],
    }
    print_table(columns, answer["processes"])
    if timers := [{**row, **timer} for row in answer["processes"] for timer in row.get("timers", ())]:
        print()
        print_table(_TIMERS, timers)


_TIMERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "TIMER": lambda row: row["name"],
    "WHEN": lambda row: row["when"],
    "WORKER": lambda row: f"{row['worker']}:{row['slot']}",
    "NEXT": lambda row: "running" if row["next"] is None else _duration(max(0.0, row["next"])),
    "TICKS": lambda row: row["ticks"],
    "MISSED": lambda row: row["missed"],
    "ERRORS": lambda row: row["errors"],
}


def print_connections(answer: Envelope) -> None:
    columns = {
        "PID": lambda row: row["pid"],
        "WORKER": lambda row: f"{row['worker']}:{row['slot']}",
        "DIR": lambda row: row["direction"],
        "PROTOCOL": lambda row: row["protocol"],
        "LOCAL": lambda row: row["local"],
        "PEER": lambda row: row["peer"],
        "CLIENT": lambda row: row.get("client"),
        "STATE": lambda row: row["state"],
        "BYTES-IN": lambda row: row["bytes_in"],
        "BYTES-OUT": lambda row: row["bytes_out"],
        "MSGS-IN": lambda row: row["messages_in"],
        "MSGS-OUT": lambda row: row["messages_out"],
        "QUEUED": lambda row: row.get("queued"),
        "RETRIES": lambda row: row.get("failures"),
        "AGE": lambda row: _duration(row["age"]),
        "NAME": lambda row: row.get("name"),
    }
    if all(row.get("client", row["peer"]) == row["peer"] for row in answer["rows"]):
        del columns["CLIENT"]  # it differs behind a proxy only
    print_table(columns, answer["rows"])
    if silent := answer.get("missing"):
        print(f"laraman: no answer from {', '.join(silent)}", file=sys.stderr)
    if left_out := answer.get("left_out"):
        print(f"laraman: {left_out} more are not shown", file=sys.stderr)


_WORDS = {
    *("WORKER", "STATE", "LAST EXIT", "DIR", "PROTOCOL", "LOCAL", "PEER", "CLIENT", "NAME", "OPTION", "VALUE", "SOURCE"),
    *("TIMER", "WHEN", "PLACE", "WHAT", "ADVICE", "REQUEST", "UVICORN", "LARAMAN"),
}


def print_table(columns: Mapping[str, Callable[[dict[str, Any]], object]], rows: Iterable[dict[str, Any]]) -> None:
    """Numbers to the right, words to the left; a dash for what is not known."""
    cells = [[_cell(column(row)) for column in columns.values()] for row in rows]
    lines = [list(columns), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        fields = zip(columns, line, widths, strict=True)
        padded = (cell.ljust(width) if name in _WORDS else cell.rjust(width) for name, cell, width in fields)
        print("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    text = "-" if value is None or value == "" else str(value)
    return text if text.isprintable() else ascii(text)[1:-1]  # an exit's reason may quote what a stranger sent


def _duration(seconds: float | None) -> str:
    """12s, 3m07s, 2h05m, 4d03h."""
    if seconds is None:
        return "-"
    left = int(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if left >= size:
            return f"{left // size}{unit}{left % size // smaller_size:02}{smaller}"
    return f"{left}s"


def _size(count: int | None) -> str | None:
    return None if count is None else f"{count / 2**20:.1f}M"
