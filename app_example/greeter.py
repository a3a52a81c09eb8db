"""The text server: four processes on one port, and each greets whoever sends it a line.

    laraman start app_example.greeter:workers

    $ socat - TCP:127.0.0.1:8888
    world
    Hello, world!

The kernel gives a new connection to any of the four; what a client says on it is handled in order, by that one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from laraman import Worker

if TYPE_CHECKING:
    from laraman.net.connection import Connection

ADDRESS = f"text://127.0.0.1:{os.environ.get('GREETER_PORT', '8888')}"

workers = [Worker("greeter", ADDRESS, count=4, handler="app_example.greeter:Greeter")]


class Greeter:
    """One per process: laraman makes it there, and calls the methods that it has."""

    def on_start(self, worker: Worker) -> None:
        print(f"Worker {worker.name} {worker.slot} started", flush=True)

    def on_connect(self, connection: Connection) -> None:
        host, port = connection.peer[:2]
        print(f"New connection from {host}:{port}", flush=True)

    async def on_message(self, connection: Connection, line: str) -> None:
        print(f"Received {line!r}", flush=True)
        await connection.send(f"Hello, {line}!")
