"""A master with stand-in workers, as a program: ``python serve.py '{"config": {...}, "workers": [...]}'``.

A stand-in speaks the channel with a blocking socket and behaves as the file ``behaviour`` in the working directory says when it starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman import events, log
from laraman.config import Config
from laraman.errors import BootError, ConfigError
from laraman.process import supervisor
from laraman.process.daemon import daemonize
from laraman.process.master import Master
from laraman.process.worker import Worker
from laraman.protocols.ipc import Ipc

if TYPE_CHECKING:
    import socket


def behaviour() -> str:
    try:
        return Path("behaviour").read_text().strip()
    except FileNotFoundError:
        return "good"


class StandIn(Worker):
    """A Worker without an event loop in the child."""

    def __init__(self, name: str, address: str | None = None, *, count: int = 1, reloadable: bool = True, **options: Any) -> None:
        super().__init__(name, address, count=count, handler="stand:in" if reloadable else object(), **options)

    def run(self, slot: int, generation: int, channel: socket.socket, config: Config) -> int:
        self.channel, self.ipc = channel, Ipc()
        self.interval = config.timeout_worker_healthcheck / 4
        channel.setblocking(True)
        how = behaviour()
        if how.startswith("fail"):
            code = int(how.removeprefix("fail"))
            self.say(op="failed", error="it does not work", exit=code)
            return code
        if how == "crash":
            os._exit(7)
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "garbage":
            channel.sendall(b"\xff" * 100)
            self.hang()
        if how != "mute":
            self.say(op="ready")
        if how == "hang":
            self.hang()
        return self.serve(how)

    def hang(self) -> None:
        while True:
            time.sleep(60)

    def serve(self, how: str) -> int:
        self.channel.settimeout(self.interval)
        while True:
            self.say(op="beat", requests=7, in_flight=1, connections_in=2, connections_out=3)
            try:
                data = self.channel.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return 0
            for envelope in self.ipc.receive_data(data):
                if envelope["op"] == "stop" and how != "deaf":
                    if how == "linger":
                        for bind in self.binds:
                            bind.close()
                        Path("lingering").touch()
                        time.sleep(1)
                    return 0
                if envelope["op"] == "connections" and how != "silent":
                    self.say(op="connections", id=envelope["id"], rows=[{"pid": os.getpid()}])
                if envelope["op"] == "reopen":
                    log.reopen()
                    Path(f"reopened-{os.getpid()}").touch()

    def say(self, **envelope: Any) -> None:
        self.channel.sendall(self.ipc.send(envelope))


class Echo:
    """For a real Worker: answers each line with the process that answers."""

    async def on_message(self, connection: Any, message: str) -> None:
        if message == "block":
            time.sleep(60)  # noqa: ASYNC251  blocking the loop is the point
        await connection.send(f"{os.getpid()} {message}")


class Idle:
    """For a real Worker: a pure process."""


def record(event: events.MasterEvent) -> None:
    with open("events", "a") as file:
        file.write(f"{type(event).__name__}{f' {event.reason}' if isinstance(event, events.WorkerExited) else ''}\n")


def listen(kind: str) -> None:
    """Listeners of master events that tests ask for by name."""
    if kind == "record":
        for event in (events.ServerStarting, events.ServerStarted, events.ServerStopping, events.WorkerExited):
            events.on(event, record)
    if kind == "add":
        events.on(events.ServerStarting, lambda event: event.server.add(StandIn("added")))
    if kind == "refuse":
        events.on(events.ServerStarting, refuse)
    if kind == "refuse later":
        events.on(events.ServerStarting, refuse_later)
    if kind == "slow":
        events.on(events.ServerStarting, slow)
    if kind == "thread":
        events.on(events.ServerStarting, lambda event: threading.Thread(target=time.sleep, args=(60,), daemon=True).start())
    if kind == "subprocess":
        own = []
        events.on(events.ServerStarting, lambda event: own.append(subprocess.Popen(["sh", "-c", "exit 7"])))
        events.on(events.ServerStopping, lambda event: Path("subprocess").write_text(str(own[0].wait())))


def refuse_later(event: events.ServerStarting) -> None:
    if behaviour() == "refuse":
        refuse(event)


def slow(event: events.ServerStarting) -> None:
    Path("slow").touch()
    time.sleep(60)


def refuse(event: events.ServerStarting) -> None:
    raise ConfigError("the listener says no")


def revalidate() -> None:
    if behaviour() == "misconfigured":
        raise ConfigError("the configuration is broken")


def prepare() -> list[Worker]:
    if behaviour() == "unprepared":
        raise BootError("the preparation fails")
    return []


def main() -> int:
    spec = json.loads(sys.argv[1])
    defaults = {"port": 0, "timeout_worker_healthcheck": 5.0, "timeout_worker_boot": 10.0, "timeout_graceful_shutdown": 3.0}
    config = Config(**{**defaults, **spec.get("config", {})})
    log.configure(config)
    supervisor.MAX_FAILURES = spec.get("max_failures", supervisor.MAX_FAILURES)
    for kind in spec.get("listeners", ()):
        listen(kind)
    make: dict[str, Any] = {"stand-in": StandIn, "real": Worker}
    workers = [make[row.pop("kind", "stand-in")](**row) for row in spec["workers"]]
    notify = daemonize(10) if config.daemon else None
    return Master(config, workers, argv=spec.get("argv"), notify=notify, revalidate=revalidate, prepare=prepare).run()


if __name__ == "__main__":
    sys.exit(main())
