"""What the master says of itself when it starts: lines that launchers wait for, as uvicorn has them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from laraman.process.watch import Watcher

if TYPE_CHECKING:
    from laraman.process.master import Master

logger = logging.getLogger("uvicorn.error")


def say(master: Master) -> None:
    """Where it listens and what it is."""
    watchers = [worker for worker in master.workers.values() if isinstance(worker, Watcher)]
    for watcher in watchers:
        logger.info("Will watch for changes in these directories: %s", list(watcher.sources.directories))
    for worker in master.workers.values():
        for bind in worker.binds:
            if worker.name == "http":
                logger.info("Laraman running on %s (Press CTRL+C to quit)", bind.where)
            else:
                logger.info("Worker %s listens on %s", worker.name, bind.address)
    using = "".join(f" using {watcher.using}" for watcher in watchers)
    logger.info("%s %s process [%d]%s", "Restarted" if master.restarts else "Started", role(master), os.getpid(), using)


def role(master: Master) -> str:
    return "reloader" if master.config.reload else "parent"
