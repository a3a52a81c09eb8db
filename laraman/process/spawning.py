"""What the master wants of a worker, and how it gets a new child: it forks one, or lets the worker's template fork one."""

from __future__ import annotations

import errno
import math
import os
from functools import partial
from typing import TYPE_CHECKING

from laraman.errors import BootError
from laraman.process.children import Child, spawn, spawn_from
from laraman.process.supervisor import Desired, forks

if TYPE_CHECKING:
    from laraman.process.master import Master
    from laraman.process.supervisor import Process
    from laraman.process.worker import Worker


def wanted_of(master: Master, worker: Worker) -> Desired:
    """What the declaration and the configuration say, for a first generation."""
    config = worker.configured(master.config)
    # But not while somebody waits to hear how a daemon's start went.
    waits = config.reload and worker.reloadable and not worker.exclusive and master.notify is None
    return Desired(
        worker.count,
        boot_timeout=config.timeout_worker_boot,
        # Whoever develops may stand in a debugger.
        beat_timeout=math.inf if waits or worker.watches_itself else config.timeout_worker_healthcheck,
        stop_timeout=grace_of(master, worker),
        exclusive=worker.exclusive,
        template=worker.template,
        waits=waits,
        inner=bool(worker.inner),
    )


def grace_of(master: Master, worker: Worker | None) -> float | None:
    """Seconds that a stop of its processes may take; None is no limit. A worker that is declared no more is None."""
    if worker is not None and worker.stop_timeout is not None:
        return worker.stop_timeout
    timeout: float | None = (master.config if worker is None else worker.configured(master.config)).timeout_graceful_shutdown
    return timeout


def new_child(master: Master, worker: Worker, slot: int, generation: int, now: float) -> Child:
    """A process of ``worker``. Raises OSError; TimeoutError when its template is hung."""
    selector, on_envelope = master.selector, master.on_envelope
    for bind in worker.binds:
        try:
            bind.open_slot(slot)
        except BootError as exc:
            raise OSError(errno.EADDRINUSE, str(exc)) from None
    if not worker.template:
        leave = partial(_leave, master, worker, slot)
        return spawn(worker, slot, generation, config=master.config, now=now, selector=selector, on_envelope=on_envelope, leave=leave)
    template = template_for(master, worker)
    if template is None:
        raise OSError(errno.ECHILD, "its template has ended")
    return spawn_from(template, worker, slot, generation, now=now, selector=selector, on_envelope=on_envelope, strays=master.strays)


def template_for(master: Master, worker: Worker) -> Child | None:
    """The newest template that can fork for this worker."""
    wanted = master.desired[worker.template]
    found = [child for child in master.children.values() if child.process.worker == worker.template and forks(child.process, wanted)]
    return max(found, key=lambda child: child.process.generation, default=None)


def in_short(master: Master, process: Process) -> str:
    """Who this process is, for whoever knows of no templates."""
    served = next((name for name, wanted in master.desired.items() if wanted.template == process.worker), "")
    return f"--preload: the template of worker {served}" if served else f"Worker {process.worker}:{process.slot}"


def end_slots(master: Master) -> None:
    """Before processes of slots that are not wanted any more are told to stop: nothing more is to come for them."""
    for name, wanted in master.desired.items():  # none yet where the start fails
        for bind in master.workers[name].binds if name in master.workers else ():
            bind.end_slots(wanted.count)


def _leave(master: Master, worker: Worker, slot: int) -> None:
    """In a new child: close what is the master's or a sibling's. What stayed open would keep a channel or a port alive."""
    for child in master.children.values():
        child.forget()
    for bind in master.binds:
        if bind not in worker.binds:
            bind.close()
        else:
            bind.keep_slot(slot)
    if master.control is not None:
        master.control.forget()
    if master.state is not None:
        os.close(master.state.lock)
    if master.notify is not None:
        master.notify.close()
    for descriptor in (*master.wake, *master.inherited.values()):
        os.close(descriptor)
    master.selector.close()
