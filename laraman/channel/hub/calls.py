"""Calls between members: a method of any process of a worker, of that in a slot, or of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import COUNT, SECONDS, Fault, Op, frame, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laraman.channel.hub.clients import Client, Outbox

#: Calls that one member has to answer at a time.
MAX_SERVING = 10_000
#: Seconds between two looks for calls that nobody waits for any more.
LOOK = 0.25
#: Targets that are remembered.
MAX_FOUND = 10_000


class Call:
    """One that a member is to answer. ``to_all``: others have been asked too, and the answer says who gives it."""

    __slots__ = ("caller", "due", "id", "member", "number", "to_all")

    def __init__(self, number: int, caller: Client, id: int, member: Client, due: float, to_all: bool) -> None:
        self.number = number
        self.caller = caller
        self.id = id
        self.member = member
        self.due = due
        self.to_all = to_all


class Calls:
    """Who answers what, and who waits for it. ``_found`` are the method and the members of a target, until members come, go or say other methods."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._groups: dict[str, list[Client]] = {}
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._turn = 0
        self._look = 0.0
        self._found: dict[str, tuple[str, Sequence[Client], str, str]] = {}

    # Members ---------------------------------------------------------------------------------------------------------------------

    def joined(self, client: Client) -> None:
        if client.name:
            self._groups.setdefault(client.name, []).append(client)
            self._found.clear()

    def set_methods(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        client.methods = frozenset(body.decode(errors="replace").split("\n")) - {""}
        self._found.clear()
        self._outbox.answer(client, id)

    def lost(self, client: Client, now: float) -> None:
        group = self._groups.get(client.name, [])
        if client in group:
            group.remove(client)
            if not group:
                del self._groups[client.name]
            self._found.clear()
        for call in tuple(client.serving.values()):
            self._refuse(call, Fault.DOWN, f"{client} went away before it answered")
        for id in tuple(client.calls):
            self.cancel(client, id, now)

    def _members(self, target: str) -> tuple[str, Sequence[Client], str, str]:
        """Method and members, else the fault and a text that says why there are none. Raises RemoteProtocolError."""
        method, at, member = target.partition("@")
        if not at or not method or not member:
            raise RemoteProtocolError(f"{target!r} is not of the form method@group")
        group, slot = _parted(member)
        there = [client for client in self._groups.get(group, ()) if slot is None or client.slot == slot]
        able = [client for client in there if method in client.methods]
        if slot is not None:
            able = able[-1:]  # while one process of a slot takes over from another there are two
        if able:
            return method, able, "", ""
        if there:
            return method, able, Fault.METHOD, f"{member} has no method {method!r}"
        return method, able, Fault.DOWN, f"no process of {member} is connected"

    def _find(self, target: str) -> tuple[str, Sequence[Client], str, str]:
        if len(self._found) >= MAX_FOUND:
            self._found.clear()
        found = self._found[target] = self._members(target)
        return found

    # Calls -----------------------------------------------------------------------------------------------------------------------

    def call(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        method, members, fault, text = self._found.get(name) or self._find(name)
        if fault:
            self._outbox.refuse(client, id, fault, text)
            return
        member = self._choose(members)
        if member is None:
            self._outbox.refuse(client, id, Fault.BUSY, f"{name.partition('@')[2]} has too much to do")
            return
        seconds = take(SECONDS, body)[0]
        self._ask(client, id, method, member, now + seconds, body[SECONDS.size :], to_all=False)

    def call_all(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        method, members, fault, text = self._found.get(name) or self._find(name)
        if fault:
            self._outbox.refuse(client, id, fault, text)
            return
        seconds = take(SECONDS, body)[0]
        self._outbox.answer(client, id, COUNT.pack(len(members)))
        for member in members:
            if member.full or len(member.serving) >= MAX_SERVING:
                self._outbox.refuse(client, id, Fault.BUSY, f"{member}: it has too much to do")
            else:
                self._ask(client, id, method, member, now + seconds, body[SECONDS.size :], to_all=True)

    def _choose(self, members: Sequence[Client]) -> Client | None:
        """The one with the least to do, in turns."""
        if len(members) == 1:
            return members[0] if not members[0].full and len(members[0].serving) < MAX_SERVING else None
        best: Client | None = None
        least = MAX_SERVING
        self._turn += 1
        count = len(members)
        for i in range(count):
            member = members[(self._turn + i) % count]
            if not member.full and len(member.serving) < least:
                best, least = member, len(member.serving)
        return best

    def _ask(self, client: Client, id: int, method: str, member: Client, due: float, data: bytes, *, to_all: bool) -> None:
        number = self._number = self._number % 0xFFFFFFFF + 1
        while number in self._calls:
            number = self._number = self._number % 0xFFFFFFFF + 1
        self._calls[number] = member.serving[number] = Call(number, client, id, member, due, to_all)
        client.calls.setdefault(id, []).append(number)
        self._outbox.say(member, frame(Op.CALL, number, method, data))

    def result(self, client: Client, id: int, name: str, body: bytes, now: float) -> None:
        call = client.serving.get(id)
        if call is not None:  # else it was cancelled meanwhile
            self._end(call)
            self._outbox.say(call.caller, frame(Op.RESULT, call.id, str(client) if call.to_all else "", body))

    def _refuse(self, call: Call, fault: str, text: str) -> None:
        self._end(call)
        self._outbox.refuse(call.caller, call.id, fault, f"{call.member}: {text}" if call.to_all else text)

    def _end(self, call: Call) -> None:
        del self._calls[call.number], call.member.serving[call.number]
        numbers = call.caller.calls[call.id]
        if len(numbers) == 1:
            del call.caller.calls[call.id]
        else:
            numbers.remove(call.number)

    def cancel(self, client: Client, id: int, now: float) -> None:
        """Who called does not wait any more."""
        for number in tuple(client.calls.get(id, ())):
            call = self._calls[number]
            self._end(call)
            self._outbox.say(call.member, frame(Op.CANCEL, number, "", b""))

    def tick(self, now: float) -> None:
        if now < self._look:
            return
        self._look = now + LOOK
        for call in [call for call in self._calls.values() if call.due <= now]:
            self._refuse(call, Fault.LATE, "there was no answer in time")
            self._outbox.say(call.member, frame(Op.CANCEL, call.number, "", b""))


def _parted(member: str) -> tuple[str, int | None]:
    """``http[2]`` is slot 2 of http."""
    group, bracket, slot = member.rpartition("[")
    if bracket and slot.endswith("]") and slot[:-1].isdecimal() and slot.isascii():
        return group, int(slot[:-1])
    return member, None
