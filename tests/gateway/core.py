"""The gateway's core without sockets: a registry with some connections, and an outlet that writes down what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laraman.gateway.commands import Commands
from laraman.gateway.limits import Limits
from laraman.gateway.metrics import Metrics
from laraman.gateway.registry import Registry
from laraman.protocols.netsvr import Command, Netsvr, response_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from laraman.gateway.registry import Entry


class Recorder:
    """An Outlet that writes down what it is told, in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bool | None]] = []
        self.kicked: list[tuple[str, bytes, str]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.order: list[str] = []

    def deliver(self, entries: Iterable[Entry], data: bytes, binary: bool | None) -> None:
        for entry in entries:
            self.sent.append((entry.uniq_id, data, binary))
            self.order.append("send")

    def kick(self, entries: Iterable[Entry], data: bytes, reason: str) -> None:
        for entry in entries:
            self.kicked.append((entry.uniq_id, data, reason))
            self.order.append("kick")

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))


class World:
    """A gateway's core with some connections in it."""

    def __init__(self, *uniq_ids: str, limits: Limits | None = None) -> None:
        self.registry = Registry()
        self.outlet = Recorder()
        self.metrics = Metrics(0.0)
        self.commands = Commands(self.registry, self.outlet, self.metrics, limits or Limits())
        for uniq_id in uniq_ids:
            self.registry.open(uniq_id, None)

    def put(self, uniq_id: str, session: str = "", customer_id: str = "", topics: Iterable[str] = ()) -> Entry:
        entry = self.registry.get(uniq_id) or self.registry.open(uniq_id, None)
        self.registry.update(entry, session, customer_id, list(topics))
        return entry

    def tell(self, command: Command, message: Message, extended: bool = False) -> None:
        assert self.commands.handle(command, message, extended) is None

    def ask(self, command: Command, message: Message | None = None) -> Any:
        reply = self.commands.handle(command, message)
        assert reply is not None
        assert type(reply) is response_class(command)
        return reply

    def replay(self, frame: bytes) -> Message | None:
        """What the gateway answers to a recorded frame."""
        ((command, message),) = Netsvr("gateway", port="task").receive_data(frame)
        return self.commands.handle(command, message)

    @property
    def sent(self) -> list[tuple[str, bytes]]:
        """What was sent since this was last looked at."""
        found = [(uniq_id, data) for uniq_id, data, _ in self.outlet.sent]
        self.outlet.sent.clear()
        return found

    def state(self, uniq_id: str) -> tuple[str, str, set[str]]:
        entry = self.registry.entries[uniq_id]
        return entry.session, entry.customer_id, entry.topics or set()
