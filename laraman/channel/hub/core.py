"""The hub without its sockets: what clients say comes in, what is to be said to them comes out; the clock is passed in, in seconds.

After each call ``queues.records`` have to be written to the journal first, and ``queues.written`` or ``not_written`` called; then what is in the
``out`` of each client in ``outbox.dirty`` has to be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.channel.hub.calls import Calls
from laraman.channel.hub.clients import Client, Outbox
from laraman.channel.hub.locks import Locks
from laraman.channel.hub.queues import Queues
from laraman.channel.hub.tables import Tables
from laraman.channel.hub.topics import Topics
from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.hub import HELLO_BODY, VERSION, Fault, Op, take

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from laraman.protocols.hub import Message

    #: Who says it, the frame's id, name and body, and when.
    Handler = Callable[[Client, int, str, bytes, float], None]

#: Bytes of answers to one client before they are sent and it is heard again.
MAX_OWED = 4 * 1024 * 1024


class Core:
    """``limit`` is how many jobs a queue may hold. Jobs and holders of locks are numbered from above ``used`` on; nobody is given a lock before
    the time ``closed_until``."""

    def __init__(self, *, limit: int, used: int = 0, closed_until: float = 0.0) -> None:
        self.outbox = outbox = Outbox()
        self.topics = topics = Topics(outbox)
        self.calls = calls = Calls(outbox)
        self.queues = queues = Queues(outbox, limit, used)
        self.tables = tables = Tables(outbox)
        self.locks = locks = Locks(outbox, used, closed_until)
        self._ops: dict[int, Handler] = {
            Op.CANCEL: self._cancel,
            Op.PUBLISH: topics.publish,
            Op.SUBSCRIBE: topics.subscribe,
            Op.PUT: queues.put,
            Op.WORK: queues.work,
            Op.TAKE: queues.take,
            Op.ACK: queues.ack,
            Op.NACK: queues.nack,
            Op.EXTEND: queues.extend,
            Op.METHODS: calls.set_methods,
            Op.CALL: calls.call,
            Op.CALL_ALL: calls.call_all,
            Op.RESULT: calls.result,
            Op.GET: tables.get,
            Op.SET: tables.set,
            Op.INCREMENT: tables.increment,
            Op.COMPARE_AND_SET: tables.compare_and_set,
            Op.DELETE: tables.delete,
            Op.KEYS: tables.keys,
            Op.ACQUIRE: locks.acquire,
            Op.RENEW: locks.renew,
            Op.RELEASE: locks.release,
        }

    def receive(self, client: Client, messages: Sequence[Message], now: float) -> Sequence[Message]:
        """Returns the messages that are to be said again when the client has been sent what it is owed: short questions may have long answers.

        Raises RemoteProtocolError when this is no client of a hub's; one that only asks what makes no sense is told so.
        """
        ops = self._ops
        for i, (op, id, name, body) in enumerate(messages):
            if client.owed > MAX_OWED:
                return messages[i:]
            if not client.greeted:
                self._greet(client, op, id, name, body)
                continue
            handler = ops.get(op)
            try:
                if handler is None:
                    raise RemoteProtocolError(f"there is no op {op}")
                handler(client, id, name, body, now)
            except (RemoteProtocolError, LocalProtocolError) as exc:
                self.outbox.refuse(client, id, Fault.BAD, str(exc))
        return ()

    def _greet(self, client: Client, op: int, id: int, name: str, body: bytes) -> None:
        if op != Op.HELLO:
            raise RemoteProtocolError(f"it says op {op} before hello")
        version, slot, pid = take(HELLO_BODY, body)
        if version != VERSION:
            raise RemoteProtocolError(f"it speaks version {version} of the hub's wire, this is {VERSION}")
        client.name, client.slot, client.pid = name, slot, pid
        client.greeted = True
        self.calls.joined(client)
        self.outbox.answer(client, id)

    def _cancel(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        for part in (self.topics, self.queues, self.calls, self.locks):
            part.cancel(client, id, now)

    def lost(self, client: Client, now: float) -> None:
        """It is gone. What it held goes to others, what it was to answer is refused."""
        for part in (self.topics, self.queues, self.calls, self.locks):
            part.lost(client, now)
        client.greeted = False

    def resume(self, client: Client, now: float) -> None:
        """A client that was ``full`` reads again. It stays full until all that waited for it is in its ``out``: call this again when that is sent."""
        if self.topics.resume(client):
            client.full = False
            self.queues.resume(client, now)

    def tick(self, now: float) -> None:
        """Do what the time says; a few times per second."""
        self.queues.tick(now)
        self.calls.tick(now)
        self.tables.tick(now)
        self.locks.tick(now)
