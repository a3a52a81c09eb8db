"""``laraman.Server`` within a program. What people do with ``uvicorn.Server`` is done with both."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

import laraman
from laraman import events
from laraman.net.link import current_worker
from laraman.process.garbage import SERVING
from laraman.sandbox.guard import audit
from tests.asgi.service import respond
from tests.certificates import Authority
from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGGERS = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")]

pytestmark = pytest.mark.anyio
both = pytest.mark.parametrize("library", [uvicorn, laraman], ids=lambda library: library.__name__)


class App:
    """Says its name, and remembers its lifespan. ``/wait`` is answered when ``release`` is set."""

    def __init__(self, name: str = "app") -> None:
        self.name = name
        self.diary: list[str] = []
        self.waiting = threading.Event()
        self.release = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.diary.append("startup")
            scope["state"]["name"] = self.name
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.diary.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/wait":
            self.waiting.set()
            await self.release.wait()
        await respond(send, scope["state"]["name"].encode())


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """A Config sets up logging for the whole process."""
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in LOGGERS]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the server logs."""
    handler = Lines()
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def make(library: Any, app: Any, server: type | None = None, **options: Any) -> Any:
    return (server or library.Server)(library.Config(app, **{"port": 0, "log_level": "error", **options}))


def port_of(server: Any) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


def get(server: Any, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port_of(server)}{path}", timeout=DEADLINE) as response:
        return str(response.read().decode())


@contextlib.contextmanager
def in_thread(server: Any, sockets: list[socket.socket] | None = None) -> Iterator[threading.Thread]:
    """The recipe of uvicorn's issue 742."""
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the start")
        yield thread
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()


@contextlib.asynccontextmanager
async def in_loop(server: Any) -> Any:
    """As in a notebook: a loop runs already."""
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(DEADLINE):
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
        yield task
    finally:
        server.should_exit = True
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait({task})


async def ask(server: Any, path: str = "/") -> str:
    return await asyncio.to_thread(get, server, path)


# What people do with both ---------------------------------------------------------------------------------------------------------


@both
def test_in_a_thread(library: Any) -> None:
    app = App()

    class Server(library.Server):  # type: ignore[misc,name-defined]
        def install_signal_handlers(self) -> None:
            raise AssertionError("it is nobody's to call any more")

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    server = make(library, app, Server)
    with in_thread(server):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert get(server) == "app"
        assert app.diary == ["startup"]
        assert server.lifespan.state == {"name": "app"}
        wait_until(lambda: server.server_state.total_requests == 1)  # uvicorn counts at the end of a response
    assert app.diary == ["startup", "shutdown"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@both
async def test_in_a_running_loop(library: Any) -> None:
    app = App()
    server = make(library, app)
    before, tasks = signal.getsignal(signal.SIGTERM), asyncio.all_tasks()
    async with in_loop(server):
        owner = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
        assert (owner, owner.should_exit) == (server, False)  # how sse-starlette finds it
        assert await ask(server) == "app"
    assert (app.diary, signal.getsignal(signal.SIGTERM)) == (["startup", "shutdown"], before)
    assert asyncio.all_tasks() == tasks


@both
async def test_a_signal_ends_it_and_is_raised_again(library: Any) -> None:
    heard: list[int] = []
    server = make(library, App())
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        async with in_loop(server) as task:
            signal.raise_signal(signal.SIGINT)
            assert (server.should_exit, heard) == (True, [])
            await asyncio.wait({task}, timeout=DEADLINE)
            assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@both
def test_sockets_that_are_given(library: Any) -> None:
    given = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [sock.getsockname() for sock in given]
    server = make(library, App())
    with in_thread(server, given):
        assert [served.sockets[0].getsockname() for served in server.servers] == addresses
        for _, port in addresses:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE) as response:
                assert response.read() == b"app"
    assert [sock.fileno() for sock in given] == [-1, -1]


@both
@pytest.mark.parametrize("bound", [False, True], ids=["served", "bound"])
def test_a_descriptor_that_is_given_stays_the_programs(library: Any, tmp_path: Path, bound: bool) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "socket"))
        own.listen()
        server = make(library, App(), fd=own.fileno())
        if bound:
            server.config.bind_socket().close()
        else:
            with in_thread(server):
                assert server.started
        assert own.getsockname() == str(tmp_path / "socket")


@both
async def test_methods_are_overridden(library: Any) -> None:
    diary: list[str] = []

    class Server(library.Server):  # type: ignore[misc,name-defined]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            diary.append(f"startup {self.started}")

        async def on_tick(self, counter: int) -> bool:
            if counter == 0:
                diary.append("tick")
            return bool(await super().on_tick(counter))

        async def shutdown(self, sockets: Any = None) -> None:
            diary.append("shutdown")
            await super().shutdown(sockets=sockets)

        def handle_exit(self, sig: int, frame: Any) -> None:
            diary.append(f"signal {sig}")
            self.should_exit = True

    async with in_loop(make(library, App(), Server)) as task:
        signal.raise_signal(signal.SIGTERM)  # which this class does not raise again
        await asyncio.wait({task}, timeout=DEADLINE)
    assert diary == ["startup True", "tick", f"signal {signal.SIGTERM.value}", "shutdown"]


async def failing(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


@both
@pytest.mark.parametrize("app", [failing, "nothing_of_the_kind:app", "sys:nothing", "sys"], ids=["lifespan", "module", "attribute", "format"])
def test_what_cannot_start_exits_with_3(library: Any, app: Any) -> None:
    server = make(library, app)
    with pytest.raises(SystemExit) as caught:
        server.run()
    assert (caught.value.code, server.started) == (3, False)


@both
def test_a_port_that_is_taken_exits_with_3(library: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as caught:
        make(library, App(), port=taken.getsockname()[1]).run()
    assert caught.value.code == 3


@pytest.mark.parametrize("who", [{"user": "root"}, {"group": "0"}])
def test_a_process_that_serves_by_itself_stays_who_it_is(who: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    server = make(laraman, App(), **who)
    logging.getLogger("uvicorn").propagate = True
    with pytest.raises(SystemExit) as caught:
        server.run()
    assert (caught.value.code, server.started) == (3, False)
    assert "a process that serves by itself cannot become another user" in caplog.text


@both
def test_so_many_requests_end_it(library: Any) -> None:
    app = App()
    server = make(library, app, limit_max_requests=2, limit_max_requests_jitter=0)
    with in_thread(server) as thread:
        assert [get(server), get(server)] == ["app", "app"]
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert (server.limit_max_requests, server.should_exit, app.diary) == (2, True, ["startup", "shutdown"])


@both
async def test_somebody_wants_to_know_that_it_lives(library: Any) -> None:
    told = asyncio.Event()

    async def notify() -> None:
        told.set()

    async with in_loop(make(library, App(), callback_notify=notify, timeout_notify=0)), asyncio.timeout(DEADLINE):
        await told.wait()


@both
async def test_two_in_one_loop(library: Any) -> None:
    one, other = make(library, App("one")), make(library, App("other"))
    async with in_loop(one):
        async with in_loop(other):
            assert [await ask(one), await ask(other)] == ["one", "other"]
        assert await ask(one) == "one"
        assert signal.getsignal(signal.SIGTERM).__self__ is one  # type: ignore[union-attr]


@both
async def test_it_can_serve_again(library: Any) -> None:
    app = App()
    server = make(library, app)
    for _ in range(2):
        server.should_exit = server.started = False
        async with in_loop(server):
            assert await ask(server) == "app"
    assert app.diary == ["startup", "shutdown"] * 2


@both
async def test_what_it_does_can_be_seen(library: Any) -> None:
    app = App()
    server = make(library, app, headers=[("X-Name", "a: b")])
    assert (server.server_state.total_requests, server.server_state.connections, server.server_state.tasks) == (0, set(), set())
    async with in_loop(server):
        asking = asyncio.create_task(ask(server, "/wait"))
        assert await asyncio.to_thread(app.waiting.wait, DEADLINE)
        state = server.server_state
        assert (len(state.connections), len(state.tasks), (b"x-name", b"a: b") in state.default_headers) == (1, 1, True)
        app.release.set()
        assert await asking == "app"


@both
@pytest.mark.parametrize("given", [False, True], ids=["address", "sockets"])
def test_tls_with_a_context_that_was_changed_after_loading(library: Any, given: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    config = library.Config(App(), port=0, log_level="error", ssl_certfile=pair.certificate, ssl_keyfile=pair.key)
    config.load()
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    client = ssl.create_default_context(cafile=authority.file)
    server = library.Server(config)
    with in_thread(server, [socket.create_server(("127.0.0.1", 0))] if given else None):
        url = f"https://127.0.0.1:{port_of(server)}/"
        with urllib.request.urlopen(url, timeout=DEADLINE, context=client) as response:
            assert response.read() == b"app"
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError, match=r"(?i)alert|handshake|EOF"):
            urllib.request.urlopen(url, timeout=DEADLINE, context=client)


# What is better -------------------------------------------------------------------------------------------------------------------


async def test_cancelled_it_ends_in_order() -> None:
    app = App()
    async with in_loop(make(laraman, app)) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert app.diary == ["startup", "shutdown"]


async def test_a_request_that_hangs_does_not_keep_an_impatient_one(lines: Lines) -> None:
    app = App()
    server = make(laraman, app, timeout_graceful_shutdown=None, log_level="info")
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        async with in_loop(server) as task:
            asking = asyncio.create_task(ask(server, "/wait"))
            assert await asyncio.to_thread(app.waiting.wait, DEADLINE)
            signal.raise_signal(signal.SIGINT)
            async with asyncio.timeout(DEADLINE):
                while "Shutting down" not in lines.texts:
                    await asyncio.sleep(0.01)
            assert not server.force_exit
            signal.raise_signal(signal.SIGINT)
            assert server.force_exit
            await asyncio.wait({task}, timeout=DEADLINE)
            await asyncio.gather(asking, return_exceptions=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (app.diary, heard) == (["startup", "shutdown"], [signal.SIGINT] * 2)


def test_an_impatient_program_does_not_wait_for_requests() -> None:
    app = App()
    server = make(laraman, app, timeout_graceful_shutdown=None)
    with in_thread(server):
        asking = threading.Thread(target=pytest.raises, args=(OSError, get, server, "/wait"))
        asking.start()
        assert app.waiting.wait(DEADLINE)
        server.force_exit = True
    asking.join(DEADLINE)
    assert app.diary == ["startup", "shutdown"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_application_that_is_slow_to_start_can_be_stopped(lines: Lines, cancelled: bool) -> None:
    started, over = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    server = make(laraman, slow, log_level="info")
    task = asyncio.create_task(server.serve())
    await started.wait()
    if cancelled:
        task.cancel()
    else:
        server.should_exit = True
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait({task})
    assert (server.started, task.cancelled(), over.is_set()) == (False, cancelled, True)
    assert not [left for left in asyncio.all_tasks() if left.get_name() == "lifespan"]
    assert not [line for line in lines.texts if "lifespan" in line]


async def test_one_that_is_stopped_before_it_starts_leaves_nothing_open() -> None:
    opened = []
    for _ in range(3):  # the first one opens what the loop needs to accept
        server = make(laraman, App())
        server.should_exit = True
        await server.serve()
        assert not server.started
        opened.append(len(os.listdir("/dev/fd")))
    assert opened[2] == opened[1]


async def test_whichever_of_several_ends_first_the_handlers_are_what_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    servers = [make(laraman, App()) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        tasks = [await stack.enter_async_context(in_loop(server)) for server in servers]
        for ended, its_handler in ((0, 2), (2, 1), (1, None)):
            servers[ended].should_exit = True
            async with asyncio.timeout(DEADLINE):
                await tasks[ended]
            assert signal.getsignal(signal.SIGTERM) == (before if its_handler is None else servers[its_handler].handle_exit)


async def test_listeners_hear_of_it_and_nothing_is_left_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str, bool]] = []
    monkeypatch.setattr(events, "_registered", [])

    @events.on(events.WorkerEvent)
    def hear(event: Any) -> None:
        heard.append((type(event).__name__, event.worker.name, event.worker.stopping))

    def process() -> list[Any]:
        start_of_threads = getattr(threading, "_start_new_thread", None)
        garbage = (gc.get_threshold(), gc.get_freeze_count())
        return [dict(audit._handlers), start_of_threads, sys.path[:], garbage, os.getcwd(), current_worker.get(None)]

    before = process()
    server = make(laraman, App(), guard="warn")
    async with in_loop(server):
        assert await ask(server) == "app"
        assert audit._handlers
    assert process() == before
    assert heard == [("WorkerStarting", "http", False), ("WorkerStarted", "http", False), ("WorkerStopping", "http", True)]
    events.changed()


@pytest.mark.parametrize(("given", "watched"), [({}, False), ({"guard": "warn"}, True)])
async def test_the_guard_is_for_a_process_of_the_servers_own_unless_it_is_asked_for(given: dict[str, Any], watched: bool) -> None:
    server = make(laraman, App(), **given)
    async with in_loop(server):
        assert bool(audit._handlers) is watched
    assert not audit._handlers


def test_a_process_of_the_servers_own_is_as_it_was_afterwards() -> None:
    """As a worker's the process is watched, and its collector set; but a program goes on."""

    def process() -> list[Any]:
        return [bool(audit._handlers), gc.get_threshold(), gc.get_freeze_count() > 0, signal.getsignal(signal.SIGTERM)]

    class Looking(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                seen.append(process())
            await super().__call__(scope, receive, send)

    seen: list[Any] = []
    before = process()
    server = make(laraman, Looking(), limit_max_requests=1)

    def ask_when_it_is_ready() -> None:
        wait_until(lambda: server.started)
        get(server)

    asking = threading.Thread(target=ask_when_it_is_ready)
    asking.start()
    server.run()
    asking.join(DEADLINE)
    assert process() == before
    assert seen == [[True, SERVING, True, server.handle_exit]]


async def test_nobody_replaces_it(lines: Lines) -> None:
    server = make(laraman, App(), log_level="warning")
    async with in_loop(server):
        server._worker.retire("it leaks")
        server._worker.retire("it leaks")
        assert not server.should_exit
    assert lines.texts.count("This process should be replaced: it leaks") == 1


def test_its_memory_or_age_end_it(lines: Lines) -> None:
    server = make(laraman, App(), max_lifetime=1, log_level="info")
    with in_thread(server) as thread:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert any(text.startswith("Terminating process: ") and "old" in text for text in lines.texts)


def test_a_unix_socket_is_gone_afterwards(tmp_path: Path, lines: Lines) -> None:
    path = tmp_path / "s"
    with in_thread(make(laraman, App(), uds=path, log_level="info")), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:
            assert answer.read().endswith(b"app")
    assert not path.exists()
    assert f"Laraman running on unix socket {path} (Press CTRL+C to quit)" in lines.texts


def test_the_line_that_launchers_wait_for(lines: Lines) -> None:
    server = make(laraman, App(), log_brand="uvicorn", log_level="info")
    with in_thread(server):
        port = port_of(server)
    assert f"Uvicorn running on http://127.0.0.1:{port} (Press CTRL+C to quit)" in lines.texts
