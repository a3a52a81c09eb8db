"""Workers in real child processes, with the test in the master's place at the other end of the channel."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman import events
from laraman.config import Config
from laraman.errors import BootError, ConfigError
from laraman.net.link import Backoff, current_worker, link
from laraman.process import garbage
from laraman.process import worker as worker_module
from laraman.process.worker import Worker, import_listeners
from laraman.protocols.ipc import Ipc
from laraman.sandbox.operation import TASK, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from laraman.net.connection import Connection

#: Seconds after which a wait gives up.
DEADLINE = 15.0

fork = pytest.mark.fork


class Boss:
    """A child, and what a master does with it."""

    def __init__(self, worker: Worker, config: Config) -> None:
        for bind in worker.binds:
            bind.open()
        self.worker = worker
        self.ipc = Ipc()
        self.heard: list[dict[str, Any]] = []
        self.channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            self._live(theirs, config)
        theirs.close()
        self.status: int | None = None

    def _live(self, theirs: socket.socket, config: Config) -> None:
        code = 99
        try:
            self.channel.close()
            code = self.worker.run(0, 1, theirs, config)
        except BaseException as exc:
            sys.stderr.write(f"the child's main raised {exc!r}\n")
            logging.getLogger().exception("the child's main raised")
        finally:
            os._exit(code)

    def say(self, **envelope: Any) -> None:
        self.channel.sendall(self.ipc.send(envelope))

    def hear(self, op: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until ``op`` was heard ``count`` times."""
        deadline = time.monotonic() + DEADLINE
        while len(found := [envelope for envelope in self.heard if envelope["op"] == op]) < count:
            in_time = time.monotonic() < deadline
            assert in_time, f"{op} was not heard, but {self.heard[-5:]}"
            assert self.listen(deadline), f"the child ended; {op} was not heard, but {self.heard[-5:]}"
        return found

    def listen(self, deadline: float) -> bool:
        """Take in what the child says; False at its end."""
        ready, _, _ = select.select([self.channel], [], [], max(0.0, deadline - time.monotonic()))
        data = self.channel.recv(65536) if ready else b""
        self.heard += self.ipc.receive_data(data)
        return bool(data)

    def stop(self, reason: str = "stop", deadline: float | None = 5.0) -> int:
        self.say(op="stop", reason=reason, deadline=deadline)
        return self.wait()

    def wait(self, timeout: float = DEADLINE) -> int:
        """The child's exit code, negative for a signal."""
        deadline = time.monotonic() + timeout
        while self.status is None:
            assert time.monotonic() < deadline, "the child does not end"
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
        return self.status

    def connect(self) -> socket.socket:
        address = self.worker.binds[0].address
        return socket.create_connection((address.host, address.port), DEADLINE)

    def close(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.channel.close()
        for bind in self.worker.binds:
            bind.close()


def read(client: socket.socket, size: int) -> bytes:
    """``size`` bytes, however they come."""
    client.settimeout(DEADLINE)
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(loop_name: str) -> Iterator[Callable[..., Boss]]:
    started: list[Boss] = []

    def begin(worker: Worker, **options: Any) -> Boss:
        options["loop"] = loop_name
        boss = Boss(worker, replace(Config(), **options))
        started.append(boss)
        return boss

    yield begin
    for boss in started:
        boss.close()


@pytest.fixture
def told() -> Iterator[Callable[..., Any]]:
    """``told(kind, listener)`` registers for this test only."""
    before = list(events._registered)
    yield events.on
    events._registered[:] = before
    events.changed()


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


class Diary:
    """Lines that outlive the process that wrote them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while line not in self.lines():
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.005)


class Handler:
    """Every hook, written down."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def on_load(self, worker: Worker) -> None:
        self.diary.write("load")

    async def on_start(self, worker: Worker) -> None:
        self.diary.write("start")

    async def on_message(self, connection: Connection, message: str) -> None:
        if message == "slow":
            self.diary.write("slow")
            await asyncio.sleep(0.3)
        if message == "stuck":
            self.diary.write("stuck")
            try:
                await asyncio.sleep(60)
            finally:
                self.diary.write("unstuck")
        await connection.send(message.upper())

    def on_close(self, connection: Connection) -> None:
        self.diary.write("close")

    async def on_stop(self, worker: Worker) -> None:
        self.diary.write("stop")


def echo(diary: Diary, name: str = "echo") -> Worker:
    return Worker(name, "text://127.0.0.1:0", handler=Handler(diary))


def note_events(told: Callable[..., Any], diary: Diary) -> None:
    for kind in (events.WorkerStarting, events.WorkerStarted, events.WorkerStopping):
        told(kind, lambda event: diary.write(type(event).__name__))


# The declaration ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(("",), {}), (("a b",), {}), (("a\n",), {}), ((5,), {}), (("a",), {"count": -1}), (("a", "nonsense"), {}), (("a", ["tcp://x:1", "y"]), {})],
)
def test_declarations_that_cannot_be(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Worker(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"handlr": "x:y"}, "worker 'w' has no option 'handlr'; did you mean 'handler'?"),
        ({"timeout_writ": 1}, "worker 'w' has no option 'timeout_writ'; did you mean 'timeout_write'?"),
        ({"backlog": 1}, "worker 'w' cannot have 'backlog', which is the whole server's"),
        ({"count": "two"}, "worker 'w': count: 'two' is neither a whole number nor 'auto' nor 'auto*N'"),
        ({"max_connections": 0}, "worker 'w': max_connections: 0 is less than 1"),
        ({"mode": "rw"}, "worker 'w': mode: 'rw' is not of the form 0660"),
        ({"isolation": "both"}, "worker 'w': isolation: 'both' is not one of concurrent, serial"),
        ({"user": "nobody-at-all"}, "worker 'w': user: there is no user 'nobody-at-all'"),
        ({"user": 1000}, "worker 'w': user: 1000 is not a string"),
        ({"mode": 0o660}, "worker 'w': mode: 432 is not a string"),
        ({"ssl_keyfile_password": 5}, "worker 'w': ssl_keyfile_password: what is there is not a string"),
        ({"exclusive": "perhaps"}, "worker 'w': exclusive: 'perhaps' is neither true nor false"),
        ({"address": 8000}, "worker 'w': address: 8000 is not a list of strings"),
        ({"address": [8000]}, "worker 'w': address: [8000] is not a list of strings"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Worker("w", **options)
    assert str(caught.value) == says


def test_options_are_this_worker_s_only() -> None:
    config = Config()
    worker = Worker("w", count="auto", max_message="1MB", timeout_write="3", loop="asyncio")  # type: ignore[arg-type]
    own = worker.configured(config)
    assert (own.timeout_write, own.loop, worker.max_message) == (3.0, "asyncio", 2**20)
    assert replace(own, timeout_write=config.timeout_write, loop=config.loop) == config
    assert worker.count >= 1
    assert Worker("w").configured(config) is config


def test_a_declaration() -> None:
    worker = Worker("ticker", ["frame://127.0.0.1:9100", "unix:/run/x"], count=2, handler="package.module:Attribute", stop_timeout=3)
    assert [str(bind.address) for bind in worker.binds] == ["frame://127.0.0.1:9100", "tcp+unix:///run/x"]
    assert worker.reloadable
    assert not Worker("ticker", handler=Handler).reloadable
    assert Worker("listening").reloadable, "its code is in listener modules"
    assert (Worker("http").main, worker.main) == (True, False)
    assert (repr(worker), worker.count, worker.stop_timeout) == ("<Worker ticker>", 2, 3)
    worker.slot = 1
    assert worker.title == "laraman: ticker 1 frame://127.0.0.1:9100 tcp+unix:///run/x"
    worker.handle_exit(signal.SIGTERM, None)
    worker.retire()
    assert not worker.should_exit


def test_a_declaration_is_light() -> None:
    code = "import sys, laraman.process.worker; print([name for name in ('asyncio', 'anyio', 'uvloop') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# Life -----------------------------------------------------------------------------------------------------------------------------


@fork
def test_an_operation_s_surroundings_know_the_worker(start: Callable[..., Boss], diary: Diary) -> None:
    class Operating:
        def on_start(self, worker: Worker) -> None:
            diary.write(str(worker.sandbox.context(Operation(TASK, "test")).run(current_worker.get) is worker))

    boss = start(Worker("operating", handler=Operating()))
    boss.hear("ready")
    assert boss.stop() == 0
    assert diary.lines() == ["True"]


@fork
def test_a_life_in_order(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    note_events(told, diary)
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"a\nb\n")
        assert read(client, 4) == b"A\nB\n"
        assert Path(f"/proc/{boss.pid}/cmdline").read_bytes().startswith(b"laraman: echo 0 text://127.0.0.1:")
        boss.hear("beat")
        assert boss.stop() == 0
        assert client.recv(100) == b""
    assert diary.lines() == ["load", "WorkerStarting", "start", "WorkerStarted", "WorkerStopping", "close", "stop"]


@fork
def test_beats_show_what_goes_on(start: Callable[..., Boss], diary: Diary) -> None:
    boss = start(echo(diary), timeout_worker_healthcheck=0.2)
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"a\nstuck\n")
        assert read(client, 2) == b"A\n"
        diary.wait_for("stuck")
        count = len([envelope for envelope in boss.heard if envelope["op"] == "beat"])
        beat = boss.hear("beat", count + 3)[-1]
        assert beat == {"op": "beat", "requests": 2, "in_flight": 1, "connections_in": 1, "connections_out": 0}


@fork
def test_connections(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        told(
            events.WorkerStarting,
            lambda event: event.worker.tasks.start_soon(link(f"frame://127.0.0.1:{port}", name="feed", backoff=Backoff(0.01)).run),
        )
        boss = start(echo(diary))
        boss.hear("ready")
        with boss.connect() as client:
            client.sendall(b"a\n")
            assert read(client, 2) == b"A\n"
            boss.say(op="connections", id=5)
            answer = boss.hear("connections")[0]
            assert answer["id"] == 5
            out, accepted = answer["rows"]
            assert (out["name"], out["direction"], out["worker"], out["slot"], out["pid"]) == ("feed", "out", "echo", 0, boss.pid)
            assert out["state"] in ("DOWN", "DIALING")
            assert (accepted["direction"], accepted["protocol"], accepted["state"], accepted["bytes_in"]) == ("in", "text", "OPEN", 2)
            assert accepted["peer"] == "{}:{}".format(*client.getsockname())
        assert boss.stop() == 0


@fork
@pytest.mark.parametrize("reason", ["stop", "reload", "restart", "scale"])
def test_work_in_flight_is_finished(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any], reason: str) -> None:
    note_events(told, diary)
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client, boss.connect() as idle:
        client.sendall(b"a\nslow\nb\n")
        assert read(client, 2) == b"A\n"
        begun = time.monotonic()
        assert boss.stop(reason) == 0
        assert time.monotonic() - begun < 3
        assert idle.recv(100) == b""
        received = b""
        while data := client.recv(100):
            received += data
        assert received == b"SLOW\nB\n"
    assert diary.lines().count("WorkerStopping") == 1
    assert diary.lines()[-1] == "stop"


@fork
def test_the_backlog_is_served_before_the_end(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    def block(event: events.WorkerStopping) -> None:
        diary.write("stopping")
        while "connected" not in diary.lines():  # the loop stands still, so what is connected meanwhile waits in the kernel
            time.sleep(0.01)

    told(events.WorkerStopping, block)
    boss = start(echo(diary))
    boss.hear("ready")
    boss.say(op="stop", reason="stop", deadline=5)
    diary.wait_for("stopping")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(boss.connect()) for _ in range(50)]
        for number, client in enumerate(clients):
            client.sendall(f"client {number}\n".encode())
        diary.write("connected")
        for number, client in enumerate(clients):
            assert read(client, 100) == f"CLIENT {number}\n".encode()
    assert boss.wait() == 0


@fork
def test_what_is_left_at_the_deadline_is_cancelled(start: Callable[..., Boss], diary: Diary) -> None:
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"stuck\n")
        diary.wait_for("stuck")
        begun = time.monotonic()
        assert boss.stop(deadline=0.5) == 0
        assert 0.4 < time.monotonic() - begun < 2
    assert diary.lines()[-3:] == ["unstuck", "close", "stop"]


@fork
def test_a_stop_without_a_deadline_waits_and_can_be_hurried(start: Callable[..., Boss], diary: Diary) -> None:
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"stuck\n")
        diary.wait_for("stuck")
        boss.say(op="stop", reason="stop", deadline=None)
        boss.say(op="connections", id=1)
        boss.hear("connections")
        beats = len([envelope for envelope in boss.heard if envelope["op"] == "beat"])
        boss.hear("beat", beats + 1)
        assert os.waitpid(boss.pid, os.WNOHANG) == (0, 0)
        begun = time.monotonic()
        assert boss.stop(deadline=0.2) == 0
        assert time.monotonic() - begun < 2
    assert diary.lines()[-3:] == ["unstuck", "close", "stop"]


@fork
def test_sigterm_is_a_stop(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    note_events(told, diary)
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"slow\n")
        diary.wait_for("slow")
        os.kill(boss.pid, signal.SIGTERM)
        os.kill(boss.pid, signal.SIGTERM)
        assert read(client, 5) == b"SLOW\n"
        assert boss.wait() == 0
    assert diary.lines().count("WorkerStopping") == 1


@fork
def test_the_sigterm_handlers_owner_says_should_exit(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    def look(event: events.WorkerStopping) -> None:
        owner = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
        diary.write(f"{owner.should_exit} {owner.stop_reason} {owner.loop.is_running()}")

    told(events.WorkerStopping, look)
    boss = start(echo(diary))
    boss.hear("ready")
    assert boss.stop("reload") == 0
    assert "True reload True" in diary.lines()


@fork
def test_a_worker_can_ask_for_a_successor(start: Callable[..., Boss], diary: Diary) -> None:
    class Tired(Handler):
        def on_message(self, connection: Connection, message: str) -> None:  # type: ignore[override]
            connection.worker.retire()

    boss = start(Worker("tired", "text://127.0.0.1:0", handler=Tired(diary)))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"a\n")
        assert boss.hear("retire") == [{"op": "retire", "reason": "it asked for a successor"}]
        client.sendall(b"a\n")
        boss.hear("beat", len([envelope for envelope in boss.heard if envelope["op"] == "beat"]) + 2)
        assert len(boss.hear("retire")) == 1, "asked twice"
        assert boss.stop("recycle") == 0


@fork
def test_a_worker_that_asks_before_it_is_ready_is_heard_afterwards(start: Callable[..., Boss]) -> None:
    class Spoilt:
        def on_start(self, worker: Worker) -> None:
            worker.retire("the cache is broken")

    boss = start(Worker("spoilt", handler=Spoilt()))
    boss.hear("retire")
    assert [envelope for envelope in boss.heard if envelope["op"] != "beat"] == [{"op": "ready"}, {"op": "retire", "reason": "the cache is broken"}]
    assert boss.stop() == 0


@fork
def test_a_worker_of_any_kind_that_has_reached_a_limit_asks_for_a_successor_and_serves_on(start: Callable[..., Boss], diary: Diary) -> None:
    boss = start(echo(diary), limit_max_requests=2, timeout_worker_healthcheck=0.2)
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"a\n")
        assert read(client, 2) == b"A\n"
        assert not [envelope for envelope in boss.heard if envelope["op"] == "retire"]
        client.sendall(b"b\n")
        assert read(client, 2) == b"B\n"
        assert boss.hear("retire") == [{"op": "retire", "reason": "2 requests served, of 2"}]
        client.sendall(b"c\n")
        assert read(client, 2) == b"C\n"
        boss.hear("beat", len([envelope for envelope in boss.heard if envelope["op"] == "beat"]) + 2)
        assert len(boss.hear("retire")) == 1
        assert boss.stop("recycle") == 0


@fork
def test_every_kind_of_worker_freezes_what_its_startup_made_and_collects_when_idle(start: Callable[..., Boss], diary: Diary) -> None:
    class Lost:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            diary.write("collected")

    class Careless:
        def on_message(self, connection: Connection, message: str) -> None:
            diary.write(f"{gc.get_freeze_count() > 1000} {gc.get_threshold() == garbage.SERVING}")
            Lost()

    boss = start(Worker("careless", "text://127.0.0.1:0", handler=Careless()), timeout_worker_healthcheck=0.4)
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"a\n")
        diary.wait_for("collected")
    assert boss.stop() == 0
    assert diary.lines() == [f"True {sys.version_info < (3, 14)}", "collected"]


@fork
@pytest.mark.parametrize("fault", ["WorkerStopping", "on_drain", "on_stop", "task", "connection"])
def test_nothing_that_hangs_keeps_the_rest_from_ending(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any], fault: str) -> None:
    async def hang(*arguments: Any) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            if fault != "task":
                return

    class Hanging(Handler):
        async def on_start(self, worker: Worker) -> None:
            if fault == "task":
                worker.tasks.start_soon(hang)

        async def on_stop(self, worker: Worker) -> None:
            self.diary.write("stop")
            if fault == "on_stop":
                await hang()

    if fault == "WorkerStopping":
        told(events.WorkerStopping, hang)
    handler = Hanging(diary)
    if fault == "on_drain":
        handler.on_drain = hang  # type: ignore[attr-defined]
    boss = start(Worker("hanging", "text://127.0.0.1:0", handler=handler))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"stuck\n" if fault == "connection" else b"a\n")
        begun = time.monotonic()
        assert boss.stop(deadline=0.4) == 0
        assert time.monotonic() - begun < 2.4
    assert "stop" in diary.lines()


@fork
@pytest.mark.parametrize("fault", ["WorkerStopping", "on_drain", "on_stop"])
def test_nothing_that_raises_keeps_the_rest_from_ending(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any], fault: str) -> None:
    def fail(*arguments: Any) -> None:
        diary.write(fault)
        raise TimeoutError(fault)

    handler = Handler(diary)
    if fault == "WorkerStopping":
        told(events.WorkerStopping, fail)
    else:
        setattr(handler, fault, fail)
    boss = start(Worker("failing", "text://127.0.0.1:0", handler=handler))
    boss.hear("ready")
    assert boss.stop() == 0
    assert fault in diary.lines()
    assert ("stop" in diary.lines()) == (fault != "on_stop")


# The master's end -----------------------------------------------------------------------------------------------------------------


@fork
def test_the_end_of_the_channel_is_the_end(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    note_events(told, diary)
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"slow\n")
        diary.wait_for("slow")
        boss.channel.close()
        assert read(client, 5) == b"SLOW\n"
        assert boss.wait(2) == 0
    assert diary.lines()[-3:] == ["WorkerStopping", "close", "stop"]


MASTER = """
import os, signal, socket, sys, time
sys.path[:0] = {path!r}
from dataclasses import replace
from laraman.config import Config
from laraman.process.worker import Worker

class Handler:
    def on_start(self, worker):
        print(os.getpid(), flush=True)
    async def on_stop(self, worker):
        print("stop", flush=True)
    def on_message(self, connection, message):
        print("blocked", flush=True)
        time.sleep(60)

worker = Worker("w", "text://127.0.0.1:0", handler=Handler)
worker.binds[0].open()
print(worker.binds[0].address.port, flush=True)
ours, theirs = socket.socketpair()
if not os.fork():
    ours.close()
    os._exit(worker.run(0, 1, theirs, replace(Config(), loop={loop!r})))
time.sleep(60)
"""


@fork
@pytest.mark.parametrize("blocked", [False, True])
def test_an_orphan_is_gone_within_two_seconds(loop_name: str, blocked: bool) -> None:
    code = MASTER.format(path=sys.path, loop=loop_name)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as master:
        assert master.stdout is not None
        port, child = (int(master.stdout.readline()) for _ in range(2))
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
            if blocked:
                client.sendall(b"a\n")
                assert master.stdout.readline() == "blocked\n"
            master.kill()
            begun = time.monotonic()
            rest = master.stdout.read()  # until the child's copy of the pipe is closed
            assert time.monotonic() - begun < 2
        assert rest == ("" if blocked else "stop\n")
        assert not Path(f"/proc/{child}/fd").exists() or not os.listdir(f"/proc/{child}/fd")


# Boot failures --------------------------------------------------------------------------------------------------------------------


@fork
@pytest.mark.parametrize("where", ["load", "WorkerStarting", "start", "sys.exit", "plain"])
def test_a_boot_that_fails(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any], where: str) -> None:
    note_events(told, diary)

    class Failing(Handler):
        def on_load(self, worker: Worker) -> None:
            if where == "load":
                raise BootError("load does not work")

        async def on_start(self, worker: Worker) -> None:
            diary.write("start")
            if where == "start":
                raise ConfigError("start does not work")
            if where == "plain":
                raise ValueError("plain does not work")
            if where == "sys.exit":
                sys.exit(1)

    def refuse(event: events.WorkerStarting) -> None:
        if where == "WorkerStarting":
            raise BootError("WorkerStarting does not work")

    told(events.WorkerStarting, refuse)
    boss = start(Worker("failing", handler=Failing(diary)))
    failed = boss.hear("failed")[0]
    code = 2 if where == "start" else 3
    assert failed["exit"] == code
    wanted = {"plain": "ValueError: plain does not work", "sys.exit": "worker failing: sys.exit(1) was called while it started"}
    assert failed["error"] == wanted.get(where, f"{where} does not work")
    assert boss.wait() == code
    told_starting = where != "load"
    assert diary.lines().count("WorkerStarting") == diary.lines().count("WorkerStopping") == told_starting
    assert "stop" not in diary.lines()
    assert not [envelope for envelope in boss.heard if envelope["op"] == "ready"]


@fork
@pytest.mark.parametrize(
    ("address", "handler", "error"),
    [
        (None, "nonsense", "handler 'nonsense' is not of the form module:attribute"),
        (None, "no_such_module:A", "handler 'no_such_module:A': there is no module 'no_such_module'"),
        (None, "laraman.errors:Nothing", "has no attribute 'Nothing'"),
        (None, "laraman.errors:ConfigErorr", "did you mean 'ConfigError'?"),
        (None, "json:dumps", "handler json:dumps is called without arguments: missing a required argument: 'obj'"),
        ("gopher://127.0.0.1:0", None, "there is no protocol 'gopher'; there are frame, "),
        ("text://localhost:0", None, "needs a handler"),
    ],
)
def test_handlers_that_cannot_be(start: Callable[..., Boss], address: str | None, handler: str | None, error: str) -> None:
    boss = start(Worker("w", address, handler=handler))
    assert error in boss.hear("failed")[0]["error"]
    assert boss.wait() == 2


@fork
def test_a_stop_during_the_boot(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    note_events(told, diary)

    class Slow(Handler):
        async def on_start(self, worker: Worker) -> None:
            diary.write("starting")
            try:
                await asyncio.sleep(60)
            finally:
                diary.write("cancelled")

    boss = start(Worker("slow", handler=Slow(diary)))
    diary.wait_for("starting")
    assert boss.stop() == 0
    assert diary.lines() == ["load", "WorkerStarting", "starting", "cancelled", "WorkerStopping"]


# Tasks ----------------------------------------------------------------------------------------------------------------------------


@fork
def test_a_task_that_fails_takes_nothing_with_it(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    async def fail(*, task_status: Any = None) -> None:
        if task_status is not None:
            task_status.started("value")
        raise ValueError("task")

    async def refuse(*, task_status: Any) -> None:
        raise LookupError("refused")

    async def live() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            diary.write("the other was cancelled")

    async def begin(event: events.WorkerStarting) -> None:
        tasks = event.worker.tasks
        tasks.start_soon(live)
        tasks.start_soon(fail)
        diary.write(await tasks.start(fail))
        try:
            await tasks.start(refuse)
        except LookupError as exc:
            diary.write(str(exc))
        diary.write(str(tasks.cancel_scope.cancel_called))

    told(events.WorkerStarting, begin)
    boss = start(echo(diary))
    boss.hear("ready")
    with boss.connect() as client:
        client.sendall(b"a\n")
        assert read(client, 2) == b"A\n"
    assert boss.stop() == 0
    lines = diary.lines()
    assert lines[1:4] == ["value", "refused", "False"]
    assert lines.index("the other was cancelled") < lines.index("stop")


@fork
def test_a_link_is_closed_after_the_work_and_before_on_stop(start: Callable[..., Boss], diary: Diary, told: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = link(f"text://127.0.0.1:{listener.getsockname()[1]}", on_down=lambda made, error: diary.write(f"down {error}"))

        async def begin(event: events.WorkerStarting) -> None:
            await event.worker.tasks.start(made.run)

        class Telling(Handler):
            async def on_message(self, connection: Connection, message: str) -> None:
                await asyncio.sleep(0.2)
                await made.send("last words")
                self.diary.write("handled")

        told(events.WorkerStarting, begin)
        boss = start(Worker("w", "text://127.0.0.1:0", handler=Telling(diary)))
        boss.hear("ready")
        peer, _ = listener.accept()
        with peer, boss.connect() as client:
            peer.settimeout(DEADLINE)
            client.sendall(b"a\n")
            assert boss.stop() == 0
            assert read(peer, 11) == b"last words\n"
            assert peer.recv(100) == b""
    assert [line for line in diary.lines() if line != "close"][-3:] == ["handled", "down None", "stop"]


# Unix sockets, own protocols, other loops -----------------------------------------------------------------------------------------


@fork
def test_a_unix_socket(start: Callable[..., Boss], diary: Diary, tmp_path: Path) -> None:
    boss = start(Worker("w", f"text+unix://{tmp_path}/s", handler=Handler(diary)))
    boss.hear("ready")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/s")
        client.sendall(b"a\n")
        assert read(client, 2) == b"A\n"
    assert boss.stop() == 0
    assert (tmp_path / "s").exists()  # it is the master's
    boss.worker.binds[0].unlink()


@fork
def test_a_handler_with_connections_of_its_own(start: Callable[..., Boss]) -> None:
    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(b"hello")
            transport.close()

    class Handler:
        def connection(self, worker: Worker, bind: Any) -> asyncio.Protocol:
            return Greeter()

    boss = start(Worker("w", "gopher://127.0.0.1:0", handler=Handler))
    boss.hear("ready")
    with boss.connect() as client:
        assert read(client, 5) == b"hello"
    assert boss.stop() == 0


@fork
def test_no_handler_at_all(start: Callable[..., Boss]) -> None:
    boss = start(Worker("idle"))
    boss.hear("ready")
    assert boss.stop() == 0


# Listener modules -----------------------------------------------------------------------------------------------------------------

LISTENERS = """
import laraman
from laraman.net.address import Address
import helper

@laraman.on(laraman.WorkerStarting)
def heard(event):
    event.worker.handler.diary.write(f"version {helper.VERSION} of {event.worker.name} {Address is event.worker.handler.address}")
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[..., Any]) -> Iterator[Path]:
    """A directory with a listener module and what it imports; afterwards this process has never seen them."""
    directory = tmp_path / "application"
    directory.mkdir()
    (directory / "listening.py").write_text(LISTENERS)
    (directory / "helper.py").write_text("VERSION = 1\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(worker_module, "_imported", [])
    yield directory
    for name in ("listening", "helper", "broken"):
        sys.modules.pop(name, None)


@fork
def test_listener_modules_are_fresh_in_every_child(start: Callable[..., Boss], diary: Diary, application: Path) -> None:
    from laraman.net.address import Address

    options: dict[str, Any] = {"app_dir": str(application), "listeners": ("listening",)}
    import_listeners(replace(Config(), **options))
    assert sys.modules["helper"].VERSION == 1
    for version in (1, 22):
        (application / "helper.py").write_text(f"VERSION = {version}\n")
        worker = echo(diary)
        worker.handler.address = Address
        boss = start(worker, **options)
        boss.hear("ready")
        assert boss.stop() == 0
    assert [line for line in diary.lines() if line.startswith("version")] == ["version 1 of echo True", "version 22 of echo True"]
    assert sys.modules["helper"].VERSION == 1


def test_listener_modules_that_cannot_be_imported(application: Path) -> None:
    config = replace(Config(), app_dir=str(application), listeners=("nowhere",))
    with pytest.raises(ConfigError, match="no listener module 'nowhere'"):
        import_listeners(config)
    (application / "broken.py").write_text("import nowhere.at_all\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        import_listeners(replace(config, listeners=("broken",)))


def test_installed_modules_are_not_imported_again(application: Path) -> None:
    installed = application / "site-packages"
    installed.mkdir()
    (installed / "broken.py").write_text("")
    sys.path.insert(0, str(installed))
    config = replace(Config(), app_dir=str(application), listeners=("broken", "listening"))
    import_listeners(config)
    before = sys.modules["broken"], sys.modules["listening"], len(events.listeners(events.WorkerStarting))
    import_listeners(config)
    assert sys.modules["broken"] is before[0]
    assert sys.modules["listening"] is not before[1]
    assert len(events.listeners(events.WorkerStarting)) == before[2]
