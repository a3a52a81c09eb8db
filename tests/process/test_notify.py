from __future__ import annotations

import os
import socket
import time
from math import inf
from typing import TYPE_CHECKING

import pytest

from laraman.net.activation import activated
from laraman.process.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def told(listening: socket.socket) -> list[dict[str, str]]:
    found = []
    while True:
        try:
            found.append(dict(line.split("=", 1) for line in listening.recv(4096).decode().split("\n")))
        except BlockingIOError:
            return found


def notifier(listening: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": listening.getsockname(), **more})


def test_each_change_is_told_once(systemd: socket.socket) -> None:
    master = notifier(systemd)
    assert master.interval == inf
    for phase in ("booting", "starting"):
        master.tick(phase, False, "", 0.0)
    assert told(systemd) == []
    for _ in range(3):
        master.tick("running", False, "", 1.0)
    assert told(systemd) == [{"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "running"}]
    before = time.monotonic_ns() // 1000
    for _ in range(3):
        master.tick("running", True, "", 2.0)
    (reloading,) = told(systemd)
    assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert reloading == {"RELOADING": "1", "STATUS": "reloading"}
    master.tick("running", False, "the new workers\ncannot start", 3.0)
    status = "the last reload failed: the new workers cannot start"
    assert told(systemd) == [{"READY": "1", "MAINPID": str(os.getpid()), "STATUS": status}], "a line end would begin another variable"
    master.tick("running", False, "", 4.0)
    assert [message["STATUS"] for message in told(systemd)] == ["running"]
    master.reloading()
    master.tick("running", False, "", 5.0)
    assert [next(iter(message)) for message in told(systemd)] == ["RELOADING", "READY"], "it could not execute itself anew after all"
    for _ in range(3):
        master.tick("stopping", False, "", 6.0)
    assert told(systemd) == [{"STOPPING": "1", "STATUS": "stopping"}]


def test_signs_of_life_come_twice_as_often_as_they_must(systemd: socket.socket) -> None:
    master = notifier(systemd, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    assert master.interval == 1.5
    signs = []
    for tenths in range(41):
        master.tick("starting", False, "", 100 + tenths / 10)
        signs += [tenths for message in told(systemd) if message == {"WATCHDOG": "1"}]
    assert signs == [0, 15, 30]


@pytest.mark.parametrize("more", [{"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {}])
def test_no_watchdog_no_signs(systemd: socket.socket, more: dict[str, str]) -> None:
    assert notifier(systemd, **more).interval == inf


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@laraman-nobody-there"])
def test_where_nobody_listens_nothing_happens(name: str) -> None:
    master = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    master.tick("running", False, "", 1.0)
    master.reloading()
    master.tick("stopping", False, "", 2.0)
    assert master.interval == (inf if name[:1] not in ("/", "@") else 0.0005)


def test_abstract_sockets(systemd: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"laraman-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).tick("running", False, "", 1.0)
        assert listening.recv(4096).startswith(b"READY=1\n")


def test_a_manager_that_does_not_read_keeps_nobody_waiting(systemd: socket.socket) -> None:
    master = notifier(systemd)
    for number in range(5000):
        master.tick("running", bool(number % 2), "", 1.0)
    told(systemd)
    master.tick("running", True, "", 1.0)
    assert "RELOADING" in told(systemd)[-1], "what it had no room for is told when it has"


@pytest.mark.parametrize("problem", ["x" * 1_000_000, "\udcff", "two\nREADY=0"])
def test_no_problem_keeps_the_news_from_arriving(systemd: socket.socket, problem: str) -> None:
    notifier(systemd).tick("running", False, problem, 1.0)
    (message,) = told(systemd)
    assert message["READY"] == "1"
    assert message["STATUS"].startswith("the last reload failed")


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, []),
        ({"LISTEN_FDS": "2"}, []),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, []),
        ({"LISTEN_PID": "self"}, []),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "x"}, []),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "0"}, []),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "2"}, [(3, ""), (4, "")]),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:admin"}, [(3, "web"), (4, "admin"), (5, "")]),
    ],
)
def test_passed_sockets(env: dict[str, str], found: list[tuple[int, str]]) -> None:
    assert activated({name: str(os.getpid()) if value == "self" else value for name, value in env.items()}) == found
