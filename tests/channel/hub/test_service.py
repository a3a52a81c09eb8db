"""The hub as the worker of a real server."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from laraman.protocols.hub import COUNT, HELLO_BODY, JOB, MAX_FRAME_SIZE, VERSION, WORK_BODY, Op, frame, text
from tests.channel.hub.dialogue import Dialogue, greeted
from tests.conftest import DEADLINE, Server, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = """
from laraman import Worker

class Idle:
    pass

main = Worker("idle", handler="program:Idle")
"""


@pytest.fixture
def running(server: Callable[..., Server]) -> Server:
    return server("program:main", "--name", "s", files={"program.py": PROGRAM})


@pytest.fixture
def path(running: Server) -> Path:
    return running.directory / ".laraman/s/hub.sock"


@pytest.fixture
def client(path: Path) -> Iterator[Dialogue]:
    with closing(Dialogue(path)) as client:
        yield client


def hub(running: Server) -> int:
    """The pid of the hub that is ready."""

    def pid() -> int:
        return next((row["pid"] for row in running.processes("hub") if row["state"] == "ready"), 0)

    return wait_until(pid, what="a hub")


def test_it_is_there_from_when_somebody_connects(running: Server, path: Path) -> None:
    assert running.processes("hub") == []
    assert running.processes("idle") != []
    assert "hub" not in running.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with closing(Dialogue(path)) as client:
        client.put("q", b"x")
        assert hub(running)
        directory = path.parent / "hub"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert [stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()] == [0o600]
        assert any(row["worker"] == "hub" for row in running.connections())


def test_it_is_killed_with_full_queues_and_nothing_is_lost(running: Server, path: Path, client: Dialogue) -> None:
    numbers = [client.put("q", b"%d" % i) for i in range(200)]
    client.ask(Op.WORK, 2, "q", WORK_BODY.pack(30.0, 10))
    given = [client.hear()[3] for _ in range(10)]
    for job in given[:5]:
        assert client.ask(Op.ACK, 3, "q", job[: JOB.size])[0] == Op.OK
    before = hub(running)
    os.kill(before, signal.SIGKILL)
    with closing(greeted(path)) as again:
        assert again.waiting("q") == 195
        late = again.ask(Op.ACK, 3, "q", given[5][: JOB.size])
        assert late[0] == Op.OK, "who had it before is believed while nobody else has it"
        assert again.put("q", b"new") > max(numbers)
        again.ask(Op.WORK, 4, "q", WORK_BODY.pack(30.0, 1000))
        left = [again.hear()[3][JOB.size :] for _ in range(195)]
        assert left == [*(b"%d" % i for i in range(6, 200)), b"new"]
    assert hub(running) != before


def test_queues_survive_a_restart_a_reload_and_a_stop(running: Server, path: Path, client: Dialogue, server: Callable[..., Server]) -> None:
    client.put("q", b"x")
    before = hub(running)
    assert running.cli("reload").returncode == 0
    assert client.waiting("q") == 1
    assert hub(running) == before
    assert running.cli("restart").returncode == 0
    with pytest.raises((EOFError, ConnectionError)):
        client.hear()
    with closing(greeted(path)) as again:
        assert again.waiting("q") == 1
    assert hub(running) != before
    assert running.stop() == 0
    assert not path.exists()
    assert [file.suffix for file in (path.parent / "hub").iterdir()] == [".queues"] * len(list((path.parent / "hub").iterdir()))


def test_nothing_is_left_of_queues_that_are_done(running: Server, path: Path, client: Dialogue) -> None:
    number = client.put("q", b"x")
    assert client.ask(Op.ACK, 3, "q", JOB.pack(number, 0))[0] == Op.OK
    client.close()
    assert running.stop() == 0
    assert not path.parent.exists()


def test_a_subscriber_that_never_reads_disturbs_nobody(path: Path, client: Dialogue) -> None:
    with closing(Dialogue(path)) as quick, closing(Dialogue(path)) as slow:
        for subscriber in (quick, slow):
            assert subscriber.ask(Op.SUBSCRIBE, 2, "t.*", COUNT.pack(100))[0] == Op.OK
        data, count = bytes(10_000), 2000
        heard: list[int] = []

        def read() -> None:
            heard.extend(len(quick.hear()[3]) for _ in range(count))

        reader = threading.Thread(target=read)
        reader.start()
        for i in range(count):
            client.socket.sendall(frame(Op.PUBLISH, 5 if i == count - 1 else 0, "t.x", data))
        reader.join()
        assert heard == [10_000] * count
        messages = dropped = 0
        while messages + dropped < count:
            op, _, _, body = slow.hear()
            messages += op == Op.MESSAGE
            dropped += COUNT.unpack(body)[0] if op == Op.DROPPED else 0
        assert messages + dropped == count
        assert dropped > 0


def send(client: Dialogue, data: bytes) -> bool:
    """False when the hub takes no more."""
    try:
        client.socket.sendall(data)
    except TimeoutError:
        return False
    return True


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_who_asks_and_does_not_read_is_not_heard_and_costs_no_memory(running: Server, path: Path, client: Dialogue) -> None:
    assert client.ask(Op.SET, 5, "t", bytes(8) + text("k") + b"b" + bytes(1_000_000))[0] == Op.OK
    with closing(Dialogue(path)) as greedy:
        greedy.socket.settimeout(0.5)
        questions = frame(Op.GET, 6, "t", text("k")) * 1000
        while send(greedy, questions):
            pass
        assert client.ask(Op.GET, 7, "t", text("none")) == (Op.OK, 7, "", b"")
        assert memory(hub(running)) < 200_000_000
        greedy.socket.settimeout(DEADLINE)
        assert [greedy.hear()[:2] for _ in range(50)] == [(Op.OK, 6)] * 50, "what it is owed comes when it reads"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "larger than"),
        (frame(Op.PUBLISH, 1, "t", b""), "before hello"),
        (frame(Op.HELLO, 1, "x", HELLO_BODY.pack(VERSION + 1, 0, 1)), "version"),
        ((MAX_FRAME_SIZE + 1).to_bytes(4, "big") + bytes(20), "larger than"),
    ],
)
def test_what_is_no_client_is_sent_away(running: Server, path: Path, client: Dialogue, said: bytes, why: str) -> None:
    with closing(Dialogue(path, greet=False)) as stranger:
        stranger.socket.sendall(said)
        with pytest.raises((EOFError, ConnectionError)):
            stranger.hear()
    wait_until(lambda: why in running.output, what="a line in the log")
    assert client.waiting("q") == 0


def test_a_program_that_others_call_does_not_hold_up_a_stop(running: Server, path: Path, client: Dialogue) -> None:
    with closing(Dialogue(path, "clock")) as stranger:
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 10, "a worker would be waited for"
        with pytest.raises((EOFError, ConnectionError)):
            stranger.hear()


def test_it_cannot_be_scaled(running: Server, client: Dialogue) -> None:
    from laraman.process.control import request

    answer = request(running.directory / ".laraman/s/control.sock", {"op": "scale", "worker": "hub", "count": 2}, 10)
    assert not answer["ok"]


def test_faults_of_the_application_are_not_its_own(server: Callable[..., Server]) -> None:
    files = {"program.py": PROGRAM, "heard.py": ""}
    running = server("program:main", "--name", "s", "--listener", "heard", files=files)
    path = running.directory / ".laraman/s/hub.sock"
    with closing(Dialogue(path)) as client:
        client.put("q", b"x")
    (running.directory / "heard.py").write_text("raise ValueError")
    os.kill(hub(running), signal.SIGKILL)
    with closing(greeted(path)) as client:
        assert client.waiting("q") == 1


VISITOR = """
import socket
from laraman import Worker
from laraman.protocols.hub import HELLO_BODY, VERSION, Op, frame

class Visitor:
    def on_start(self, worker):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(worker.inner_paths["hub"])
            client.sendall(frame(Op.HELLO, 1, "visitor", HELLO_BODY.pack(VERSION, 0, 1)))
            assert client.recv(100) == frame(Op.OK, 1, "", b"")

main = Worker("visitor", handler="program:Visitor")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_processes_of_another_group_reach_it(server: Callable[..., Server]) -> None:
    running = server("program:main", "--name", "s", "--user", "root", "--group", "65534", files={"program.py": VISITOR})
    assert hub(running)
    socket = running.directory / ".laraman/s/laraman.leases/hub.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o666
    assert stat.S_IMODE((running.directory / ".laraman/s").stat().st_mode) == 0o700
    (process,) = running.processes("hub")
    status = Path(f"/proc/{process['pid']}/status").read_text()
    assert "Gid:\t0\t" in status, "it stays who the master is"
