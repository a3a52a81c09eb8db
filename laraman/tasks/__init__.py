"""Task workers: processes that run functions for the others, which are to answer quickly, or to use more than one CPU.

Who submits a task connects to the unix socket that all task workers accept on. The kernel's queue is the only one between them: a worker accepts
when it is free, so there is no broker, and nothing that is waiting is lost when a worker ends. The master imports only this module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from laraman.errors import ConfigError
from laraman.process.worker import Worker

if TYPE_CHECKING:
    from laraman.config import Config

NAME, JOURNAL = "task", "journal"
#: Name of the journal's file in the state directory.
FILE = "journal.db"


def task_worker(config: Config) -> Worker:
    """The declaration of the task workers of a server."""
    worker = Worker(NAME, count=config.task_workers, handler="laraman.tasks.service:Tasks")
    worker.inner = NAME
    worker.watches_itself = True
    return worker


def journal_worker(config: Config) -> Worker:
    """The declaration of the process that keeps deferred tasks: started when somebody defers one, or has and the server has ended since.

    It has the file for itself, so there is one, and a reload leaves it alone. The file is the master's user's. Raises ConfigError.
    """
    if config.journal and not os.access(os.path.dirname(os.path.abspath(config.journal)), os.W_OK | os.X_OK):
        raise ConfigError(f"journal: no file can be made at {config.journal}")
    worker = Worker(JOURNAL, count=0, handler="laraman.tasks.keeper:Keeper", exclusive=True, user="", group="")
    worker.options["listeners"] = ()  # nothing of the application's runs there
    worker.inner = "frame"
    worker.unfinished = os.path.abspath(config.journal) if config.journal else FILE
    return worker
