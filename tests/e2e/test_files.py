"""Starlette's files, by sendfile, under TLS, and without the extension: the same answers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

MIB = 1 << 20

APP = """
import os
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

offered = []

def done(name):
    with open("done.txt", "a") as file:
        file.write(name + "\\n")

async def download(request):
    offered.append("http.response.pathsend" in request.scope.get("extensions", {}))
    name = request.path_params["name"]
    return FileResponse("files/" + name, filename=name, background=BackgroundTask(done, name))

async def hinted(request):
    await request.send_early_hints("</a.css>; rel=preload")
    return PlainTextResponse("hinted")

async def passed_on(request, call_next):
    response = await call_next(request)
    response.headers["x-passed"] = "on"
    return response

routes = [Route("/files/{name}", download), Route("/hinted", hinted), Mount("/static", StaticFiles(directory="files", html=True))]
app = Starlette(routes=[
    Mount("/base", routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=passed_on)]),
    Mount("/gzip", routes=routes, middleware=[Middleware(GZipMiddleware)]),
    Route("/offered", lambda request: PlainTextResponse(repr(set(offered)))),
    *routes,
])
"""

#: Requests whose answers do not depend on how the bytes of the file come to the client.
REQUESTS: list[tuple[str, str, dict[str, str]]] = [
    ("GET", "/files/small.txt", {}),
    ("GET", "/files/large.bin", {}),
    ("HEAD", "/files/large.bin", {}),
    ("GET", "/files/empty", {}),
    ("GET", "/files/none", {}),
    ("GET", "/files/large.bin", {"Range": "bytes=1000000-3000000"}),
    ("GET", "/files/large.bin", {"Range": "bytes=-5"}),
    ("GET", "/files/large.bin", {"Range": "bytes=9999999-"}),
    ("GET", "/files/large.bin", {"Range": "bytes=0-9", "If-Range": '"other"'}),
    ("GET", "/static/large.bin", {}),
    ("HEAD", "/static/small.txt", {}),
    ("GET", "/static/", {}),
    ("GET", "/static/../app.py", {}),
    ("GET", "/base/files/large.bin", {}),
    ("GET", "/base/files/small.txt", {"Range": "bytes=1-2"}),
    ("GET", "/hinted", {}),
    ("GET", "/base/hinted", {}),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], ssl.SSLContext]:
    """The options of a server, and the context of its clients."""
    directory = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "certificate.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return ["--ssl-keyfile", str(directory / "key.pem"), "--ssl-certfile", str(directory / "certificate.pem")], context


def add_files(directory: Path) -> None:
    files = directory / "files"
    files.mkdir()
    contents = {"empty": b"", "small.txt": b"small " * 20, "index.html": b"<p>index</p>", "large.bin": b"0123456789abcdef" * 262_144}
    for name, content in contents.items():
        (files / name).write_bytes(content)
        os.utime(files / name, (1_700_000_000, 1_700_000_000))


@contextlib.contextmanager
def client_of(server: Server, context: ssl.SSLContext | None = None) -> Iterator[httpx.Client]:
    scheme = "http" if context is None else "https"
    verify: Any = False if context is None else context
    with httpx.Client(base_url=f"{scheme}://127.0.0.1:{server.port}", verify=verify, timeout=DEADLINE, trust_env=False) as client:
        yield client


#: With pathsend.
ALL = ("--asgi-extensions", "all")


def answers(client: httpx.Client) -> list[Any]:
    """What came, on kept connections, as far as it can be compared."""
    got = []
    for method, target, headers in REQUESTS:
        response = client.request(method, target, headers={"Accept-Encoding": "identity", **headers})
        fields = {name: value for name, value in response.headers.items() if name != "date"}
        got.append((method, target, headers, response.status_code, fields, hashlib.sha256(response.content).hexdigest(), len(response.content)))
    etag = client.head("/static/large.bin").headers["etag"]
    for target in ("/static/large.bin", "/base/static/large.bin"):
        response = client.get(target, headers={"If-None-Match": etag})
        got.append((target, response.status_code, response.content, response.headers["etag"]))
    return got


def test_the_same_answers(server: Callable[..., Server], certificate: tuple[list[str], ssl.SSLContext]) -> None:
    options, context = certificate
    plain, tls, without = (
        server("app:app", *more, files={"app.py": APP, "files.txt": ""}, ready=False) for more in (ALL, (*ALL, *options), ())
    )
    for running in (plain, tls, without):
        add_files(running.directory)
    got = []
    for running, trusted, offered in ((plain, None, True), (tls, context, True), (without, None, False)):
        running.wait_ready()
        with client_of(running, trusted) as client:
            got.append(answers(client))
            assert client.get("/offered").text == repr({offered})
            wait_until(lambda running=running: (running.directory / "done.txt").exists(), what="a background task")
            done = running.directory / "done.txt"
            names = [target.rpartition("/")[2] for _, target, _ in REQUESTS if "/files/" in target]
            expected = len([name for name in names if name != "none"]) - 1  # one range cannot be satisfied
            wait_until(lambda done=done, expected=expected: len(done.read_text().split()) == expected, what="all background tasks")
            # Compressed only where the bytes come through Python.
            large = client.get("/gzip/files/large.bin", headers={"Accept-Encoding": "gzip"})
            assert large.headers.get("content-encoding") == (None if offered else "gzip")
            assert len(large.content) == 4 * MIB
    assert got[0] == got[1]
    assert got[0] == got[2]
    statuses = [row[3] for row in got[0][: len(REQUESTS)]]
    assert statuses == [200, 200, 200, 200, 500, 206, 206, 416, 200, 200, 200, 200, 404, 200, 206, 200, 200]
    assert [row[1:3] for row in got[0][len(REQUESTS) :]] == [(304, b"")] * 2
    early = raw(plain, b"GET /hinted HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert early.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n")


def raw(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as sock:
        sock.sendall(request)
        received = b""
        while data := sock.recv(65536):
            received += data
        return received


def resident(pid: int) -> int:
    """KiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_hundred_slow_clients_cost_little_and_leave_nothing(
    server: Callable[..., Server], certificate: tuple[list[str], ssl.SSLContext], secure: bool
) -> None:
    options, context = certificate
    running = server("app:app", *ALL, *(options if secure else ()), files={"app.py": APP, "files/small.txt": "small"})
    with (running.directory / "files/huge.bin").open("wb") as file:
        file.truncate(512 * MIB)
    trusted = context if secure else None
    (pid,) = (row["pid"] for row in running.processes())
    with client_of(running, trusted) as client, contextlib.ExitStack() as stack:
        assert client.get("/files/small.txt").text == "small"
        before, descriptors = resident(pid), len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), DEADLINE))
            if secure:
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname="127.0.0.1"))
            sock.sendall(b"GET /files/huge.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
        assert client.get("/files/small.txt").text == "small"
        assert resident(pid) - before < 100 * 1024  # KiB: one of a hundred files would be more
        stack.close()
        assert client.get("/files/small.txt").text == "small"
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= descriptors + 2, what="the end of the connections")
    assert "ERROR" not in running.output
