"""The stop of a whole server, in two parts: first its workers, and when they are gone those that they use, the ``inner`` ones.

So a request that is being finished can still have a task performed, defer one, or call another process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.process import opening
from laraman.process.spawning import grace_of

if TYPE_CHECKING:
    from laraman.process.master import Master

#: Seconds that the second part gets when the first has used up the time of both.
INNER_LEAST = 1.0


def end_outer(master: Master) -> None:
    """Accept no more. Before the workers hear of it: a copy here would keep taking connections that nobody accepts any more."""
    for worker in master.workers.values():
        for bind in worker.binds if not worker.inner else ():
            bind.turn_away()
            bind.close()


def give_time(master: Master, graceful: bool, now: float) -> None:
    """Let the workers end, with their deadlines or with none. Asked again, the nearer deadline counts."""
    master.told_to_stop = now
    for name, wanted in master.desired.items():
        worker = master.workers.get(name)
        wanted.stop_timeout = None if graceful else grace_of(master, worker)
        if worker is not None and worker.inner:
            wanted.fall_back(process for process in master.processes if process.worker == name)
        else:
            wanted.count = 0
            wanted.rolling = False


def end_inner(master: Master, now: float) -> None:
    """Nobody is left who uses them: let them end in what is left of the time. Does nothing while somebody is."""
    inner = {name: worker for name, worker in master.workers.items() if worker.inner}
    if master.phase != "stopping" or any(process.worker not in inner for process in master.processes):
        return
    for name, worker in inner.items():
        opening.end_watch(master, worker)
        for bind in worker.binds:
            bind.close()
        wanted = master.desired.get(name)
        if wanted is not None and wanted.count:
            wanted.count = 0
            if wanted.stop_timeout is not None:
                left = wanted.stop_timeout - (now - master.told_to_stop)
                wanted.stop_timeout = max(left, min(INNER_LEAST, wanted.stop_timeout))
