"""laraman.connect: each kind of address against a peer that is not laraman's, directly and through proxies; and peers that do it wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from laraman import connect
from laraman.errors import ConfigError, ConnectionClosed, ConnectionLost, LocalProtocolError, RemoteProtocolError
from laraman.net import outbound
from laraman.net.address import Address
from laraman.net.proxy import Proxy, parse_proxy
from laraman.protocols.framing import Text
from tests.certificates import Authority
from tests.net.proxies import hangs_up, listening, proxying, says
from tests.net.serving import a_worker, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from laraman.net.connection import Connection

pytestmark = pytest.mark.anyio

#: Seconds after which a dial gives up where it is to: the shortest in which nothing else is cut off.
SOON = 0.3


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trusted(authority: Authority) -> ssl.SSLContext:
    return authority.client()


@pytest.fixture
def secured(authority: Authority) -> ssl.SSLContext:
    """The context of a server on this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("here"))
    return context


@pytest.fixture
def elsewhere(authority: Authority) -> ssl.SSLContext:
    """The context of a server that is somebody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("elsewhere", "elsewhere.test"))
    return context


async def ended(connection: Connection) -> None:
    """It is closed here, and nothing of it is left."""
    connection.close()
    async with asyncio.timeout(10):
        await connection.wait_closed()
    assert isinstance(connection.error, ConnectionClosed)
    assert connection.state == "CLOSED"


# Streams and datagrams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "message"), [("tcp", b"hello"), ("text", "hello"), ("frame", b"hello")])
async def test_tcp(scheme: str, message: Any) -> None:
    async with listening(echo) as port:
        connection = await connect(f"{scheme}://127.0.0.1:{port}")
        assert connection.direction == "out"
        assert connection.peer == ("127.0.0.1", port)
        for _ in range(3):
            await connection.send(message)
            assert await connection.receive() == message
        assert (connection.messages_in, connection.messages_out) == (3, 3)
        await ended(connection)


async def test_a_unix_socket(tmp_path: Path) -> None:
    async with listening(echo, tmp_path / "s"):
        connection = await connect(f"text+unix://{tmp_path}/s")
        await connection.send("hello")
        assert await connection.receive() == "hello"
        await ended(connection)


async def test_what_a_handler_is_told() -> None:
    seen: list[Any] = []

    class Handler:
        async def on_connect(self, connection: Connection) -> None:
            await connection.send("hello")

        def on_message(self, connection: Connection, message: str) -> None:
            seen.append(message)
            connection.close()

        def on_close(self, connection: Connection) -> None:
            seen.append(connection.error)

    async with listening(echo) as port:
        await connect(f"text://127.0.0.1:{port}", handler=Handler())
        await until(lambda: len(seen) == 2)
        assert seen[0] == "hello"
        assert isinstance(seen[1], ConnectionClosed)


async def test_messages_wait_for_who_receives_them_and_the_peer_waits_with_them() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(100_000):
            writer.write(b"%d\n" % number)
            await writer.drain()

    async with listening(pour) as port:
        connection = await connect(f"text://127.0.0.1:{port}")
        await until(lambda: connection.reading_paused)
        assert await connection.receive() == "0"
        assert await connection.receive() == "1"
        await ended(connection)


async def test_one_task_at_a_time_receives() -> None:
    async with listening(echo) as port:
        connection = await connect(f"text://127.0.0.1:{port}")
        first = asyncio.ensure_future(connection.receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task"):
            await connection.receive()
        await connection.send("hello")
        assert await first == "hello"
        await ended(connection)


async def test_what_came_before_the_end_is_still_received() -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"one\ntwo\n")

    async with listening(leave) as port:
        connection = await connect(f"text://127.0.0.1:{port}")
        await connection.wait_closed()
        assert [await connection.receive(), await connection.receive()] == ["one", "two"]
        with pytest.raises(ConnectionLost):
            await connection.receive()


async def test_a_protocol_of_ones_own_and_the_largest_message() -> None:
    async with listening(echo) as port:
        connection = await connect(f"tcp://127.0.0.1:{port}", protocol=Text)
        await connection.send("hello")
        assert await connection.receive() == "hello"
        await ended(connection)
        connection = await connect(f"text://127.0.0.1:{port}", max_message=5)
        with pytest.raises(LocalProtocolError):
            await connection.send("too long")
        await ended(connection)


async def test_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(10)
        connection = await connect(f"udp://127.0.0.1:{peer.getsockname()[1]}")
        for message in (b"one", b"", b"three" * 1000, bytes(65507)):
            await connection.send(message)
            data, address = peer.recvfrom(65536)
            peer.sendto(data, address)
            assert await connection.receive() == message
        with pytest.raises(LocalProtocolError, match="65508 bytes"):
            await connection.send(bytes(65508))
        await ended(connection)


async def test_datagrams_wait_with_the_kernel_while_reading_is_paused() -> None:
    seen: list[bytes] = []

    class Handler:
        def on_connect(self, connection: Connection) -> None:
            connection.pause()

        def on_message(self, connection: Connection, message: bytes) -> None:
            seen.append(message)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        connection = await connect(f"udp://127.0.0.1:{peer.getsockname()[1]}", handler=Handler())
        for number in range(3):
            peer.sendto(b"%d" % number, connection.local)
        await asyncio.sleep(0.01)
        assert not seen
        assert connection.bytes_in == 0
        connection.resume()
        await until(lambda: seen == [b"0", b"1", b"2"])
        await ended(connection)


async def test_udp_to_nobody() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    connection = await connect(f"udp://127.0.0.1:{port}")
    await connection.send(b"hello")
    with pytest.raises(ConnectionLost, match="refused"):
        await connection.receive()


# TLS ------------------------------------------------------------------------------------------------------------------------------


async def test_tls(secured: ssl.SSLContext, trusted: ssl.SSLContext, tmp_path: Path) -> None:
    async with listening(echo, ssl=secured) as port:
        connection = await connect(f"text+tls://localhost:{port}", ssl=trusted)
        await connection.send("hello")
        assert await connection.receive() == "hello"
        assert connection.transport.get_extra_info("ssl_object").server_hostname == "localhost"
        await ended(connection)
    async with listening(echo, tmp_path / "s", ssl=secured):
        connection = await connect(f"text+tls+unix://{tmp_path}/s", ssl=trusted)
        await connection.send("hello")
        assert await connection.receive() == "hello"
        await ended(connection)


async def test_certificates_are_verified(secured: ssl.SSLContext, elsewhere: ssl.SSLContext, trusted: ssl.SSLContext) -> None:
    async with listening(echo, ssl=elsewhere) as port, proxying("socks5") as proxy:
        for way in (None, f"socks5://127.0.0.1:{proxy.port}"):
            with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
                await connect(f"tcp+tls://127.0.0.1:{port}", ssl=trusted, proxy=way)
            with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
                await connect(f"wss://127.0.0.1:{port}", ssl=trusted, proxy=way)
    async with listening(echo, ssl=secured) as port, proxying("http") as proxy:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for .peer\.test."):
            await connect(f"tcp+tls://peer.test:{port}", ssl=trusted, proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            await connect(f"tcp+tls://127.0.0.1:{port}")  # the system does not know this authority


async def test_a_peer_without_tls(trusted: ssl.SSLContext) -> None:
    async with listening(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        with pytest.raises(ssl.SSLError):
            await connect(f"tcp+tls://127.0.0.1:{port}", ssl=trusted)
    async with listening(says()) as port:
        with pytest.raises(TimeoutError, match=rf"no connection to tcp\+tls://127.0.0.1:{port} within"):
            await connect(f"tcp+tls://127.0.0.1:{port}", ssl=trusted, timeout=SOON)
    async with listening(hangs_up) as port:
        with pytest.raises(ConnectionError, match="hung up during the handshake of TLS"):
            await connect(f"tcp+tls://127.0.0.1:{port}", ssl=trusted)


# Websockets -----------------------------------------------------------------------------------------------------------------------


class Server:
    """A server of the ``websockets`` library that echoes; ``seen`` are its connections."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[ServerConnection] = []

    async def echo(self, websocket: ServerConnection) -> None:
        self.seen.append(websocket)
        async for message in websocket:
            if message == "close":
                await websocket.close(4001, "as you wish")
            else:
                await websocket.send(message)


@contextlib.asynccontextmanager
async def websockets(**options: Any) -> AsyncIterator[Server]:
    made = Server("")
    async with serve(made.echo, "127.0.0.1", 0, ping_interval=None, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        made.url = f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{port}"
        yield made


MESSAGES = ("hello", b"", "", b"\0\xff" * 60, "é" * 5000, b"x" * 70_000, "again " * 20_000, b"y")


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_websocket(compression: str | None) -> None:
    async with websockets(compression=compression, max_size=None) as server:
        connection = await connect(f"{server.url}/feed?token=a%20b", headers={"X-Token": "t", "host": "feed.test"})
        (peer,) = await until(lambda: server.seen)
        assert peer.request is not None
        assert (peer.request.path, peer.request.headers["X-Token"], peer.request.headers["Host"]) == ("/feed?token=a%20b", "t", "feed.test")
        assert bool(peer.protocol.extensions) == (compression is not None)
        for message in MESSAGES * 2:
            await connection.send(message)
            assert await connection.receive() == message
        pong = await peer.ping(b"are you there?")
        await asyncio.wait_for(pong, 10)
        await ended(connection)
        await peer.wait_closed()
        assert (peer.close_code, connection.close_code) == (1000, 1000)


async def test_subprotocols() -> None:
    async with websockets(subprotocols=["second"]) as server:
        connection: Any = await connect(server.url, subprotocols=["first", "second"])
        assert connection.subprotocol == "second"
        await ended(connection)
    async with websockets() as server:
        connection = await connect(server.url, subprotocols=["first"])
        assert connection.subprotocol == ""
        await ended(connection)


async def test_the_server_closes() -> None:
    async with websockets() as server:
        connection = await connect(server.url)
        await connection.send("last")
        await connection.send("close")
        assert await connection.receive() == "last"
        with pytest.raises(ConnectionLost, match="4001 as you wish"):
            await connection.receive()
        await connection.wait_closed()
        assert connection.close_code == 4001
        (peer,) = server.seen
        await peer.wait_closed()
        assert peer.close_code == 4001  # it was answered


async def test_the_server_dies() -> None:
    async with websockets() as server:
        connection = await connect(server.url)
        (await until(lambda: server.seen))[0].transport.abort()
        with pytest.raises(ConnectionLost):
            await connection.receive()
        assert connection.close_code == 1006


async def test_what_came_with_the_handshake_is_received(trusted: ssl.SSLContext, secured: ssl.SSLContext) -> None:
    async def hasty(websocket: ServerConnection) -> None:
        for number in range(3):
            await websocket.send(str(number))

    for options in ({}, {"ssl": secured}):
        async with serve(hasty, "127.0.0.1", 0, **options) as server:  # type: ignore[arg-type]
            port = next(iter(server.sockets)).getsockname()[1]
            url = f"wss://127.0.0.1:{port}" if options else f"ws://127.0.0.1:{port}"
            connection = await connect(url, ssl=trusted if options else None)
            assert [await connection.receive() for _ in range(3)] == ["0", "1", "2"]
            with pytest.raises(ConnectionLost, match="1000"):
                await connection.receive()


async def test_a_message_of_the_server_that_is_too_large() -> None:
    async with websockets() as server:
        connection = await connect(server.url, max_message=1000)
        await connection.send("x" * 1001)  # not bounded here: who sends knows what he does
        with pytest.raises(ConnectionClosed, match="1009"):
            await connection.receive()
        (peer,) = server.seen
        await peer.wait_closed()
        assert peer.close_code == 1009


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", ConnectionRefusedError, "403 Forbidden"),
        (b"HTTP/1.1 301 Moved\r\nLocation: wss://x.test/\r\n\r\n", ConnectionRefusedError, "301 Moved, to wss://x.test/"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ConnectionRefusedError, "200 OK"),
        (b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", RemoteProtocolError, "Accept"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", RemoteProtocolError, "not HTTP"),
        (b"x" * 40_000, RemoteProtocolError, "not HTTP"),
        (b"", TimeoutError, "within"),
    ],
    ids=["403", "301", "200", "wrong key", "ssh", "endless", "silent"],
)
async def test_a_server_that_opens_no_websocket(answer: bytes, error: type[Exception], match: str) -> None:
    async with listening(says(answer)) as port:
        with pytest.raises(error, match=match):
            await connect(f"ws://127.0.0.1:{port}", timeout=SOON if error is TimeoutError else 5.0)


async def test_a_server_that_hangs_up_on_the_handshake() -> None:
    async with listening(hangs_up) as port:
        with pytest.raises(ConnectionResetError, match=rf"ws://127.0.0.1:{port} closed the connection before"):
            await connect(f"ws://127.0.0.1:{port}")


async def test_a_server_that_never_answers_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.net.websocket.CLOSE_WAIT", SOON)
    async with websockets() as server:
        connection = await connect(server.url)
        (peer,) = await until(lambda: server.seen)
        peer.transport.pause_reading()
        await ended(connection)
        peer.transport.abort()


# Through proxies ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["http", "socks5"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_through_a_proxy(scheme: str, secured: ssl.SSLContext, trusted: ssl.SSLContext) -> None:
    async with proxying(scheme, "user", "p@ss:w/rd") as proxy, listening(echo, ssl=secured) as tls_port, listening(echo) as port:
        way = f"{scheme}://user:p%40ss%3Aw%2Frd@127.0.0.1:{proxy.port}"
        async with websockets(ssl=secured) as server:
            urls = [f"text://peer.test:{port}", f"text://[2001:db8::1]:{port}", f"text+tls://localhost:{tls_port}", server.url]
            for url in urls:
                connection = await connect(url, proxy=way, ssl=trusted if "tls" in url or "wss" in url else None)
                await connection.send("hello")
                assert await connection.receive() == "hello"
                await ended(connection)
        host = "[2001:db8::1]" if scheme == "http" else "2001:db8::1"
        assert proxy.asked[:3] == [f"peer.test:{port}", f"{host}:{port}", f"localhost:{tls_port}"]  # names as they are


async def test_what_comes_with_the_answer_of_a_proxy_is_received(scheme: str) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\n")
        await reader.read()

    async with proxying(scheme) as proxy, listening(greet) as port:
        connection = await connect(f"text://127.0.0.1:{port}", proxy=f"{scheme}://127.0.0.1:{proxy.port}")
        assert await connection.receive() == "220 hello"
        await ended(connection)


@pytest.mark.parametrize("given", ["", "user:wrong@"])
async def test_a_proxy_that_wants_another_password(scheme: str, given: str) -> None:
    async with proxying(scheme, "user", "right") as proxy:
        with pytest.raises(ConnectionRefusedError, match="407" if scheme == "http" else "user and password") as info:
            await connect("tcp://peer.test:80", proxy=f"{scheme}://{given}127.0.0.1:{proxy.port}")
        assert "wrong" not in str(info.value)
        assert str(proxy.port) in str(info.value)


SOCKS = b"\x05\x00"


@pytest.mark.parametrize(
    ("scheme", "answers", "error", "match"),
    [
        ("http", (b"HTTP/1.1 502 Bad Gateway\r\n\r\n",), ConnectionRefusedError, "answers 502 Bad Gateway"),
        ("http", (SOCKS,), RemoteProtocolError, "proxy .* not HTTP"),
        ("http", (b"\r\nwhat?\r\n\r\n",), RemoteProtocolError, "proxy .* not HTTP"),
        ("http", (b"",), TimeoutError, "through proxy http://127"),
        ("socks5", (SOCKS, b"\x05\x05\x00\x01" + bytes(6)), ConnectionRefusedError, "connection refused"),
        ("socks5", (SOCKS, b"\x05\x4d\x00\x01" + bytes(6)), ConnectionRefusedError, "failure 77"),
        ("socks5", (b"\x05\x02",), RemoteProtocolError, "proxy .* not SOCKS5"),
        ("socks5", (b"HTTP/1.1 400 Bad Request\r\n\r\n",), RemoteProtocolError, "not SOCKS5"),
        ("socks5", (SOCKS, b"\x04\x00\x00\x01" + bytes(6)), RemoteProtocolError, "not SOCKS5"),
        ("socks5", (SOCKS, b"\x05\x00\x00\x09" + bytes(6)), RemoteProtocolError, "not SOCKS5"),
        ("socks5", (SOCKS, b"\x05\x00\x00\x01"), TimeoutError, "through proxy socks5://127"),
    ],
)
async def test_a_proxy_that_does_it_wrong(scheme: str, answers: tuple[bytes, ...], error: type[Exception], match: str) -> None:
    async with listening(says(*answers)) as port:
        with pytest.raises(error, match=match):
            await connect("tcp://peer.test:80", proxy=f"{scheme}://127.0.0.1:{port}", timeout=SOON if error is TimeoutError else 5.0)


async def test_a_proxy_that_hangs_up_or_is_not_there(scheme: str) -> None:
    async with listening(hangs_up) as port:
        with pytest.raises(ConnectionResetError, match=f"proxy {scheme}://127.0.0.1:{port} closed the connection"):
            await connect("tcp://peer.test:80", proxy=f"{scheme}://127.0.0.1:{port}")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await connect("tcp://peer.test:80", proxy=f"{scheme}://127.0.0.1:{sock.getsockname()[1]}")


async def test_a_proxy_that_talks_before_tls(trusted: ssl.SSLContext) -> None:
    async with listening(says(b"HTTP/1.1 200 OK\r\n\r\nsmuggled")) as port:
        with pytest.raises(RemoteProtocolError, match="sends something before"):
            await connect("tcp+tls://peer.test:443", proxy=f"http://127.0.0.1:{port}", ssl=trusted)


# What cannot be -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.test:3128", Proxy("http", Address("tcp", "proxy.test", 3128))),
        ("socks5://u%40x:p%3A@[::1]:1080/", Proxy("socks5", Address("tcp", "::1", 1080), "u@x", "p:")),
        ("socks5h://a:b@h:1", Proxy("socks5", Address("tcp", "h", 1), "a", "b")),
    ],
)
def test_what_is_a_proxy(text: str, proxy: Proxy) -> None:
    assert parse_proxy(text) == proxy
    assert proxy.password == "" or proxy.password not in repr(proxy) + str(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "proxy.test:3128",
        "https://proxy.test:3128",
        "http://proxy.test",
        "http://secret:secret@proxy.test:x",
        "http://proxy.test:1/secret",
        "socks5://user:@h:1",
        f"socks5://user:{'secret' * 50}@h:1",
        "http://a%3Asecret:b@h:1",
    ],
)
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_proxy(text)
    assert "secret" not in str(info.value)


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("tcp://h:1", {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}, r"\+tls"),
        ("fd:3", {}, "descriptor"),
        ("smtp://h:1", {}, "no protocol"),
        ("http://h:1", {}, "no protocol"),
        ("unix:///x", {"proxy": "http://h:1"}, "proxy"),
        ("udp://h:1", {"proxy": "socks5://h:1"}, "proxy"),
        ("ws://h", {"protocol": Text}, "protocol"),
        ("tcp://h:1", {"headers": {"a": "b"}}, "headers"),
        ("tcp://h:1", {"subprotocols": ["a"]}, "subprotocols"),
        ("ws://h", {"headers": {"a": "b\r\nc: d"}}, "header field"),
        ("ws://h", {"headers": {"Sec-WebSocket-Key": "x"}}, "own"),
        ("ws://h", {"subprotocols": ["a,b"]}, "subprotocols"),
        ("ws://h", {"subprotocols": "chat"}, "subprotocols"),
        (f"tcp://{'ä' * 100}.test:1", {"proxy": "socks5://h:1"}, "host name"),
    ],
)
async def test_what_cannot_be_dialled(url: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        await connect(url, **options)


# In a worker ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Iterator[Any]:
    made = a_worker()
    made.tasks = Starter()
    token = outbound.current_worker.set(made)
    yield made
    outbound.current_worker.reset(token)


class Starter:
    """``worker.tasks``, ended by hand."""

    def start_soon(self, function: Any, *arguments: Any) -> None:
        self.task = asyncio.ensure_future(function(*arguments))


async def test_it_belongs_to_the_worker_until_it_ends(worker: Any) -> None:
    async with websockets() as server:
        connection = await connect(server.url)
        await until(lambda: worker.links == {connection})
        assert not worker.connections
        assert connection.row()["direction"] == "out"
        await ended(connection)
        await until(lambda: not worker.links)


async def test_it_is_closed_when_the_worker_ends(worker: Any) -> None:
    async with websockets() as server:
        connection = await connect(server.url)
        await until(lambda: worker.links)
        worker.tasks.task.cancel()
        await until(lambda: not worker.links)
        assert connection.state == "CLOSED"
        (peer,) = server.seen
        await peer.wait_closed()
        assert peer.close_code == 1001


def test_a_name_that_is_longer_than_names_can_be_is_refused_on_the_way_to_a_proxy() -> None:
    with pytest.raises(ConfigError, match=r"a host name has 255 bytes at most"):
        outbound.Route(f"tcp://{'a' * 256}:80", proxy="socks5://127.0.0.1:1")
