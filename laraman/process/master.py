"""The master: one thread on a selector that forks, watches and ends workers. It obeys `reconcile` and owns descriptors; it decides nothing.

No event loop, no threads and no application code run here, so that ``fork`` stays safe; the exception are listeners of master events.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

from laraman import events, log
from laraman.config.declared import HTTP
from laraman.errors import ConfigError, LaramanError
from laraman.process import announce, daemon, handover, opening, privileges, restart, stopping, watch
from laraman.process.children import FORK_SECONDS, Child
from laraman.process.commands import STATS, Commands, timers_in
from laraman.process.exits import BLAMELESS, Exit, collect, in_words, oom_kills, thread_count
from laraman.process.loopless import Loopless
from laraman.process.notify import Notifier
from laraman.process.signals import wakeup
from laraman.process.spawning import end_slots, in_short, new_child, template_for, wanted_of
from laraman.process.supervisor import (
    HUNG,
    HUNG_GRACE,
    RECYCLE,
    Desired,
    Kill,
    Process,
    Spawn,
    State,
    Stop,
    Verdict,
    backoff,
    give_up,
    judge,
    reconcile,
    settled,
    silence,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from laraman.config import Config
    from laraman.net.bind import Bind
    from laraman.process.control import Control
    from laraman.process.state import StateDirectory
    from laraman.process.supervisor import Action
    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

logger = logging.getLogger("uvicorn.error")

#: Seconds between turns while something is under way, and while nothing is.
TICK, CALM_TICK = 0.05, 0.5
#: A pause of the whole process (suspend, SIGSTOP) that is longer is not held against the workers, in seconds.
PAUSE = 1.0
#: Characters of a worker's reason to be replaced that are kept; the application may have given it.
MAX_REASON = 500


class Master:
    """The server. ``argv`` is the command line, interpreter first, that a restart executes; ``notify`` hears how a daemon's start went.

    ``revalidate()`` raises ConfigError when the configuration does not load any more; a restart is refused then. ``prepare()`` does what
    has to be done before ServerStarting can be told, and returns more workers; a restarted master calls it when it has taken the running ones over,
    so that its ConfigError or BootError leaves them running. A restart does without the environment variables ``added``: those of the environment
    file, which is read again.
    """

    def __init__(
        self,
        config: Config,
        workers: Iterable[Worker],
        *,
        argv: Sequence[str] | None = None,
        notify: daemon.Notify | None = None,
        revalidate: Callable[[], object] = lambda: None,
        prepare: Callable[[], Iterable[Worker]] = tuple,
        added: Iterable[str] = (),
    ) -> None:
        self.config = config
        self.name = ""
        self.workers: dict[str, Worker] = {}
        self.desired: dict[str, Desired] = {}
        self.children: dict[int, Child] = {}
        self.strays: set[int] = set()  # children of this process by accident, which only have to be reaped
        self.phase = "booting"
        self.exit_code = 0
        self.told_to_stop = 0.0
        self.started = time.time()
        self.restarts = 0
        self.last_roll_error = ""
        self.deaths: deque[dict[str, Any]] = deque(maxlen=10)
        self.revalidate = revalidate
        self.inherited: dict[str, int] = {}
        self._prepare = prepare
        self.argv = [*(argv or [sys.executable, *sys.orig_argv[1:]])]
        self.added = frozenset(added)
        self.directory = Path.cwd()
        self.notify = notify
        self.systemd = Notifier()
        self._first_boot = True
        self._asked_to_stop = self._hurried = False
        self._turn = time.monotonic()
        self._oom_kills = oom_kills()
        self.selector = selectors.DefaultSelector()
        self.wake: tuple[int, int] = (-1, -1)
        self.state: StateDirectory | None = None
        self.control: Control | None = None
        self.commands = Commands(self)
        for worker in workers:
            self.add(worker)

    def add(self, worker: Worker) -> None:
        """Run this worker too; for listeners of ServerStarting. Raises ConfigError when its name is taken or the server has started."""
        if self.phase != "booting":
            raise ConfigError(f"worker {worker.name!r} comes too late: workers are added while the server is starting")
        if worker.name in self.workers:
            raise ConfigError(f"two workers are called {worker.name!r}")
        self.workers[worker.name] = worker

    @property
    def processes(self) -> list[Process]:
        return [child.process for child in self.children.values()]

    @property
    def binds(self) -> list[Bind]:
        return [bind for worker in self.workers.values() for bind in worker.binds]

    @property
    def main(self) -> str:
        """The name of the main worker: the application's, else the first that is declared; empty when there is none."""
        candidates = (name for name, worker in self.workers.items() if not isinstance(worker, Loopless) and not worker.inner)
        return HTTP if HTTP in self.workers else next(candidates, "")

    @property
    def addresses(self) -> list[str]:
        """Where others than the server itself connect."""
        return [str(bind.address) for worker in self.workers.values() if not worker.inner for bind in worker.binds]

    @property
    def rolling(self) -> bool:
        return any(wanted.rolling for wanted in self.desired.values())

    # The life of the server ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start, serve until told to stop, and return the exit code: 0, 2 for a wrong configuration, 3 when it could not start."""
        with wakeup(self._interrupt) as self.wake:
            self.selector.register(self.wake[0], selectors.EVENT_READ, self._on_wake)
            try:
                self._boot_or_fail()
                self._loop()
            finally:
                self._close()
        return self.exit_code

    def _boot_or_fail(self) -> None:
        try:
            self._boot(handover.take())
        except LaramanError as exc:
            self._fail(exc.exit_code, str(exc))
        except SystemExit as exc:  # a listener's, or ours for a signal that came while one was running
            self._fail(exc.code if isinstance(exc.code, int) else 1, "ended while starting")

    def _boot(self, table: handover.Table | None) -> None:
        if table:
            restart.adopt(self, table)
            self._first_boot = False
        refused = ""
        try:
            if table:
                for worker in self._prepare():
                    self.add(worker)
            events.emit(events.ServerStarting(server=self))
            for name, worker in self.workers.items():
                worker.main = name == self.main
                privileges.check(worker.configured(self.config))
            opening.open_binds(self)
        except LaramanError as exc:
            if not self.children:
                raise
            refused = str(exc)
        for name, worker in self.workers.items():
            self._want(name, worker)
        if refused:
            restart.refuse(self, refused)
        opening.open_directory(self)
        if not refused:
            opening.close_inherited(self)  # what is no longer wanted
        opening.watch_inner(self)
        if (threads := thread_count()) > 1:
            logger.warning("The master has %d threads: a fork copies only one, and what the others hold locked stays locked", threads)
        # What is here now stays: a child that looks for garbage need not touch it, so its pages stay shared.
        gc.collect()
        gc.freeze()
        self.phase = "starting"
        setproctitle(f"laraman: master {self.name}")
        announce.start(self)

    def _want(self, name: str, worker: Worker) -> None:
        """Want the declared workers; those that a master before this one left are replaced, one generation on."""
        wanted = wanted_of(self, worker)
        if before := self.desired.get(name):
            wanted.slots = before.slots
        kin = {name, worker.template, *(other.name for other in self.workers.values() if other.template == name)}
        adopted = [process.generation for process in self.processes if process.worker in kin]
        if not wanted.count and any(process.worker == name and process.live for process in self.processes):
            wanted.count = 1  # somebody has connected
        if adopted:
            wanted.generation = max(adopted)
            wanted.roll("restart")
        self.desired[name] = wanted

    def _loop(self) -> None:
        while True:
            now = time.monotonic()
            self._forgive_a_pause(now)
            self._bury(now)
            end_slots(self)
            stopping.end_inner(self, now)
            for action in reconcile(self.desired, self.processes, now):
                self._obey(action, now)
            calm = self._take_stock(now)
            if self.phase == "stopping" and not self.children:
                return
            for key, mask in self.selector.select(min(self.systemd.interval, CALM_TICK if calm else TICK)):
                key.data(mask)

    def _forgive_a_pause(self, now: float) -> None:
        if (gap := now - self._turn) > PAUSE:
            for process in self.processes:
                process.last_beat += gap
        self._turn = now

    def _take_stock(self, now: float) -> bool:
        """Draw the conclusions of this turn; whether everything is as it should be."""
        self.commands.tick(now)
        if self.control is not None:
            self.control.tick(now)
        calm = True
        for name, wanted in self.desired.items():
            if settled(name, wanted, self.processes):
                wanted.rolling = False
            else:
                calm = False
        if calm and self.phase == "starting":
            self.phase = "running"
            self._first_boot = False
            events.emit(events.ServerStarted(server=self))
            if self.notify is not None:
                where = ", ".join(self.addresses) or self.name
                self.notify(0, f"Laraman running on {where} [{os.getpid()}]")
        self.systemd.tick(self.phase, self.rolling, self.last_roll_error, now)
        return calm

    def roll(self) -> list[str]:
        """Start a rolling reload; the names of the workers that cannot be reloaded, because their code is this process's own.

        Exclusive workers stay: nobody could serve for them meanwhile. A restart replaces them.
        """
        self.last_roll_error = ""
        for child in self.children.values():
            if child.process.state is State.READY:
                child.send({"op": "reload"}, must=False)
        workers = {name: worker for name, worker in self.workers.items() if not worker.exclusive}
        for name, worker in workers.items():
            if worker.reloadable:
                self.desired[name].roll("reload")
        left_out = [name for name, worker in workers.items() if not worker.reloadable]
        if left_out:
            logger.warning("Not reloaded, because the handler is no import string: %s", ", ".join(left_out))
        return left_out

    def stop(self, *, graceful: bool = False, exit_code: int = 0) -> None:
        """Stop the server: with the configured deadlines, or with none. Asked again, the nearer deadline counts."""
        if self.phase != "stopping":
            self.phase = "stopping"
            self.exit_code = exit_code
            events.emit(events.ServerStopping(server=self))
            stopping.end_outer(self)
            opening.close_inherited(self)
        stopping.give_time(self, graceful, time.monotonic())

    def reopen_logs(self) -> None:
        """Open the log files anew, here and in every worker."""
        log.reopen()
        daemon.reopen_output()
        for child in self.children.values():
            child.send({"op": "reopen"})

    def _fail(self, code: int, text: str) -> None:
        """End with one clear line: to whoever waits for the daemon, else to the log."""
        if self.notify is None or daemon.output():
            logger.error("%s", text)
        if self.notify is not None:
            self.notify(code, text)
        self.stop(exit_code=code)

    # Obeying ---------------------------------------------------------------------------------------------------------------------

    def _obey(self, action: Action, now: float) -> None:
        match action:
            case Spawn(name, slot, generation):
                self._spawn(name, slot, generation, now)
            case Stop(process, reason, timeout, deadline):
                child = self.children[process.pid]
                if reason == HUNG:
                    self._dump_stack(process, now)
                child.send({"op": "stop", "reason": reason, "deadline": timeout})
                process.stop(reason, deadline)
            case Kill(process):
                if not process.hung:
                    logger.warning("Worker %s did not stop in time, killing it", process)
                process.kill()
                os.kill(process.pid, signal.SIGKILL)

    def _dump_stack(self, process: Process, now: float) -> None:
        process.error = silence(process, self.desired[process.worker], now) or f"no fork within {FORK_SECONDS:.1f} s"
        logger.error("Worker %s is hung (%s), replacing it", process, process.error)
        os.kill(process.pid, signal.SIGUSR2)  # faulthandler writes the stack into the black box, whatever the process is doing

    def _spawn(self, name: str, slot: int, generation: int, now: float) -> None:
        try:
            child = new_child(self, self.workers[name], slot, generation, now)
        except (OSError, KeyError) as exc:
            account = self.desired[name].slots[slot]
            account.failures += 1
            account.not_before = now + max(0.1, backoff(account.failures))
            account.last_exit = f"could not be forked: {exc.strerror}" if isinstance(exc, OSError) else "is declared no more"
            logger.error("Worker %s:%d %s", name, slot, account.last_exit)
            if isinstance(exc, TimeoutError) and (template := template_for(self, self.workers[name])):
                later = time.monotonic()
                self._obey(Stop(template.process, HUNG, HUNG_GRACE, later + HUNG_GRACE), later)
        else:
            self.children[child.process.pid] = child

    def on_envelope(self, child: Child, envelope: Envelope) -> None:
        """What a child says. It is our own code, but the application's code runs in the same process: nothing here trusts it."""
        process = child.process
        now = time.monotonic()
        match envelope["op"]:
            case "ready" if process.state is State.STARTING:
                process.ready(now)
            case "beat":
                process.last_beat = now
                process.stats = {name: value for name in STATS if isinstance(value := envelope.get(name), int)}
                process.timers = timers_in(envelope)
            case "retire" if process.state is State.READY:
                process.retiring = str(envelope.get("reason", ""))[:MAX_REASON] or "it asked for a successor"
                logger.info("Worker %s is replaced: %s", process, process.retiring)
            case "reload" if process.worker == watch.NAME and self.phase != "stopping":
                self.roll()
            case "failed":
                process.error = str(envelope.get("error", ""))
            case "connections":
                self.commands.take_rows(process, envelope)

    # Exits -----------------------------------------------------------------------------------------------------------------------

    def _bury(self, now: float) -> None:
        """Reap the children that have exited, each by its own pid, and see what that means."""
        self.strays = {pid for pid in self.strays if collect(pid) is None}
        for child in list(self.children.values()):
            if not child.connected and child.process.lost is None:
                child.process.lost = now
            ending = collect(child.process.pid)
            if ending is not None:
                # Whoever ends a whole process group (systemd, a container's init) ends the workers too: hear of it first.
                self._read_signals()
                child.drain()
                del self.children[child.process.pid]
                self._conclude(child, ending, now)
                child.close()

    def _conclude(self, child: Child, ending: Exit, now: float) -> None:
        process = child.process
        if ending.signal == signal.SIGKILL and (kills := oom_kills()) > self._oom_kills:
            self._oom_kills = kills
            ending = replace(ending, oom=True)
        stack = child.stack()
        process.ending = in_words(process, ending, stack)
        verdict = judge(
            self.desired[process.worker],
            process,
            [other for other in self.processes if other.worker == process.worker],
            now,
            code=ending.code,
            blameless=ending.signal in BLAMELESS and not ending.oom,
            first_boot=self._first_boot,
            served=[other for other in self.processes if self.desired[other.worker].template == process.worker],
        )
        if verdict is Verdict.ROLL_FAILED:
            give_up(self.desired, process.worker, self.processes)
        if ending.code == 0 and (verdict is Verdict.EXPECTED or self.phase == "stopping"):
            logger.debug("Worker %s ended", process)
            if process.stop_reason == RECYCLE:
                self.desired[process.worker].slots[process.slot].last_exit = process.ending
        else:
            self._report(process, verdict, stack)
        process.to(State.EXITED)
        events.emit(events.WorkerExited(server=self, process=process, reason=process.ending))
        if verdict is Verdict.FATAL and self.phase != "stopping":
            why = "keeps failing" if process.ready_at is not None or not self._first_boot else "could not start"
            self._fail(2 if ending.code == 2 else 3, f"{in_short(self, process)} {why}: {process.error or process.ending}")

    def _report(self, process: Process, verdict: Verdict, stack: str) -> None:
        self.desired[process.worker].slots[process.slot].last_exit = process.ending
        self.deaths.append({"worker": process.worker, "slot": process.slot, "pid": process.pid, "at": time.time(), "reason": process.ending})
        announce.failure(self, process, verdict, stack)
        if verdict is Verdict.ROLL_FAILED:
            self.last_roll_error = f"the new {process.worker} workers cannot start: {process.error or process.ending}"

    # Signals ---------------------------------------------------------------------------------------------------------------------

    def _interrupt(self, number: int) -> None:
        # The loop reads the number from the pipe; but while listeners start there is no loop yet that could end them.
        if self.phase == "booting" and number in (signal.SIGINT, signal.SIGTERM):
            raise SystemExit(128 + number)

    def _on_wake(self, mask: int) -> None:
        self._read_signals()

    def _read_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self.wake[0], 4096):
                self._signalled(number)

    def _signalled(self, number: int) -> None:
        match number:
            case signal.SIGINT | signal.SIGTERM:
                # Only for the impatient at a terminal: a launcher that forwards SIGTERM to a group that has got it already is not one.
                again = self._asked_to_stop and number == signal.SIGINT
                self._asked_to_stop = True
                logger.info("Received %s, exiting.", signal.Signals(number).name)
                self.stop()
                if again:
                    self._hurry()
            case signal.SIGQUIT:
                self.stop(graceful=True)
            case signal.SIGHUP if self.phase != "stopping":
                logger.info("Received SIGHUP, replacing the workers.")
                self.roll()
            case signal.SIGUSR1:
                self.reopen_logs()
            case signal.SIGTTIN | signal.SIGTTOU if self.phase != "stopping":
                name = self.main
                wanted = self.desired[name]
                wanted.count = max(1, wanted.count + (1 if number == signal.SIGTTIN else -1))
                logger.info("Received %s, worker %s now runs %d times.", signal.Signals(number).name, name, wanted.count)

    def _hurry(self) -> None:
        """At the second Ctrl+C requests get no more time, but the application's shutdown runs; the third kills."""
        logger.warning("SIGINT again: %s", "killing what is left" if self._hurried else "running requests are cut off (CTRL+C to kill)")
        for wanted in self.desired.values():
            wanted.at_once, wanted.stop_timeout = self._hurried, 0.0
            if self._hurried:
                wanted.count = 0
        self._hurried = True

    def _close(self) -> None:
        for child in list(self.children.values()):  # only when an error of our own brought us here; their channels' end stops them
            child.close()
        for bind in self.binds:
            bind.close()
            bind.unlink()
        if self.control is not None:
            self.control.close()
        if self.state is not None:
            self.state.close()
        if self.notify is not None:
            self.notify.close()
        self.selector.close()
        if not self._first_boot or not self.exit_code:
            log.say_process(f"Stopping {announce.role(self)}")
