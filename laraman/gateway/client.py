"""One browser's connection to the gateway: its phase, and what it reads and writes in the gateway's turns of the loop."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from laraman.gateway.wheel import Watched

if TYPE_CHECKING:
    from laraman.gateway.browsers import Browsers
    from laraman.gateway.business import Session
    from laraman.gateway.registry import Entry
    from laraman.protocols.upgrade import WebSocketServer

#: Phases: until the request is answered, while it is in the registry, from the close frame on.
HANDSHAKE, OPEN, ENDING = "HANDSHAKE", "OPEN", "ENDING"


class Client(Watched):
    """One connection of a browser. ``entry`` is its place in the registry while it has one.

    ``ready``: it is open and reads, so that frames can be written; else they wait in its backlog. ``out`` has those that leave with this turn of the
    loop, in one system call: that is most of what a message costs. ``owner`` is the worker connection that gets its events, ``waiting`` counts
    those that wait for any; ``told``: the business side knows of it. It is paused while ``blocked`` (a queue of events is full) or ``throttled``
    (it has sent too much).
    """

    __slots__ = ("_backlog", "_backlog_size", "allowed_at", "blocked", "entry", "out", "owner", "phase", "ready", "throttled", "told", "waiting")

    handler: Browsers
    protocol: WebSocketServer

    def __init__(self, protocol: WebSocketServer, handler: Browsers, worker: Any) -> None:
        super().__init__(protocol, handler, worker)
        self.phase = HANDSHAKE
        self.entry: Entry | None = None
        self.ready = False
        self.out: list[bytes] | None = None
        self.owner: Session | None = None
        self.waiting = 0
        self.blocked = self.throttled = self.told = False
        self.allowed_at = 0.0  # the time at which its messages would have come at the permitted rate
        self._backlog: deque[bytes] | None = None
        self._backlog_size = 0

    # Reading

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.protocol.asides:
            self.handler.on_asides(self)

    def block(self) -> None:
        self.blocked = True
        self.pause()

    def unblock(self) -> None:
        self.blocked = False
        if not self.throttled:
            self.resume()

    def throttle(self) -> None:
        self.throttled = True
        self.pause()

    def unthrottle(self) -> None:
        self.throttled = False
        if not self.blocked:
            self.resume()

    # Writing

    def write(self, frame: bytes) -> None:
        self.bytes_out += len(frame)
        self.messages_out += 1
        self.transport.write(frame)

    def write_out(self) -> None:
        """Write what leaves with this turn."""
        out, self.out = self.out, None
        if out is not None:
            self.bytes_out += sum(map(len, out))
            self.messages_out += len(out)
            self.transport.writelines(out)

    def write_later(self, frame: bytes, limit: int) -> bool:
        """Keep it until the peer reads; False when that would be more than ``limit`` bytes."""
        if self._backlog_size + len(frame) > limit:
            return False
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(frame)
        self._backlog_size += len(frame)
        return True

    def drop_oldest(self, size: int, limit: int) -> list[bytes]:
        """Frames taken from the backlog so that ``size`` bytes fit, if they can."""
        dropped = []
        while self._backlog and self._backlog_size + size > limit:
            frame = self._backlog.popleft()
            self._backlog_size -= len(frame)
            dropped.append(frame)
        return dropped

    def flush(self) -> None:
        """Write all that waits, whether the peer reads or not: the end is near."""
        self.write_out()
        backlog, self._backlog, self._backlog_size = self._backlog, None, 0
        for frame in backlog or ():
            self.write(frame)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.ready = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_out()  # it is older than the backlog
        backlog = self._backlog
        while backlog and not self.writing_paused:
            frame = backlog.popleft()
            self._backlog_size -= len(frame)
            self.write(frame)
        if not backlog:
            self._backlog = None
            self.ready = self.phase is OPEN and not self.writing_paused

    def row(self) -> dict[str, Any]:
        return {**super().row(), "protocol": "websocket", "state": self.phase if self.error is None else self.state}
