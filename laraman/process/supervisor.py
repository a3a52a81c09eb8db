"""Supervision as a pure function: what is wanted and what is there, to what must be done next.

The master's view of one process is a `Process`. Its states, and what moves it from one to the other:

    state      ready     stop        kill      exit
    STARTING   READY     STOPPING    KILLED    EXITED
    READY      -         STOPPING    KILLED    EXITED
    STOPPING   -         STOPPING    KILLED    EXITED       a second stop may only bring the deadline nearer
    KILLED     -         -           -         EXITED       a state, so that a kill is never repeated
    EXITED     -         -           -         -

The rules of a plan:

1. At most one action per process and at most one Spawn per slot; nothing is ever done to a process that is KILLED or EXITED.
2. A slot is *served* by its newest READY process. A process is *current* when its generation is at least the wanted one and it is not being
   recycled (rule 5).
3. A slot that nobody serves or is about to serve gets a process. No slot gets one while it backs off (`Slot.not_before`), or while a hung
   process in it is not dead yet.
4. A slot whose process is not current gets a successor, as long as the worker has at most `surge` processes too many.
   The predecessor is told to stop when the successor is READY, never before.
5. A process that asked for a successor (``retiring``: it has served its requests, it has grown, it is old) is *recycled* when its slot has its
   turn: one slot of a worker at a time, whatever the surge, the process that has lived longest first. Its turn lasts until the predecessor is
   gone. Its successor is one process too many that does not count for rule 4, so a reload and a recycling do not wait for each other.
6. Whatever else lives in a slot, and every slot beyond the count, is told to stop.
7. Of an *exclusive* worker there is never a second process in a slot: one that is not current is told to stop first, and its successor begins
   when it is gone.
8. A process that does not boot in time, or does not beat, is hung: it gets a second to write its stack, then it is killed.
   A process that outlives its deadline is killed.
9. A worker whose processes are forked from a *template*, which is a worker too, gets a process only while a template of at least the wanted
   generation is READY; until then its slots wait, and what serves goes on serving. While they are rolled, the template of the generation that
   they would fall back to stays, beside its successor.
10. Of a worker that *waits*, a process that cannot boot, or that keeps failing, does not end the server: its slot waits for the next generation.
11. Nor does one of an *inner* worker, once the server has started: the others do without, and its slot is tried again and again.

start, stop, reload, scale, crash, hang and recycling are not operations here: they change `Desired`, or they are observations.
Times are seconds of a monotonic clock and are passed in.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from laraman.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Seconds a hung process gets between the signal that makes it write its stack and SIGKILL.
HUNG_GRACE = 1.0
#: Seconds a process gets on top of its own deadline, to end by itself.
STOP_MARGIN = 2.0
#: Seconds between the end of a process's channel and the conclusion that it does not end by itself.
LOST_GRACE = 1.0
#: A process that was READY for so many seconds was no failure, whatever ended it.
STEADY = 1.0
#: So many failures of a slot in a row end the server, unless a sibling is steady.
MAX_FAILURES = 8
#: The longest back-off, in seconds.
MAX_BACKOFF = 10.0

HUNG = "hung"
RECYCLE = "recycle"


class State(enum.Enum):
    """See the table above."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    KILLED = "killed"
    EXITED = "exited"


_NEXT: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.STOPPING, State.KILLED, State.EXITED}),
    State.READY: frozenset({State.STOPPING, State.KILLED, State.EXITED}),
    State.STOPPING: frozenset({State.STOPPING, State.KILLED, State.EXITED}),
    State.KILLED: frozenset({State.EXITED}),
    State.EXITED: frozenset(),
}

LIVE = frozenset({State.STARTING, State.READY})


@dataclass(slots=True, eq=False)
class Process:
    """The record of one child process: who it is, in which state, and what it last said of itself.

    ``deadline`` is when a STOPPING process is killed, None for never. ``stop_reason`` is empty as long as it was not told to stop.
    ``retiring`` is why it asked for a successor, empty as long as it has not. ``lost`` is when its channel ended. ``error`` is what it said of
    its failure, ``ending`` what ended it, in words.
    """

    worker: str
    slot: int
    generation: int
    pid: int
    started: float
    state: State = State.STARTING
    ready_at: float | None = None
    last_beat: float = 0.0
    lost: float | None = None
    deadline: float | None = None
    stop_reason: str = ""
    retiring: str = ""
    error: str = ""
    ending: str = ""
    stats: dict[str, int] = field(default_factory=dict)
    timers: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.worker}:{self.slot} [{self.pid}]"

    def to(self, state: State) -> None:
        """Take a step of the table. Raises IllegalTransition, and changes nothing, when there is no such step."""
        if state not in _NEXT[self.state]:
            raise IllegalTransition(f"process {self}: {self.state.name} -> {state.name}")
        self.state = state

    def ready(self, now: float) -> None:
        self.to(State.READY)
        self.ready_at = self.last_beat = now

    def stop(self, reason: str, deadline: float | None) -> None:
        self.to(State.STOPPING)
        self.stop_reason = reason
        self.deadline = deadline

    def kill(self) -> None:
        self.to(State.KILLED)
        self.stop_reason = self.stop_reason or "stop"

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def hung(self) -> bool:
        return self.stop_reason == HUNG

    @property
    def dismissed(self) -> bool:
        """Told to go for a reason that is not its own."""
        return bool(self.stop_reason) and not self.hung


@dataclass(slots=True)
class Slot:
    """What is remembered of a slot from one process to the next. ``failures`` counts deaths in a row that came too early."""

    failures: int = 0
    not_before: float = 0.0
    restarts: int = 0
    last_exit: str = ""


@dataclass(slots=True)
class Desired:
    """What is wanted of one worker. ``stop_timeout`` None means no deadline; ``at_once`` kills whatever is left.

    ``rolling`` is True from the advance of the generation until every slot is served by it, or until it could not boot. ``exclusive`` is rule 7.
    ``template`` names the worker of rule 9; the two have their generations in common, unless nothing of the application is in the template and
    it serves them all. ``waits`` is rule 10, ``inner`` rule 11.
    """

    count: int
    generation: int = 1
    reason: str = "reload"
    boot_timeout: float = 60.0
    beat_timeout: float = 5.0
    stop_timeout: float | None = 8.0
    exclusive: bool = False
    template: str = ""
    waits: bool = False
    inner: bool = False
    at_once: bool = False
    rolling: bool = False
    newest: int = 0
    slots: defaultdict[int, Slot] = field(default_factory=lambda: defaultdict(Slot))

    @property
    def surge(self) -> int:
        """How many processes there may be beyond the count while a new generation takes over; one more where the next may come before that."""
        return max(1, self.count // 4) + self.waits

    def roll(self, reason: str) -> None:
        """Want a new generation. A number that was used before, even by a generation that could not boot, is not used again."""
        self.newest = max(self.newest, self.generation) + 1
        self.generation = self.newest
        self.reason = reason
        self.rolling = True
        if self.waits:
            for slot in self.slots.values():
                slot.failures, slot.not_before = 0, 0.0

    def fall_back(self, processes: Iterable[Process]) -> None:
        """Give the new generation up: every generation that is alive is good enough again."""
        self.rolling = False
        self.generation = min((process.generation for process in processes if process.live), default=self.generation)


@dataclass(frozen=True, slots=True)
class Spawn:
    worker: str
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell the process to end within ``timeout`` seconds (None: no hurry); at ``deadline`` it will be killed."""

    process: Process
    reason: str
    timeout: float | None
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Kill:
    process: Process


Action = Spawn | Stop | Kill


def reconcile(desired: Mapping[str, Desired], processes: Iterable[Process], now: float) -> list[Action]:
    """The actions that bring ``processes`` nearer to ``desired``, which has an entry for the worker of each. Changes nothing."""
    groups: dict[str, list[Process]] = {name: [] for name in desired}
    for process in processes:
        if process.state is not State.EXITED:
            groups[process.worker].append(process)
    plan: list[Action] = []
    for name, group in groups.items():
        wanted = desired[name]
        source = wanted.template
        templates = [process for process in groups.get(source, ()) if forks(process, desired[source])]
        can_spawn = not source or any(not _overdue(process, desired[source], now) for process in templates)
        plan += _worker_plan(name, wanted, group, can_spawn, _held(name, desired, groups), now)
    return plan


def _held(template: str, desired: Mapping[str, Desired], groups: Mapping[str, list[Process]]) -> list[Process]:
    """Rule 9: the templates that a reload of what is forked from them may still need."""
    if desired[template].exclusive:  # it is none of a generation
        return []
    rolled = [name for name, wanted in desired.items() if wanted.template == template and wanted.rolling]
    oldest = min((process.generation for name in rolled for process in groups[name] if process.live), default=None)
    return [process for process in groups[template] if process.state is State.READY and process.generation == oldest]


def forks(template: Process, wanted: Desired) -> bool:
    """Rule 9: whether this process of the template, of which that is wanted, can fork for its worker."""
    return template.state is State.READY and template.lost is None and template.generation >= wanted.generation


def _worker_plan(name: str, wanted: Desired, group: list[Process], can_spawn: bool, held: list[Process], now: float) -> list[Action]:
    plan: list[Action] = [action for process in group if (action := _overdue(process, wanted, now))]
    busy = [action.process for action in plan if not isinstance(action, Spawn)]
    slots: dict[int, list[Process]] = {slot: [] for slot in range(wanted.count)}
    for process in group:
        slots.setdefault(process.slot, []).append(process)
    turns = _turns(wanted, slots, now)
    beyond = sum(1 for slot in turns if sum(map(_counts, slots[slot])) > 1)  # successors that count for rule 5, not for rule 4
    room = wanted.count + wanted.surge + beyond - sum(_counts(process) for process in group if process not in held)
    for slot, members in slots.items():
        recycled = slot in turns
        undecided = [process for process in members if process not in busy]
        keep = _kept(wanted, undecided, recycled) if slot < wanted.count else []
        stays = [*keep, *held] if slot < wanted.count else []
        if can_spawn and undecided == members and slot < wanted.count and _wants_spawn(wanted, slot, members, keep, recycled, room, now):
            plan.append(Spawn(name, slot, wanted.generation))
            room -= 0 if recycled else 1
        reason = wanted.reason if slot < wanted.count else "scale" if wanted.count else "stop"
        for process in undecided:
            if process.live and process not in stays:
                plan.append(_stop(wanted, process, RECYCLE if recycled and process.retiring else reason, now))
    return plan


def _turns(wanted: Desired, slots: Mapping[int, list[Process]], now: float) -> set[int]:
    """The slots that are being recycled; when there is none, the one that is next. More than one only when a reload was given up in between."""
    leaving = [
        process
        for slot, members in slots.items()
        for process in members
        if slot < wanted.count and process.retiring and process.generation >= wanted.generation
        if _counts(process) or process.state is State.KILLED
    ]
    begun = {process.slot for process in leaving if not process.live or any(_succeeds(other, process) for other in slots[process.slot])}
    if begun:
        return begun
    waiting = [process for process in leaving if process.slot not in wanted.slots or now >= wanted.slots[process.slot].not_before]
    return {min(waiting, key=lambda process: process.started).slot} if waiting else set()


def _succeeds(process: Process, predecessor: Process) -> bool:
    return process.live and not process.retiring and process.generation >= predecessor.generation


def current(wanted: Desired, process: Process, recycled: bool) -> bool:
    """Rule 2; ``recycled`` says that its slot has its turn."""
    return process.generation >= wanted.generation and not (recycled and process.retiring)


def _counts(process: Process) -> bool:
    # One that may drain for ever must not hold up the others' succession.
    return process.live or (process.state is State.STOPPING and process.deadline is not None)


def _kept(wanted: Desired, members: list[Process], recycled: bool) -> list[Process]:
    """Those of a slot that stay: the one that serves it and the one that is to succeed it."""
    live = sorted((process for process in members if process.live), key=lambda process: (not process.retiring, process.generation), reverse=True)
    if wanted.exclusive:
        return [process for process in live if current(wanted, process, recycled)][:1]
    serving = next((process for process in live if process.state is State.READY), None)
    if serving is not None and current(wanted, serving, recycled):
        return [serving]
    successor = next((process for process in live if process.state is State.STARTING and current(wanted, process, recycled)), None)
    incumbent = serving or next((process for process in live if process is not successor and not current(wanted, process, recycled)), None)
    return [process for process in (incumbent, successor) if process is not None]


def _wants_spawn(wanted: Desired, slot: int, members: list[Process], keep: list[Process], recycled: bool, room: int, now: float) -> bool:
    if any(process.hung for process in members) or (wanted.exclusive and members):
        return False
    if any(current(wanted, process, recycled) for process in keep):
        return False
    if keep:
        return recycled or room > 0
    return slot not in wanted.slots or now >= wanted.slots[slot].not_before


def _stop(wanted: Desired, process: Process, reason: str, now: float) -> Stop:
    timeout = wanted.stop_timeout
    return Stop(process, reason, timeout, None if timeout is None else now + timeout + STOP_MARGIN)


def _overdue(process: Process, wanted: Desired, now: float) -> Stop | Kill | None:
    """What a process has coming by the clock alone."""
    if process.state is State.KILLED:
        return None
    if wanted.at_once:
        return Kill(process)
    if process.deadline is not None and now >= process.deadline:
        return Kill(process)
    if process.deadline is None and silence(process, wanted, now):
        return Stop(process, HUNG, HUNG_GRACE, now + HUNG_GRACE)
    if process.state is State.STOPPING and wanted.stop_timeout is not None:
        nearer = _stop(wanted, process, process.stop_reason, now)
        assert nearer.deadline is not None
        if process.deadline is None or nearer.deadline < process.deadline:
            return nearer
    return None


def silence(process: Process, wanted: Desired, now: float) -> str:
    """Why the process counts as hung, in words; empty when it does not."""
    if process.lost is not None and now - process.lost >= LOST_GRACE:
        return "its channel ended and it did not"
    if process.ready_at is None:
        return f"not ready after {wanted.boot_timeout:.1f} s" if now - process.started >= wanted.boot_timeout else ""
    return f"no beat for {wanted.beat_timeout:.1f} s" if now - process.last_beat >= wanted.beat_timeout else ""


def settled(name: str, wanted: Desired, processes: Iterable[Process]) -> bool:
    """Whether every slot is served by the wanted generation and nothing older or beyond the count is left, save what may drain for ever.

    Recycling goes on all the time where limits are low and the load is high: it does not keep a reload from being over.
    """
    served = set()
    for process in processes:
        if process.worker != name or process.state is State.EXITED:
            continue
        if process.state is State.STOPPING and process.deadline is None:
            continue
        if process.generation < wanted.generation or process.slot >= wanted.count:
            return False
        if process.state is State.READY:
            served.add(process.slot)
    return len(served) == wanted.count


# What an exit means ---------------------------------------------------------------------------------------------------------------


class Verdict(enum.Enum):
    """EXPECTED: it was told to go. RESPAWN: the slot is filled again. ROLL_FAILED: a new generation cannot boot. FATAL: the server ends."""

    EXPECTED = "expected"
    RESPAWN = "respawn"
    ROLL_FAILED = "roll failed"
    FATAL = "fatal"


def judge(
    wanted: Desired,
    process: Process,
    others: Iterable[Process],
    now: float,
    *,
    code: int | None,
    blameless: bool = False,
    first_boot: bool = False,
    served: Iterable[Process] = (),
) -> Verdict:
    """What the end of ``process`` means; keeps the slot's account and, when a new generation could not boot, falls back to the old one.

    ``others`` are the worker's remaining processes, ``code`` the exit code (None for a signal). ``blameless``: somebody else ended it.
    ``served`` are the processes of the workers whose template this is: while they are steady its failures do not end the server.
    """
    if process.dismissed:
        return Verdict.EXPECTED
    others = list(others)
    was_ready = process.ready_at is not None
    if first_boot and not wanted.waits and not was_ready and (code in (2, 3) or process.hung):
        return Verdict.FATAL
    failed_roll = wanted.rolling and not was_ready and process.generation >= wanted.generation
    # A successor that fails costs nobody anything: of a new generation there is no other, a recycling backs off.
    covered = not was_ready and any(other.slot == process.slot and other.live for other in others)
    if failed_roll:
        wanted.fall_back(others)
    if not (failed_roll and covered):
        slot = wanted.slots[process.slot]
        exhausted = _account(slot, process, now, clean=was_ready and (code == 0 or blameless))
        fatal = exhausted and not covered and (first_boot or not (wanted.inner or any(steady(other, now) for other in (*others, *served))))
        if fatal and not wanted.waits:
            return Verdict.FATAL
        if wanted.waits and (fatal or not (was_ready or covered)):
            slot.not_before = math.inf
    return Verdict.ROLL_FAILED if failed_roll else Verdict.RESPAWN


def give_up(desired: Mapping[str, Desired], worker: str, processes: Iterable[Process]) -> None:
    """A new generation of this worker could not boot, and it fell back. What has its generations in common (rule 9) does without that one too."""
    processes = [process for process in processes if process.live]
    for name, wanted in desired.items():
        if wanted.template == worker:
            wanted.fall_back(process for process in processes if process.worker == name)
            wanted.generation = min(wanted.generation, desired[worker].generation)
    source, generation = desired[worker].template, desired[worker].generation
    templates = [process for process in processes if process.worker == source and process.state is State.READY]
    if any(process.generation == generation for process in templates):
        desired[source].generation = generation
        desired[source].rolling = False
        for process in templates:
            if process.generation > generation:
                process.retiring = "the workers that are forked from it cannot start"


def _account(slot: Slot, process: Process, now: float, *, clean: bool) -> bool:
    """Count this death; True when the slot has failed too often."""
    slot.restarts += 1
    if clean or steady(process, now):
        slot.failures = 0
        slot.not_before = now
        return False
    slot.failures += 1
    slot.not_before = now + backoff(slot.failures)
    return slot.failures >= MAX_FAILURES


def steady(process: Process, now: float) -> bool:
    """Whether the process was ready for long enough to count as healthy."""
    return process.ready_at is not None and now - process.ready_at >= STEADY


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0, 0.1, 0.2, 0.4, ... up to MAX_BACKOFF."""
    return 0.0 if failures <= 1 else float(min(MAX_BACKOFF, 0.1 * 2 ** min(failures - 2, 20)))
