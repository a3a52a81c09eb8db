"""A client that talks to a real hub over its socket, one question at a time."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from laraman.protocols.hub import HELLO_BODY, JOB, VERSION, WORK_BODY, Hub, Message, Op, frame, text
from tests.conftest import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


class Dialogue:
    """Connected as soon as there is a hub; with ``greet`` it has said hello."""

    def __init__(self, path: Path, name: str = "", slot: int = -1, *, greet: bool = True) -> None:
        self.wire = Hub()
        self.heard: list[Message] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        if greet:
            assert self.ask(Op.HELLO, 1, name, HELLO_BODY.pack(VERSION, slot, 1)) == (Op.OK, 1, "", b"")

    def ask(self, op: int, id: int, name: str = "", body: bytes = b"") -> Message:
        """The answer; what else comes before it is for ``hear``."""
        self.socket.sendall(frame(op, id, name, body))
        while True:
            for i, message in enumerate(self.heard):
                if message[0] in (Op.OK, Op.ERROR) and message[1] == id:
                    return self.heard.pop(i)
            self._read()

    def hear(self) -> Message:
        while not self.heard:
            self._read()
        return self.heard.pop(0)

    def _read(self) -> None:
        data = self.socket.recv(1024 * 1024)
        if not data:
            raise EOFError("the hub has closed the connection")
        self.heard += self.wire.receive_data(data)

    def put(self, queue: str, data: bytes) -> int:
        """The job's number."""
        op, _, fault, body = self.ask(Op.PUT, 9, queue, text("") + data)
        assert op == Op.OK, (fault, body)
        return int(JOB.unpack(body)[0])

    def waiting(self, queue: str) -> int:
        """Jobs that are to be had. They are taken, and given back."""
        before = len(self.heard)
        self.ask(Op.WORK, 8, queue, WORK_BODY.pack(30.0, 1000))
        self.ask(Op.KEYS, 7)  # what is given comes before this is answered
        count = len(self.heard) - before
        del self.heard[before:]
        self.socket.sendall(frame(Op.CANCEL, 8, "", b""))
        return count

    def close(self) -> None:
        self.socket.close()


def greeted(path: Path) -> Dialogue:
    """A client of the next hub, while the last one is being killed."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return Dialogue(path)
        except (OSError, EOFError):
            assert time.monotonic() < deadline, "no hub answers"
