"""The template's declaration, its orders over the channel, and the words for what a fork does not carry over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import types
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi import http_workers
from laraman.config import Config
from laraman.errors import ConfigError
from laraman.process import children
from laraman.process.children import Child
from laraman.process.supervisor import Process
from laraman.process.template import Template, template_of
from laraman.process.unforkable import Watch
from laraman.process.worker import Worker
from tests.process.test_worker import Boss

if TYPE_CHECKING:
    from collections.abc import Iterator

fork = pytest.mark.fork


class Loads:
    """A handler that says in a file which process has loaded it and runs."""

    def on_load(self, worker: Worker) -> None:
        self.loaded_in = os.getpid()

    def on_start(self, worker: Worker) -> None:
        with open("ran", "w") as file:
            file.write(f"{self.loaded_in} {os.getpid()} {os.getppid()} {worker.slot} {worker.generation}")


class LoadsLater:
    async def on_load(self, worker: Worker) -> None:
        """Cannot be run without a loop."""


# The declaration ------------------------------------------------------------------------------------------------------------------


def test_preload_adds_a_template_before_the_workers() -> None:
    template, http = http_workers(Config(app="app:app", port=0, preload=True, workers=3))
    assert isinstance(template, Template)
    assert (template.name, template.count, template.binds, template.of) == ("http-template", 1, [], http)
    assert (template.reloadable, http.template, http.count) == (True, "http-template", 3)
    (alone,) = http_workers(Config(app="app:app", port=0))
    assert alone.template == ""


def test_elsewhere_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="--preload is not available on darwin"):
        http_workers(Config(app="app:app", port=0, preload=True))


# Orders ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config() -> Config:
    return Config(timeout_worker_healthcheck=0.2, loop="asyncio")


@pytest.fixture
def boss(config: Config, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boss]:
    monkeypatch.chdir(tmp_path)
    made = Boss(template_of(Worker("pages", handler=f"{__name__}:Loads")), config)
    yield made
    made.close()


@fork
def test_it_beats_answers_and_stops_at_once(boss: Boss) -> None:
    boss.hear("ready")
    boss.hear("beat", 3)
    boss.say(op="connections", id=7)
    assert boss.hear("connections") == [{"op": "connections", "id": 7, "rows": []}]
    boss.say(op="unheard of")
    assert boss.stop() == 0


@fork
@pytest.mark.parametrize("end", ["channel", "sigterm"])
def test_it_ends_with_its_channel_and_with_sigterm(boss: Boss, end: str) -> None:
    boss.hear("ready")
    if end == "channel":
        boss.channel.close()
    else:
        os.kill(boss.pid, signal.SIGTERM)
    assert boss.wait() == 0


@fork
def test_an_async_on_load_is_refused(config: Config) -> None:
    boss = Boss(template_of(Worker("pages", handler=f"{__name__}:LoadsLater")), config)
    try:
        (failed,) = boss.hear("failed")
        assert (failed["error"], failed["exit"]) == ("worker pages: on_load is async, and a template has no event loop", 2)
        assert boss.wait() == 2
    finally:
        boss.close()


@fork
def test_its_children_are_the_masters(boss: Boss) -> None:
    boss.hear("ready")
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        black_box = os.memfd_create("test")
        stack.callback(os.close, black_box)
        with children._adopting():
            data = boss.ipc.send({"op": "fork", "slot": 4, "generation": 9})
            socket.send_fds(boss.channel, [data], [theirs.fileno(), black_box])
            theirs.close()
            (answer,) = boss.hear("forked")
        child = Boss.__new__(Boss)
        child.channel, child.pid, child.status, child.worker = ours, answer["pid"], None, Worker("pages")
        child.ipc, child.heard = type(boss.ipc)(), []
        stack.callback(child.close)
        child.hear("ready")
        with open("ran") as file:
            assert file.read().split() == [str(part) for part in (boss.pid, child.pid, os.getpid(), 4, 9)]
        boss.stop()
        child.hear("beat", len(child.heard) + 2)
        assert child.stop() == 0


@fork
def test_an_order_without_what_belongs_to_it_is_refused(boss: Boss) -> None:
    boss.hear("ready")
    boss.say(op="fork", slot=0, generation=1)
    assert boss.hear("forked") == [{"op": "forked", "error": "0 descriptors came for 0 addresses"}]
    assert boss.stop() == 0


class Selector:
    """What a Child does with the master's."""

    def register(self, *arguments: Any) -> None: ...

    modify = unregister = register


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"op": "forked", "pid": 1}, ChildProcessError),  # somebody else's
        ({"op": "forked", "pid": "7"}, OSError),
        ({"op": "forked", "error": "no memory"}, OSError),
        (None, TimeoutError),
        ("end", OSError),
    ],
)
def test_what_a_template_says_is_not_believed(answer: Any, error: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FORK_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    selector: Any = Selector()
    template = Child(Process("http-template", 0, 1, 1, 0.0), ours, os.memfd_create("test"), selector, lambda child, envelope: None)
    with closing(theirs), closing(template):
        if answer == "end":
            theirs.shutdown(socket.SHUT_WR)
        elif answer:
            theirs.sendall(template._ipc.send(answer))
        with pytest.raises(error):
            template.fork(0, 1, [])


# What a fork does not carry over --------------------------------------------------------------------------------------------------


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("an_application")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_sockets_are_named_by_address_and_by_where_they_are_held(application: Any) -> None:
    class Pool:
        def __init__(self) -> None:
            self.free: list[socket.socket] = []

    with socket.create_server(("127.0.0.1", 0)) as old, ExitStack() as stack:
        watch = Watch()
        application.pool = Pool()
        application.pool.free.append(stack.enter_context(socket.create_connection(old.getsockname())))
        application.by_name = {"events": stack.enter_context(socket.create_server(("127.0.0.1", 0)))}
        port, own = old.getsockname()[1], application.by_name["events"].getsockname()[1]
        found = watch.found()
        assert len(found) == 2
        assert f"the socket connected to 127.0.0.1:{port} (an_application.pool.free[0]) is one and the same in all workers" in found[0]
        assert f"the socket at 127.0.0.1:{own} (an_application.by_name['events']) is one" in found[1]
    assert watch.found() == []


def test_threads_are_named_with_their_place() -> None:
    watch, ending = Watch(), threading.Event()
    thread = threading.Thread(target=lambda: ending.wait(), name="poller")
    thread.start()
    try:
        (found,) = watch.found()
        assert found.startswith(f"the thread 'poller' ({__file__}:")
        assert "in test_threads_are_named_with_their_place.<locals>.<lambda>) does not run in the workers" in found
    finally:
        ending.set()
        thread.join()
    assert watch.found() == []


def test_loops_are_named_and_their_own_sockets_are_not(application: Any) -> None:
    watch = Watch()
    application.loop = asyncio.SelectorEventLoop()
    try:
        (found,) = watch.found()
        assert found == "the event loop _UnixSelectorEventLoop (an_application.loop) does not run in the workers: each has its own"
    finally:
        application.loop.close()
    assert watch.found() == []
