"""The control socket's two sides: a server that no client can block, and a client that waits with a deadline."""

from __future__ import annotations

import selectors
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from laraman.errors import ConnectionLost
from laraman.process import control, state
from laraman.protocols.ipc import Ipc
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from laraman.process.control import Client
    from laraman.protocols.ipc import Envelope


class Serving:
    """A `Control` with a loop in a thread; answers every request but ``later``, which it keeps."""

    def __init__(self, path: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.later: list[tuple[Client, Envelope]] = []
        self.control = control.Control(self.selector, control.listen(path), self.handle)
        self.running = True
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def handle(self, client: Client, request: Envelope) -> None:
        if request["op"] == "later":
            self.later.append((client, request))
        elif request["op"] == "huge":
            client.answer(request, ok=True, text="x" * 17_000_000)
        else:
            client.answer(request, ok=True, text="x" * request.get("size", 0))

    def loop(self) -> None:
        while self.running:
            for key, mask in self.selector.select(0.02):
                key.data(mask)
        self.control.close()
        self.selector.close()

    def close(self) -> None:
        self.running = False
        self.thread.join()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path / "control.sock")
    yield made
    made.close()


@pytest.fixture
def connect(tmp_path: Path, serving: Serving) -> Iterator[Any]:
    opened = []

    def dial() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(str(tmp_path / "control.sock"))
        opened.append(client)
        return client

    yield dial
    for client in opened:
        client.close()


def test_an_answer_echoes_op_and_id(tmp_path: Path, serving: Serving) -> None:
    path = tmp_path / "control.sock"
    assert control.request(path, {"op": "ping", "id": [1]}, 5) == {"op": "ping", "id": [1], "ok": True, "text": ""}
    assert control.request(tmp_path, {"op": "ping"}, 5) == {"op": "ping", "ok": True, "text": ""}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_large_answers_arrive_and_too_large_ones_are_errors(tmp_path: Path, serving: Serving) -> None:
    assert len(control.request(tmp_path, {"op": "ping", "size": 3_000_000}, 5)["text"]) == 3_000_000
    answer = control.request(tmp_path, {"op": "huge"}, 5)
    assert (answer["ok"], answer["error"].startswith("the answer is too large")) == (False, True)


def test_the_client_waits_with_a_deadline_and_skips_answers_of_others(tmp_path: Path, serving: Serving) -> None:
    with pytest.raises(ConnectionLost, match="did not answer within"):
        control.request(tmp_path, {"op": "later"}, 0.1)
    with pytest.raises(ConnectionLost, match="no server answers at"):
        control.request(tmp_path / "nowhere.sock", {"op": "ping"}, 1)


def test_a_connection_that_the_server_closes_is_lost(tmp_path: Path) -> None:
    with control.listen(tmp_path / "control.sock") as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(ConnectionLost):
            control.request(tmp_path, {"op": "ping"}, 5)
        thread.join()


def test_an_answer_for_later_and_one_for_nobody(tmp_path: Path, serving: Serving, connect: Any) -> None:
    patient, gone = connect(), connect()
    ipc = Ipc()
    for client in (patient, gone):
        client.sendall(ipc.send({"op": "later", "id": 1}))
    wait_until(lambda: len(serving.later) == 2)
    gone.close()
    wait_until(lambda: len(serving.control.clients) == 1)
    for client, request in serving.later:
        client.answer(request, ok=True)
    assert ipc.receive_data(patient.recv(1000)) == [{"op": "later", "id": 1, "ok": True}]


def test_one_that_asks_and_never_reads_is_not_read_any_more(tmp_path: Path, serving: Serving, connect: Any) -> None:
    greedy = connect()
    greedy.settimeout(0.5)
    question = Ipc().send({"op": "ping", "size": 50_000})
    with pytest.raises(TimeoutError):
        greedy.sendall(question * 100_000)
    (client,) = serving.control.clients
    assert len(client._outbox) < 8_000_000
    assert control.request(tmp_path, {"op": "ping"}, 1)["ok"]


def test_too_many_open_questions_of_one_client_are_refused(serving: Serving, connect: Any) -> None:
    client = connect()
    for number in range(control.MAX_WAITING + 1):
        client.sendall(Ipc().send({"op": "later", "id": number}))
    (answer,) = Ipc().receive_data(client.recv(1000))
    assert (answer["id"], answer["error"]) == (control.MAX_WAITING, "too many commands at once")


def test_the_idle_go_first_when_there_are_too_many_and_by_themselves(tmp_path: Path, serving: Serving, connect: Any) -> None:
    asking = connect()
    asking.sendall(Ipc().send({"op": "later"}))
    wait_until(lambda: serving.later)
    idle = [connect() for _ in range(control.MAX_CLIENTS)]
    assert idle[0].recv(1) == b""
    wait_until(lambda: len(serving.control.clients) == control.MAX_CLIENTS)
    serving.close()
    serving.control.tick(time.monotonic() + control.IDLE + 1)


def test_idle_clients_are_closed(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()
    made = control.Control(selector, control.listen(tmp_path / "control.sock"), lambda client, request: None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "control.sock"))
        made._accept(selectors.EVENT_READ)
        made.tick(time.monotonic())
        assert len(made.clients) == 1
        made.tick(time.monotonic() + control.IDLE + 1)
        assert client.recv(1) == b""
    made.close()
    selector.close()


def test_wait_gone_asks_the_lock(tmp_path: Path) -> None:
    held = state.open_state(str(tmp_path / "state"), "8000")
    assert held is not None
    assert not control.wait_gone(tmp_path / "state" / "control.sock", 0.05)
    held.close()
    assert control.wait_gone(tmp_path / "state", 0.05)


def test_what_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    control.listen(path).close()
    with control.listen(path):
        assert path.is_socket()
