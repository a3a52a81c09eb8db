"""Files as responses over real sockets: by sendfile on asyncio and on uvloop, in pieces under TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import random
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from laraman.asgi import files
from tests.asgi.service import DEADLINE, Client, Server, respond, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
MIB = 1 << 20
_BLOCK = random.Random(5).randbytes(65521)


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    of_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(of_server)
    of_clients = ssl.create_default_context()
    authority.configure_trust(of_clients)
    return of_server, of_clients


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, contexts: Any) -> Any:
    return contexts if request.param == "tls" else None


def content(size: int) -> bytes:
    """Bytes that tell where they are from: what is missing, doubled or in the wrong place makes a difference."""
    return (_BLOCK * (size // len(_BLOCK) + 1))[:size]


def made(directory: Path, size: int) -> Path:
    path = directory / f"{size}.bin"
    path.write_bytes(content(size))
    return path


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def length(size: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % size


def whole(path: Path) -> dict[str, Any]:
    return {"type": "http.response.pathsend", "path": str(path)}


def piece(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Messages:
    """Answers every request with these messages; ``raised`` is what came of it."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages
        self.raised: BaseException | None = None
        self.over = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        try:
            for message in self.messages:
                await send(message)
        except BaseException as exc:
            self.raised = exc
            raise
        finally:
            self.over += 1


async def stalled(server: Server) -> None:
    """Until the server waits for a client that does not read: it is still at it, and nothing more goes out."""
    async with asyncio.timeout(DEADLINE):
        before = -1
        while True:
            connections = list(server.worker.connections)
            now = connections[0].bytes_out if connections else -1
            if now > MIB and now == before and connections[0].writing_paused:
                return
            before = now
            await asyncio.sleep(0.05)


async def connect_slowly(server: Server) -> socket.socket:
    """A client whose kernel takes little for it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.setblocking(False)
    return sock


async def read_rest(sock: socket.socket) -> bytes:
    received = bytearray()
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(sock, MIB):
                received += data
    return bytes(received)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# What goes on the wire ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, files.SMALL, files.SMALL + 1, 3 * MIB + 5])
async def test_a_path(tmp_path: Path, tls: Any, size: int) -> None:
    """With and without a length, after a piece, to a client of HTTP/1.0, and to HEAD; on one connection, in order."""
    path = made(tmp_path, size)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start(*([length(size)] if scope["path"] == "/length" else ())))
        if scope["path"] == "/mixed":
            await send(piece(b"first"))
        await send(whole(path))

    async with serve(app, tls) as server:
        client = await server.connect()
        for target in (b"/", b"/length", b"/mixed", b"/length"):
            client.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\nHEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % (target, target))
            status, fields, body = await client.read_response()
            assert (status, body) == (200, (b"first" if target == b"/mixed" else b"") + content(size))
            assert (b"content-length" in fields) == (target != b"/mixed")
            head = await client.read_until(b"\r\n\r\n")
            assert (b"content-length: %d" % size in head) == (target != b"/mixed")
        client.close()
        old = await server.ask(b"GET /mixed HTTP/1.0\r\n\r\n")
        assert old.partition(b"\r\n\r\n")[2] == b"first" + content(size)
        old = await server.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert b"content-length: %d" % size in old
        assert old.partition(b"\r\n\r\n")[2] == content(size)


async def test_parts_of_open_files(tmp_path: Path, tls: Any) -> None:
    """Offsets, counts, the file's own position, which moves on, and what is in no file: all in one response."""
    path = made(tmp_path, 3 * MIB)
    whole_content = content(3 * MIB)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        with path.open("rb") as file:
            part = {"type": "http.response.zerocopysend", "file": file, "more_body": True}
            await send(start())
            await send({**part, "offset": 5, "count": 7})
            await send(piece(b"--"))
            await send({**part, "file": file.fileno(), "offset": MIB, "count": MIB + 1})
            await send({**part, "count": 8})
            await send({**part, "count": MIB})
            await send({**part, "count": 0})
            await send({**part, "offset": 3 * MIB - 3, "count": 100})
            await send({**part, "more_body": False})
            assert not file.closed

    by_position = whole_content[: MIB + 8] + whole_content[-3:] + whole_content[MIB + 8 :]
    expected = whole_content[5:12] + b"--" + whole_content[MIB : 2 * MIB + 1] + by_position
    async with serve(app, tls) as server:
        client = await server.connect()
        client.write(GET + GET)
        assert (await client.read_response())[2] == expected
        assert (await client.read_response())[2] == expected
        client.close()


@pytest.mark.parametrize("status", [204, 304])
async def test_where_no_body_belongs_no_file_is_sent(tmp_path: Path, status: int) -> None:
    async with serve(Messages(start(status=status), whole(made(tmp_path, 2 * MIB)))) as server:
        response = await server.ask(GET + LAST)
        assert response.count(b"HTTP/1.1 %d " % status) == 2
        assert response.endswith(b"\r\n\r\n")
        assert len(response) < 1000


async def test_a_file_that_the_kernel_cannot_send_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*args: Any) -> int:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "sendfile", unable)
    async with serve(Messages(start(), whole(made(tmp_path, 2 * MIB)))) as server:
        assert (await server.ask(LAST)).endswith(b"\r\n\r\n" + content(2 * MIB))


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_what_is_not_in_memory_is_not_waited_for_on_the_loop(tmp_path: Path, tls: Any, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    threads = set()
    for function in (os.pread, os.sendfile):

        def watched(*args: int, function: Any = function) -> Any:
            threads.add(threading.current_thread())
            return function(*args)

        monkeypatch.setattr(os, function.__name__, watched)
    monkeypatch.setattr(files, "_CACHED_ONLY", None)
    async with serve(Messages(start(length(size)), whole(made(tmp_path, size))), tls) as server:
        assert (await server.ask(LAST)).endswith(b"\r\n\r\n" + content(size))
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_a_file_is_not_closed_under_the_thread_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    reading, go_on = threading.Event(), threading.Event()
    pread, sendfile = os.pread, os.sendfile
    descriptors: list[int] = []

    def slow(function: Any, *args: int) -> Any:
        reading.set()
        assert go_on.wait(DEADLINE)
        descriptors.extend(os.fstat(fd).st_size for fd in (args[0], args[1]) if function is sendfile or fd == args[0])
        return function(*args)

    monkeypatch.setattr(os, "pread", functools.partial(slow, pread))
    monkeypatch.setattr(os, "sendfile", functools.partial(slow, sendfile))
    monkeypatch.setattr(files, "_CACHED_ONLY", None)
    app = Messages(start(length(size)), whole(made(tmp_path, size)))
    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        async with asyncio.timeout(DEADLINE):
            while not reading.is_set():
                await asyncio.sleep(0.01)
            (exchange,) = server.service.running
            for _ in range(3):
                exchange.cancel()
                await asyncio.sleep(0.02)
            assert not app.over
            go_on.set()
            while not app.over:
                await asyncio.sleep(0.01)
        assert size in descriptors
        assert isinstance(app.raised, asyncio.CancelledError)
        client.close()


# What goes wrong ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "longer", "shorter", "negative"])
async def test_what_cannot_be_sent_is_a_500(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = made(tmp_path, 2 * MIB)
    app = Messages(start(), whole(tmp_path / "no"))
    if kind == "directory":
        app = Messages(start(), whole(tmp_path))
    elif kind == "pipe":
        os.mkfifo(tmp_path / "pipe")
        app = Messages(start(), whole(tmp_path / "pipe"))
    elif kind == "longer":
        app = Messages(start(length(2 * MIB - 1)), whole(path))
    elif kind == "shorter":
        app = Messages(start(length(2 * MIB + 1)), whole(path))
    elif kind == "negative":
        app = Messages(start(), {"type": "http.response.zerocopysend", "file": 0, "offset": -1})
    async with serve(app) as server:
        response = await server.ask(LAST)
        assert response.startswith(b"HTTP/1.1 500 ")
        assert response.endswith(b"Internal Server Error")
        assert isinstance(app.raised, OSError if kind in ("missing", "directory", "pipe") else RuntimeError)
    assert "Exception in ASGI application" in caplog.text


@pytest.mark.parametrize("framed", [True, False], ids=["length", "chunks"])
async def test_a_file_that_shrinks_is_no_whole_response(tmp_path: Path, framed: bool, caplog: pytest.LogCaptureFixture) -> None:
    size = 32 * MIB
    path = made(tmp_path, size)
    app = Messages(start(length(size)) if framed else start(), piece(b"1234"), whole(path))
    if framed:
        app = Messages(start(length(size)), whole(path))
    async with serve(app) as server:
        sock = await connect_slowly(server)
        sock.send(GET)
        await stalled(server)
        os.truncate(path, 2 * MIB)
        response = await read_rest(sock)
        sock.close()
        assert response.startswith(b"HTTP/1.1 200 ")
        assert len(response) < size
        assert not response.endswith(b"0\r\n\r\n")
    assert isinstance(app.raised, RuntimeError)
    assert "has become shorter" in str(app.raised)


async def test_a_file_that_is_closed_too_early_is_the_applications_error(tmp_path: Path) -> None:
    path = made(tmp_path, 32 * MIB)
    closed = asyncio.Event()
    raised: list[BaseException] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start())
        with path.open("rb") as file:
            sending = asyncio.create_task(send({"type": "http.response.zerocopysend", "file": file}))  # type: ignore[arg-type]
            await stalled(server)
        closed.set()
        try:
            await sending
        except OSError as exc:
            raised.append(exc)
            raise

    async with serve(app) as server:
        sock = await connect_slowly(server)
        sock.send(GET)
        async with asyncio.timeout(DEADLINE):
            await closed.wait()
        assert not (await read_rest(sock)).endswith(b"0\r\n\r\n")
        sock.close()
    assert raised[0].errno == errno.EBADF  # type: ignore[attr-defined]


async def test_a_client_that_leaves_costs_nothing(tmp_path: Path, tls: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = Messages(start(), whole(made(tmp_path, 32 * MIB)), piece(b""))
    async with serve(app, tls) as server:
        before = open_descriptors()
        for number in (1, 2):
            client = await server.connect()
            client.write(GET)
            await client.reader.readexactly(MIB)
            client.writer.transport.abort()
            async with asyncio.timeout(DEADLINE):
                while server.service.running or server.worker.connections:
                    await asyncio.sleep(0.01)
            assert app.over == number
        del client
        async with asyncio.timeout(DEADLINE):
            while open_descriptors() > before:
                await asyncio.sleep(0.01)
    assert app.raised is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_does_not_read_is_waited_for_and_then_cut_off(tmp_path: Path) -> None:
    size = 32 * MIB
    app = Messages(start(length(size)), whole(made(tmp_path, size)))
    async with serve(app, timeout_write=0.5) as server:
        before = open_descriptors()
        sock = await connect_slowly(server)
        sock.send(GET)
        await stalled(server)
        assert not app.over
        async with asyncio.timeout(DEADLINE):
            while server.worker.connections or not app.over:
                await asyncio.sleep(0.01)
        sock.close()
        assert open_descriptors() <= before
    assert app.raised is None


async def test_a_slow_client_gets_everything(tmp_path: Path, tls: Any) -> None:
    size = 24 * MIB
    async with serve(Messages(start(length(size)), whole(made(tmp_path, size))), tls, timeout_write=0.5) as server:
        client = await server.connect()
        client.write(LAST)
        head = await client.read_until(b"\r\n\r\n")
        received = bytearray()
        async with asyncio.timeout(DEADLINE):
            for _ in range(20):  # longer than the write timeout, with progress
                received += await client.reader.readexactly(256 * 1024)
                await asyncio.sleep(0.05)
            received += await client.reader.read()
        client.close()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert received == content(size)


async def test_others_are_served_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file goes out in steps, and a client that takes it as fast as it is sent keeps nobody waiting."""
    path = made(tmp_path, 32 * MIB)
    monkeypatch.setattr(os, "sendfile", lambda out, fd, offset, count: count)
    turns = 0

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        nonlocal turns

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await send(start())
        await send(whole(path))
        counting.cancel()

    async with serve(app) as server:
        await server.ask(LAST)
    assert turns >= 32


# Order and ends -------------------------------------------------------------------------------------------------------------------


async def test_a_file_waits_for_what_was_sent_before_it(tmp_path: Path, tls: Any) -> None:
    path = made(tmp_path, 2 * MIB)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        (connection,) = server.worker.connections
        connection.transport.set_write_buffer_limits(64 * MIB)  # so that nothing of it is waited for
        await send(start())
        await send(piece(bytes(24 * MIB)))
        await send(whole(path))

    async with serve(app, tls) as server:
        client = await server.connect()
        client.write(GET)
        assert (await client.read_response())[2] == bytes(24 * MIB) + content(2 * MIB)
        client.close()


async def test_nothing_follows_half_a_file(tmp_path: Path) -> None:
    """Not even what an application sends that has caught the error."""
    path = made(tmp_path, 32 * MIB)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start())
        with path.open("rb") as file, contextlib.suppress(RuntimeError):
            await send({"type": "http.response.zerocopysend", "file": file, "more_body": True})
        await send(piece(b"the end", more=False))

    async with serve(app) as server:
        sock = await connect_slowly(server)
        sock.send(GET)
        await stalled(server)
        os.truncate(path, MIB)
        assert b"the end" not in await read_rest(sock)
        sock.close()


async def test_messages_of_several_tasks_do_not_mix(tmp_path: Path, tls: Any) -> None:
    path = made(tmp_path, 8 * MIB)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        with path.open("rb") as file:
            part = {"type": "http.response.zerocopysend", "file": file, "offset": 0, "more_body": True}
            await send(start())
            await asyncio.gather(send(part), send(piece(b"-between-")), send(part), send(piece(b"-after-")))
            await send(piece(b"", more=False))

    async with serve(app, tls) as server:
        client = await server.connect()
        client.write(GET)
        body = (await client.read_response())[2]
        client.close()
    parts = body.split(content(8 * MIB))
    assert sorted(b"".join(parts).split(b"-")) == sorted(b"-between--after-".split(b"-"))
    assert len(parts) == 3


async def test_answers_to_pipelined_requests_are_in_order(tmp_path: Path, tls: Any) -> None:
    path = made(tmp_path, 2 * MIB)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            await respond(send, b"hello")
        else:
            await send(start())
            await send(whole(path))

    async with serve(app, tls) as server:
        client = await server.connect()
        client.write((b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n" + GET) * 3)
        for _ in range(3):
            assert (await client.read_response())[2] == content(2 * MIB)
            assert (await client.read_response())[2] == b"hello"
        client.close()


async def test_a_client_that_has_ended_its_side_gets_the_file(tmp_path: Path) -> None:
    async with serve(Messages(start(), whole(made(tmp_path, 8 * MIB)))) as server:
        client = await server.connect()
        client.write(GET)
        client.writer.write_eof()
        assert (await client.read_all()).endswith(b"\r\n\r\n" + content(8 * MIB))
        client.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_stop_lets_the_file_end_within_its_deadline(tmp_path: Path, reads: bool) -> None:
    size = 32 * MIB
    app = Messages(start(length(size)), whole(made(tmp_path, size)))
    async with serve(app) as server:
        sock = await connect_slowly(server)
        sock.send(GET)
        await stalled(server)
        now = asyncio.get_running_loop().time()
        stopping = asyncio.create_task(server.service.on_drain(server.worker, now + (DEADLINE if reads else 1.0)))
        if reads:
            assert (await read_rest(sock)).endswith(content(size))
        async with asyncio.timeout(DEADLINE):
            await stopping
        sock.close()
    assert app.over
    assert isinstance(app.raised, type(None) if reads else asyncio.CancelledError)


async def test_an_application_that_leaves_its_file_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = made(tmp_path, 32 * MIB)
    sending: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start())
        sending.append(asyncio.create_task(send(whole(path))))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)

    async with serve(app) as server:
        client = Client(*await asyncio.open_connection("127.0.0.1", server.port, limit=4096))
        client.write(GET)
        async with asyncio.timeout(DEADLINE):
            while not sending:
                await asyncio.sleep(0.01)
            await sending[0]
        assert not (await client.read_all()).endswith(content(32 * MIB))
        client.close()
    assert "returned without completing response" in caplog.text
