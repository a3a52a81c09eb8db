"""A worker's outbound connection must not be felt by its HTTP clients, whatever state the peer is in."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from statistics import median
from typing import TYPE_CHECKING

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.conftest import DEADLINE, wait_until
from tests.e2e.apps import FILES
from tests.e2e.tools import wait_word, words, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Server

LINKED = """
import laraman

@laraman.on(laraman.WorkerStarting)
async def connect(event):
    link = laraman.link(
        "frame://127.0.0.1:{port}", name="feed", heartbeat=(0.05, b"ping"), timeout=0.5, connect_timeout=0.5,
        backoff=laraman.Backoff(base=0.01, cap=0.05), on_message=lambda link, message: mark("message"),
        overflow="drop_oldest", queue=10{extra}
    )
    event.worker.tasks.start_soon(link.run)
    event.worker.tasks.start_soon(feed, link)

async def greet(connection):
    await connection.send(b"hello")
    await connection.receive()

async def feed(link):
    import asyncio
    while True:
        await link.send(b"x" * 1000)
        await asyncio.sleep(0.01)

from hooks import mark
for kind in (laraman.LinkUp, laraman.LinkDown):
    laraman.on(kind, lambda event: mark(type(event).__name__))
"""


@contextmanager
def nobody() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose backlog is full and never emptied: a dial gets no answer at all."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        with closing(socket.socket()) as probe:
            probe.settimeout(0.2)
            with pytest.raises(TimeoutError):
                probe.connect(listening.getsockname())
        yield listening.getsockname()[1]


@contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which connections are accepted, and each is given to ``serve``; it stays open until the end."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def accept() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                stack.callback(sock.close)
                serve(sock)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)


def half_open() -> AbstractContextManager[int]:
    """The peer's machine is gone without a word: connections are made, and then nothing is ever read or sent."""
    return accepting(lambda sock: None)


def rude() -> AbstractContextManager[int]:
    """Every connection is closed at once."""
    return accepting(socket.socket.close)


def latencies(port: int, count: int = 200) -> list[float]:
    """Seconds that each of so many requests took, one after another on one connection."""
    taken = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as connection:
        for _ in range(count):
            begun = time.perf_counter()
            connection.request("GET", "/")
            assert connection.getresponse().read().endswith(b" hello")
            taken.append(time.perf_counter() - begun)
    return taken


@pytest.mark.parametrize(
    ("peer", "extra", "states"),
    [
        (nobody, "", {"DOWN", "DIALING"}),
        (black_hole, "", {"DOWN", "DIALING"}),
        (half_open, "", {"DOWN", "DIALING", "HANDSHAKE", "UP"}),
        (half_open, ", handshake=greet", {"DOWN", "DIALING", "HANDSHAKE"}),
        (rude, "", {"DOWN", "DIALING", "HANDSHAKE", "UP"}),
    ],
    ids=["down", "black-hole", "half-open", "silent-handshake", "rude"],
)
def test_http_does_not_feel_the_state_of_the_peer(
    server: Callable[..., Server], peer: Callable[[], AbstractContextManager[int]], extra: str, states: set[str]
) -> None:
    with peer() as port:
        files = {**FILES, "linked.py": LINKED.format(port=port, extra=extra)}
        running = server("app:app", "--listener", "linked", "--no-access-log", files=files)
        plain = server("app:app", "--no-access-log", files=FILES)
        with_link, without = latencies(running.port), latencies(plain.port)
        assert median(with_link) < 3 * median(without) + 0.002
        assert sorted(with_link)[-3] < 0.02 + sorted(without)[-3]  # two may meet this machine's other work
        (row,) = [row for row in running.connections() if row["direction"] == "out"]
        assert row["name"] == "feed"
        assert row["state"] in states
        assert row["peer"].endswith(f":{port}")
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 4.0


def test_a_link_comes_up_when_its_peer_does(server: Callable[..., Server], free_port: int) -> None:
    files = {**FILES, "linked.py": LINKED.format(port=free_port, extra=", handshake=greet")}
    running = server("app:app", "--listener", "linked", "--no-access-log", files=files)
    (worker,) = workers(running)
    assert "LinkUp" not in words(running, worker)
    for times in (1, 2):  # it comes back, too
        with socket.create_server(("127.0.0.1", free_port)) as listening:
            sock, _ = listening.accept()
            with sock:
                assert sock.recv(100).startswith(b"\x00\x00\x00\x09hello")
                sock.sendall(b"\x00\x00\x00\x0bwelcome" + b"\x00\x00\x00\x08news")
                wait_word(running, worker, "message", times)
                if times == 1:
                    (row,) = [row for row in running.connections() if row["direction"] == "out"]
                    assert (row["state"], row["protocol"], row["name"]) == ("UP", "frame", "feed")
                    assert row["messages_in"] >= 1
                    assert row["messages_out"] >= 1
        wait_word(running, worker, "LinkDown", times)
    assert words(running, worker).count("LinkUp") == 2
    assert running.stop() == 0


OUTBOUND = """
import asyncio, laraman

@laraman.on(laraman.WorkerStarting)
async def dial(event):
    class Handler:
        async def on_message(self, connection, message):
            await connection.send(message.upper())
    await laraman.connect("ws://127.0.0.1:{port}/feed", handler=Handler())
    await laraman.connect("ws://127.0.0.1:{port}/silent")
"""


def test_outbound_connections_are_shown_and_closed_when_the_worker_stops(server: Callable[..., Server]) -> None:
    heard: list[tuple[str, str]] = []
    closed: list[int | None] = []

    def serve_one(peer: ServerConnection) -> None:
        assert peer.request is not None
        if peer.request.path == "/feed":
            peer.send("hello")
            heard.append((peer.request.path, str(peer.recv(DEADLINE))))
        for _ in peer:
            pass
        closed.append(peer.close_code)

    with serve(serve_one, "127.0.0.1", 0, ping_interval=None) as peers:
        thread = threading.Thread(target=peers.serve_forever, daemon=True)
        thread.start()
        port = peers.socket.getsockname()[1]
        running = server("app:app", "--listener", "linked", "--no-access-log", files={**FILES, "linked.py": OUTBOUND.format(port=port)})
        wait_until(lambda: heard == [("/feed", "HELLO")])
        rows = [row for row in running.connections() if row["direction"] == "out"]
        assert [(row["protocol"], row["peer"], row["worker"]) for row in rows] == [("websocket", f"127.0.0.1:{port}", "http")] * 2
        assert running.stop() == 0
        wait_until(lambda: len(closed) == 2)
        assert closed == [1001, 1001]
        peers.shutdown()
        thread.join(DEADLINE)
