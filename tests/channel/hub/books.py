"""A hub without sockets, for tests: clients say something, and see what is said to them."""

from __future__ import annotations

from laraman.channel.hub.clients import Client
from laraman.channel.hub.core import Core
from laraman.protocols.hub import HELLO_BODY, SECONDS, VERSION, WORK_BODY, Hub, Message, Op, text


class Books:
    """``core`` at the time ``now``. Its journal is a list, or an error."""

    def __init__(self, limit: int = 10, closed_until: float = 0.0) -> None:
        self.core = Core(limit=limit, used=100, closed_until=closed_until)
        self.now = 1000.0
        self.journal: list[bytes] = []
        self.broken = ""
        self.heard: dict[Client, list[Message]] = {}

    def join(self, name: str = "", slot: int = -1) -> Client:
        client = Client()
        assert self.ask(client, Op.HELLO, 1, name, HELLO_BODY.pack(VERSION, slot, 7)) == [(Op.OK, 1, "", b"")]
        return client

    def ask(self, client: Client, op: int, id: int, name: str = "", body: bytes = b"") -> list[Message]:
        """What is said to ``client`` then; what others hear waits for ``hear``."""
        self.core.receive(client, [(op, id, name, body)], self.now)
        return self.hear(client)

    def hear(self, client: Client) -> list[Message]:
        queues = self.core.queues
        if queues.unanswered and self.broken:
            queues.not_written(self.broken)
        elif queues.unanswered:
            self.journal += queues.records
            queues.written(1, self.now)
        dirty, self.core.outbox.dirty = self.core.outbox.dirty, []
        for other in dirty:
            self.heard.setdefault(other, []).extend(Hub().receive_data(b"".join(other.out)))
            other.out, other.owed = [], 0
        return self.heard.pop(client, [])

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)

    def put(self, client: Client, queue: str, data: bytes, key: str = "") -> list[Message]:
        return self.ask(client, Op.PUT, 9, queue, text(key) + data)

    def work(self, client: Client, id: int, queue: str, *, visibility: float = 30.0, prefetch: int = 1, op: Op = Op.WORK) -> list[Message]:
        return self.ask(client, op, id, queue, WORK_BODY.pack(visibility, prefetch))

    def call(self, client: Client, id: int, target: str, data: bytes = b"", *, op: Op = Op.CALL, timeout: float = 5.0) -> list[Message]:
        return self.ask(client, op, id, target, SECONDS.pack(timeout) + data)
