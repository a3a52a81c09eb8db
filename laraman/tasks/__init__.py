"""Task workers: processes that run functions for the others, which are to answer quickly, or to use more than one CPU.

Who submits a task connects to the unix socket that all task workers accept on. The kernel's queue is the only one between them: a worker accepts
when it is free, so there is no broker, and nothing that is waiting is lost when a worker ends. The master imports only this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.process.worker import Worker

if TYPE_CHECKING:
    from laraman.config import Config

NAME = "task"


def task_worker(config: Config) -> Worker:
    """The declaration of the task workers of a server."""
    worker = Worker(NAME, count=config.task_workers, handler="laraman.tasks.service:Tasks")
    worker.inner = NAME
    worker.watches_itself = True
    return worker
