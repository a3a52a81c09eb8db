"""Handlers that raise, block the loop or never end, and workers that take only so many connections: what others feel of it."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import IO, TYPE_CHECKING, Any

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

HANDLERS = """
import asyncio, os, time

class Faulty:
    async def on_message(self, connection, message):
        match message:
            case "raise":
                raise ValueError("on purpose")
            case "block":
                time.sleep(60)
            case "never":
                await asyncio.Event().wait()
        connection.data["count"] = connection.data.get("count", 0) + 1
        await connection.send(f"{os.getpid()} {message} {connection.data['count']}")

    def on_error(self, connection, exc):
        connection.send_nowait(f"sorry, {exc}")

class Plain:
    def on_message(self, connection, message):
        connection.send_nowait(message)
"""
PROGRAM = """
from laraman import Worker

workers = [
    Worker("faulty", "text://127.0.0.1:0", handler="handlers:Faulty"),
    Worker("few", "text://127.0.0.1:0", handler="handlers:Plain", max_connections=2),
]
"""


@contextlib.contextmanager
def client(port: int) -> Iterator[IO[str]]:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock, sock.makefile("rw") as lines:
        yield lines


def say(lines: IO[str], text: str) -> None:
    lines.write(f"{text}\n")
    lines.flush()


def ask(lines: IO[str], text: str) -> str:
    say(lines, text)
    return lines.readline().strip()


def rows(running: Server, worker: str) -> list[dict[str, Any]]:
    return [row for row in running.connections() if row["worker"] == worker]


def test_handlers_that_fail_and_few_places(server: Callable[..., Server]) -> None:
    limits = ("--timeout-worker-healthcheck", "1", "--timeout-graceful-shutdown", "1")
    running = server("program:workers", *limits, files={"handlers.py": HANDLERS, "program.py": PROGRAM})
    faulty, few = (int(address.rpartition(":")[2]) for address in running.status()["server"]["addresses"])

    # One that raises costs its connection and nothing else.
    with client(faulty) as first, client(faulty) as second:
        pid = ask(first, "hello").split()[0]
        assert ask(second, "hello") == f"{pid} hello 1"
        assert ask(first, "raise") == "sorry, on purpose"
        assert first.readline() == ""
        assert ask(second, "hello") == f"{pid} hello 2"
    assert "on_message raised, the connection is closed" in running.output

    # One that blocks costs the process, and there is another one.
    with client(faulty) as lines:
        say(lines, "block")
        wait_until(lambda: (found := running.processes("faulty")) and "in on_message" in (found[0]["last_exit"] or ""))
    wait_until(lambda: running.processes("faulty")[0]["state"] == "ready")
    with client(faulty) as lines:
        answer = ask(lines, "hello")
        assert answer.endswith(" hello 1")
        assert not answer.startswith(pid)

    # Who comes when the places are taken waits until one is free.
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(contextlib.ExitStack()) for _ in range(2)]
        for place in taken:
            assert ask(place.enter_context(client(few)), "hello") == "hello"
        waiting = [stack.enter_context(client(few)) for _ in range(2)]
        for lines in waiting:
            say(lines, "me too")
        assert len(rows(running, "few")) == 2
        taken[0].close()
        assert waiting[0].readline() == "me too\n"
        assert len(rows(running, "few")) == 2
        taken[1].close()
        assert waiting[1].readline() == "me too\n"

    # One that never ends is cut off when the time of the stop is over.
    with client(faulty) as lines:
        say(lines, "never")
        wait_until(lambda: any(row["messages_in"] for row in rows(running, "faulty")))
        begun = time.monotonic()
        assert running.stop() == 0
        assert 0.5 < time.monotonic() - begun < 10
        assert lines.readline() == ""
    assert "on_drain took too long and was cut short" in running.output
