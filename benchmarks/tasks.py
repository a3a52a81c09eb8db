"""Task workers: what a task costs that does nothing, and how much two of them do of what keeps a CPU busy, beside a ProcessPoolExecutor.

    python -m benchmarks.tasks                                          both scenarios, 5 rounds
    python -m benchmarks.tasks --scenario trip --rounds 9               one of them
    python -m benchmarks.tasks --json benchmarks/history.jsonl          append the result as one line of JSON

Both are asked by one program on uvloop and use all CPUs; rounds are interleaved, medians are reported.

    trip    one task after the other that does nothing: microseconds from asking to the result. A plain function runs in a thread there, an ``async``
            one in the task worker's loop
    cpu     TASKS tasks that keep a CPU busy, by one worker and by two: tasks per second, and how many times as many two do
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

import laraman
from benchmarks import work
from benchmarks.channel import serving
from benchmarks.run import Sample, as_line, facts, medians
from laraman.tasks.calling import use

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TRIPS, TASKS = 3000, 32
#: Rounds of a task that keeps a CPU busy: some 50 ms.
COUNT = 1_000_000

Pools = dict[int, Any]


async def trips(trip: Callable[[], Awaitable[Any]]) -> Sample:
    took = []
    for number in range(TRIPS + TRIPS // 10):
        began = time.perf_counter_ns()
        await trip()
        if number >= TRIPS // 10:  # warm
            took.append((time.perf_counter_ns() - began) / 1000)
    took.sort()
    return {"min_us": took[0], "median_us": statistics.median(took), "p99_us": took[int(len(took) * 0.99)]}


async def laraman_trip(paths: dict[int, str], executors: Pools) -> Sample:
    with use(paths[1]):
        return await trips(lambda: laraman.submit(work.nothing))


async def laraman_async_trip(paths: dict[int, str], executors: Pools) -> Sample:
    with use(paths[1]):
        return await trips(lambda: laraman.submit(work.nothing_async))


async def executor_trip(paths: dict[int, str], executors: Pools) -> Sample:
    loop = asyncio.get_running_loop()
    return await trips(lambda: loop.run_in_executor(executors[1], work.plain, "nothing"))


async def laraman_cpu(paths: dict[int, str], executors: Pools) -> Sample:
    async def by(workers: int) -> None:
        with use(paths[workers], places=workers):
            assert len([result async for result in laraman.map(work.count, [COUNT] * TASKS)]) == TASKS

    return await compared(by)


async def executor_cpu(paths: dict[int, str], executors: Pools) -> Sample:
    async def by(workers: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(executors[workers], work.plain, "count", COUNT) for _ in range(TASKS)))

    return await compared(by)


async def compared(by: Callable[[int], Awaitable[None]]) -> Sample:
    rates = []
    for workers in (1, 2):
        began = time.monotonic()
        await by(workers)
        rates.append(TASKS / (time.monotonic() - began))
    return {"one_per_s": rates[0], "two_per_s": rates[1], "times": rates[1] / rates[0]}


SCENARIOS = {
    "trip": {"laraman": laraman_trip, "laraman async": laraman_async_trip, "executor": executor_trip},
    "cpu": {"laraman": laraman_cpu, "executor": executor_cpu},
}


async def compare(scenario: str, rounds: int, paths: dict[int, str], executors: Pools) -> dict[str, Sample]:
    peers = list(SCENARIOS[scenario])
    samples: dict[str, list[Sample]] = {peer: [] for peer in peers}
    for number in range(rounds):
        at = number % len(peers)
        for peer in peers[at:] + peers[:at]:
            sample = await SCENARIOS[scenario][peer](paths, executors)
            samples[peer].append(sample)
            print(f"  {scenario} round {number + 1} {peer}: {as_line(sample)}", file=sys.stderr, flush=True)
    return {peer: medians(found) for peer, found in samples.items()}


def table(scenario: str, results: dict[str, Sample]) -> str:
    columns = list(next(iter(results.values())))
    lines = [f"| {' | '.join([scenario, *columns])} |", "|---" + "|--:" * len(columns) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:,.2f}' for value in result.values())} |" for name, result in results.items()]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the medians to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    results = {}
    with tempfile.TemporaryDirectory(prefix="b-") as directory, ExitStack() as stack:
        paths, executors = {}, {}
        for workers in (1, 2):
            place = Path(directory, str(workers))
            place.mkdir()
            _, url = stack.enter_context(serving("benchmarks.apps:hello", place, "--task-workers", str(workers)))
            paths[workers] = url.removeprefix("unix://").replace("hub.sock", "task.sock")
            executors[workers] = stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver")))
        for scenario in options.scenario:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                results[f"tasks-{scenario}"] = runner.run(compare(scenario, options.rounds, paths, executors))
            print(table(scenario, results[f"tasks-{scenario}"]), end="\n\n", flush=True)
    line = facts() | {"rounds": options.rounds, "results": results}
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
