from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import types
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman import events, sandbox
from laraman.errors import Busy, ConfigError, ConnectionClosed, ConnectionLost, IllegalTransition, LinkDown, LocalProtocolError
from laraman.net import dial as dial_module
from laraman.net.link import STEPS, Backoff, Link, State, current_worker, link
from laraman.sandbox.operation import current
from laraman.sandbox.surroundings import Sandbox
from tests.net.serving import DEADLINE, a_worker, serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from laraman.net.connection import Connection
    from tests.net.conftest import Around

marked: ContextVar[str] = ContextVar("marked", default="")

QUICK = Backoff(base=0.02, cap=0.05)


def local(port: int, scheme: str = "text") -> str:
    return f"{scheme}://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def kept(made: Link) -> AsyncIterator[Link]:
    """The link runs as in ``worker.tasks``: until its task group is cancelled."""
    async with anyio.create_task_group() as group:
        group.start_soon(made.run)
        try:
            yield made
        finally:
            group.cancel_scope.cancel()
    assert made.state == "CLOSED"


async def up(made: Link) -> None:
    await until(lambda: made.state == "UP")


class Peer:
    """The far end's handler: keeps what comes, and echoes it unless it is told not to."""

    def __init__(self, echoes: bool = True) -> None:
        self.echoes = echoes
        self.connections: list[Connection] = []
        self.received: list[Any] = []

    def on_connect(self, connection: Connection) -> None:
        self.connections.append(connection)

    async def on_message(self, connection: Connection, message: Any) -> None:
        self.received.append(message)
        if self.echoes:
            await connection.send(message)


class Lag:
    """The longest time that the loop kept a timer waiting."""

    worst = 0.0

    async def __aenter__(self) -> Lag:
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()

    async def _measure(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, time.perf_counter() - before - 0.005)


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """The link events of this test."""
    heard: list[Any] = []
    registered, version = list(events._registered), events.version
    events.on(events.LinkUp, heard.append)
    events.on(events.LinkDown, heard.append)
    yield heard
    events._registered[:] = registered
    assert events.version > version
    events.changed()


# The parts that need no loop ------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_full_jitter(base: float, cap: float, failures: int, fraction: float) -> None:
    backoff = Backoff(base, cap, random=lambda: fraction)
    ceiling = backoff.ceiling(failures)
    assert ceiling == min(cap, base * 2.0 ** min(failures, 60))
    assert backoff.delay(failures) == ceiling * fraction
    assert 0 <= Backoff(base, cap).delay(failures) <= cap
    assert backoff.ceiling(failures + 1) >= ceiling


def test_backoff_spreads_over_the_whole_range() -> None:
    delays = [Backoff().delay(3) for _ in range(2000)]
    assert min(delays) < 0.1
    assert max(delays) > 3.9
    assert 1.9 < sum(delays) / len(delays) < 2.1
    assert Backoff().ceiling(100) == 30


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_only_the_steps_of_the_table_can_be_taken(before: State, after: State) -> None:
    async def step() -> None:
        made = Link("text://127.0.0.1:1")
        made.state = before
        if after in STEPS[before]:
            made._step(after)
            assert made.state is after
        else:
            with pytest.raises(IllegalTransition, match=f"{before} to {after}"):
                made._step(after)
            assert made.state is before

    asyncio.run(step())


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("nonsense", {}),
        ("gopher://127.0.0.1:70", {}),
        ("text://127.0.0.1:1", {"overflow": "hope"}),
        ("text://127.0.0.1:1", {"queue": 0}),
        ("text://127.0.0.1:1", {"timeout": 0}),
        ("text://127.0.0.1:1", {"connect_timeout": 0}),
        ("text://127.0.0.1:1", {"heartbeat": (0, "ping")}),
    ],
)
def test_what_cannot_be(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        link(url, **options)


# Up and down ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_messages_go_both_ways() -> None:
    received: list[str] = []
    async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=lambda made, message: received.append(message))) as made:
        await up(made)
        for number in range(100):
            await made.send(str(number))
        await until(lambda: len(received) == 100)
        assert received == [str(number) for number in range(100)]
        row = made.row()
        wanted = {"direction": "out", "protocol": "text", "state": "UP", "messages_in": 100, "messages_out": 100, "peer": f"127.0.0.1:{peer.port}"}
        assert {name: row[name] for name in wanted} == wanted
        assert row["local"].startswith("127.0.0.1:")
        assert row["name"] == local(peer.port)
        assert repr(made) == f"<Link {local(peer.port)} UP>"


@pytest.mark.anyio
async def test_retry_waits_as_after_a_first_failure() -> None:
    port = free_port()
    asked: list[float] = []

    class Counted(Backoff):
        def delay(self, failures: int) -> float:
            asked.append(failures)
            return 3600 if failures else 0.01

    made = link(local(port), backoff=Counted())
    made.failures = 60
    async with kept(made):
        await until(lambda: made.error is not None)
        async with serving(Peer(), port=port):
            made.retry()
            await up(made)
            made.retry()  # is up already
            assert made.state == "UP"
            assert asked == [60, 0]


@pytest.mark.anyio
async def test_a_peer_that_is_absent_at_boot_gets_everything_when_it_comes(told: list[Any]) -> None:
    port = free_port()
    async with kept(link(local(port), name="feed", backoff=QUICK)) as made:
        for number in range(5):
            await made.send(str(number))
        await until(lambda: made.failures >= 3)
        assert made.row()["queued"] == 5
        assert "onnect" in made.row()["error"]
        assert made.row()["state"] in ("DOWN", "DIALING")
        assert told == []
        async with serving(Peer(), port=port) as peer:
            await up(made)
            await made.send("last")
            await until(lambda: len(peer.handler.received) == 6)
            assert peer.handler.received == ["0", "1", "2", "3", "4", "last"]
    assert [type(event).__name__ for event in told] == ["LinkUp", "LinkDown"]


@pytest.mark.anyio
async def test_a_peer_that_is_lost_is_dialled_again(told: list[Any]) -> None:
    calls: list[Any] = []
    port = free_port()
    made = link(local(port), backoff=QUICK, on_up=lambda made: calls.append("up"), on_down=lambda made, error: calls.append(error))
    async with kept(made):
        for round_ in range(3):
            async with serving(Peer(), port=port) as peer:
                await up(made)
                await made.send(f"round {round_}")
                await until(lambda: peer.handler.received)
                assert peer.handler.received == [f"round {round_}"]
            await until(lambda: made.state != "UP")
    assert [call if call == "up" else type(call) for call in calls] == ["up", ConnectionLost] * 3
    assert [type(event).__name__ for event in told] == ["LinkUp", "LinkDown"] * 3
    assert told[1].error is calls[1]
    assert made.row()["messages_out"] == 3


@pytest.mark.anyio
async def test_closing_is_told_without_an_error(told: list[Any]) -> None:
    calls: list[Any] = []
    async with serving(Peer()) as peer, kept(link(local(peer.port), on_down=lambda made, error: calls.append(error))) as made:
        await up(made)
    assert calls == [None]
    assert told[-1].error is None


@pytest.mark.anyio
async def test_a_peer_that_hangs_up_at_once_is_dialled_ever_more_rarely() -> None:
    class Closing:
        def on_connect(self, connection: Connection) -> None:
            connection.close()

    async with serving(Closing()) as peer, kept(link(local(peer.port), backoff=Backoff(base=0.02, cap=5, random=lambda: 0.5))) as made:
        await until(lambda: made.failures >= 4)
        assert len(peer.made) <= 6


@pytest.mark.anyio
async def test_failures_are_forgotten_when_a_connection_has_lasted() -> None:
    port = free_port()
    failures: list[int] = []
    async with kept(link(local(port), backoff=QUICK, on_down=lambda made, error: failures.append(made.failures))) as made:
        await until(lambda: made.failures >= 3)
        async with serving(Peer(), port=port):
            await up(made)
            await asyncio.sleep(0.1)
        await until(lambda: failures)
        assert failures[0] == 0


@pytest.mark.anyio
async def test_unix_socket(tmp_path: Any) -> None:
    loop = asyncio.get_running_loop()
    path = str(tmp_path / "s")
    received: list[bytes] = []

    class Sink(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.append(data)

    server = await loop.create_unix_server(Sink, path)
    async with kept(link(f"text+unix://{path}")) as made:
        await made.send("hello")
        await until(lambda: received)
        assert made.row()["peer"] == path
    server.close()
    assert b"".join(received) == b"hello\n"


# Peers that are neither there nor gone --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue is full: to connect to it is to wait."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.anyio
async def test_a_black_hole_is_given_up_and_blocks_nobody() -> None:
    with black_hole() as port:
        async with Lag() as lag, kept(link(local(port), connect_timeout=0.1, backoff=QUICK)) as made:
            await until(lambda: made.failures >= 3)
            assert str(made.error) == f"no connection to {local(port)} within 0.1 s"
    assert lag.worst < 0.4


@pytest.mark.anyio
async def test_a_name_server_that_does_not_answer_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        time.sleep(0.5)
        raise OSError("no answer")

    monkeypatch.setattr("laraman.net.dial.socket.getaddrinfo", getaddrinfo)
    async with Lag() as lag, kept(link("text://peer.test:9", connect_timeout=0.05, backoff=QUICK)) as made:
        await until(lambda: made.failures >= 4)
        assert "within 0.05 s" in str(made.error)
        assert len(asked) <= 2
        async with asyncio.timeout(DEADLINE):
            assert await asyncio.to_thread(lambda: 1) == 1
    assert lag.worst < 0.4
    await until(lambda: not dial_module._lookups)


@pytest.mark.anyio
async def test_a_peer_that_falls_silent_is_lost(told: list[Any]) -> None:
    with socket.socket() as listener:  # the kernel accepts for it; it never reads nor writes
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        port = listener.getsockname()[1]
        async with Lag() as lag, kept(link(local(port), heartbeat=(0.05, "ping"), timeout=0.2, backoff=QUICK)) as made:
            await until(lambda: told and isinstance(told[-1], events.LinkDown))
            assert str(told[-1].error) == "nothing was received for 0.2 s"
            await until(lambda: len(told) >= 4)
    assert lag.worst < 0.4
    assert made.row()["bytes_out"] >= 5


PEER = """
import asyncio
async def serve(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def process() -> Iterator[tuple[int, int]]:
    """Pid and port of a peer in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", PEER], stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout is not None
            yield peer.pid, int(peer.stdout.readline())
        finally:
            peer.kill()


@pytest.mark.anyio
async def test_a_peer_that_is_stopped_killed_and_back(process: tuple[int, int]) -> None:
    pid, port = process
    async with Lag() as lag, kept(link(local(port), heartbeat=(0.05, "ping"), timeout=0.4, backoff=QUICK)) as made:
        await up(made)
        await until(lambda: made.row()["messages_in"] >= 3)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: made.state != "UP")
        assert "nothing was received" in str(made.error)
        os.kill(pid, signal.SIGCONT)
        before = made.row()["messages_in"]
        await until(lambda: made.row()["messages_in"] > before)
        await up(made)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: made.state != "UP" and "onnect" in str(made.error))
    assert lag.worst < 0.4


@pytest.mark.anyio
async def test_a_loop_that_was_blocked_does_not_accuse_its_peer(told: list[Any]) -> None:
    async with serving(Peer()) as peer, kept(link(local(peer.port), heartbeat=(0.05, "ping"), timeout=0.4)) as made:
        await up(made)
        for _ in range(2):
            time.sleep(0.6)  # noqa: ASYNC251  that is the point
            await asyncio.sleep(0.05)
        assert made.state == "UP"
    assert len(peer.made) == 1


@pytest.mark.anyio
async def test_heartbeats_do_not_wait_for_handlers() -> None:
    async def stuck(made: Link, message: str) -> None:
        await asyncio.sleep(DEADLINE)

    async with serving(Peer()) as peer, kept(link(local(peer.port), heartbeat=(0.02, "ping"), on_message=stuck)) as made:
        await made.send("a")
        await until(lambda: peer.handler.received.count("ping") > 5)


# The queue ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_overflow_error() -> None:
    async with kept(link(local(free_port()), queue=2, overflow="error")) as made:
        await made.send("a")
        made.send_nowait("b")
        with pytest.raises(LinkDown):
            await made.send("c")
        with pytest.raises(LinkDown):
            made.send_nowait("c")


@pytest.mark.anyio
async def test_overflow_drop_oldest() -> None:
    port = free_port()
    async with kept(link(local(port), queue=3, overflow="drop_oldest", backoff=QUICK)) as made:
        for number in range(10):
            await made.send(str(number))
        assert made.dropped == made.row()["dropped"] == 7
        async with serving(Peer(), port=port) as peer:
            await until(lambda: len(peer.handler.received) == 3)
            assert peer.handler.received == ["7", "8", "9"]


@pytest.mark.anyio
async def test_overflow_wait() -> None:
    port = free_port()
    async with kept(link(local(port), queue=2, backoff=QUICK)) as made:
        await made.send("0")
        await made.send("1")
        begun = asyncio.get_running_loop().time()
        with pytest.raises(LinkDown):
            await made.send("x", timeout=0.1)
        assert asyncio.get_running_loop().time() - begun >= 0.09
        with pytest.raises(LinkDown):
            made.send_nowait("x")
        senders = [asyncio.create_task(made.send(str(number))) for number in range(2, 20)]
        await asyncio.sleep(0.02)
        assert made.row()["queued"] == 2
        async with serving(Peer(), port=port) as peer:
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*senders)
            await until(lambda: len(peer.handler.received) == 20)
            assert peer.handler.received[:2] == ["0", "1"]
            assert sorted(peer.handler.received, key=int) == [str(number) for number in range(20)]


@pytest.mark.anyio
async def test_a_peer_that_does_not_read_fills_the_queue_not_the_memory() -> None:
    gate = asyncio.Event()

    class Slow(Peer):
        async def on_message(self, connection: Connection, message: Any) -> None:
            await gate.wait()
            self.received.append(message)

    async with serving(Slow()) as peer, kept(link(local(peer.port), queue=5, overflow="error")) as made:
        await up(made)
        sent = 0
        while made.row()["queued"] < 5:
            await made.send("x" * 100_000)
            sent += 1
            await asyncio.sleep(0)
        with pytest.raises(Busy):
            await made.send("one more")
        gate.set()
        await until(lambda: len(peer.handler.received) == sent)


@pytest.mark.anyio
async def test_what_the_protocol_refuses_is_told_or_dropped(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    async with kept(link(local(port), backoff=QUICK)) as made:
        await made.send("two\nlines")
        await made.send("fine")
        async with serving(Peer(), port=port) as peer:
            await until(lambda: peer.handler.received)
            assert peer.handler.received == ["fine"]
            assert "a queued message was dropped" in caplog.text
            with pytest.raises(LocalProtocolError):
                await made.send("two\nlines")


# Receiving ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_handlers_run_one_after_another_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    received: list[str] = []
    running = 0

    async def on_message(made: Link, message: str) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.001)
        running -= 1
        received.append(message)
        if message == "3":
            raise ValueError("handler")

    async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=on_message)) as made:
        for number in range(20):
            await made.send(str(number))
        await until(lambda: len(received) == 20)
        assert received == [str(number) for number in range(20)]
        assert made.state == "UP"
    assert "handler" in caplog.text


@pytest.mark.anyio
async def test_a_plain_handler_that_raises_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    received: list[str] = []

    def on_message(made: Link, message: str) -> None:
        received.append(message)
        raise ValueError("handler")

    def fails(*arguments: Any) -> None:
        raise ValueError("told")

    options: dict[str, Any] = {"on_message": on_message, "on_up": fails, "on_down": fails}
    async with serving(Peer()) as peer, kept(link(local(peer.port), **options)) as made:
        await made.send("a")
        await made.send("b")
        await until(lambda: len(received) == 2)
        assert made.state == "UP"
    assert caplog.text.count("ValueError: told") == 2


@pytest.mark.anyio
async def test_order_holds_over_a_reconnect() -> None:
    """A handler that is busy with the old connection's last messages comes before those of the new one."""
    received: list[str] = []

    async def on_message(made: Link, message: str) -> None:
        await asyncio.sleep(0.05)
        received.append(message)

    class Telling:
        count = 0

        def on_connect(self, connection: Connection) -> None:
            self.count += 1
            for number in range(4):
                connection.send_nowait(f"{self.count}.{number}")
            if self.count == 1:
                connection.close()

    async with serving(Telling()) as peer, kept(link(local(peer.port), on_message=on_message, backoff=Backoff(base=0.001))):
        await until(lambda: len(received) == 8)
    assert received == [f"{connection}.{number}" for connection in (1, 2) for number in range(4)]


# Operations -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_worker(isolation: str = "concurrent") -> Iterator[Any]:
    """Links that are run here are of this worker."""
    worker = a_worker()
    worker.config = types.SimpleNamespace(isolation=isolation)
    worker.sandbox = Sandbox(worker)
    token = current_worker.set(worker)
    try:
        yield worker
    finally:
        current_worker.reset(token)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.anyio
async def test_nothing_crosses_from_one_call_to_another(is_async: bool, heard: bool, around: Around) -> None:
    seen: list[Any] = []

    def note(what: str) -> Any:
        seen.append((what, marked.get(), current().name))  # type: ignore[union-attr]
        marked.set(what)
        return asyncio.sleep(0) if is_async else None

    token = marked.set("startup")
    try:
        with in_worker() as worker:
            if heard:
                around.listen(worker)
            marked.set("of the link")
            hooks: dict[str, Any] = {
                "on_up": lambda made: note("up"),
                "on_message": lambda made, message: note(message),
                "on_down": lambda made, error: note("down"),
            }
            async with serving(Peer()) as peer, kept(link(local(peer.port), name="feed", **hooks)) as made:
                await made.send("a")
                await made.send("b")
                await until(lambda: len(seen) == 3)
    finally:
        marked.reset(token)
    assert seen == [
        ("up", "startup", "link feed"),
        ("a", "startup", "message str"),
        ("b", "startup", "message str"),
        ("down", "startup", "link feed"),
    ]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.anyio
async def test_a_handler_that_raises_has_that_outcome_and_the_link_stays(is_async: bool, around: Around, caplog: pytest.LogCaptureFixture) -> None:

    def plain(made: Link, message: str) -> None:
        around.told.append(message)
        if message == "bad":
            raise ValueError("handler")

    async def later(made: Link, message: str) -> None:
        await asyncio.sleep(0)
        plain(made, message)

    with in_worker() as worker:
        around.listen(worker)
        async with serving(Peer()) as peer, kept(link(local(peer.port), name="feed", on_message=later if is_async else plain)) as made:
            for message in ("a", "bad", "c"):
                await made.send(message)
            await until(lambda: len(around.told) == 9)
            assert made.state == "UP"
            assert around.told == ["received a", "a", "ok a", "received bad", "bad", "error bad", "received c", "c", "ok c"]
            assert all(event.worker is worker for event in around.events)
    assert (worker.in_flight, worker.sandbox.active) == (0, 0)
    assert "Link feed: " in caplog.text
    assert "ValueError: handler" in caplog.text


@pytest.mark.anyio
async def test_a_message_that_the_end_cancels_is_told_to_be_over(around: Around) -> None:
    closed: list[str] = []

    class Thing:
        def close(self) -> None:
            closed.append("closed")

    thing = sandbox.local(Thing)

    async def on_message(made: Link, message: str) -> None:
        thing()
        await asyncio.sleep(DEADLINE)

    with in_worker() as worker:
        around.listen(worker)
        async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=on_message)) as made:
            await made.send("a")
            await made.send("b")
            await until(lambda: made.row()["messages_in"] == 2)
        await until(lambda: len(around.told) == 2)
    assert (around.told, closed) == (["received a", "cancelled a"], ["closed"])
    assert worker.sandbox.active == 0


@pytest.mark.anyio
async def test_a_connection_that_is_lost_does_not_cancel_what_it_has_brought(around: Around) -> None:
    gate = asyncio.Event()

    async def on_message(made: Link, message: str) -> None:
        await gate.wait()

    with in_worker() as worker:
        around.listen(worker)
        async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=on_message, backoff=QUICK)) as made:
            await made.send("a")
            await until(lambda: around.told)
            peer.made[0].abort()
            await until(lambda: len(peer.made) == 2)
            await up(made)
            await made.send("b")
            await until(lambda: made.row()["messages_in"] == 2)
            assert around.told == ["received a"]
            gate.set()
            await until(lambda: len(around.told) == 4)
    assert around.told == ["received a", "ok a", "received b", "ok b"]


@pytest.mark.anyio
async def test_what_waits_for_the_connection_before_is_cancelled_with_the_link(around: Around) -> None:

    async def on_message(made: Link, message: str) -> None:
        await asyncio.sleep(DEADLINE)

    with in_worker() as worker:
        around.listen(worker)
        async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=on_message, backoff=QUICK)) as made:
            await made.send("a")
            await made.send("b")
            await until(lambda: made.row()["messages_in"] == 2)
            peer.made[0].abort()
            await until(lambda: len(peer.made) == 2)
            await up(made)
        await until(lambda: len(around.told) == 2)
        await asyncio.sleep(0.01)
    assert around.told == ["received a", "cancelled a"]


@pytest.mark.anyio
async def test_an_operation_that_has_its_turn_may_wait_for_an_answer(around: Around) -> None:
    answers: dict[str, asyncio.Future[str]] = {}

    async def ask(made: Link, question: str) -> str:
        answers[question] = asyncio.get_running_loop().create_future()
        await made.send(question)
        return await answers[question]

    with in_worker("serial") as worker:
        around.listen(worker)
        async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=lambda made, message: answers[message].set_result("yes"))) as made:
            await up(made)
            async with asyncio.timeout(DEADLINE):
                assert await worker.sandbox.run(ask, made, "really?") == "yes"


@pytest.mark.anyio
async def test_a_link_that_only_passes_on_has_no_operations(around: Around) -> None:
    seen: list[Any] = []

    def note(*arguments: Any) -> None:
        seen.append(current())

    with in_worker() as worker:
        around.listen(worker)
        async with serving(Peer()) as peer:
            made = link(local(peer.port), on_message=note, on_up=note, on_down=note)
            made.operates = False
            async with kept(made):
                await made.send("a")
                await until(lambda: len(seen) == 2)
    assert (seen, around.told) == ([None] * 3, [])


# The handshake --------------------------------------------------------------------------------------------------------------------


class Registry:
    """A peer that wants to be greeted, and talks before it has answered."""

    def __init__(self, refuses: int = 0, silent: bool = False) -> None:
        self.refuses = refuses
        self.silent = silent
        self.received: list[str] = []

    async def on_connect(self, connection: Connection) -> None:
        self.received.append(await connection.receive())
        if self.silent:
            return
        if self.refuses:
            self.refuses -= 1
            await connection.send("refused")
            return
        await connection.send("welcome")
        await connection.send("news")

    def on_message(self, connection: Connection, message: str) -> None:
        self.received.append(message)


async def register(connection: Connection) -> None:
    await connection.send("register")
    answer = await connection.receive()
    if answer != "welcome":
        raise PermissionError(answer)


@pytest.mark.anyio
async def test_the_handshake_comes_first() -> None:
    received: list[str] = []
    states: list[str] = []

    async def shake(connection: Connection) -> None:
        states.append(str(made.state))
        await register(connection)

    port = free_port()
    made = link(local(port), handshake=shake, on_message=lambda made, message: received.append(message), backoff=QUICK)
    async with kept(made):
        await made.send("queued")
        async with serving(Registry(refuses=2), port=port) as peer:
            await up(made)
            await until(lambda: received == ["news"] and peer.handler.received[-1] == "queued")
            assert peer.handler.received == ["register", "register", "register", "queued"]
            assert isinstance(made.error, PermissionError)
            assert states == ["HANDSHAKE"] * 3


@pytest.mark.anyio
async def test_a_handshake_has_a_deadline(told: list[Any]) -> None:
    async with serving(Registry(silent=True)) as peer, kept(link(local(peer.port), handshake=register, connect_timeout=0.1, backoff=QUICK)) as made:
        await until(lambda: made.failures >= 2)
        assert str(made.error) == "the handshake took longer than 0.1 s"
        assert told == []
        await until(lambda: len(peer.worker.connections) <= 1)


@pytest.mark.anyio
async def test_a_peer_that_leaves_during_the_handshake() -> None:
    class Leaving:
        def on_message(self, connection: Connection, message: str) -> None:
            connection.close()

    async with serving(Leaving()) as peer, kept(link(local(peer.port), handshake=register, backoff=QUICK)) as made:
        await until(lambda: made.failures >= 2)
        assert isinstance(made.error, ConnectionLost)


@pytest.mark.anyio
async def test_closing_during_the_handshake() -> None:
    async with serving(Registry(silent=True)) as peer:
        begun = asyncio.get_running_loop().time()
        async with kept(link(local(peer.port), handshake=register)) as made:
            await until(lambda: made.state == "HANDSHAKE" and peer.handler.received)
        assert asyncio.get_running_loop().time() - begun < 0.9
        await until(lambda: not peer.worker.connections)


# Life -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_start_waits_for_what_is_required_only() -> None:
    port = free_port()
    optional, required = link(local(port)), link(local(port), required=True, backoff=QUICK)
    async with anyio.create_task_group() as group:
        with anyio.fail_after(DEADLINE):
            await group.start(optional.run)
        with anyio.move_on_after(0.1) as scope:
            await group.start(required.run)
        assert scope.cancelled_caught
        required = link(local(port), required=True, backoff=QUICK)
        starting = asyncio.create_task(group.start(required.run))
        async with serving(Peer(), port=port):
            async with asyncio.timeout(DEADLINE):
                await starting
            assert required.state == "UP"
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_link_belongs_to_its_worker() -> None:
    worker = a_worker()
    token = current_worker.set(worker)
    try:
        async with kept(link(local(free_port()))) as made:
            await until(lambda: made.failures)
            assert worker.links == {made}
            assert made.row()["worker"] == "test"
        assert worker.links == set()
    finally:
        current_worker.reset(token)


@pytest.mark.parametrize("how", ["close", "cancel"])
@pytest.mark.anyio
async def test_what_is_queued_is_sent_before_the_end(how: str) -> None:
    async with serving(Peer(echoes=False)) as peer:
        async with kept(link(local(peer.port), queue=5000)) as made:
            await up(made)
            for number in range(1500):
                made.send_nowait(f"{number} {'x' * 10_000}")
            assert made.row()["queued"]
            if how == "close":
                await made.close()
        await until(lambda: not peer.worker.connections)
    assert [message.partition(" ")[0] for message in peer.handler.received] == [str(number) for number in range(1500)]


@pytest.mark.anyio
async def test_a_peer_that_does_not_read_delays_the_end_by_a_second() -> None:
    class Deaf:
        async def on_message(self, connection: Connection, message: str) -> None:
            await asyncio.sleep(DEADLINE)

    async with serving(Deaf()) as peer:
        async with kept(link(local(peer.port), queue=100)) as made:
            await up(made)
            while made.row()["queued"] < 100:
                made.send_nowait("x" * 100_000)
            begun = asyncio.get_running_loop().time()
        assert 0.5 < asyncio.get_running_loop().time() - begun < 2


@pytest.mark.anyio
async def test_handlers_get_a_moment_at_the_end_and_are_then_cancelled() -> None:
    finished: list[str] = []

    async def on_message(made: Link, message: str) -> None:
        try:
            await asyncio.sleep(0.2 if message == "short" else DEADLINE)
            finished.append(message)
        except asyncio.CancelledError:
            finished.append("cancelled")
            raise

    for message in ("short", "long"):
        async with serving(Peer()) as peer, kept(link(local(peer.port), on_message=on_message)) as made:
            await made.send(message)
            await until(lambda: made.row()["messages_in"])
    await until(lambda: len(finished) == 2)
    assert finished == ["short", "cancelled"]


@pytest.mark.anyio
async def test_closed_is_for_good() -> None:
    made = link("text://127.0.0.1:1")
    await made.close()
    await made.close()
    await made.closed()
    assert made.state == "CLOSED"
    with pytest.raises(ConnectionClosed):
        await made.send("a")
    with pytest.raises(IllegalTransition):
        await made.run()
    async with kept(link(local(free_port()))) as running:
        await until(lambda: running.failures)
        with pytest.raises(IllegalTransition, match="run already"):
            await running.run()
        await running.close()
        assert running.state == "CLOSED"


@pytest.mark.anyio
async def test_a_link_can_be_closed_from_what_it_calls() -> None:
    async def close(made: Link, *arguments: Any) -> None:
        await made.close()

    hooks: list[dict[str, Callable[..., Any]]] = [{"on_up": close}, {"on_message": close}]
    for hook in hooks:
        async with serving(Peer()) as peer, asyncio.timeout(DEADLINE):
            made = link(local(peer.port), **hook)  # type: ignore[arg-type]
            made.send_nowait("a")
            await made.run()
            assert made.state == "CLOSED"


@pytest.mark.anyio
async def test_unsent_messages_are_reported_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async with kept(link(local(free_port()), name="feed")) as made:
        await made.send("a")
        await until(lambda: made.failures)
    assert "Link feed: closed with 1 messages unsent" in caplog.text


@pytest.mark.anyio
async def test_a_slow_listener_does_not_hold_the_link_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("laraman.net.link.TELL_SECONDS", 0.05)
    received: list[str] = []

    async def slow(made: Link) -> None:
        await asyncio.sleep(DEADLINE)

    async with serving(Peer()) as peer, kept(link(local(peer.port), on_up=slow, on_message=lambda made, message: received.append(message))) as made:
        await made.send("a")
        await until(lambda: received)
    assert "telling LinkUp took too long" in caplog.text
