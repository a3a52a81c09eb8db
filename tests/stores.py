"""Real Redis and NATS servers on ports of their own, which are killed and come back with what they have kept."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.conftest import DEADLINE, find_tool, free_ports, wait_until

if TYPE_CHECKING:
    from pathlib import Path


class StoreServer:
    """One of them, with more ``options`` on its command line; it runs from the beginning."""

    def __init__(self, program: str, directory: Path, *options: str) -> None:
        self.program = program
        self.directory = directory
        self.options = options
        (self.port,) = free_ports(1)
        self.start()

    @property
    def url(self) -> str:
        return f"{self.program.removesuffix('-server')}://127.0.0.1:{self.port}"

    def start(self) -> None:
        redis = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory), "--save", "", "--appendonly", "yes"]
        nats = ["--addr", "127.0.0.1", "--port", str(self.port), "--jetstream", "--store_dir", str(self.directory)]
        with (self.directory / "output.txt").open("ab") as output:
            command = [find_tool(self.program), *(redis if self.program == "redis-server" else nats), *self.options]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        wait_until(self._answers, what=f"{self.program} on port {self.port}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "output.txt").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
            if self.program == "redis-server":
                sock.sendall(b"PING\r\n")
            return sock.recv(4096).startswith((b"INFO", b"+PONG", b"-NOAUTH"))
        return False


def store_server(program: str, directory: Path, *options: str) -> StoreServer:
    """Start one. Where it is not installed a user's test is skipped, and CI's fails."""
    find_tool(program)
    return StoreServer(program, directory, *options)
