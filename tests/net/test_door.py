from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import struct
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.net import door as module
from laraman.net.door import Door, Places
from laraman.net.tls import Tls
from laraman.protocols.proxy import SIGNATURE, ProxyHeader
from tests.certificates import Authority
from tests.net.serving import DEADLINE, a_worker, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
BINARY = SIGNATURE + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 56324, 443)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("door"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> Tls:
    pair = authority.issue("server")
    return Tls(replace(Config(), ssl_certfile=pair.certificate, ssl_keyfile=pair.key))


class Echo(asyncio.Protocol):
    """Sends back what comes, behind the client that was announced."""

    def __init__(self) -> None:
        self.announced: ProxyHeader | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        source = None if self.announced is None else self.announced.source
        transport.write(f"{source}\n".encode())

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Entered:
    def __init__(self, door: Door, worker: Any) -> None:
        self.door = door
        self.worker = worker
        self.port = door.sockets[0].getsockname()[1]

    def connect(self) -> socket.socket:
        """A client that nobody waits for."""
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE)

    async def open(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def ask(self, *pieces: bytes) -> bytes:
        """Everything that a client hears that sends these pieces, one after the other, and ends."""
        reader, writer = await self.open()
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            writer.write(piece)
            for _ in range(20):
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(DEADLINE):
                heard = await reader.readline()
                return heard + (await reader.readexactly(5) if heard else b"")
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def entering(**options: Any) -> AsyncIterator[Entered]:
    worker = a_worker()
    door = Door(worker, Echo, **{"timeout": DEADLINE, **options})
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    door.open(listening)
    try:
        yield Entered(door, worker)
    finally:
        door.close()
        door.close()
        for arrival in tuple(worker.connections):
            arrival.cancel()
        await until(lambda: not worker.connections)


# A proxy's header ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "announced"),
    [(LINE, ("192.0.2.7", 56324)), (BINARY, ("192.0.2.7", 56324)), (b"PROXY UNKNOWN\r\n", None), (SIGNATURE + b"\x20\x00\x00\x00", None)],
    ids=["line", "binary", "unknown", "local"],
)
async def test_the_header_is_taken_and_not_a_byte_more(header: bytes, announced: object) -> None:
    async with entering(trusted=["127.0.0.1"]) as entered:
        expected = f"{announced}\n".encode() + b"hello"
        assert await entered.ask(header + b"hello") == expected
        assert await entered.ask(*(bytes([byte]) for byte in header), b"hello") == expected
        await until(lambda: not entered.worker.connections)


async def test_who_is_no_proxy_or_sends_no_header_is_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "uvicorn.error")
    async with entering(trusted=["127.0.0.1"]) as entered:
        for pieces in ([b"GET / HTTP/1.1\r\n\r\n"], [b"\x16\x03\x01"], [b"PROXY TCP4 x\r\n"], [b"PROX", b"Y TCP9 \r\n"], [b"PROXY " + b"x" * 200]):
            assert await entered.ask(*pieces) == b""
        with entered.connect() as gone:
            gone.sendall(LINE[:-1])
        await until(lambda: len(_refusals(caplog)) == 6)
    async with entering(trusted=["192.0.2.1"]) as entered:
        assert await entered.ask(LINE + b"hello") == b""
    records = _refusals(caplog)
    assert [record.levelname for record in records] == ["WARNING", *["DEBUG"] * 5, "WARNING"], "strangers cannot fill the log"
    assert "no header of the PROXY protocol" in records[0].getMessage()
    assert "not one of the proxies that are trusted" in records[-1].getMessage()


def _refusals(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "was refused" in record.getMessage()]


async def test_a_header_that_does_not_come_has_an_end() -> None:
    async with entering(trusted=["127.0.0.1"], timeout=0.05) as entered:
        assert await entered.ask(b"PROXY ") == b""
        assert await entered.ask() == b""


async def test_waiting_for_a_header_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that stay in the socket would wake the loop for ever."""
    async with entering(trusted=["127.0.0.1"]) as entered:
        with entered.connect() as client:
            client.sendall(LINE[:10])
            (arrival,) = await until(lambda: entered.worker.connections)
            await until(lambda: arrival._sock.fileno() >= 0 and _unread(arrival._sock) == 0)


def _unread(sock: socket.socket) -> int:
    try:
        return len(sock.recv(100, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


# TLS ----------------------------------------------------------------------------------------------------------------------------------


async def test_tls_behind_a_proxy_s_header(authority: Authority, tls: Tls) -> None:
    async with entering(tls=tls, trusted=["127.0.0.1"]) as entered:
        loop = asyncio.get_running_loop()
        with entered.connect() as raw:
            raw.setblocking(False)
            await loop.sock_sendall(raw, LINE)
            reader, writer = await asyncio.open_connection(sock=raw, ssl=authority.client(), server_hostname="localhost")
            writer.write(b"hello")
            assert await reader.readline() == b"('192.0.2.7', 56324)\n"
            assert await reader.readexactly(5) == b"hello"
            writer.transport.abort()


async def test_handshakes_that_fail_or_never_end_leave_nothing(authority: Authority, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "uvicorn.error")
    async with entering(tls=tls, timeout=0.2) as entered:
        with entered.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: len(_refusals(caplog)) == 1)
        assert await entered.ask() == b""
        with entered.connect() as gone:
            gone.sendall(b"\x16\x03\x01")
        await until(lambda: len(_refusals(caplog)) == 3)
        assert not entered.worker.connections
        reader, writer = await entered.open(ssl=authority.client(), server_hostname="localhost")
        assert await reader.readline() == b"None\n"
        writer.transport.abort()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == [], "strangers cannot fill the log"


async def test_a_handshake_that_fails_leaves_nothing_for_the_collector(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio keeps 256 KiB for each connection under TLS: in a ring of references they would add up until the collector comes."""
    made: list[weakref.ref[Echo]] = []

    def make() -> Echo:
        made.append(weakref.ref(echo := Echo()))
        return echo

    gc.disable()
    try:
        async with entering(tls=tls) as entered:
            entered.door.factory = make
            for _ in range(5):
                with entered.connect() as plain:
                    plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    await until(lambda: bool(made) and not entered.worker.connections)
            await until(lambda: all(reference() is None for reference in made))
    finally:
        gc.enable()


async def test_a_handshake_under_way_is_one_of_the_worker_s_connections(
    authority: Authority, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with entering(tls=tls, timeout=1000.0) as entered:
        with entered.connect() as first, entered.connect() as second:
            await until(lambda: len(entered.worker.connections) == 2)
            entered.door.close()
            assert entered.door.sockets == ()
            arrivals = sorted(entered.worker.connections, key=lambda arrival: arrival.row()["peer"] != f"127.0.0.1:{first.getsockname()[1]}")
            row = arrivals[0].row()
            assert (row["protocol"], row["state"], row["direction"], row["slot"]) == ("tls", "ARRIVING", "in", 0)
            monkeypatch.setattr(module, "HURRY", 0.05)
            arrivals[0].tick(0.0)
            arrivals[0].shutdown()  # the worker drains: it gets a moment
            await until(lambda: len(entered.worker.connections) == 1)
            arrivals[1].transport.abort()
            await until(lambda: not entered.worker.connections)
            for sock in (first, second):
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""


async def test_what_was_accepted_elsewhere_can_be_taken_in(authority: Authority, tls: Tls) -> None:
    async with entering(tls=tls) as entered:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        entered.door.take(theirs)
        reader, writer = await asyncio.open_connection(sock=ours, ssl=authority.client(), server_hostname="localhost")
        assert await reader.readline() == b"None\n"
        writer.transport.abort()


class Exhausted:
    """The listening socket of a process that has no descriptors left the first time."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.asked = 0

    def accept(self) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise OSError(24, "Too many open files")
        return self.real.accept()

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()


async def test_without_descriptors_accepting_pauses_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "PAUSE", 1000.0)
    async with entering(trusted=["127.0.0.1"]) as entered:
        door = entered.door
        listening = Exhausted(door.sockets[0])
        door._socket = listening  # type: ignore[assignment]
        with entered.connect():
            await until(lambda: listening.asked)
            for _ in range(20):
                await asyncio.sleep(0)
            assert listening.asked == 1, "it would be asked in each turn of the loop"
            assert door._pause is not None
            door._pause.cancel()
            door.resume()  # when the pause is over
            assert await entered.ask(LINE + b"hello") == b"('192.0.2.7', 56324)\nhello"
    assert [record.getMessage() for record in caplog.records] == ["Nothing is accepted for 1000 s: Too many open files"]


# Places -------------------------------------------------------------------------------------------------------------------------------


async def test_nobody_is_let_in_while_no_place_is_free() -> None:
    places = Places(2)
    async with entering(places=places) as entered:
        entered.worker.connections = places
        protocols = []
        entered.door.factory = lambda: protocols.append(Seated(places)) or protocols[-1]
        clients = [entered.connect() for _ in range(5)]
        await until(lambda: len(places) == 2 and not entered.door.arrivals and entered.door in places.waiting)
        assert (len(protocols), places.free) == (2, 0)
        for count in (3, 4, 5):
            protocols[count - 3].transport.close()
            await until(lambda count=count: len(protocols) == count and not entered.door.arrivals)
            assert len(places) == 2
        assert [await asyncio.to_thread(client.recv, 5) for client in clients[3:]] == [b"None\n"] * 2
        protocols[3].transport.close()
        protocols[4].transport.close()
        await until(lambda: not places)
        assert not places.waiting
        for client in clients:
            client.close()


class Seated(Echo):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def connection_made(self, transport: Any) -> None:
        self.places.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.places.discard(self)

    def cancel(self) -> None:
        self.transport.abort()


async def test_a_closed_door_waits_for_no_place() -> None:
    places = Places(1)
    async with entering(places=places) as entered:
        entered.worker.connections = places
        places.add("somebody")
        with entered.connect():
            await until(lambda: entered.door in places.waiting)
            entered.door.close()
            places.discard("somebody")
            assert not places.waiting
