"""The one client of all rows: raw sockets and websockets, and what it shows of what it got."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from websockets.sync.client import connect

from tests.conftest import DEADLINE, wait_until
from tests.contract.serving import CLIENT_TLS
from tests.wss import wss

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.contract.serving import Running

#: What a row does with a server; what it returns is what it has seen.
Do = "Callable[[Running], Any]"


class Answer(NamedTuple):
    line: str
    headers: list[tuple[str, str]]
    body: str
    raw: bytes

    def get(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


def dial(server: Running) -> socket.socket:
    """A connection as the server's configuration asks for."""
    sock = server.dial()
    return CLIENT_TLS.wrap_socket(sock) if server.tls else sock


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1", body: str = "", host: str = "Host: there", close: bool = True) -> bytes:
    """The bytes of a request, after which the server closes."""
    every = [*([host] if host else []), *fields, *(["Connection: close"] if close and version == "1.1" else [])]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *every, "", body]).encode("latin-1")


def post(path: str, body: str, *fields: str, close: bool = True) -> bytes:
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST", body=body, close=close)


def read_answer(file: BinaryIO, method: str = "GET") -> Answer | None:
    """The next response; None at the end of the connection. An end within a response is an end of its body."""
    raw = line = file.readline()
    if not line:
        return None
    headers: list[tuple[str, str]] = []
    while (field := file.readline()) not in (b"\r\n", b""):
        raw += field
        name, _, value = field.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    fields = {name.lower(): value for name, value in headers}
    body = b""
    if method != "HEAD" and line.split()[1][:1] != b"1" and line.split()[1] not in (b"204", b"304"):
        if fields.get("transfer-encoding") == "chunked":
            while (size := file.readline().strip()) and int(size, 16):
                body += file.read(int(size, 16))
                file.readline()
            body += b"" if size else b"<cut off>"
            file.readline() if size else None
        elif "content-length" in fields:
            body = file.read(int(fields["content-length"]))
            body += b"" if len(body) == int(fields["content-length"]) else b"<cut off>"
        else:
            body = file.read()
    return Answer(line.decode("latin-1").rstrip("\r\n"), headers, body.decode("latin-1"), raw)


def exchange(server: Running, *pieces: bytes, method: str = "GET") -> list[Answer]:
    """Send everything, and read answers until the server closes."""
    with contextlib.closing(dial(server)) as sock, sock.makefile("rb") as file:
        for piece in pieces:
            sock.sendall(piece)
        found = []
        with contextlib.suppress(ConnectionResetError):
            while (answer := read_answer(file, method)) is not None:
                found.append(answer)
        return found


def fetch(server: Running, path: str) -> Any:
    """The JSON of a page."""
    [answer] = exchange(server, get(path))
    assert answer.line == "HTTP/1.1 200 OK", answer
    return json.loads(answer.body)


# What rows do ---------------------------------------------------------------------------------------------------------------------


def answers(*pieces: bytes, method: str = "GET") -> Callable[[Running], Any]:
    """Status and body of each response until the server closes; only those of one when there is one."""

    def do(server: Running) -> Any:
        found = [(answer.line, answer.body) for answer in exchange(server, *pieces, method=method)]
        return found[0] if len(found) == 1 else found

    return do


def fields(data: bytes, *names: str, method: str = "GET") -> Callable[[Running], Any]:
    """The values of these header fields, as a list for each name. Without names: all but Date and Server, sorted."""

    def do(server: Running) -> Any:
        [answer] = exchange(server, data, method=method)
        if not names:
            return sorted((name, value) for name, value in answer.headers if name not in ("date", "server"))
        return [answer.get(name) for name in names]

    return do


def scope(data: bytes, *keys: str) -> Callable[[Running], Any]:
    """What the application found there; for several keys a list, "absent" where there is none. Ports of clients are "port"."""

    def do(server: Running) -> Any:
        [answer] = exchange(server, data)
        return _picked(json.loads(answer.body), keys, server)

    return do


def websocket_scope(path: str, *keys: str, headers: dict[str, str] | None = None, **options: Any) -> Callable[[Running], Any]:
    def do(server: Running) -> Any:
        with websocket(server, path, additional_headers=headers, **options) as client:
            return _picked(json.loads(client.recv(DEADLINE)), keys, server)

    return do


def _picked(found: dict[str, Any], keys: tuple[str, ...], server: Running) -> Any:
    values = [_plain(found.get(key, "absent")) for key in keys]
    for index, key in enumerate(keys):
        value = values[index]
        if key in ("client", "server") and isinstance(value, tuple) and isinstance(value[1], int) and value[1]:
            values[index] = (value[0], "port" if key == "client" or value[1] == server.port else value[1])
        if key == "server" and isinstance(value, tuple) and value[1] is None:
            values[index] = (os.path.basename(value[0]), None)
    return values[0] if len(keys) == 1 else values


def _plain(value: Any) -> Any:
    """The value that ``shown`` of the application stands for."""
    if isinstance(value, dict):
        if set(value) == {"bytes"}:
            return value["bytes"].encode("latin-1")
        if set(value) == {"tuple"}:
            return tuple(_plain(item) for item in value["tuple"])
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def recorded(path: str, count: int, act: Callable[[Running], Any]) -> Callable[[Running], Any]:
    """Act, and return the first ``count`` things that the application has written down under this path's query."""
    key = path.partition("?")[2]

    def do(server: Running) -> Any:
        act(server)
        return wait_until(lambda: found if len(found := fetch(server, f"/records?{key}")) >= count else None, what=f"{count} records of {key}")

    return do


def lines(stream: str, count: int, act: Callable[[Running], Any]) -> Callable[[Running], Any]:
    """Act, and return the ``count`` lines that this stream has from then on, without addresses, process ids and tracebacks."""

    def do(server: Running) -> Any:
        before = len(getattr(server, stream))
        act(server)

        def found() -> list[str] | None:
            fresh = [line for line in told(getattr(server, stream)[before:]) if not line.endswith("connection closed")]  # of an earlier row
            return fresh if len(fresh) >= count else None

        return wait_until(found, what=f"{count} lines on {stream} of {server.name}: {getattr(server, stream)[before:]}")

    return do


def told(text: str) -> list[str]:
    """The lines of a log with ``*`` for what differs from run to run, without tracebacks."""
    kept = [line for line in text.splitlines() if re.match(r"(TRACE|DEBUG|INFO|WARNING|ERROR|CRITICAL): ", line)]
    return [re.sub(r"127\.0\.0\.1:\d+|(?<=\[)\d+(?=\])", "*", line) for line in kept]


# Websockets -----------------------------------------------------------------------------------------------------------------------


def websocket(server: Running, path: str, **options: Any) -> Any:
    times: dict[str, Any] = {"open_timeout": DEADLINE, "close_timeout": DEADLINE, "ping_interval": None}
    if server.tls:
        return wss(f"wss://{server.host}:{server.port}{path}", CLIENT_TLS, **times, **options)
    return connect(f"ws://there{path}", proxy=None, sock=server.dial(), **times, **options)


KEY = base64.b64encode(b"0123456789abcdef").decode()


def upgrade(path: str, *extra: str) -> bytes:
    """The bytes of a websocket handshake."""
    return get(path, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}", *extra, close=False)


def frame(opcode: int, payload: bytes, *, first: int = 0x80) -> bytes:
    """A frame of a client, with a mask of zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([first | opcode]) + length + bytes(4) + payload


def handshake(server: Running, path: str, *extra: str) -> tuple[socket.socket, Answer]:
    sock = dial(server)
    sock.sendall(upgrade(path, *extra))
    head = b""
    while b"\r\n\r\n" not in head and (piece := sock.recv(1)):
        head += piece
    line, *rest = head.decode("latin-1").split("\r\n")
    return sock, Answer(line, [(name, value.strip()) for name, _, value in (field.partition(":") for field in rest if field)], "", head)


def frames(path: str, *sent: bytes, count: int | None = None) -> Callable[[Running], Any]:
    """The frames, (opcode, payload), that come back for those that are sent: until a close or ``count``."""

    def do(server: Running) -> Any:
        sock, answer = handshake(server, path)
        with contextlib.closing(sock), sock.makefile("rb") as file:
            assert answer.line.startswith("HTTP/1.1 101"), answer
            for piece in sent:
                sock.sendall(piece)
            found: list[tuple[int, bytes]] = []
            while count is None or len(found) < count:
                head = file.read(2)
                if len(head) < 2:
                    break
                size = head[1] & 127
                payload = file.read(int.from_bytes(file.read(2), "big") if size == 126 else size)
                found.append((head[0] & 15, payload))
                if head[0] & 15 == 8:
                    break
            return found

    return do


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(8, code.to_bytes(2, "big") + reason.encode())
