"""Restart: the master executes itself anew and takes over what its former image left, so that nothing that is open is ever closed."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from laraman.net.bind import Bind, key_of
from laraman.process import daemon, handover
from laraman.process.children import Child
from laraman.process.control import Control
from laraman.process.signals import HANDLED
from laraman.process.state import StateDirectory
from laraman.process.supervisor import Desired

if TYPE_CHECKING:
    from laraman.process.master import Master

logger = logging.getLogger("uvicorn.error")


def execute(master: Master) -> None:
    """Replace this image of the master by a new one. Returns only when that failed; then everything is as before."""
    master.last_roll_error = ""
    state, control = master.state, master.control
    binds = dict(master.inherited)
    for bind in master.binds:
        binds |= bind.descriptors()
    children = [child.to_row() for child in master.children.values()]
    table: handover.Table = {
        "children": children,
        "strays": [*master.strays],
        "binds": binds,
        "control": control.listener.fileno() if control is not None else -1,
        "state": [str(state.path), state.lock] if state is not None else ["", -1],
        "output": daemon.output(),
        "started": master.started,
        "restarts": master.restarts + 1,
        "deaths": list(master.deaths),
        "slots": [[name, slot, a.restarts, a.last_exit] for name, wanted in master.desired.items() for slot, a in wanted.slots.items()],
    }
    kept = [*binds.values(), table["control"], table["state"][1]]
    kept += [descriptor for row in children for descriptor in (row["channel"], row["black_box"])]
    logger.info("Restarting parent process [%d]", os.getpid())
    master.systemd.reloading()
    try:
        os.chdir(master.directory)
        environ = {name: value for name, value in os.environ.items() if name not in master.added}
        handover.execute(table, [descriptor for descriptor in kept if descriptor >= 0], master.argv, environ, HANDLED)
    except OSError as exc:
        master.last_roll_error = f"cannot execute {master.argv[0]}: {exc.strerror}"
        logger.error("Restart failed: %s", master.last_roll_error)


def adopt(master: Master, table: handover.Table) -> None:
    """Make a new master the owner of what the former image left. Workers that it does not declare will be stopped."""
    master.started = table["started"]
    master.restarts = table["restarts"]
    master.deaths.extend(table["deaths"])
    master.inherited = table["binds"]
    master.strays.update(table.get("strays", ()))  # an older image has none
    path, lock = table["state"]
    if lock >= 0:
        master.state = StateDirectory(Path(path), lock)
    if table["control"] >= 0:
        master.control = Control(master.selector, socket.socket(fileno=table["control"]), master.commands.handle)
    if table["output"]:
        daemon.output_to(table["output"])
    for row in table["children"]:
        child = Child.from_row(row, master.selector, master.on_envelope)
        child.process.last_beat = time.monotonic()  # nobody listened meanwhile
        master.children[child.process.pid] = child
        master.desired.setdefault(child.process.worker, Desired(0, stop_timeout=master.config.timeout_graceful_shutdown))
    for name, slot, restarts, last_exit in table["slots"]:
        if name in master.desired:
            master.desired[name].slots[slot].restarts = restarts
            master.desired[name].slots[slot].last_exit = last_exit


def end_bind(key: str, descriptor: int) -> None:
    """End what a former image listened on and nobody wants any more, with the name of a unix socket."""
    bind = Bind(key_of(key))
    bind.open(descriptor)
    bind.close()
    bind.unlink()


def refuse(master: Master, reason: str) -> None:
    """The new image cannot start as it is configured: want just what runs already, and keep its sockets for the next try."""
    logger.error("The restart failed, the old workers stay: %s", reason)
    master.last_roll_error = reason
    for name, wanted in master.desired.items():
        running = [process for process in master.processes if process.worker == name and process.live]
        wanted.count = max((process.slot + 1 for process in running), default=0)
        wanted.fall_back(running)
        for bind in master.workers[name].binds if name in master.workers else ():
            if bind.key in master.inherited:
                bind.take_over(master.inherited, wanted.count)
    for name, worker in master.workers.items():
        if worker.template and not master.desired[worker.template].count:
            # Preloading comes with what was refused: there is no template, and whoever dies meanwhile is not to wait for one.
            worker.template = master.desired[name].template = ""
