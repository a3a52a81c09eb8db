"""`reconcile` against a small world: processes that boot, crash, hang and drain as Hypothesis pleases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from laraman.errors import IllegalTransition
from laraman.process import supervisor
from laraman.process.supervisor import Desired, Kill, Process, Spawn, State, Stop, Verdict, backoff, give_up, judge, reconcile, settled

NOW = 1000.0


def process(slot: int = 0, generation: int = 1, state: State = State.READY, **fields: Any) -> Process:
    fields.setdefault("ready_at", None if state is State.STARTING else NOW - 100)
    made = Process("http", slot, generation, 1000 + slot, NOW - 50, state, last_beat=NOW, **fields)
    if state is State.STOPPING:
        made.stop_reason = made.stop_reason or "reload"
        made.deadline = NOW + 5 if made.deadline is None else made.deadline
    return made


def plan(wanted: Desired, *processes: Process, now: float = NOW) -> list[supervisor.Action]:
    return reconcile({"http": wanted}, processes, now)


class World(RuleBasedStateMachine):
    """Obeys plans as the master does, checks each plan as it is made, and lets anything happen in between."""

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        self.now = NOW
        self.pid = 0
        self.desired = {"http": Desired(count), "ticker": Desired(1), "gateway": Desired(1, exclusive=True)}
        self.desired |= {"template": Desired(1), "forked": Desired(2, template="template")}
        self.desired |= {"bare": Desired(1, exclusive=True), "developed": Desired(1, template="bare", waits=True)}
        self.processes: list[Process] = []
        self.killed: set[int] = set()
        self.fatal = False

    def alive(self, *states: State) -> list[Process]:
        return [process for process in self.processes if process.state in (states or tuple(set(State) - {State.EXITED}))]

    def turn(self) -> list[supervisor.Action]:
        actions = reconcile(self.desired, self.processes, self.now)
        self.check(actions)
        for action in actions:
            match action:
                case Spawn(worker, slot, generation):
                    self.pid += 1
                    self.processes.append(Process(worker, slot, generation, self.pid, self.now))
                case Stop(process, reason, _, deadline):
                    process.stop(reason, deadline)
                case Kill(process):
                    process.kill()
        return actions

    def check(self, actions: list[supervisor.Action]) -> None:
        touched = [action.process.pid for action in actions if not isinstance(action, Spawn)]
        assert len(touched) == len(set(touched)), "one action per process"
        spawned = [(action.worker, action.slot) for action in actions if isinstance(action, Spawn)]
        assert len(spawned) == len(set(spawned)), "one spawn per slot"
        spawns = [action for action in actions if isinstance(action, Spawn)]
        succeeded = [spawn.worker for spawn in spawns if self.recycled(spawn.worker, spawn.slot, spawn.generation)]
        assert len(succeeded) == len(set(succeeded)), "two slots of a worker begin to be recycled at once"
        for action in actions:
            match action:
                case Spawn("gateway" | "bare" as worker, slot, _):
                    assert not [other for other in self.alive() if (other.worker, other.slot) == (worker, slot)], "two at a time"
                case Spawn("developed", _, _) if not [process for process in self.alive(State.READY) if process.worker == "bare"]:
                    raise AssertionError("no template could fork it")
                case Spawn("forked", _, generation) if not self.can_fork(generation, touched):
                    raise AssertionError("no template could fork it")
                case Kill(process):
                    assert process.pid not in self.killed, "killed twice"
                    self.killed.add(process.pid)
                case Spawn(worker, slot, generation) if predecessors := self.recycled(worker, slot, generation):
                    assert all(process.retiring for process in predecessors), "nobody asked for a successor"
                    assert self.turns(worker, generation) <= {slot}, "two slots of a worker are recycled at once"
                case Stop(process, "reload" | "recycle", _, _) if process.state is State.READY and not self.desired[process.worker].exclusive:
                    assert any(
                        other.worker == process.worker
                        and other.slot == process.slot
                        and other.pid not in touched
                        and (other.generation > process.generation or process.retiring)
                        for other in self.alive(State.READY)
                    ), "stopped while no other serves"

    def recycled(self, worker: str, slot: int, generation: int) -> list[Process]:
        """What serves in this slot already, in this generation."""
        ready = [process for process in self.alive(State.READY) if (process.worker, process.slot) == (worker, slot)]
        return [process for process in ready if process.generation >= generation]

    def turns(self, worker: str, generation: int) -> set[int]:
        """The slots where one that asked for a successor has got it and is not gone yet."""
        members = [process for process in self.alive() if process.worker == worker and process.generation >= generation]
        members = [process for process in members if process.slot < self.desired[worker].count]
        leaving = [process for process in members if process.retiring and (process.state is not State.STOPPING or process.deadline is not None)]
        begun = {process.slot for process in leaving if process.state not in supervisor.LIVE}
        return begun | {process.slot for process in leaving for other in members if other.slot == process.slot and not other.retiring}

    def can_fork(self, generation: int, touched: list[int]) -> bool:
        ready = [process for process in self.alive(State.READY) if process.worker == "template"]
        return any(process.generation >= generation and (process.pid not in touched or len(ready) > 1) for process in ready)

    @rule()
    def obey(self) -> None:
        self.turn()

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        if ready := self.alive(State.READY):
            data.draw(st.sampled_from(ready)).retiring = "it is tired"

    @rule(worker=st.sampled_from(["http", "gateway", "forked"]))
    def all_retire(self, worker: str) -> None:
        for process in self.alive(State.READY):
            if process.worker == worker:
                process.retiring = "they are tired"

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for process in self.alive(State.READY, State.STOPPING):
            process.last_beat = self.now

    @rule(data=st.data())
    def boots(self, data: st.DataObject) -> None:
        if starting := self.alive(State.STARTING):
            data.draw(st.sampled_from(starting)).ready(self.now)

    @rule(data=st.data())
    def hangs(self, data: st.DataObject) -> None:
        if ready := self.alive(State.READY):
            data.draw(st.sampled_from(ready)).last_beat = self.now - 100

    @rule(data=st.data(), code=st.sampled_from([0, 1, 3, None]), first_boot=st.booleans())
    def exits(self, data: st.DataObject, code: int | None, first_boot: bool) -> None:
        if alive := self.alive():
            self.gone(data.draw(st.sampled_from(alive)), code, first_boot)

    def gone(self, process: Process, code: int | None, first_boot: bool = False) -> None:
        wanted = self.desired[process.worker]
        others = [other for other in self.alive() if other is not process and other.worker == process.worker]
        served = [other for other in self.alive() if self.desired[other.worker].template == process.worker]
        verdict = judge(wanted, process, others, self.now, code=code, first_boot=first_boot, served=served)
        assert (verdict is Verdict.EXPECTED) == process.dismissed
        assert verdict is not Verdict.FATAL or not wanted.waits
        if verdict is Verdict.ROLL_FAILED:
            give_up(self.desired, process.worker, self.alive())
        process.to(State.EXITED)

    @rule(workers=st.sampled_from([["http"], ["ticker"], ["gateway"], ["template", "forked"], ["developed"]]))
    def reload(self, workers: list[str]) -> None:
        for worker in workers:
            self.desired[worker].roll("reload")

    @rule(count=st.integers(1, 6))
    def scale(self, count: int) -> None:
        self.desired["http"].count = count

    @rule(timeout=st.sampled_from([None, 8.0]))
    def change_stop_timeout(self, timeout: float | None) -> None:
        self.desired["http"].stop_timeout = timeout

    @invariant()
    def at_most_one_serves_and_one_follows(self) -> None:
        for worker, wanted in self.desired.items():
            assert all(isinstance(action, Spawn | Stop | Kill) for action in reconcile(self.desired, self.processes, self.now))
            for slot in range(wanted.count):
                members = [process for process in self.alive(*supervisor.LIVE) if (process.worker, process.slot) == (worker, slot)]
                generations = [process.generation for process in members if not process.retiring]
                assert len(set(generations)) == len(generations), "two of one generation in a slot"

    @rule(stopping=st.booleans())
    def converges(self, stopping: bool) -> None:
        """In a world that works, a few turns lead to what is wanted, and then there is nothing left to do."""
        if stopping:
            for wanted in self.desired.values():
                wanted.count = 0
        self.desired["developed"].roll("reload")  # which may be what it waits for
        for _ in range(60):
            self.now += 1.0
            for process in self.alive():
                process.last_beat = self.now
                if process.state is State.STARTING:
                    process.ready(self.now)
                elif process.state in (State.STOPPING, State.KILLED):
                    self.gone(process, 0)
            self.turn()
        assert all(settled(name, wanted, self.processes) for name, wanted in self.desired.items())
        assert self.turn() == []
        if stopping:
            assert self.alive() == []
            for name, count in (("http", 2), ("ticker", 1), ("template", 1), ("forked", 2), ("bare", 1), ("developed", 1)):
                self.desired[name].count = count


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_table_of_states_is_kept() -> None:
    exited = process(state=State.EXITED)
    with pytest.raises(IllegalTransition, match="EXITED -> READY"):
        exited.ready(NOW)
    assert exited.state is State.EXITED
    with pytest.raises(IllegalTransition):
        process(state=State.KILLED).kill()


def test_an_empty_slot_is_filled_and_a_full_one_left_alone() -> None:
    assert plan(Desired(2), process(0)) == [Spawn("http", 1, 1)]
    assert plan(Desired(2), process(0), process(1, state=State.STARTING)) == []


def test_what_hangs_is_not_what_serves() -> None:
    hung, other = process(retiring="it is tired"), process(retiring="it is tired")
    hung.last_beat = NOW - 100
    assert plan(Desired(1), hung, other) == [Stop(hung, "hung", 1.0, NOW + 1.0)]


def test_a_reload_first_brings_up_the_successor_within_the_surge() -> None:
    wanted = Desired(2)
    wanted.roll("reload")
    old = process(0), process(1)
    assert plan(wanted, *old) == [Spawn("http", 0, 2)]
    successor = process(0, 2, State.STARTING)
    assert plan(wanted, *old, successor) == []
    successor.ready(NOW)
    assert plan(wanted, *old, successor) == [Stop(old[0], "reload", 8.0, NOW + 10.0)]
    old[0].stop("reload", NOW + 10)
    assert plan(wanted, *old, successor) == [], "while the predecessor drains the surge is used up"
    old[0].to(State.EXITED)
    assert plan(wanted, *old, successor) == [Spawn("http", 1, 2)]


def test_a_predecessor_that_may_drain_for_ever_does_not_hold_up_the_others() -> None:
    wanted = Desired(2, stop_timeout=None)
    wanted.roll("reload")
    draining = process(0, state=State.STOPPING)
    draining.deadline = None
    assert plan(wanted, draining, process(0, 2), process(1)) == [Spawn("http", 1, 2)]
    assert settled("http", wanted, [draining, process(0, 2), process(1, 2)])


def test_a_reload_during_a_reload_drops_the_successor_in_between() -> None:
    wanted = Desired(1)
    wanted.roll("reload")
    wanted.roll("reload")
    serving, between = process(0, 1), process(0, 2, State.STARTING)
    assert plan(wanted, serving, between) == [Stop(between, "reload", 8.0, NOW + 10)]


def test_scaling_down_stops_the_highest_slots_and_stopping_all_of_them() -> None:
    members = process(0), process(1), process(2)
    assert plan(Desired(2), *members) == [Stop(members[2], "scale", 8.0, NOW + 10)]
    assert [action.reason for action in plan(Desired(0), *members) if isinstance(action, Stop)] == ["stop"] * 3


def test_a_hung_process_is_stopped_then_killed_and_only_then_replaced() -> None:
    hung = process(0)
    hung.last_beat = NOW - 5
    assert plan(Desired(1), hung) == [Stop(hung, "hung", 1.0, NOW + 1)]
    hung.stop("hung", NOW + 1)
    assert plan(Desired(1), hung) == []
    assert plan(Desired(1), hung, now=NOW + 1) == [Kill(hung)]
    hung.kill()
    assert plan(Desired(1), hung, now=NOW + 50) == []
    assert judge(Desired(1), hung, [], NOW + 2, code=None) is Verdict.RESPAWN
    hung.to(State.EXITED)
    assert plan(Desired(1), hung, now=NOW + 2) == [Spawn("http", 0, 1)]


def test_one_that_does_not_boot_or_lost_its_channel_is_hung_too() -> None:
    slow = process(0, state=State.STARTING)
    assert plan(Desired(1, boot_timeout=50), slow) == [Stop(slow, "hung", 1.0, NOW + 1)]
    lost = process(0, lost=NOW - 1)
    assert plan(Desired(1), lost) == [Stop(lost, "hung", 1.0, NOW + 1)]


def test_a_stop_without_deadline_still_notices_a_hung_process_and_can_be_hurried() -> None:
    wanted = Desired(0, stop_timeout=None)
    member = process(0)
    assert plan(wanted, member) == [Stop(member, "stop", None, None)]
    member.stop("stop", None)
    assert plan(wanted, member) == []
    assert plan(wanted, member, now=NOW + 6) == [Stop(member, "hung", 1.0, NOW + 7)]
    wanted.stop_timeout = 8.0
    assert plan(wanted, member) == [Stop(member, "stop", 8.0, NOW + 10)]
    wanted.at_once = True
    assert plan(wanted, member) == [Kill(member)]
    member.kill()
    assert plan(wanted, member) == []


def test_back_off_delays_a_slot_and_grows_to_its_bound() -> None:
    assert [backoff(failures) for failures in (0, 1, 2, 3, 4)] == [0, 0, 0.1, 0.2, 0.4]
    assert backoff(10_000) == supervisor.MAX_BACKOFF
    wanted = Desired(1)
    wanted.slots[0].not_before = NOW + 1
    assert plan(wanted) == []
    assert plan(wanted, now=NOW + 1) == [Spawn("http", 0, 1)]


def crash(wanted: Desired, others: list[Process], **how: Any) -> list[Verdict]:
    verdicts = []
    for _ in range(supervisor.MAX_FAILURES):
        died = process(0, state=State.STARTING)
        verdicts.append(judge(wanted, died, others, NOW, code=1, **how))
    return verdicts


def test_a_crash_loop_ends_the_server_unless_a_sibling_is_healthy() -> None:
    wanted = Desired(2)
    verdicts = crash(wanted, [])
    assert verdicts == [Verdict.RESPAWN] * (supervisor.MAX_FAILURES - 1) + [Verdict.FATAL]
    assert wanted.slots[0].restarts == supervisor.MAX_FAILURES
    assert Verdict.FATAL not in crash(Desired(2), [process(1)])
    assert crash(Desired(2), [process(1)], first_boot=True)[-1] is Verdict.FATAL


def test_an_inner_worker_that_keeps_failing_ends_no_server_that_has_started() -> None:
    assert set(crash(Desired(1, inner=True), [])) == {Verdict.RESPAWN}
    assert crash(Desired(1, inner=True), [], first_boot=True)[-1] is Verdict.FATAL


def test_a_steady_or_blameless_death_is_no_failure() -> None:
    wanted = Desired(1)
    wanted.slots[0].failures = 5
    assert judge(wanted, process(0), [], NOW, code=1) is Verdict.RESPAWN
    assert (wanted.slots[0].failures, wanted.slots[0].not_before) == (0, NOW)
    young = process(0, ready_at=NOW - 0.1)
    for fields in ({"code": 0}, {"code": None, "blameless": True}):
        wanted.slots[0].failures = 5
        judge(wanted, young, [], NOW, **fields)
        assert wanted.slots[0].failures == 0
    judge(wanted, young, [], NOW, code=1)
    assert wanted.slots[0].failures == 1


@pytest.mark.parametrize("code", [2, 3])
def test_a_boot_failure_of_the_first_generation_is_fatal(code: int) -> None:
    assert judge(Desired(1), process(0, state=State.STARTING), [], NOW, code=code, first_boot=True) is Verdict.FATAL
    assert judge(Desired(1), process(0, state=State.STARTING), [], NOW, code=code) is Verdict.RESPAWN


def test_a_generation_that_cannot_boot_is_given_up_and_its_number_not_used_again() -> None:
    wanted = Desired(4)
    wanted.roll("reload")
    old = [process(slot) for slot in range(1, 4)]
    rolled, failed = process(0, 2), process(1, 2, State.STARTING)
    assert judge(wanted, failed, [*old, rolled], NOW, code=3) is Verdict.ROLL_FAILED
    failed.to(State.EXITED)
    assert (wanted.generation, wanted.rolling, wanted.slots[1].restarts) == (1, False, 0)
    assert plan(wanted, *old, rolled) == []
    surplus = process(2, 2, State.STARTING)
    assert plan(wanted, *old, rolled, surplus) == [Stop(surplus, "reload", 8.0, NOW + 10)]
    wanted.roll("reload")
    assert wanted.generation == 3


def test_a_process_that_retires_is_succeeded_within_its_generation() -> None:
    wanted = Desired(1)
    old = process(retiring="old")
    assert plan(wanted, old) == [Spawn("http", 0, 1)]
    new = process(state=State.STARTING)
    assert plan(wanted, old, new) == []
    new.ready(NOW)
    (stop,) = plan(wanted, old, new)
    assert stop == Stop(old, "recycle", 8.0, NOW + 10)
    assert settled("http", wanted, [old, new]), "recycling keeps no reload from being over"


def test_one_slot_is_recycled_at_a_time_whatever_the_surge_and_the_oldest_first() -> None:
    wanted = Desired(8)
    members = [process(slot, retiring="grown") for slot in range(8)]
    members[5].started -= 1
    assert plan(wanted, *members) == [Spawn("http", 5, 1)]
    successor = process(5, state=State.STARTING)
    assert plan(wanted, *members, successor) == []
    members[2].started -= 2  # older, but not before the turn has ended that has begun
    successor.ready(NOW)
    assert plan(wanted, *members, successor) == [Stop(members[5], "recycle", 8.0, NOW + 10)]
    members[5].stop("recycle", NOW + 10)
    assert plan(wanted, *members, successor) == [], "its turn lasts until it is gone"
    members[5].to(State.EXITED)
    assert plan(wanted, *members, successor) == [Spawn("http", 2, 1)]


def test_a_recycled_process_that_may_drain_for_ever_gives_its_turn_on() -> None:
    draining = process(0, state=State.STOPPING, retiring="old")
    draining.deadline = None
    assert plan(Desired(2, stop_timeout=None), draining, process(0), process(1, retiring="old")) == [Spawn("http", 1, 1)]


def test_a_reload_and_a_recycling_have_room_of_their_own() -> None:
    wanted = Desired(4)
    wanted.roll("reload")
    new, old = process(0, 2, retiring="grown"), [process(slot) for slot in range(1, 4)]
    assert plan(wanted, new, *old) == [Spawn("http", 0, 2), Spawn("http", 1, 2)]
    members = [new, *old, process(0, 2, State.STARTING)]
    assert plan(wanted, *members) == [Spawn("http", 1, 2)], "the recycling's successor takes none of the reload's room"
    assert plan(wanted, *members, process(1, 2, State.STARTING)) == []


def test_one_of_an_older_generation_is_the_reload_s_whatever_it_asked() -> None:
    wanted = Desired(2)
    wanted.roll("reload")
    old = process(0, retiring="old"), process(1, retiring="old")
    assert plan(wanted, *old) == [Spawn("http", 0, 2)]
    assert plan(wanted, *old, process(0, 2)) == [Stop(old[0], "reload", 8.0, NOW + 10)]


def test_a_recycling_in_its_middle_gives_way_to_a_reload() -> None:
    wanted = Desired(1)
    old, between = process(retiring="old"), process(state=State.STARTING)
    wanted.roll("reload")
    assert plan(wanted, old, between) == [Stop(between, "reload", 8.0, NOW + 10)]


def test_a_successor_that_fails_backs_off_while_the_tired_one_serves() -> None:
    wanted = Desired(2, beat_timeout=60)
    tired = process(0, retiring="old", ready_at=NOW), process(1, retiring="old", ready_at=NOW)
    tired[0].started -= 1
    for _ in range(supervisor.MAX_FAILURES + 1):
        assert judge(wanted, process(0, state=State.STARTING), tired, NOW, code=1) is Verdict.RESPAWN
    assert wanted.slots[0].not_before == NOW + supervisor.MAX_BACKOFF
    assert plan(wanted, tired[0]) == [Spawn("http", 1, 1)], "nothing for slot 0 before it may"
    assert plan(wanted, *tired) == [Spawn("http", 1, 1)], "another has its turn meanwhile"
    assert plan(wanted, *tired, now=wanted.slots[0].not_before)[0] == Spawn("http", 0, 1)


def test_exclusive_processes_that_retire_take_turns_too() -> None:
    wanted = Desired(2, exclusive=True)
    tired = process(0, retiring="it could not be reset"), process(1, retiring="it could not be reset")
    assert plan(wanted, *tired) == [Stop(tired[0], "recycle", 8.0, NOW + 10)]
    tired[0].stop("recycle", NOW + 10)
    assert plan(wanted, *tired) == []


# Templates ------------------------------------------------------------------------------------------------------------------------


def template(generation: int = 1, state: State = State.READY, **fields: Any) -> Process:
    made = process(0, generation, state, **fields)
    made.worker = "template"
    return made


def family(count: int = 2) -> dict[str, Desired]:
    return {"template": Desired(1), "http": Desired(count, template="template")}


def test_a_worker_with_a_template_waits_until_that_is_ready() -> None:
    desired = family()
    assert reconcile(desired, [], NOW) == [Spawn("template", 0, 1)]
    assert reconcile(desired, [template(state=State.STARTING)], NOW) == []
    assert reconcile(desired, [template()], NOW) == [Spawn("http", 0, 1), Spawn("http", 1, 1)]
    assert reconcile(desired, [template(), process(0), process(1)], NOW) == []


@pytest.mark.parametrize("how", [{"lost": NOW - 0.5}, {"state": State.STOPPING}, {"state": State.KILLED}, {"last_beat": NOW - 5}])
def test_a_template_that_is_about_to_end_forks_no_more(how: dict[str, Any]) -> None:
    ending = template()
    for name, value in how.items():
        setattr(ending, name, value)
    assert not [action for action in reconcile(family(), [ending], NOW) if isinstance(action, Spawn) and action.worker == "http"]


def rolling(count: int = 2) -> dict[str, Desired]:
    desired = family(count)
    for wanted in desired.values():
        wanted.roll("reload")
    return desired


def test_a_reload_first_replaces_the_template_and_then_the_workers_from_it() -> None:
    desired = rolling(1)
    old = [template(), process(0)]
    assert reconcile(desired, old, NOW) == [Spawn("template", 0, 2)]
    new = template(2, State.STARTING)
    assert reconcile(desired, [*old, new], NOW) == []
    new.ready(NOW)
    assert reconcile(desired, [*old, new], NOW) == [Spawn("http", 0, 2)], "the old template stays as long as it may be needed"
    assert reconcile(desired, [old[0], new, process(0, 2)], NOW) == [Stop(old[0], "reload", 8.0, NOW + 10)]
    desired["http"].rolling = False
    assert reconcile(desired, [*old, new, process(0, 2)], NOW)[0] == Stop(old[0], "reload", 8.0, NOW + 10)


def test_a_template_that_is_held_does_not_keep_the_next_reload_from_beginning() -> None:
    desired = rolling()
    desired["template"].roll("reload")
    desired["http"].roll("reload")
    members = [template(), template(2), process(0), process(1)]
    assert reconcile(desired, members, NOW) == [Spawn("template", 0, 3)]
    between = members[1]
    members.append(template(3))
    assert reconcile(desired, members, NOW) == [Stop(between, "reload", 8.0, NOW + 10), Spawn("http", 0, 3)]


def test_workers_that_cannot_start_give_their_template_up_too() -> None:
    desired = rolling()
    old, new, failed = [template(), process(0), process(1)], template(2), process(0, 2, State.STARTING)
    assert judge(desired["http"], failed, old[1:], NOW, code=3) is Verdict.ROLL_FAILED
    give_up(desired, "http", [*old, new])
    assert [(wanted.generation, wanted.rolling) for wanted in desired.values()] == [(1, False), (1, False)]
    assert reconcile(desired, [*old, new], NOW) == [Stop(new, "recycle", 8.0, NOW + 10)]
    new.stop("recycle", NOW + 10)
    assert reconcile(desired, [*old[:2], new], NOW) == [Spawn("http", 1, 1)], "from the old template"


def test_without_the_old_template_the_new_one_stays() -> None:
    desired = rolling()
    new, serving = template(2), process(1)
    judge(desired["http"], process(0, 2, State.STARTING), [serving], NOW, code=3)
    give_up(desired, "http", [serving, new])
    assert desired["template"].generation == 2
    assert reconcile(desired, [serving, new], NOW) == [Spawn("http", 0, 1)]


def test_a_template_that_cannot_boot_ends_the_reload_for_its_workers_too() -> None:
    desired = family()
    for wanted in desired.values():
        wanted.roll("reload")
    old = [template(), process(0)]
    assert judge(desired["template"], template(2, State.STARTING), old[:1], NOW, code=3, served=old[1:]) is Verdict.ROLL_FAILED
    give_up(desired, "template", old)
    assert [(wanted.generation, wanted.rolling) for wanted in desired.values()] == [(1, False), (1, False)]
    assert reconcile(desired, old, NOW) == [Spawn("http", 1, 1)], "the old template forks on"
    for wanted in desired.values():
        wanted.roll("reload")
    assert {wanted.generation for wanted in desired.values()} == {3}


def test_without_any_worker_left_a_failed_reload_goes_back_to_the_old_template() -> None:
    desired = family(1)
    for wanted in desired.values():
        wanted.roll("reload")
    judge(desired["template"], template(2, State.STARTING), [template()], NOW, code=3)
    give_up(desired, "template", [template()])
    assert reconcile(desired, [template()], NOW) == [Spawn("http", 0, 1)]


def test_a_template_that_keeps_failing_does_not_end_workers_that_serve() -> None:
    assert Verdict.FATAL not in crash(Desired(1), [], served=[process(1)])
    assert crash(Desired(1), [])[-1] is Verdict.FATAL
