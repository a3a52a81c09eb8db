"""Upload workers and task workers: two processes hand a job to one of four others, every second, and log what it answers.

    laraman start app_example.uploads:workers

Whichever of the four is free accepts the job; that there are four is in pyproject.toml, ``--task-workers`` says it too. There is no broker between
them, and no port.
"""

from __future__ import annotations

import os

import laraman
from laraman import Worker
from laraman.errors import LaramanError

workers = [Worker("upload", count=2)]


@laraman.task
def store(message: str) -> dict[str, int | str]:
    """In a task worker, which does nothing else meanwhile."""
    print(f"Task worker {os.getpid()} received {message!r}", flush=True)
    return {"pid": os.getpid(), "stored": message}


@laraman.every(1, worker="upload")
async def upload() -> None:
    """In each upload worker."""
    try:
        answer = await laraman.submit(store, f"Upload message of {os.getpid()}", timeout=5)
    except (LaramanError, TimeoutError) as exc:
        print(f"Upload worker {os.getpid()} got no answer: {exc}", flush=True)
    else:
        print(f"Upload worker {os.getpid()} was answered by task worker {answer['pid']}", flush=True)
