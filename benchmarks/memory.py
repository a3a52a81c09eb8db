"""Whether a worker grows: 200,000 requests to a FastAPI application, and the slope of the worker's resident memory over them.

    python -m benchmarks.memory                                    as laraman starts by default, so with the guard at ``warn``
    python -m benchmarks.memory --json benchmarks/history.jsonl    append the result as one line of JSON

The worker is looked at once a second. The slope is that of the least squares, after a warm-up; a leak of one object per request would be 50 KiB
per 1,000 requests at least.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import run

if TYPE_CHECKING:
    from collections.abc import Sequence

APP, PATH = "benchmarks.fastapi_app:app", "/items/7?tag=fresh"


def samples(target: run.Target, requests: int) -> list[tuple[int, int]]:
    """Pairs of requests so far and resident KiB of the worker, from now until ``requests`` have been answered. Raises Failed."""
    (worker,) = target.named("http")
    found = [(0, target.memory("VmRSS", "http"))]
    while found[-1][0] < requests:
        output = run._wrk(target, PATH, 1)
        counted = re.search(r"(\d+) requests in", output)
        if counted is None or (problem := re.search(r"Non-2xx.*|Socket errors.*", output)):
            raise run.Failed(output if counted is None else str(problem))
        found.append((found[-1][0] + int(counted[1]), target.memory("VmRSS", "http")))
        print(f"  {found[-1][0]:>9,} requests: {found[-1][1]:,} KiB", file=sys.stderr, flush=True)
    if target.named("http") != [worker]:
        raise run.Failed("the worker was replaced")
    return found


def slope(found: Sequence[tuple[int, int]]) -> float:
    """KiB per 1,000 requests."""
    counts, sizes = zip(*found, strict=True)
    return statistics.linear_regression(counts, sizes).slope * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--warm-up", type=int, default=20_000, help="requests before the first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the result to this file")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed (apt-get install wrk)")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory, run.serving("laraman", APP, directory) as target:
        samples(target, options.warm_up)
        found = samples(target, options.requests)
    result = {"requests": found[-1][0], "rss_kib": found[-1][1], "grown_kib": found[-1][1] - found[0][1], "kib_per_1000": round(slope(found), 3)}
    print("{requests:,} requests: {rss_kib:,} KiB, grown by {grown_kib} KiB; slope {kib_per_1000} KiB per 1,000 requests".format(**result))
    line = run.facts() | {"rounds": 1, "seconds": round(time.monotonic() - begun), "results": {"memory": {"laraman": result}}}
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
