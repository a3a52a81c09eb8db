"""The course of a check: each request alone, played by users who take turns; then all of them interleaved; after each round a look at the heap.

A difference is a leak when `Series` says so. Whose request it was is known from the first part; what only overlapping users cause is asked of each
request again. What changes while nobody plays is nobody's leak.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laraman.check.diff import Finding, Series, diff
from laraman.check.heap import Heap
from laraman.check.kept import Signs
from laraman.check.locate import locate
from laraman.check.play import users
from laraman.check.report import Played, Report
from laraman.check.requests import Request, from_openapi, from_routes

if TYPE_CHECKING:
    from laraman.check.heap import Snapshot
    from laraman.check.play import Answer, Stage, User
    from laraman.config import Config

#: Seconds that nobody plays, to see what changes by itself.
IDLE = 0.25
#: Seconds for the tasks that a request has started.
PATIENCE = 1.0


def check(stage: Stage, given: list[Request] | None, rounds: int) -> Report:
    """Check the application on ``stage`` in this process: after it only the report is of use.

    ``given`` are the requests to play, None to find some. Raises BootError and ConfigError.
    """
    report: Report = stage.run(lambda: Course(stage, given, rounds).run())
    return report


class Course:
    """One check of the application on ``stage``. ``given`` are the requests of a file, or None to find some."""

    def __init__(self, stage: Stage, given: list[Request] | None, rounds: int) -> None:
        self._stage = stage
        self._given = given
        self._rounds = rounds
        self._guest, self._alice, self._bob = users()
        self._found: dict[str, Finding] = {}  # by name
        self._others: dict[str, list[str]] = {}  # further requests that cause it
        self._played: list[Played] = []
        self._noise: set[str] = set()
        self._impatient: set[Request] = set()

    async def run(self) -> Report:
        """Boot, play, end. Raises BootError and ConfigError."""
        began = time.monotonic()
        stage = self._stage
        try:
            await stage.boot()
            gc.collect()
            gc.freeze()  # what the boot has made is not looked through again before each snapshot
            await self._play(await self._requests())
        finally:
            await stage.end()
            gc.unfreeze()
        findings = tuple((finding, tuple(self._others.get(name, ()))) for name, finding in self._found.items())
        return Report(findings, tuple(self._played), self._rounds, tuple(stage.notes), time.monotonic() - began)

    async def _play(self, requests: list[Request]) -> None:
        self._heap = Heap(own_packages(self._stage.config), self._extra(), Signs(self._alice.words | self._bob.words))
        self._base = self._heap.snapshot()
        self._stage.notes += self._base.notes
        await self._listen()
        requests = [request for request in requests if await self._alone(request)]
        await self._listen()
        await self._interleaved(requests)

    def _extra(self) -> dict[str, Any]:
        """What no module of the application need refer to."""
        stage = self._stage
        return {"app": stage.app, "lifespan.state": stage.lifespan.state, "contextvars": stage.lifespan.context}

    async def _requests(self) -> list[Request]:
        """What is played."""
        if self._given is not None:
            return self._given
        stage = self._stage
        url = getattr(stage.app, "openapi_url", None) or "/openapi.json"
        answer = await stage.play(Request("GET", url), self._guest)
        try:
            found = from_openapi(json.loads(answer.body)) if answer.status == 200 else []
        except (ValueError, RecursionError):
            found = []
        if found:
            return found
        found, others = from_routes(stage.app)
        if others:
            stage.notes.append(f"{others} routes with parameters were not played: --requests FILE says with which values")
        return found or [Request("GET", "/")]

    # The heap --------------------------------------------------------------------------------------------------------------------

    async def _snapshot(self, request: Request | None) -> Snapshot:
        """The heap when what was played is over."""
        calm = await self._stage.settle(0.0 if request in self._impatient else PATIENCE)
        if not calm and request is not None:
            self._impatient.add(request)  # its tasks stay: no need to wait for them each time
        return self._heap.snapshot()

    async def _listen(self) -> None:
        """Learn what changes while nobody plays."""
        before = self._heap.snapshot()
        await self._stage.idle(IDLE)
        self._noise.update(change.path for change in diff(before, self._heap.snapshot()))

    # The parts -------------------------------------------------------------------------------------------------------------------

    async def _alone(self, request: Request) -> bool:
        """Play a request, again and again; alice and bob take turns. Whether it can be played at all."""
        series = Series(self._heap.snapshot(), request.name)
        turns = itertools.cycle((self._alice, self._bob))
        for turn in range(self._rounds + 1):  # the first is the warm-up
            user = next(turns)
            answer = await self._twice(request, user)
            if not turn:
                where = answer.where
                self._played.append(Played(request, answer.status, answer.note))
            if answer.spoils:
                return False
            series.add(await self._snapshot(request), user.name)
        for finding in series.findings():
            # What stays as it is cannot be seen to change again: the place is the endpoint.
            await self._add(replace(finding, place=where) if finding.kind == "kept" else finding, request, turns)
        return True

    async def _twice(self, request: Request, user: User) -> Answer:
        """The first answer, unless the second spoils. What spoils once is not played again."""
        first = await self._stage.play(request, user)
        self._look_for_strangers(request, user, first)
        if first.spoils:
            return first
        second = await self._stage.play(request, user)
        self._look_for_strangers(request, user, second)
        return second if second.spoils else first

    async def _interleaved(self, requests: list[Request]) -> None:
        """Play all of them as two users at the same time, and as somebody unknown who comes after them; each round in another constellation."""
        series = Series(self._heap.snapshot())
        for turn in range(self._rounds + 1):
            for request, other in _pairs(requests, turn):
                await self._pair(request, other)
            series.add(await self._snapshot(None))
        for finding in series.findings():
            if _name(finding.path) not in self._found:
                await self._add(finding, await self._culprit(finding, requests), None)

    async def _pair(self, request: Request, other: Request) -> None:
        parts = [(request, self._alice), (other, self._bob)]
        for (played, user), answer in zip(parts, await self._stage.together(parts), strict=True):
            self._look_for_strangers(played, user, answer)
        self._look_for_strangers(request, self._guest, await self._stage.play(request, self._guest))

    async def _culprit(self, finding: Finding, requests: list[Request]) -> Request | None:
        """The request that changes it when two users play it at the same time."""
        before = await self._snapshot(None)
        for request in requests:
            await self._pair(request, request)
            after = await self._snapshot(request)
            if any(change.path == finding.path for change in diff(before, after)):
                return request
            before = after
        return None

    # Findings --------------------------------------------------------------------------------------------------------------------

    async def _add(self, finding: Finding, request: Request | None, turns: Any) -> None:
        path = finding.path
        if path in self._noise:
            return
        name = _name(path)
        if name in self._found:
            if request is not None:
                self._others.setdefault(name, []).append(request.name)
            return
        place = finding.place
        if request is not None and not place:
            users = turns or itertools.cycle((self._alice, self._bob))

            async def again() -> None:
                await self._stage.play(request, next(users))

            place = await locate(path, self._heap, again, self._base)
        self._found[name] = replace(finding, request="" if request is None else request.name, place=place)

    def _look_for_strangers(self, request: Request, user: User, answer: Answer) -> None:
        """Whether somebody else's word is in the answer."""
        for other in (self._alice, self._bob):
            path = f"response of {request.name}"
            if other is not user and path not in self._found and answer.shows(other.sign):
                self._found[path] = Finding(path, "crossed", f"{user.name}'s", f"has {other.name}'s {other.sign}", request.name, answer.where)


def _name(path: str) -> str:
    """The same for each thread of a pool."""
    return re.sub(r"\[thread \d+\]", "[thread]", path)


def _pairs(requests: list[Request], turn: int) -> list[tuple[Request, Request]]:
    """In turn 0 both users play the same request, later different ones; every other turn goes backwards, so that all comes after all."""
    count = len(requests)
    pairs = [(request, requests[(index + turn) % count]) for index, request in enumerate(requests)]
    return pairs[::-1] if turn % 2 else pairs


def own_packages(config: Config) -> list[str]:
    """The top-level names of the application's own modules: the one that it is named by, and those in its directory that are not installed ones."""
    root = os.path.join(os.path.abspath(config.app_dir or os.getcwd()), "")
    names = {config.app.partition(":")[0].partition(".")[0]}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and os.path.abspath(path).startswith(root) and not {"site-packages", "dist-packages"} & set(path.split(os.sep)):
            names.add(name.partition(".")[0])
    return sorted(names - {"laraman", "__main__", "__mp_main__"})
