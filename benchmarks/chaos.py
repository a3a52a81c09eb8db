"""Jobs flow while what carries them is killed: what was acknowledged and lost, and what was done twice without a reason.

    python -m benchmarks.chaos                                    100,000 jobs through the hub
    python -m benchmarks.chaos --through hub redis nats           through Redis and NATS too, whose servers are killed and come back
    python -m benchmarks.chaos --jobs 5000 --seed 7               a shorter run that kills in the same order

One program puts the jobs, PUTTERS at a time, as fast as a queue of LIMIT lets it. Two processes of a server consume them, each job is done in one of
two task workers and acknowledged then. Every now and then the hub (or Redis, or NATS), a consumer, or a task worker is killed with SIGKILL. What
happens to each job is written into a book; when all has come to rest, it is read:

    lost            jobs whose put returned, and that were never done: there must be none
    again           jobs that were given to a consumer once more after ``ack`` had returned True: there must be none with the hub and Redis, which
                    have it in a file by then
    unexplained     jobs that were done more often than they were put, and none of what allows that has happened between: the one that had it was
                    killed, gave it back or could not acknowledge it, the channel's server was killed, or the time of its visibility was over
    done again      jobs that were done more than once, for such a reason
    put twice       jobs whose put had no answer, because the server was killed, and that were queued already when it was put again
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.channel import Stored, serving
from benchmarks.chaos_app import BOOK, QUEUE
from benchmarks.run import Failed
from laraman import channel
from laraman.errors import LaramanError
from laraman.process.control import request
from laraman.process.supervisor import STEADY, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laraman.channel.interface import Channel

PUTTERS, LIMIT = 32, 2000
#: The part of the jobs from which on they are put when something of each kind has been killed.
LAST = 0.8
#: Seconds between two kills; from the return of Redis or NATS to the next one of it; in which it is away.
PAUSE, REST, AWAY = (0.1, 0.7), 4.0, (0.0, 1.0)
#: Seconds that a consumer may still begin with what a server gave it that has been killed; without any news after which the run is over.
NEWS, SILENCE = 0.5, 30.0
SERVERS = {"redis": "redis-server", "nats": "nats-server"}


@dataclass
class Figures:
    """What has become of the jobs; see the module."""

    through: str
    jobs: int
    seconds: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    lost: list[int] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    done_again: int = 0
    put_twice: int = 0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {kind}" for kind, count in self.kills.items())
        return (
            f"{self.through}: {self.jobs} jobs in {self.seconds:.1f} s; killed {kills}; {self.acknowledged} puts acknowledged, "
            f"{len(self.lost)} lost, {len(self.again)} given again after ack, {len(self.unexplained)} unexplained, {self.done_again} done again, "
            f"{self.put_twice} put twice"
        )


class Chaos:
    """One run. ``through`` is "hub", "redis" or "nats"; no more than ``most`` processes are killed."""

    def __init__(self, through: str, jobs: int, seed: int, visibility: float, most: float = float("inf")) -> None:
        self.figures = Figures(through, jobs)
        self.jobs = jobs
        self.random = random.Random(seed)
        self.visibility = visibility
        self.most = most
        #: When what was killed, in the machine's time; when each put began and returned, and what.
        self.kills: list[tuple[float, str, int]] = []
        self.puts: dict[int, tuple[float, float]] = {}
        self.ids: dict[int, str] = {}
        #: Since when it is known that a process is ready.
        self.ready: dict[int, float] = {}

    def run(self, directory: Path) -> Figures:
        with ExitStack() as stack:
            self.store: Stored | None = None
            options = ["--workers", "2", "--task-workers", "2", "--channel-queue", str(LIMIT)]
            if self.figures.through in SERVERS:
                self.store = stack.enter_context(Stored(SERVERS[self.figures.through], directory))
                options += ["--channel", self.store.url]
            os.environ["CHAOS_VISIBILITY"] = str(self.visibility)
            self.target, url = stack.enter_context(serving("benchmarks.chaos_app:app", directory, *options))
            self.book = Path(self.target.directory, BOOK)
            self.control = Path(self.target.directory, ".laraman", str(self.target.port), "control.sock")
            began = time.monotonic()
            asyncio.run(self._flow(self.store.url if self.store else url))
            self.figures.seconds = time.monotonic() - began
        self._read()
        return self.figures

    # What happens ----------------------------------------------------------------------------------------------------------------

    async def _flow(self, url: str) -> None:
        async with channel.connect(url, limit=LIMIT) as there, asyncio.TaskGroup() as group:
            group.create_task(self._kill_at_random())
            numbers = iter(range(self.jobs))
            await asyncio.gather(*(self._put(there, numbers) for _ in range(PUTTERS)))
            await self._rest("did", SILENCE)
            self.most = 0
        await self._rest("did", SILENCE)
        # What somebody had who was killed is given to others when its time is over.
        await self._rest("acked", self.visibility + 2)

    async def _put(self, there: Channel, numbers: Iterator[int]) -> None:
        for number in numbers:
            while number >= self.jobs * LAST and len(self.figures.kills) < 3:
                await asyncio.sleep(0.05)
            began = time.monotonic()
            while number not in self.ids:
                try:
                    self.ids[number] = await there.put(QUEUE, number, key=f"job {number}")
                except LaramanError:  # full, or away
                    await asyncio.sleep(0.05)
            self.puts[number] = began, time.monotonic()

    async def _kill_at_random(self) -> None:
        kinds = [self.figures.through, "http", "task"]
        last = -REST
        while len(self.kills) < self.most:
            self.random.shuffle(kinds)
            for kind in kinds:
                await asyncio.sleep(self.random.uniform(*PAUSE))
                steady = self._steady()
                if kind in SERVERS and time.monotonic() >= last + REST:
                    await self._kill_store()
                    last = time.monotonic()
                elif kind in steady:
                    self._kill(kind, self.random.choice(steady[kind]))

    async def _kill_store(self) -> None:
        assert self.store is not None
        self._kill(self.figures.through, self.store.process.pid)
        self.store.process.wait(10)
        await asyncio.sleep(self.random.uniform(*AWAY))
        await asyncio.to_thread(self.store.start)

    def _kill(self, kind: str, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills.append((time.monotonic(), kind, pid))
            self.figures.kills[kind] = self.figures.kills.get(kind, 0) + 1

    def _steady(self) -> dict[str, list[int]]:
        """The pids of each worker that have been ready for a while: a master gives up what dies again and again before that."""
        if self.target.process.poll() is not None:
            raise Failed(f"the server has ended:\n{Path(self.target.directory, 'log').read_text()}")
        now = time.monotonic()
        rows = request(self.control, {"op": "status"}, 30)["processes"]
        self.ready = {row["pid"]: self.ready.get(row["pid"], now) for row in rows if row["state"] == State.READY.value}
        steady: dict[str, list[int]] = {}
        for row in rows:
            if now - self.ready.get(row["pid"], now) > STEADY:
                steady.setdefault(row["worker"], []).append(row["pid"])
        return steady

    async def _rest(self, what: str, seconds: float) -> None:
        """Return when the book says this of each job, or nothing new for so long."""
        found: set[str] = set()
        news = time.monotonic()
        with self.book.open("a+") as book:
            book.seek(0)
            while len(found) < self.jobs and time.monotonic() < news + seconds:
                lines = book.readlines()
                found.update(line.split()[3] for line in lines if line.startswith(what))
                if lines:
                    news = time.monotonic()
                await asyncio.sleep(0.1)

    # What the book says ----------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        figures = self.figures
        figures.acknowledged = len(self.ids)
        did: dict[int, int] = {}
        given: dict[str, list[Given]] = {}
        queued: dict[int, set[str]] = {}
        for line in self.book.read_text().splitlines():
            what, when, pid, number, *rest = line.split()
            if what == "did":
                did[int(number)] = did.get(int(number), 0) + 1
                continue
            id = rest[0]
            queued.setdefault(int(number), set()).add(id)
            if what == "begin":
                given.setdefault(id, []).append(Given(float(when), int(pid)))
            else:
                settled = next(each for each in reversed(given[id]) if each.pid == int(pid) and not each.settled)
                settled.settled, settled.at = what, float(when)
        figures.lost = [number for number in self.ids if number not in did]
        figures.done_again = sum(count > 1 for count in did.values())
        for id, times in given.items():
            for before, after in pairwise(times):
                if before.settled == "acked" and before.at < after.began:
                    # It may have been given before it was acknowledged, and begun after that.
                    if not self._may_be_given_again(before, before.at):
                        figures.again.append(id)
                elif not self._may_be_given_again(before, after.began):
                    figures.unexplained.append(id)
        for job, ids in queued.items():
            if len(ids) > 1:
                figures.put_twice += 1
                if not self._server_was_killed(*self.puts[job]):
                    figures.unexplained.append(f"job {job}")

    def _may_be_given_again(self, before: Given, until: float) -> bool:
        killed = any(pid == before.pid and when < until for when, _, pid in self.kills)
        returned = before.settled in ("failed", "lost")
        return killed or returned or until - before.began >= self.visibility or self._server_was_killed(before.began, until)

    def _server_was_killed(self, since: float, until: float) -> bool:
        return any(kind not in ("http", "task") and since - NEWS < when < until for when, kind, _ in self.kills)


@dataclass
class Given:
    """One time that a job was given to a consumer, and what came of it; "" when nobody says."""

    began: float
    pid: int
    settled: str = ""
    at: float = 0.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--through", nargs="+", choices=("hub", *SERVERS), default=["hub"])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--visibility", type=float, default=10.0, help="seconds")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    print(f"seed {options.seed}", flush=True)
    bad = False
    for through in options.through:
        with tempfile.TemporaryDirectory(prefix="b-") as directory:
            figures = Chaos(through, options.jobs, options.seed, options.visibility).run(Path(directory))
        print(figures, flush=True)
        bad = bad or bool(figures.lost or figures.unexplained or (figures.again and through != "nats"))
    sys.exit(bad)


if __name__ == "__main__":
    main()
