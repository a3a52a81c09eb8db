"""How long a developer waits: from the save of a file until the first answer of the new code, under --reload.

    python -m benchmarks.reload                                      laraman beside uvicorn, with watchfiles, 12 rounds
    python -m benchmarks.reload --watcher stat --rounds 20           both without watchfiles
    python -m benchmarks.reload --json benchmarks/history.jsonl      append the result as one line of JSON

The servers run side by side, and each round saves once for each in turn, the order rotated, when nothing else is going on; a request is tried
every 2 ms until its answer is the new one. Requests that fail meanwhile are counted. ``stat`` hides watchfiles from the servers.

    median_ms, lower_ms, upper_ms (between these is the middle half), least_ms, most_ms
    failed      requests that were refused, reset or not answered within 5 s
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.run import ROOT, Failed, facts, free_ports, table

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def hello(request):
    return PlainTextResponse("{version}")

app = Starlette(routes=[Route("/", hello)])
"""
FASTAPI = """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

app = FastAPI()

class Item(BaseModel):
    name: str
    price: float

@app.get("/", response_class=PlainTextResponse)
async def hello() -> str:
    return "{version}"

@app.post("/items")
async def create(item: Item) -> Item:
    return item
"""
APPS = {"starlette": HELLO, "fastapi": FASTAPI}
SERVERS = {"laraman": ["laraman", "start", "--no-access-log"], "uvicorn": ["uvicorn", "--no-access-log"]}
#: Seconds after which a server counts as broken, and seconds that it is left alone before a save: its own pauses are over then.
PATIENCE, CALM = 30.0, 1.0


class Reloading:
    """One server under --reload, in a directory of its own."""

    def __init__(self, name: str, source: str, directory: Path) -> None:
        (self.port,) = free_ports(1)
        self.source = source
        self.file = directory / "app.py"
        self.version = 0
        self.failed = 0
        self.write()
        with (directory / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *SERVERS[name], "--reload", "--port", str(self.port), "app:app"],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory.parent / "hiding"), str(ROOT)])},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def write(self) -> None:
        self.version += 1
        self.file.write_text(self.source.replace("{version}", f"v{self.version}"))

    def answer(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            self.failed += 1
            return ""
        finally:
            connection.close()

    def wait(self) -> float:
        """The time at which the saved version has answered."""
        deadline = time.monotonic() + PATIENCE
        while self.answer() != f"v{self.version}":
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"does not get there: {self.process.args!r}")
            time.sleep(0.002)
        return time.monotonic()

    def save(self) -> float:
        """Seconds from a save to its first answer."""
        begun = time.monotonic()
        self.write()
        return self.wait() - begun

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def servers(source: str, names: list[str], watcher: str) -> Iterator[dict[str, Reloading]]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as base, ExitStack() as stack:
        if watcher == "stat":  # found before the installed one, and cannot be imported; nor is it found by looking for it
            hiding = Path(base) / "hiding"
            hiding.mkdir()
            (hiding / "sitecustomize.py").write_text(HIDE)
        found = {}
        for name in names:
            directory = Path(base) / name
            directory.mkdir()
            found[name] = Reloading(name, source, directory)
            stack.callback(found[name].stop)
        for server in found.values():
            server.wait()
            server.failed = 0  # it had not started
        yield found


HIDE = "import sys\nsys.modules['watchfiles'] = None\n"


def measure(source: str, names: list[str], watcher: str, rounds: int) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with servers(source, names, watcher) as found:
        for number in range(rounds + 1):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                time.sleep(CALM + random.uniform(0, 0.25))  # a server that looks now and then is to be met at any point of its pause
                taken = found[name].save()
                if number:  # the first has files to read that nobody has read before
                    seconds[name].append(taken * 1000)
        return {name: summary(values) | {"failed": found[name].failed} for name, values in seconds.items()}


def summary(values: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median_ms": median, "lower_ms": lower, "upper_ms": upper, "least_ms": min(values), "most_ms": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload", description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--apps", nargs="+", choices=APPS, default=list(APPS))
    parser.add_argument("--watcher", choices=["watchfiles", "stat"], default="watchfiles")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the results to this file")
    options = parser.parse_args()
    results = {}
    for app in options.apps:
        scenario = f"reload-{app}-{options.watcher}"
        results[scenario] = measure(APPS[app], options.servers, options.watcher, options.rounds)
        print(table(scenario, results[scenario]), end="\n\n")
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(facts() | {"rounds": options.rounds, "results": results}) + "\n")


if __name__ == "__main__":
    main()
