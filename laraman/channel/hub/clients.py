"""Who is connected to the hub, and what is to be said to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import Op, frame

if TYPE_CHECKING:
    from laraman.channel.hub.calls import Call
    from laraman.channel.hub.locks import Lock
    from laraman.channel.hub.queues import Consumer
    from laraman.channel.hub.topics import Subscription


class Client:
    """One connection. ``name`` and ``slot`` are its worker's.

    ``out`` are the frames that have not been written yet, ``owed`` the bytes of those that it has asked for. While it is ``full``, because it
    does not read, it is sent answers to what it has asked, and nothing else: messages wait by their subscriptions' policies, jobs and calls go to
    others.
    """

    __slots__ = (
        *("name", "slot", "pid", "greeted", "full", "out", "owed"),
        *("subscriptions", "consumers", "locks", "methods", "serving", "calls"),
    )

    def __init__(self) -> None:
        self.name = ""
        self.slot = -1
        self.pid = 0
        self.greeted = False
        self.out: list[bytes] = []
        self.owed = 0
        self.full = False
        self.subscriptions: dict[int, Subscription] = {}
        self.consumers: dict[int, Consumer] = {}
        #: Methods that it answers, the calls that it is to answer by the hub's numbers, and the numbers of its own by its ids.
        self.methods: frozenset[str] = frozenset()
        self.serving: dict[int, Call] = {}
        self.calls: dict[int, list[int]] = {}
        #: Those that it waits for.
        self.locks: dict[int, Lock] = {}

    def check_new(self, id: int) -> None:
        """Raises RemoteProtocolError for the id of something that is to be made, when something goes by it already."""
        if not id or id in self.subscriptions or id in self.consumers or id in self.locks:
            raise RemoteProtocolError(f"nothing more can go by the id {id}")

    def __str__(self) -> str:
        return f"{self.name}[{self.slot}]" if self.slot >= 0 else self.name


class Outbox:
    """What is to be said: frames in their clients' ``out``, and ``dirty``, the clients that have some."""

    __slots__ = ("dirty",)

    def __init__(self) -> None:
        self.dirty: list[Client] = []

    def say(self, client: Client, data: bytes) -> None:
        if not client.out:
            self.dirty.append(client)
        client.out.append(data)
        client.owed += len(data)

    def answer(self, client: Client, id: int, body: bytes = b"") -> None:
        """OK, if there was a question."""
        if id:
            self.say(client, frame(Op.OK, id, "", body))

    def refuse(self, client: Client, id: int, fault: str, text: str) -> None:
        self.say(client, frame(Op.ERROR, id, fault, text.encode(errors="replace")))
