"""The verbs of the control socket. Most are answered at once; reload, scale and connections when their outcome is known."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from laraman.config import VERSION
from laraman.errors import LaramanError
from laraman.process import restart
from laraman.process.exits import rss
from laraman.process.supervisor import State, settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.process.control import Client
    from laraman.process.master import Master
    from laraman.process.supervisor import Process, Slot
    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

logger = logging.getLogger("uvicorn.error")

#: Seconds the workers have to list their connections.
CONNECTIONS_TIMEOUT = 1.0
#: The most rows of one answer, so that it fits an envelope.
MAX_ROWS = 30_000
#: The most processes of one worker.
MAX_COUNT = 4096


#: What a beat says of a worker, and the status of its process.
STATS = ("requests", "in_flight", "connections_in", "connections_out")

#: What a beat says of each timer: of text, and numbers.
TIMER_WORDS, TIMER_NUMBERS = ("name", "when"), ("next", "ticks", "missed", "errors")
#: Timers of one process that are shown.
MAX_TIMERS = 50
#: Characters of a name.
MAX_NAME = 200


class Gathering:
    """One round of asking every worker for its connections, for everybody who asks while it lasts."""

    def __init__(self, number: int, deadline: float) -> None:
        self.number = number
        self.deadline = deadline
        self.missing: dict[int, str] = {}
        self.rows: list[Any] = []
        self.askers: list[tuple[Client, Envelope]] = []


class Commands:
    """Answers the control socket's clients on behalf of the master."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._gathering: Gathering | None = None
        self._rounds = 0
        self._waiting: list[tuple[Client, Envelope, Callable[[], dict[str, Any] | None]]] = []
        self._verbs: dict[str, Callable[[Client, Envelope], None]] = {
            "ping": self._ping,
            "status": self._status,
            "connections": self._connections,
            "reload": self._reload,
            "restart": self._restart,
            "stop": self._stop,
            "scale": self._scale,
            "reopen": self._reopen,
        }

    def handle(self, client: Client, request: Envelope) -> None:
        """Answer one request, now or in a later `tick`."""
        verb = self._verbs.get(request["op"])
        if verb is None:
            client.answer(request, ok=False, error=f"unknown command {request['op']!r}")
        elif self._master.phase == "stopping" and request["op"] in ("reload", "restart", "scale"):
            client.answer(request, ok=False, error="the server is stopping")
        else:
            verb(client, request)

    def tick(self, now: float) -> None:
        """Answer those whose outcome is known by now."""
        gathering = self._gathering
        if gathering is not None and (not gathering.missing or now >= gathering.deadline):
            self._gathering = None
            self._answer_gathering(gathering)
        still = []
        for client, request, outcome in self._waiting:
            found = outcome()
            if found is not None:
                client.answer(request, **found)
            elif not client.closed:
                still.append((client, request, outcome))
        self._waiting = still

    def take_rows(self, process: Process, envelope: Envelope) -> None:
        """A worker has listed its connections."""
        gathering = self._gathering
        rows = envelope.get("rows")
        if gathering is None or envelope.get("id") != gathering.number or process.pid not in gathering.missing or not isinstance(rows, list):
            return
        del gathering.missing[process.pid]
        gathering.rows += rows

    def _ping(self, client: Client, request: Envelope) -> None:
        client.answer(request, ok=True)

    def _reopen(self, client: Client, request: Envelope) -> None:
        self._master.reopen_logs()
        client.answer(request, ok=True)

    def _stop(self, client: Client, request: Envelope) -> None:
        client.answer(request, ok=True, pid=os.getpid())
        self._master.stop(graceful=request.get("graceful") is True)

    def _reload(self, client: Client, request: Envelope) -> None:
        left_out = self._master.roll()
        self._waiting.append((client, request, lambda: self._roll_outcome(left_out)))

    def _roll_outcome(self, left_out: list[str]) -> dict[str, Any] | None:
        master = self._master
        if master.phase == "stopping":
            return {"ok": False, "error": "the server is stopping"}
        if master.rolling:
            return None
        error = master.last_roll_error
        return {"ok": not error, **({"error": error} if error else {}), "not_reloadable": left_out}

    def _restart(self, client: Client, request: Envelope) -> None:
        try:
            self._master.revalidate()
        except LaramanError as exc:
            client.answer(request, ok=False, error=str(exc))
            return
        client.answer(request, ok=True)
        for waiting, other, _ in self._waiting:
            waiting.answer(other, ok=False, error="the server restarts")
        self._waiting.clear()
        restart.execute(self._master)

    def _scale(self, client: Client, request: Envelope) -> None:
        name, count = request.get("worker"), request.get("count")
        wanted = self._master.desired.get(name) if isinstance(name, str) and name in self._master.workers else None
        if wanted is None or not isinstance(name, str):
            client.answer(request, ok=False, error=f"no worker is called {name!r}")
        elif any(worker.template == name for worker in self._master.workers.values()) or self._is_the_only(self._master.workers[name]):
            client.answer(request, ok=False, error=f"there is one {name} for all")
        elif type(count) is not int or not 1 <= count <= MAX_COUNT:
            client.answer(request, ok=False, error=f"the count must be a whole number in 1..{MAX_COUNT}")
        else:
            wanted.count = count
            self._waiting.append((client, request, lambda: self._scale_outcome(name)))

    def _is_the_only(self, worker: Worker) -> bool:
        return bool(worker.inner) and not worker.count

    def _scale_outcome(self, name: str) -> dict[str, Any] | None:
        if self._master.phase == "stopping":
            return {"ok": False, "error": "the server is stopping"}
        return {"ok": True} if settled(name, self._master.desired[name], self._master.processes) else None

    # status and connections ------------------------------------------------------------------------------------------------------

    def _status(self, client: Client, request: Envelope) -> None:
        client.answer(request, ok=True, server=self._server(), processes=self._processes())

    def _server(self) -> dict[str, Any]:
        master = self._master
        return {
            "name": master.name,
            "pid": os.getpid(),
            "version": VERSION,
            "app": master.config.app,
            "addresses": master.addresses,
            "started": master.started,
            "uptime": time.time() - master.started,
            "generation": max((wanted.generation for wanted in master.desired.values()), default=0),
            "state": master.phase,
            "restarts": master.restarts,
            "rolling": master.rolling,
            "last_roll_error": master.last_roll_error or None,
            "deaths": list(master.deaths),
        }

    def _processes(self) -> list[dict[str, Any]]:
        order = list(self._master.desired)
        rows = [self._row(process) for process in self._master.processes]
        taken = {(row["worker"], row["slot"]) for row in rows}
        for name, wanted in self._master.desired.items():
            rows += [_empty_slot(name, slot, wanted.slots[slot]) for slot in range(wanted.count) if (name, slot) not in taken]
        return sorted(rows, key=lambda row: (order.index(row["worker"]), row["slot"], row["generation"]))

    def _row(self, process: Process) -> dict[str, Any]:
        account = self._master.desired[process.worker].slots[process.slot]
        return {
            "worker": process.worker,
            "slot": process.slot,
            "pid": process.pid,
            "state": process.state.value,
            "generation": process.generation,
            "rss": rss(process.pid),
            "uptime": time.monotonic() - process.started,
            **{name: process.stats.get(name, 0) for name in STATS},
            "restarts": account.restarts,
            "last_exit": account.last_exit or None,
            **({"timers": process.timers} if process.timers else {}),
        }

    def _connections(self, client: Client, request: Envelope) -> None:
        if self._gathering is None:
            self._rounds += 1
            self._gathering = Gathering(self._rounds, time.monotonic() + CONNECTIONS_TIMEOUT)
            for child in self._master.children.values():
                if child.process.state in (State.READY, State.STOPPING):  # one that is still importing could not answer
                    child.send({"op": "connections", "id": self._rounds}, must=False)
                    self._gathering.missing[child.process.pid] = f"{child.process.worker}:{child.process.slot}"
        self._gathering.askers.append((client, request))

    def _answer_gathering(self, gathering: Gathering) -> None:
        left_out = max(0, len(gathering.rows) - MAX_ROWS)
        fields = {"rows": gathering.rows[:MAX_ROWS], "left_out": left_out, "missing": sorted(gathering.missing.values())}
        for client, request in gathering.askers:
            client.answer(request, ok=True, **fields)


def timers_in(beat: Envelope) -> list[dict[str, Any]]:
    """The timers that a beat tells of; whatever is not as it should be is left out."""
    rows = beat.get("timers")
    return [_timer(row) for row in rows[:MAX_TIMERS] if isinstance(row, dict)] if isinstance(rows, list) else []


def _timer(row: dict[str, Any]) -> dict[str, Any]:
    words = {name: str(row.get(name, ""))[:MAX_NAME] for name in TIMER_WORDS}
    return {**words, **{name: value if isinstance(value := row.get(name), (int, float)) else None for name in TIMER_NUMBERS}}


def _empty_slot(name: str, slot: int, account: Slot) -> dict[str, Any]:
    """The row of a slot that waits for its next process."""
    return {
        "worker": name,
        "slot": slot,
        "pid": None,
        "state": "waiting",
        "generation": 0,
        "rss": None,
        "uptime": 0.0,
        **dict.fromkeys(STATS, 0),
        "restarts": account.restarts,
        "last_exit": account.last_exit or None,
    }
