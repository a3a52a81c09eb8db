"""The real server behind TLS, asked by clients that check its certificate."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websockets

from tests.certificates import Authority, encrypt, first_certificate
from tests.conftest import DEADLINE, Server, clean_environment, wait_until
from tests.e2e.tools import read_all
from tests.wss import wss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import asyncio, json, os

def mark(word):
    with open("marks.txt", "a") as file:
        file.write(f"{os.getpid()} {word}\\n")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                mark("shutdown")
                return
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": told(scope)})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        mark(f"websocket {message['code']}")
    else:
        body = b"x" * 1_000_000 if scope["path"] == "/big" else told(scope).encode()
        if scope["path"] == "/upload":
            size, more = 0, True
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message["more_body"]
            body = str(size).encode()
        if scope["path"] == "/wait":
            mark("wait")
            while (await receive())["type"] != "http.disconnect":
                pass
            mark("gone")
        if scope["path"] == "/slow":
            mark("slow")
            await asyncio.sleep(0.5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

def told(scope):
    seen = {name: scope[name] for name in ("scheme", "client", "server")}
    return json.dumps({**seen, "pid": os.getpid(), "tls": scope.get("extensions", {}).get("tls")})
"""

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certs"))


@contextlib.contextmanager
def connected(port: int, context: ssl.SSLContext) -> Iterator[http.client.HTTPSConnection]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=DEADLINE, context=context)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPSConnection, path: str = "/", body: bytes | None = None) -> bytes:
    connection.request("GET" if body is None else "POST", path, body)
    return connection.getresponse().read()


def certificate_of(port: int, context: ssl.SSLContext) -> str:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as raw, context.wrap_socket(raw, server_hostname="localhost") as secured:
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(True) or b"")


def marks(running: Server) -> str:
    path = running.directory / "marks.txt"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_day_in_the_life_of_a_tls_server(server: Callable[..., Server], authority: Authority, tmp_path: Path, loop: str) -> None:
    pair = authority.issue(f"server-{loop}")
    mine = authority.issue("client", common_name="Ada Lovelace")
    locked = encrypt(pair.key, PASSWORD)
    running = server(
        *("app:app", "--loop", loop, "--ssl-certfile", pair.certificate, "--ssl-keyfile", locked),
        *("--ssl-ca-certs", authority.file, "--ssl-cert-reqs", "1"),
        files={"app.py": APP},
        environ={"LARAMAN_SSL_KEYFILE_PASSWORD": PASSWORD},
    )
    port = running.port
    assert f"running on https://127.0.0.1:{port} (Press CTRL+C to quit)" in running.output
    assert running.status()["server"]["addresses"] == [f"https://127.0.0.1:{port}"]

    # What the application sees, on one connection and over a websocket.
    with connected(port, authority.client()) as anonymous, connected(port, authority.client(mine)) as known:
        seen = json.loads(ask(anonymous))
        assert (seen["scheme"], seen["server"], seen["client"]) == ("https", ["127.0.0.1", port], list(anonymous.sock.getsockname()))
        assert (seen["tls"]["server_cert"], seen["tls"]["client_cert_chain"]) == (first_certificate(pair), [])
        assert (seen["tls"]["tls_version"], seen["tls"]["client_cert_name"]) == (0x0304, None)
        assert len(ask(anonymous, "/big")) == 1_000_000
        assert ask(anonymous, "/upload", b"y" * 500_000) == b"500000"
        seen = json.loads(ask(known))["tls"]
        assert (seen["client_cert_chain"][0], seen["client_cert_name"].partition(",")[0]) == (first_certificate(mine), "CN=Ada Lovelace")
        with wss(f"wss://127.0.0.1:{port}/", authority.client(mine)) as websocket:
            seen = json.loads(websocket.recv(DEADLINE))
            assert (seen["scheme"], seen["tls"]["client_cert_name"].partition(",")[0]) == ("wss", "CN=Ada Lovelace")
            websocket.send("hello")
            assert websocket.recv(DEADLINE) == "hello"
            assert sorted(row["protocol"] for row in running.connections()) == ["https", "https", "websocket"]

    # Whoever does not speak TLS, or shows a certificate of another authority, is not let in.
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"200" not in plain.recv(1000)
    forged = Authority(tmp_path).issue("forged")
    with connected(port, authority.client(forged)) as stranger, pytest.raises(OSError):  # noqa: PT011 - when it shows depends on the version of TLS
        ask(stranger)

    # TLS has no half of a connection: whoever says that it sends no more is gone.
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as raw, authority.client().wrap_socket(raw, server_hostname="localhost") as secured:
        secured.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: "wait" in marks(running), what="the request")
        secured.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            secured.unwrap()
        wait_until(lambda: "gone" in marks(running), what="the disconnect")

    # The certificate is exchanged; what is connected goes on.
    with connected(port, authority.client()) as old:
        before = json.loads(ask(old))
        authority.issue(f"server-{loop}")
        locked = encrypt(pair.key, PASSWORD)
        new = first_certificate(pair)
        assert before["tls"]["server_cert"] != new
        wait_until(lambda: certificate_of(port, authority.client()) == new, what="the new certificate")
        assert json.loads(ask(old)) == before
    Path(pair.certificate).write_text("broken")
    wait_until(lambda: "cannot be used, the old ones stay" in running.output, what="the report")
    assert certificate_of(port, authority.client()) == new

    # The end: what runs is finished, a websocket is told, an idle connection and a half-made one keep nobody waiting.
    answers = []
    with (
        connected(port, authority.client()) as idle,
        connected(port, authority.client()) as busy,
        wss(f"wss://127.0.0.1:{port}/", authority.client()) as websocket,
        socket.create_connection(("127.0.0.1", port), DEADLINE),
    ):
        ask(idle)
        asking = threading.Thread(target=lambda: answers.append(ask(busy, "/slow")))
        asking.start()
        wait_until(lambda: "slow" in marks(running), what="the slow request")
        running.process.send_signal(signal.SIGTERM)
        websocket.recv(DEADLINE)
        with pytest.raises(websockets.ConnectionClosed):
            websocket.recv(DEADLINE)
        assert websocket.close_code == 1012
        asking.join(DEADLINE)
        assert json.loads(answers[0])["scheme"] == "https"
        assert running.process.wait(DEADLINE) == 0
    assert [word.partition(" ")[2] for word in marks(running).splitlines()] == [
        *("websocket 1000", "wait", "gone", "slow", "websocket 1012", "shutdown")
    ]
    assert PASSWORD not in running.output
    assert "Traceback" not in running.output
    assert "has no effect when using ssl" not in running.output
    assert running.output.count("cannot be used, the old ones stay") == 1


def ask_in_one_flight(port: int, context: ssl.SSLContext) -> bytes:
    """The status line when the request comes with the last bytes of the handshake, as most clients of TLS 1.3 send it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secured = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as raw:
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
        secured.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        raw.sendall(outgoing.read())
        while True:
            try:
                return secured.read(65536).partition(b"\r\n")[0]
            except ssl.SSLWantReadError:
                incoming.write(raw.recv(65536))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_handshake_does_not_count_for_the_limit(server: Callable[..., Server], authority: Authority, loop: str) -> None:
    running = server("app:app", "--loop", loop, "--limit-concurrency", "2", *authority.issue("limited").options, files={"app.py": APP})
    assert ask_in_one_flight(running.port, authority.client()) == b"HTTP/1.1 200 OK"
    with socket.create_connection(("127.0.0.1", running.port), DEADLINE), socket.create_connection(("127.0.0.1", running.port), DEADLINE):
        wait_until(lambda: len(running.connections()) >= 2, what="two handshakes that do not go on")
        assert ask_in_one_flight(running.port, authority.client()) == b"HTTP/1.1 200 OK"


def test_neither_a_reload_nor_the_stop_cuts_a_handshake_off(server: Callable[..., Server], authority: Authority) -> None:
    pair = authority.issue("reloaded")
    running = server("app:app", "--workers", "2", "--preload", *pair.options, files={"app.py": APP})
    port, context = running.port, authority.client()
    over, problems, pids = threading.Event(), list[object](), set[int]()

    def keep_asking() -> None:
        while not over.is_set():
            try:
                with connected(port, context) as connection:
                    pids.add(json.loads(ask(connection))["pid"])
            except ConnectionRefusedError:
                return  # nobody listens any more
            except (OSError, http.client.HTTPException, ValueError) as exc:
                problems.append(exc)

    askers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        wait_until(lambda: len(pids) >= 2, what="requests to both workers")
        result = running.cli("reload")
        assert result.returncode == 0, result.stderr
        wait_until(lambda: len(pids) >= 4, what="requests to the new workers")
        # Files that cannot be used: the old workers stay.
        key = Path(pair.key).read_text()
        Path(pair.key).write_text("broken")
        result = running.cli("reload")
        Path(pair.key).write_text(key)
        assert running.stop() == 0
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert (result.returncode, f"--ssl-keyfile {pair.key}: there is no private key in PEM in it" in result.stderr) == (1, True)
    assert problems == []
    assert len(pids) == 4


def start_and_fail(directory: Path, *arguments: str, environ: dict[str, str] | None = None) -> Any:
    (directory / "app.py").write_text(APP)
    return subprocess.run(
        [sys.executable, "-m", "laraman", "app:app", "--port", "0", *arguments],
        cwd=directory,
        env=clean_environment(environ or {}),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_files_that_cannot_be_used_are_one_line_and_no_crash_loop(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("locked")
    locked = encrypt(pair.key, PASSWORD)
    for arguments, line in (
        (("--ssl-certfile", "/no/such.pem"), "--ssl-certfile /no/such.pem: No such file or directory"),
        (
            ("--workers=2", "--ssl-certfile", pair.certificate, "--ssl-keyfile", locked, "--ssl-keyfile-password", "hunter2"),
            f"--ssl-keyfile {locked}: the key cannot be decrypted; the password is wrong",
        ),
        (("--preload", "--ssl-certfile", pair.certificate, "--ssl-keyfile", locked), f"--ssl-keyfile {locked}: the key is encrypted; set"),
    ):
        result = start_and_fail(tmp_path, *arguments)
        assert result.returncode == 2, result.stderr
        # The master says it once, whatever the number of workers; nothing waits at a terminal for a password.
        assert 1 <= result.stderr.count(line) <= 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "hunter2" not in result.stderr + result.stdout


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_whoever_was_accepted_before_the_stop_is_served(server: Callable[..., Server], authority: Authority, loop: str) -> None:
    running = server("app:app", "--loop", loop, *authority.issue("stopped").options, files={"app.py": APP})
    port, context = running.port, authority.client()
    (worker,) = (row["pid"] for row in running.processes())
    with contextlib.ExitStack() as stack:
        halfway = [stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))]
        wait_until(lambda: [row["state"] for row in running.connections()] == ["ARRIVING"], what="a handshake under way")
        # More than are taken in at one turn of the loop, while the worker cannot take any: they wait in the kernel when the stop comes.
        os.kill(worker, signal.SIGSTOP)
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE)) for _ in range(40)]
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: running.status().get("server", {}).get("state") == "stopping", what="the stop")
        os.kill(worker, signal.SIGCONT)

        def served(raw: socket.socket) -> bool:
            with context.wrap_socket(raw, server_hostname="localhost") as secured:
                secured.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                return read_all(secured).startswith(b"HTTP/1.1 200")

        with ThreadPoolExecutor(8) as threads:
            assert [*threads.map(served, halfway + waiting)] == [True] * 41
    assert running.process.wait(DEADLINE) == 0
