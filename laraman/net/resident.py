"""Residents: what runs in a worker by itself as long as the worker serves: timers and consumers.

One is declared by a call, and where that is made decides where it runs:

- At import, in the application or in a listener module: in each process of the Worker that ``worker`` names, by default the server's main one
  (``http``, or the first of a program without it), from when that process has started. Listener modules are imported in the master and in every
  worker, and whatever is imported afresh declares again: a declaration is a listener of ``WorkerStarting`` and ``WorkerStarted`` in the name of
  the module that made it, so it counts once, and elsewhere it does nothing.
- In a worker that runs (from its ``WorkerStarting`` on: listeners, ``on_start``, lifespan, requests, threads): in this process, at once.

``scope`` says how often: "worker" in each of these processes; "server" in one process of the server, that of slot 0; "cluster" in one process
of all the servers that have the same store in ``--cluster``. Who it is, a lease decides (``laraman.net.lease``), known by the resident's name: the
process of slot 0 waits until its predecessor has let go, or is dead, and then takes over. A process without a master is a server of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from laraman import events
from laraman.errors import ConfigError
from laraman.events import WorkerStarted, WorkerStarting
from laraman.net.current import current_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.lease import Lease

SCOPES = ("worker", "server", "cluster")


class Declared:
    """The declaration of a resident, and what its caller has in hand."""

    what: ClassVar[str]

    def __init__(self, function: Callable[[], Any], name: str | None, scope: str, worker: str | None, registrar: str) -> None:
        if not callable(function):
            raise ConfigError(f"{self.what} {name or function!r}: {function!r} cannot be called")
        if scope not in SCOPES:
            raise ConfigError(f"{self.what} {name or function!r}: once per {scope!r} is none of {', '.join(SCOPES)}")
        self.function = function
        self.name = name or _name(function)
        self.scope = scope
        self.worker = worker
        self.registrar = registrar
        self.cancelled = False
        self._residents: set[Resident] = set()

    def resident(self, worker: Any) -> Resident:
        """What it is in a worker. Raises ConfigError when it cannot be there."""
        raise NotImplementedError

    def cancel(self) -> None:
        """End it in this process. What runs of a timer is finished."""
        self.cancelled = True
        for resident in tuple(self._residents):
            resident.worker.loop.call_soon_threadsafe(resident.cancel)

    def declare(self) -> None:
        """Let it run, now or when a worker starts. Raises ConfigError when it is to run here and cannot."""
        worker = current_worker.get()
        if worker is None or not worker.running:
            events.register(WorkerStarting, self._settle, self.registrar)
            events.register(WorkerStarted, self._start, self.registrar)
        elif self.worker in (None, worker.name) and self._has_slot(worker):
            self._settle_in(worker).start()

    def _settle(self, event: WorkerStarting) -> None:
        worker = event.worker
        if self.worker is not None and self.worker not in worker.colleagues and worker.leases is not None:
            raise ConfigError(f"{self.what} {self.name}: no worker is called {self.worker!r}, there is {', '.join(worker.colleagues)}")
        if self.cancelled or not self._has_slot(worker) or not (worker.main if self.worker is None else worker.name == self.worker):
            return
        for other in worker.residents:
            if self._is_like(other.declared):
                return
            if other.declared.what == self.what and other.declared.name == self.name and self.scope != "worker" != other.declared.scope:
                raise ConfigError(f"two {self.what}s that run once per {self.scope} are called {self.name!r}: give one of them a name")
        self._settle_in(worker)

    def _has_slot(self, worker: Any) -> bool:
        return self.scope == "worker" or worker.slot == 0

    def _is_like(self, other: Declared) -> bool:
        """Whether it is the same: a program that names itself as the application is imported a second time."""
        return self.name == other.name and self.registrar != other.registrar and "__main__" in (self.registrar, other.registrar)

    def _settle_in(self, worker: Any) -> Resident:
        resident = self.resident(worker)
        self._residents.add(resident)
        worker.residents.add(resident)
        return resident

    def _start(self, event: WorkerStarted) -> None:
        for resident in self._residents:
            if resident.worker is event.worker:
                resident.start()

    def ended(self, resident: Resident) -> None:
        """It runs there no more."""
        self._residents.discard(resident)
        resident.worker.residents.discard(resident)


class Resident:
    """What has been declared, in one worker. ``run`` is what it does there; ``lease`` is what it has to hold meanwhile, None for nothing."""

    #: Whether it is listed among the connections.
    connected: ClassVar[bool] = False

    def __init__(self, declared: Declared, worker: Any) -> None:
        self.declared = declared
        self.worker = worker
        self.lease = _lease(declared, worker)

    def start(self) -> None:
        """In any thread, and in the context that the worker's startup has left, not in that of the operation that declares it."""
        self.worker.loop.call_soon_threadsafe(self._start, context=self.worker.sandbox.outside())

    def _start(self) -> None:
        if self.worker.stopping or self.declared.cancelled:
            self.declared.ended(self)
        else:
            self.worker.tasks.start_soon(self.run, name=f"{self.declared.what} {self.declared.name}")

    async def run(self) -> None:
        raise NotImplementedError

    def wind_up(self) -> None:
        """The worker stops: begin nothing new."""

    def cancel(self) -> None:
        """End for good."""
        raise NotImplementedError

    def row(self) -> dict[str, Any]:
        """What is shown of it."""
        raise NotImplementedError


def _lease(declared: Declared, worker: Any) -> Lease | None:
    if declared.scope == "worker":
        return None
    from laraman.net.lease import FileLease, Lease, StoreLease

    title = f"{declared.what.capitalize()} {declared.name}"
    name = f"{declared.what}.{declared.name}"
    if declared.scope == "cluster":
        from laraman.net.store import store_of

        if not worker.config.cluster:
            raise ConfigError(f"{declared.what} {declared.name} runs once per cluster: name the cluster's store with --cluster")
        return StoreLease(name, title, store_of(worker))
    if worker.leases is None:
        return Lease(name, title)
    if worker.leases < 0:
        raise ConfigError(f"{declared.what} {declared.name} runs once per server, which needs a state directory: see --state-dir")
    return FileLease(name, title, worker.leases)


def _name(function: Callable[[], Any]) -> str:
    named = getattr(function, "func", function)  # of a partial
    module = getattr(named, "__module__", "?")
    if module == "__main__":  # as it is called where it is imported
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ else Path(getattr(main, "__file__", None) or "__main__").stem
    return f"{module}.{getattr(named, '__qualname__', type(named).__qualname__)}"
