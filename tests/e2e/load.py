"""A client that keeps a server busy and remembers everything that is not a complete, right answer."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

#: Seconds after which an answer is missing, and which the last answers get when the load ends.
PATIENCE = 10.0


@dataclass(slots=True)
class Failure:
    """``pid`` is of the worker that had answered on this connection before, None when nobody had."""

    what: str
    pid: int | None
    answers: int
    at: float


@dataclass(slots=True, eq=False)
class _Client:
    """One connection: at most one request is under way on it."""

    sock: socket.socket
    sent_at: float = 0.0
    data: bytearray = field(default_factory=bytearray)
    pid: int | None = None
    answers: int = 0


class Load:
    """``connections`` clients in a thread, each sending its next request when it has its answer, from entering the block to leaving it.

    With ``close`` every request has a connection of its own. The application answers 200 with its pid in front of the body. Afterwards
    ``failures`` says what went wrong after a connection was made, ``refused`` how many could not be made.
    """

    def __init__(self, port: int, *, connections: int = 8, close: bool = False, path: str = "/") -> None:
        self._address = ("127.0.0.1", port)
        self._count = connections
        self._close = close
        self._request = f"GET {path} HTTP/1.1\r\nHost: test\r\n{'Connection: close' if close else 'X: y'}\r\n\r\n".encode()
        self._selector = selectors.DefaultSelector()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._clients: set[_Client] = set()
        self.answers = 0
        self.refused = 0
        self.pids: set[int] = set()
        self.failures: list[Failure] = []

    def __enter__(self) -> Load:
        self._thread.start()
        self.go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join(2 * PATIENCE)
        assert not self._thread.is_alive()

    def go_on(self, answers: int = 200) -> None:
        """Wait until so many more requests have been answered."""
        wanted = self.answers + answers
        deadline = time.monotonic() + PATIENCE
        while self.answers < wanted and self._thread.is_alive():
            assert time.monotonic() < deadline, f"only {self.answers} of {wanted} requests were answered; {self.failures[:5]}"
            time.sleep(0.005)

    def _run(self) -> None:
        for _ in range(self._count):
            self._open()
        while self._clients:
            for key, mask in self._selector.select(0.1):
                (self._connected if mask & selectors.EVENT_WRITE else self._read)(key.data)
            now = time.monotonic()
            for client in [client for client in self._clients if now - client.sent_at > PATIENCE]:
                self._fail(client, "no answer")
        self._selector.close()

    def _open(self) -> None:
        """Begin to connect. Never waits: a connection that is not heard must not keep the others from speaking."""
        if self._ending.is_set() or self.refused:
            return
        client = _Client(socket.socket(), time.monotonic())
        client.sock.setblocking(False)
        client.sock.connect_ex(self._address)
        self._clients.add(client)
        self._selector.register(client.sock, selectors.EVENT_WRITE, client)

    def _connected(self, client: _Client) -> None:
        if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.refused += 1
            self._drop(client)
        else:
            self._selector.modify(client.sock, selectors.EVENT_READ, client)
            self._send(client)

    def _send(self, client: _Client) -> None:
        client.sent_at = time.monotonic()
        try:
            client.sock.sendall(self._request)
        except OSError as exc:
            self._fail(client, f"sending: {exc!r}")

    def _read(self, client: _Client) -> None:
        try:
            data = client.sock.recv(65536)
        except OSError as exc:
            self._fail(client, repr(exc))
            return
        if not data:
            self._fail(client, f"EOF after {bytes(client.data)!r}")
            return
        client.data += data
        head, separator, body = bytes(client.data).partition(b"\r\n\r\n")
        fields = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in fields if line.startswith(b"content-length:")), None)
        if not separator or length is None or len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200 ") or len(body) > length:
            self._fail(client, repr(bytes(client.data)))
            return
        self._answered(client, int(body.split()[0]), b"connection: close" in fields)

    def _answered(self, client: _Client, pid: int, closes: bool) -> None:
        self.answers += 1
        self.pids.add(pid)
        client.answers += 1
        client.pid = pid
        client.data.clear()
        if closes or self._ending.is_set():
            self._drop(client)
            self._open()
        else:
            self._send(client)

    def _fail(self, client: _Client, what: str) -> None:
        self.failures.append(Failure(what, client.pid, client.answers, time.monotonic()))
        self._drop(client)
        self._open()

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        client.sock.close()
        self._clients.discard(client)
