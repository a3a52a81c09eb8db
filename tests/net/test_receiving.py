"""A message that is all a read brings is handled in place, others in general: what a handler can see of either is the same."""

from __future__ import annotations

import asyncio
import decimal
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from laraman.net.connection import Connection
from laraman.net.handling import Handling
from laraman.protocols.framing import Text
from laraman.sandbox.guard import Guard
from laraman.sandbox.operation import MESSAGE, Operation, current
from laraman.sandbox.surroundings import Sandbox
from tests.net.serving import a_worker, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.net.conftest import Around

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("around")]

marked: ContextVar[str] = ContextVar("marked", default="")


class Transport(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.reading = False

    def get_write_buffer_size(self) -> int:
        return 0


class Handler:
    """What is around each message. ``close`` and ``boom`` are what they say, ``pause`` pauses."""

    def __init__(self, precision: int) -> None:
        self.seen: list[Any] = []
        self.operations: list[Any] = []
        self.precision = precision

    def look(self, connection: Connection, message: str) -> None:
        operation: Any = current()
        self.operations.append(operation)
        self.seen.append((message, operation.kind, operation.subject, operation.instances, operation.ended, marked.get(), decimal.getcontext().prec))
        marked.set(message)
        decimal.getcontext().prec = self.precision
        if message == "pause":
            connection.pause()
        if message == "close":
            connection.close()
        if message == "boom":
            raise ValueError(message)
        if connection.error is None:
            connection.send_nowait(message)


class Plain(Handler):
    def on_message(self, connection: Connection, message: str) -> None:
        self.look(connection, message)


class Later(Handler):
    async def on_message(self, connection: Connection, message: str) -> None:
        await asyncio.sleep(0)
        self.look(connection, message)


class Sometimes(Handler):
    def on_message(self, connection: Connection, message: str) -> Any:
        return asyncio.ensure_future(asyncio.sleep(0)) if message == "b" else self.look(connection, message)


class General(Connection):
    """Handles nothing in place."""

    __slots__ = ()

    def _look_around(self) -> None:
        super()._look_around()
        self._base = None


async def play(make: type[Connection], kind: Callable[[int], Handler], messages: list[str], due: int, warm: bool) -> dict[str, Any]:
    worker = a_worker()
    base = Context()
    base.run(marked.set, "startup")
    if warm:
        base.run(decimal.getcontext)
    worker.sandbox = Sandbox(worker, base)
    guard = worker.sandbox.guard = Guard("warn")
    reached: list[int] = []
    guard.due = due
    guard.reached = lambda: reached.append(len(guard.since))  # type: ignore[method-assign]
    handler = kind(9)
    connection, transport = make(Text(), handler, worker), Transport()
    connection.connection_made(transport)
    steps = []
    for message in messages:
        connection.data_received(message.encode() + b"\n")
        steps.append((len(handler.seen), connection.running is not None, connection.reading_paused, len(connection._pending or ())))
        if message != "c":
            await until(lambda: connection.running is None)
    await until(lambda: connection.running is None)
    connection.resume()
    await until(lambda: connection.running is None)
    assert all(operation.ended for operation in handler.operations)
    assert guard.since[1:] == [Operation(MESSAGE, "x").trace] * (len(guard.since) - 1)  # the first is that of on_connect, if there is one
    return {
        "steps": steps,
        "seen": handler.seen,
        "since": guard.since,
        "reached": reached,
        "written": transport.written,
        "reading": transport.reading,
        "counted": (connection.bytes_in, connection.messages_in, connection.bytes_out, connection.messages_out, worker.requests, worker.in_flight),
        "ended": (type(connection.error), connection.close_code, connection.state),
    }


@pytest.mark.parametrize("messages", [["a", "b", "a"], ["a", "c", "d", "e"], ["a", "b", "pause", "d", "e"], ["a", "close", "d"], ["a", "boom", "d"]])
@pytest.mark.parametrize("kind", [Plain, Later, Sometimes])
@pytest.mark.parametrize("warm", [False, True])
async def test_what_is_handled_in_place_is_handled_as_all_is(kind: Callable[[int], Handler], messages: list[str], warm: bool) -> None:
    for due in (1, 3, 256):
        in_place = await play(Connection, kind, messages, due, warm)
        assert in_place == await play(General, kind, messages, due, warm)
        assert all(seen[1:6] == (MESSAGE, seen[0], None, False, "startup") for seen in in_place["seen"])
        assert all(seen[6] != 9 for seen in in_place["seen"])


async def test_only_what_needs_it_is_handled_in_general(monkeypatch: pytest.MonkeyPatch, around: Around) -> None:
    general: list[Any] = []
    original = Handling._handle_messages
    monkeypatch.setattr(Connection, "_deliver", lambda connection, messages: (general.append(list(messages)), original(connection, messages)))
    handler, worker = Plain(9), a_worker()
    worker.sandbox = Sandbox(worker, Context())
    connection = Connection(Text(), handler, worker)
    connection.connection_made(Transport())
    for data in (b"first\n", b"a\n", b"b\nc\n", b"d\n"):
        connection.data_received(data)
    assert general == [["first"], ["b", "c"]]  # the first finds out what is to be done
    around.listen()
    connection.data_received(b"e\n")
    await until(lambda: connection.running is None)
    connection.data_received(b"f\n")
    await until(lambda: connection.running is None)
    assert general[2:] == [["e"], ["f"]]
    assert around.told == ["received e", "ok e", "received f", "ok f"]
    connection.operates_for = None  # and what it was before is forgotten
    handler.look = lambda connection, message: handler.seen.append(current())  # type: ignore[method-assign]
    connection.data_received(b"g\n")
    assert handler.seen[-1] is None
