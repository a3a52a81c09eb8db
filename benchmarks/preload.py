"""Eight workers of a FastAPI application: their memory together, how long they take to boot, and how soon a killed one is back.

    python -m benchmarks.preload                                            laraman with and without --preload, and its peers, 5 rounds
    python -m benchmarks.preload --servers laraman-preload uvicorn --rounds 3
    python -m benchmarks.preload --json benchmarks/history.jsonl            append the result as one line of JSON

Every round starts each server afresh, in rotated order; medians are reported. A server that is not installed is left out. All CPUs are used.

    pss_mib      proportional memory of all processes of the server after traffic: a page that n of them share counts 1/n in each
    first_s      from the start of the command to the first answer
    all_s        from the start of the command until every worker has started its application
    respawn_ms   from kill -9 of a worker until its successor has started the application; laraman's until the master calls it READY
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.run import ROOT, Failed, Sample, Target, as_line, end, facts, free_ports, kill, medians, title
from laraman.process.control import request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS = 8
APP = "benchmarks.fastapi_app:app"
PATH = "/items/7?tag=fresh"
KILLS = 5
#: Seconds that anything may take.
PATIENCE = 60.0

_LARAMAN = ["laraman", "start", "--workers", str(WORKERS), "--no-access-log"]
_GUNICORN = ["gunicorn", "--workers", str(WORKERS), "--worker-class", "uvicorn_worker.UvicornWorker"]
SERVERS = {
    "laraman-preload": [*_LARAMAN, "--preload"],
    "laraman": _LARAMAN,
    "uvicorn": ["uvicorn", "--workers", str(WORKERS), "--no-access-log", "--loop", "uvloop", "--http", "httptools"],
    "gunicorn-preload": [*_GUNICORN, "--preload"],
}
#: A worker has started its application.
STARTED = b"Application startup complete"


class Run:
    """One start of a server, until the first answer."""

    def __init__(self, name: str, directory: str) -> None:
        (port,) = free_ports(1)
        listens = ["--bind", f"127.0.0.1:{port}"] if name.startswith("gunicorn") else ["--port", str(port)]
        self.log = Path(directory) / f"{name}.log"
        self.begun = time.monotonic()
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", SERVERS[name][0], *SERVERS[name][1:], *listens, APP],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.target = Target(process, port, 0, directory)

    def started(self) -> int:
        """How often a worker has said that its application has started."""
        return self.log.read_bytes().count(STARTED)

    def workers(self) -> list[int]:
        """The pids of the worker processes: the last ones forked, where a title does not say it."""
        titled = self.target.named("http")
        return titled or sorted(pid for pid in self.target.pids() if "resource_tracker" not in title(pid))[-WORKERS:]

    def pss(self) -> float:
        """MiB of all processes."""
        total = 0
        for pid in self.target.pids():
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
        return total / 1024

    def answers(self) -> bool:
        done = subprocess.run(["curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{self.target.port}{PATH}"], check=False)
        return done.returncode == 0

    def ready(self) -> set[int]:
        """The workers that laraman's master calls READY."""
        control = Path(self.target.directory) / ".laraman" / str(self.target.port) / "control.sock"
        rows = request(control, {"op": "status"}, 5)["processes"]
        return {row["pid"] for row in rows if row["worker"] == "http" and row["state"] == "ready"}


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> float:
    """The time when it was first true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"does not get there: {process.args!r}")
        time.sleep(0.002)
    return time.monotonic()


@contextmanager
def running(name: str, directory: str) -> Iterator[Run]:
    run = Run(name, directory)
    try:
        yield run
    finally:
        end(run.target, name, 15)


def measure(name: str, directory: str, seconds: int) -> Sample:
    with running(name, directory) as run:
        process = run.target.process
        first = until(run.answers, process) - run.begun
        everybody = until(lambda: run.started() >= WORKERS, process) - run.begun
        url = f"http://127.0.0.1:{run.target.port}{PATH}"
        subprocess.run(["wrk", "-t", "1", "-c", "64", "-d", f"{seconds}s", url], check=True, capture_output=True)
        pss = run.pss()
        respawn = statistics.median(_respawn(run, name) for _ in range(KILLS))
    return {"pss_mib": pss, "first_s": first, "all_s": everybody, "respawn_ms": respawn * 1000}


def _respawn(run: Run, name: str) -> float:
    process, before, said = run.target.process, run.workers(), run.started()
    time.sleep(1.2)  # a worker that was back for a moment only counts as a failure, and waits
    killed = time.monotonic()
    kill(before[0])
    if name.startswith("laraman"):
        gone = {before[0]}
        return until(lambda: len(ready := run.ready()) == WORKERS and not ready & gone, process) - killed
    return until(lambda: run.started() > said, process) - killed


def table(results: dict[str, Sample]) -> str:
    """Markdown; the ratios say how many times uvicorn's memory and boot a server has."""
    columns = list(next(iter(results.values())))
    peer = results.get("uvicorn")
    ratios = ["pss_mib", "first_s", "all_s"] if peer else []
    lines = [f"| {' | '.join(['preload', *columns, *(f'{column} x uvicorn' for column in ratios)])} |"]
    lines.append("|---" + "|--:" * (len(columns) + len(ratios)) + "|")
    for name, result in results.items():
        compared = [f"{result[column] / peer[column]:.2f}" for column in ratios] if peer else []
        lines.append(f"| {name} | {' | '.join([f'{value:,.2f}' for value in result.values()] + compared)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preload", description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of traffic")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the medians to this file")
    options = parser.parse_args()
    needed = {"gunicorn-preload": ("gunicorn", "uvicorn_worker")}
    names = [name for name in options.servers if all(map(importlib.util.find_spec, needed.get(name, ())))]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        for number in range(options.rounds):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                sample = measure(name, directory, options.seconds)
                samples[name].append(sample)
                print(f"  preload round {number + 1} {name}: {as_line(sample)}", file=sys.stderr, flush=True)
    results = {name: medians(found) for name, found in samples.items()}
    print(table(results))
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(facts() | {"rounds": options.rounds, "seconds": options.seconds, "results": {"preload": results}}) + "\n")


if __name__ == "__main__":
    main()
