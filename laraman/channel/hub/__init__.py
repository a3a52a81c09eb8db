"""The embedded hub: the Worker through which the processes of a server, and programs beside them, reach each other.

`core` and its parts keep the books and do no I/O, `journal` keeps the queues, `service` is the Worker's handler. The master imports only this module.
"""

from __future__ import annotations

from laraman.process.worker import Worker

NAME = "hub"


def hub_worker() -> Worker:
    """The hub of a server. It listens in the state directory, and its process is started when somebody connects there for the first time.

    What it knows is in that process, so there is one, and a reload leaves it alone. Its journal is the master's user's.
    """
    worker = Worker(NAME, count=0, handler="laraman.channel.hub.service:Hub", exclusive=True, user="", group="")
    worker.inner = "hub"
    worker.options["listeners"] = ()  # nothing of the application's runs there, whose faults everybody would have
    return worker
