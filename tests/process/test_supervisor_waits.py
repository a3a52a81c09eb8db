"""Rule 10: a worker that waits; and a template that holds nothing of the application."""

from __future__ import annotations

import math
from typing import Any

import pytest

from laraman.process.supervisor import MAX_FAILURES, Desired, Process, Spawn, State, Stop, Verdict, give_up, judge, reconcile

NOW = 1000.0


def process(generation: int = 1, state: State = State.READY, *, worker: str = "http", **fields: Any) -> Process:
    made = Process(worker, 0, generation, generation, NOW - 10, last_beat=NOW, **fields)
    made.state = state
    made.ready_at = NOW - 10 if state is State.READY else None
    return made


def waiting() -> Desired:
    return Desired(1, waits=True)


@pytest.mark.parametrize(("code", "first_boot"), [(3, True), (2, True), (0, True), (None, True), (3, False)])
def test_a_boot_that_fails_is_not_tried_again_before_the_next_generation(code: int | None, first_boot: bool) -> None:
    wanted = waiting()
    assert judge(wanted, process(state=State.STARTING), [], NOW, code=code, first_boot=first_boot) is Verdict.RESPAWN
    assert reconcile({"http": wanted}, [], NOW + 1e9) == []
    wanted.roll("reload")
    assert reconcile({"http": wanted}, [], NOW) == [Spawn("http", 0, 2)]
    assert judge(wanted, process(2, State.STARTING), [], NOW, code=code, first_boot=first_boot) is Verdict.ROLL_FAILED
    assert (wanted.rolling, reconcile({"http": wanted}, [], NOW + 1e9)) == (False, [])
    wanted.roll("reload")
    assert reconcile({"http": wanted}, [], NOW) == [Spawn("http", 0, 3)]


def test_a_new_generation_that_fails_beside_an_old_one_is_given_up_and_the_old_one_replaced_when_it_dies() -> None:
    wanted, old = waiting(), process()
    wanted.roll("reload")
    assert judge(wanted, process(2, State.STARTING), [old], NOW, code=3) is Verdict.ROLL_FAILED
    assert reconcile({"http": wanted}, [old], NOW) == []
    assert judge(wanted, old, [], NOW, code=None) is Verdict.RESPAWN
    assert reconcile({"http": wanted}, [], NOW) == [Spawn("http", 0, 1)]


def test_one_that_keeps_dying_when_it_is_ready_waits_in_the_end() -> None:
    wanted = waiting()
    verdicts = []
    for _ in range(MAX_FAILURES):
        dying = process()
        dying.ready_at = NOW
        verdicts.append(judge(wanted, dying, [], NOW, code=1))
    assert verdicts == [Verdict.RESPAWN] * MAX_FAILURES
    assert wanted.slots[0].not_before == math.inf
    wanted.roll("reload")
    assert wanted.slots[0].failures == 0


def test_a_generation_that_is_superseded_while_it_boots_holds_nobody_up() -> None:
    wanted, old, stale = waiting(), process(), process(2, State.STARTING)
    wanted.roll("reload")
    wanted.roll("reload")
    spawn, stop = reconcile({"http": wanted}, [old, stale], NOW)
    assert spawn == Spawn("http", 0, 3)
    assert isinstance(stop, Stop)
    assert stop.process is stale


def test_a_bare_template_forks_every_generation_and_stays() -> None:
    desired = {"bare": Desired(1, exclusive=True), "http": Desired(1, template="bare", waits=True)}
    bare, old = process(worker="bare"), process()
    desired["http"].roll("reload")
    assert reconcile(desired, [bare, old], NOW) == [Spawn("http", 0, 2)]
    failed = process(2, State.STARTING)
    assert judge(desired["http"], failed, [old], NOW, code=3) is Verdict.ROLL_FAILED
    give_up(desired, "http", [bare, old])
    assert reconcile(desired, [bare, old], NOW) == []
    assert not bare.retiring


def test_a_restart_replaces_a_bare_template_first() -> None:
    desired = {"bare": Desired(1, exclusive=True), "http": Desired(1, template="bare", waits=True)}
    bare, old = process(worker="bare"), process()
    for wanted in desired.values():
        wanted.roll("restart")
    (stop,) = reconcile(desired, [bare, old], NOW)
    assert isinstance(stop, Stop)
    assert stop.process is bare
    assert reconcile(desired, [old], NOW) == [Spawn("bare", 0, 2)]
    assert reconcile(desired, [process(2, worker="bare"), old], NOW) == [Spawn("http", 0, 2)]
