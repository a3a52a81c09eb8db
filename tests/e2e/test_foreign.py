"""Workers of every kind as other people's programs see them: socat, openssl, the websockets library; and what peers do wrong."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import socket
import ssl
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.certificates import Authority
from tests.conftest import DEADLINE, find_tool, free_ports, wait_until
from tests.e2e.tools import read_all, read_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

HANDLERS = """
import os
from laraman.protocols.upgrade import Accept, Answer

class Echo:
    def on_message(self, connection, message):
        connection.send_nowait(message)

class Told(Echo):
    async def on_message(self, connection, message):
        await connection.send(f"{os.getpid()} {message}")

class Flood:
    async def on_connect(self, connection):
        while True:
            await connection.send(bytes(65536))

class Chat(Echo):
    def on_upgrade(self, connection, upgrade):
        if upgrade.headers.get("origin") == "https://evil.example":
            return Answer(403, b"not from there")
        return Accept("chat") if "chat" in upgrade.subprotocols else None

    async def on_connect(self, connection):
        await connection.send(f"welcome to {connection.upgrade.path}")

class Words:
    'A protocol of its own: words, and what is between them.'
    def __init__(self):
        self.rest = b""

    def receive_data(self, data):
        *words, self.rest = (self.rest + data).split(b" ")
        return words

    def send(self, message):
        return message.upper() + b" "

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["started"] = os.getpid()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        open("shutdown.txt", "a").write("over")
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = f"{scope['scheme']} {scope['path']} {scope['state']['started'] == os.getpid()}"
        await send({"type": "http.response.body", "body": body.encode()})
"""


def declared(certificate: str, key: str) -> str:
    tls = f'ssl_certfile = "{certificate}"\nssl_keyfile = "{key}"\n'
    workers = {
        "line": 'address = ["text://127.0.0.1:0", "text+unix://line.sock"]\nhandler = "handlers:Told"\nmode = "0600"\nmax_message = 1000\n',
        "raw": 'address = "tcp://127.0.0.1:0"\nhandler = "handlers:Echo"\nprotocol = "handlers:Words"\n',
        "frames": 'address = ["frame://127.0.0.1:0", "frame+tls://127.0.0.1:0"]\nhandler = "handlers:Echo"\nmax_message = 1000\n'
        f"timeout_request_header = 1\n{tls}",
        "datagrams": 'address = "udp://127.0.0.1:0"\nhandler = "handlers:Echo"\ncount = 2\n',
        "flood": 'address = "tcp://127.0.0.1:0"\nhandler = "handlers:Flood"\ntimeout_write = 0.5\n',
        "chat": f'address = ["websocket://127.0.0.1:0", "websocket+tls://127.0.0.1:0"]\nhandler = "handlers:Chat"\nmax_message = 1000\n{tls}',
        "site": f'address = ["http://127.0.0.1:0", "http+tls://127.0.0.1:0"]\nhandler = "handlers:app"\n{tls}',
    }
    return "".join(f"[tool.laraman.workers.{name}]\n{text}" for name, text in workers.items())


class Site:
    """The server, its ports by address as it was declared, and what it speaks TLS with."""

    def __init__(self, running: Server, authority: Authority) -> None:
        self.running = running
        self.authority = authority
        addresses = running.status()["server"]["addresses"]
        self.ports = {address.rpartition("://")[0]: int(address.rpartition(":")[2]) for address in addresses if "unix" not in address}
        raw, flood = (int(address.rpartition(":")[2]) for address in addresses if address.startswith("tcp://"))
        self.ports.update(tcp=raw, flood=flood)

    def connect(self, scheme: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[scheme]), DEADLINE)


@pytest.fixture
def site(server: Callable[..., Server], tmp_path: Path) -> Site:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    files = {
        "handlers.py": HANDLERS,
        "pyproject.toml": declared(*pair),
        "program.py": "from laraman import Worker\nworkers = [Worker('idle')]\n",
    }
    return Site(server("program:workers", "--log-level", "debug", files=files), authority)


def run(*command: str, data: bytes = b"", directory: Any = None) -> bytes:
    """What a foreign client prints when it is given ``data``."""
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, cwd=directory, timeout=DEADLINE, check=True).stdout


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body) + 4) + body


def test_foreign_clients(site: Site) -> None:
    socat, openssl = find_tool("socat"), find_tool("openssl")
    ports, running = site.ports, site.running
    line = run(socat, "-t5", "-", f"TCP:127.0.0.1:{ports['text']}", data=b"one\r\ntwo\n")
    pid = int(line.split()[0])
    assert line == f"{pid} one\n{pid} two\n".encode()
    path = running.directory / "line.sock"
    assert (stat.S_IMODE(path.stat().st_mode), run(socat, "-t5", "-", f"UNIX-CONNECT:{path}", data=b"x\n")) == (0o600, f"{pid} x\n".encode())
    assert run(socat, "-t5", "-", f"TCP:127.0.0.1:{ports['tcp']}", data=b"hello foreign wor") == b"HELLO FOREIGN "
    assert run(socat, "-t5", "-T0.3", "-", f"UDP:127.0.0.1:{ports['udp']}", data=b"ping") == b"ping"
    shown = subprocess.Popen(
        [openssl, "s_client", "-quiet", "-verify_return_error", "-CAfile", site.authority.file, "-connect", f"127.0.0.1:{ports['frame+tls']}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with shown:
        assert shown.stdin is not None
        assert shown.stdout is not None
        shown.stdin.write(frame(b"over TLS") + frame(b""))
        shown.stdin.flush()
        assert shown.stdout.read(16) == frame(b"over TLS") + frame(b"")
        shown.kill()
    asyncio.run(talk(site))
    asked = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=DEADLINE)
    asked.request("GET", "/a")
    assert asked.getresponse().read() == b"http /a True"
    asked.close()
    secured = http.client.HTTPSConnection("localhost", ports["http+tls"], timeout=DEADLINE, context=site.authority.client())
    secured.request("GET", "/b")
    assert secured.getresponse().read() == b"https /b True"
    secured.close()
    assert running.stop() == 0
    assert not path.exists()
    assert (running.directory / "shutdown.txt").read_text() == "over" * 2, "of both generations"


async def talk(site: Site) -> None:
    async with asyncio.timeout(DEADLINE):
        async with connect(f"ws://127.0.0.1:{site.ports['websocket']}/room?a=b", subprotocols=["x", "chat"]) as client:  # type: ignore[list-item]
            assert (client.subprotocol, await client.recv()) == ("chat", "welcome to /room")
            for message in ("text", b"bytes", "é" * 500):
                await client.send(message)
                assert await client.recv() == message
            await client.send("x" * 1001)
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{site.ports['websocket']}/", origin="https://evil.example").__aenter__()  # type: ignore[arg-type]
        assert (refused.value.response.status_code, refused.value.response.body) == (403, b"not from there")
        async with connect(f"wss://localhost:{site.ports['websocket+tls']}/s", ssl=site.authority.client()) as client:
            assert await client.recv() == "welcome to /s"
            site.running.process.send_signal(signal.SIGHUP)  # reload: what is open is told to come again
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
    site.running.wait_ready()


def ended(sock: socket.socket) -> bytes:
    """What came until the server ended the connection, with an end or a reset."""
    sock.settimeout(DEADLINE)
    try:
        with sock:
            return read_all(sock)
    except ConnectionResetError:
        return b""


def test_what_peers_do_wrong(site: Site) -> None:
    good = site.connect("frame")
    good.sendall(frame(b"first"))
    assert read_until(good, b"first") == frame(b"first")
    silent = site.connect("text")
    for name, data, answer in (
        ("frame", frame(bytes(1001)), b""),  # oversized
        ("frame", b"\0\0\0\x03abc", b""),  # shorter than its own length
        ("frame", b"GET / HTTP/1.1\r\n\r\n", b""),
        ("frame", b"\0\0\0\x06abcdef\0\0\0\x06abcdef", frame(b"ab")),  # a length that does not count itself
        ("frame", struct.pack("<I", 9) + b"hello", b""),  # little-endian
        ("frame", b"\0\0\x00\x09hel", b""),  # cut off
        ("text", b"x" * 1002, b""),
        ("text", b"\xff\xfe\n", b""),
        ("websocket", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 "),
        ("websocket", os.urandom(200).replace(b"\n", b"") + b"\r\n\r\n", b"HTTP/1.1 400 "),
        ("frame+tls", b"\0\0\0\x09hello not TLS at all", b""),
        ("http", b"\0\0\0\x09hello\r\n\r\n", b"HTTP/1.1 400 "),
    ):
        with site.connect(name) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answered = ended(sock)
        assert answered.startswith(answer), (name, data[:40], answered[:40])
        assert answer or not answered or name == "frame+tls", "an alert is all that TLS says"
    assert ended(site.connect("frame+tls")) == b"", "who says nothing gets no TLS for ever"
    unread = site.connect("flood")
    wait_until(lambda: "the peer has read nothing for 0.5 seconds" in site.running.output, what="the end of who does not read")
    unread.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(DEADLINE)
        datagrams.connect(("127.0.0.1", site.ports["udp"]))
        for data in (b"", os.urandom(1400), b"x" * 65000):
            datagrams.send(data)
            assert datagrams.recv(65536) == data
    # Nobody else has noticed, and it was nobody's death.
    good.sendall(frame(b"second"))
    assert read_until(good, b"second") == frame(b"second")
    silent.sendall(b"at last\n")
    assert read_until(silent, b"\n").endswith(b" at last\n")
    good.close()
    silent.close()
    rows = site.running.status()["processes"]
    assert {row["restarts"] for row in rows} == {0}
    assert "Traceback" not in site.running.output
    assert re.search(r"frame length \d+ is outside 0\.\.1000", site.running.output)


# Addresses that cannot be had ---------------------------------------------------------------------------------------------------------


def test_an_address_that_somebody_has_is_one_line(server: Callable[..., Server], tmp_path: Path) -> None:
    """Two workers on one address, a live socket file, another program's port; a file that a dead process has left is replaced."""
    path, (port,) = tmp_path / "x.sock", free_ports(1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        live = server("program:workers", ready=False, files=program(f'Worker("a", "text+unix://{path}", handler="program:Echo")'))
        twice = server("program:workers", ready=False, files=program(*(f'Worker("{n}", "tcp://127.0.0.1:{port}", reuse_port=True)' for n in "ab")))
        assert (live.process.wait(DEADLINE), twice.process.wait(DEADLINE)) == (3, 2)
    assert live.output.splitlines()[-1].endswith(f"cannot listen on text+unix://{path}: another process listens there")
    assert twice.output.splitlines()[-1].endswith(f"worker 'b' and worker 'a': tcp://127.0.0.1:{port} is there twice")
    assert "Traceback" not in live.output + twice.output
    running = server("program:workers", "--name", "x", files=program(f'Worker("a", "text+unix://{path}", handler="program:Echo")'))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(b"x\n")
        assert read_until(client, b"\n") == b"x\n"
    assert running.stop() == 0


def program(*workers: str) -> dict[str, str]:
    return {
        "program.py": f"""
import os
from laraman import Worker

class Echo:
    def on_message(self, connection, message):
        connection.send_nowait(message)

class Pid:
    def on_message(self, connection, message):
        connection.send_nowait(f"{{os.getpid()}}")

class Datagrams:
    async def on_message(self, connection, message):
        await connection.send(message)

workers = [{", ".join(workers)}]
"""
    }


# A socket for each process ------------------------------------------------------------------------------------------------------------


class Asking:
    """Clients that ask all the time, each on a connection of its own, and those that ask with datagrams."""

    def __init__(self, tcp: int, udp: int) -> None:
        self.pids: set[int] = set()
        self.answers = self.datagrams = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._go, args=(work,)) for work in (lambda: self._ask(tcp), lambda: self._send(udp))]

    def _go(self, work: Callable[[], None]) -> None:
        while not self._over.wait(0.005):
            try:
                work()
            except OSError as exc:
                self.failures.append(repr(exc))

    def _ask(self, port: int) -> None:
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
            sock.sendall(b"?\n")
            slow = time.monotonic() - begun > 0.1  # on a loaded machine; a process that stops waits 0.2 s for what a client has to say
            if (answer := read_until(sock, b"\n")) or not slow:
                self.pids.add(int(answer))
        self.answers += 1

    def _send(self, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(("127.0.0.1", port))
            sock.send(b"x")
            assert sock.recv(10) == b"x"
        self.datagrams += 1

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)


def listening(port: int) -> set[str]:
    """The inodes of the sockets that listen on this port of 127.0.0.1."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"}


def test_reload_restart_and_scaling_lose_nothing_where_each_process_has_its_socket(server: Callable[..., Server]) -> None:
    running = server(
        "program:workers",
        files=program(
            'Worker("line", "text://127.0.0.1:0", handler="program:Pid", count=2, reuse_port=True)',
            'Worker("datagrams", "udp://127.0.0.1:0", handler="program:Datagrams", count=2, reuse_port=True)',
        ),
    )
    tcp, udp = (int(address.rpartition(":")[2]) for address in running.status()["server"]["addresses"])

    def pids() -> set[int]:
        return {row["pid"] for row in running.processes("line") if row["state"] == "ready"}

    with Asking(tcp, udp) as asking:
        first, sockets = pids(), listening(tcp)
        assert len(sockets) == 2
        wait_until(lambda: asking.pids >= first, what="both processes")
        for verb in ("reload", "restart"):
            before = pids()
            assert running.cli(verb).returncode == 0
            wait_until(lambda: len(pids()) == 2 and pids().isdisjoint(before) and asking.pids >= pids(), what=f"the processes after {verb}")  # noqa: B023
            assert listening(tcp) == sockets, "what waits in them has not been lost"
        running.process.send_signal(signal.SIGTTIN)
        wait_until(lambda: len(pids()) == 3 and asking.pids >= pids(), what="the third process")
        for count in (2, 1):
            running.process.send_signal(signal.SIGTTOU)
            wait_until(lambda: len(running.processes("line")) == len(listening(tcp)) == count, what="fewer processes")  # noqa: B023
        answered, datagrams = asking.answers, asking.datagrams
        wait_until(lambda: asking.answers > answered + 20 and asking.datagrams > datagrams + 20, what="more answers")
        # The port is the server's.
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", tcp))
        os.kill(next(iter(pids())), signal.SIGKILL)  # what waits for its socket waits for the next process
        answered = asking.answers
        wait_until(lambda: asking.answers > answered + 20, what="answers of the next process")
    assert [failure for failure in asking.failures if "reset" not in failure.lower()] == []
    assert len(asking.failures) <= 1, "of the one that was killed"
    assert running.stop() == 0


def test_tls_files_that_change(server: Callable[..., Server], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    running = server(
        "program:workers",
        files=program(f'Worker("a", "text+tls://127.0.0.1:0", handler="program:Echo", ssl_certfile="{pair.certificate}", ssl_keyfile="{pair.key}")'),
    )

    def serial() -> str:
        with socket.create_connection(("127.0.0.1", running.port), DEADLINE) as raw, authority.client().wrap_socket(
            raw, server_hostname="localhost"
        ) as secured:
            secured.sendall(b"x\n")
            assert read_until(secured, b"\n") == b"x\n"
            return str((secured.getpeercert() or {})["serialNumber"])

    before = serial()
    authority.issue("server")
    wait_until(lambda: serial() != before, what="the new certificate")
    with socket.create_connection(("127.0.0.1", running.port), DEADLINE) as raw, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    assert running.stop() == 0
