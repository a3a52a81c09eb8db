"""What the master says: of itself when it starts, in lines that launchers wait for as uvicorn has them, and of a process that has failed."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from laraman import log
from laraman.process.supervisor import Verdict
from laraman.process.watch import Watcher

if TYPE_CHECKING:
    from laraman.process.master import Master
    from laraman.process.supervisor import Process

logger = logging.getLogger("uvicorn.error")


def start(master: Master) -> None:
    """Where it listens and what it is."""
    watchers = [worker for worker in master.workers.values() if isinstance(worker, Watcher)]
    for watcher in watchers:
        logger.info("Will watch for changes in these directories: %s", list(watcher.sources.directories))
    for worker in master.workers.values():
        for bind in worker.binds if not worker.inner else ():
            if worker.name == "http":
                log.say_running(master.config, bind.where)
            else:
                logger.info("Worker %s listens on %s", worker.name, bind.address)
    using = "".join(f" using {watcher.using}" for watcher in watchers)
    log.say_process(f"{'Restarted' if master.restarts else 'Started'} {role(master)}", using)


def role(master: Master) -> str:
    return "reloader" if master.config.reload else "parent"


def failure(master: Master, process: Process, verdict: Verdict, stack: str) -> None:
    """``stack`` is what it left in its black box. A process that was told to go, and had no good end, is nobody's news but for that."""
    if stack:
        logger.error("Stack of worker %s:\n%s", process, stack)
    if master.desired[process.worker].slots[process.slot].not_before == math.inf:
        logger.error("Worker %s failed, the next change starts it again: %s", process, process.error or process.ending)
    elif verdict is Verdict.ROLL_FAILED:
        logger.error("Worker %s could not start, the old ones stay: %s", process, process.error or process.ending)
    elif verdict is Verdict.RESPAWN:
        logger.error("Worker %s: %s", process, process.ending)
