"""What the end-to-end tests need of HTTP, websockets, /proc and a running server."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from tests.conftest import Server


def get(port: int, path: str = "/", *, timeout: float = DEADLINE) -> tuple[int, str]:
    """Status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def send(port: int, data: bytes) -> socket.socket:
    """A connection on which ``data`` has been sent."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    sock.sendall(data)
    return sock


def send_get(port: int, path: str) -> socket.socket:
    return send(port, f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Everything up to and with ``end``; what there was, when the connection ends before."""
    data = b""
    while not data.endswith(end) and end not in data and (piece := sock.recv(65536)):
        data += piece
    return data


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def workers(server: Server, state: str = "ready") -> list[int]:
    """Pids of the http workers in this state, by slot."""
    rows = [row for row in server.status().get("processes", []) if row["worker"] == "http" and row["state"] == state]
    return [row["pid"] for row in sorted(rows, key=lambda row: row["slot"])]


def wait_workers(server: Server, count: int, *, without: set[int] | frozenset[int] = frozenset()) -> list[int]:
    """Wait until exactly ``count`` http workers are ready, none of ``without`` among them and nothing else is left; their pids."""

    def there() -> list[int]:
        rows = [row for row in server.status().get("processes", []) if row["worker"] == "http"]
        pids = [row["pid"] for row in rows]
        return pids if len(rows) == count and all(row["state"] == "ready" for row in rows) and without.isdisjoint(pids) else []

    return wait_until(there, what=f"{count} ready workers without {set(without) or 'exceptions'}")


def marks(server: Server) -> list[tuple[int, str]]:
    """What the application and the listeners wrote down: pid and word."""
    path = server.directory / "marks.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), word) for pid, _, word in (line.partition(" ") for line in lines)]


def words(server: Server, pid: int) -> list[str]:
    """What this process wrote down, in its order."""
    return [word for writer, word in marks(server) if writer == pid]


def wait_mark(server: Server, word: str) -> int:
    """Wait until somebody has written this word down; the pid."""
    return wait_until(lambda: next((pid for pid, found in marks(server) if found == word), 0), what=f"{word!r} in marks.txt")


def wait_word(server: Server, pid: int, word: str, count: int) -> None:
    """Wait until this process has written the word down so many times."""
    wait_until(lambda: words(server, pid).count(word) >= count, what=f"{word!r} from {pid}, {count} times")


def children(pid: int) -> dict[int, str]:
    """State letter of every child of ``pid``, zombies included."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid:
                    found[int(entry.name)] = state
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
