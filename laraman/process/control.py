"""The control socket: the master's side, which nobody can block, and the command line's, which waits with a deadline.

Ipc envelopes both ways; an answer echoes ``op`` and ``id`` and says ``ok``, or ``error``.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from laraman.errors import ConnectionLost, LocalProtocolError, ProtocolError
from laraman.process.state import CONTROL_SOCKET, alive
from laraman.protocols.ipc import Ipc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from laraman.protocols.ipc import Envelope

#: Commands are small: the largest a client may send, in bytes.
MAX_COMMAND = 64 * 1024
#: Clients at a time; one more replaces the one that has been silent longest.
MAX_CLIENTS = 64
#: Commands of one client that may wait for their answer.
MAX_WAITING = 16
#: Bytes of unsent answers above which a client is not read any more.
HIGH_WATER = 256 * 1024
#: Seconds after which a client that neither sends, reads, nor waits for an answer is closed.
IDLE = 30.0

_ANSWERS = Ipc()  # encodes only; commands have a smaller limit


class Client:
    """One connection to the control socket, in the master."""

    __slots__ = ("_control", "_ipc", "_outbox", "last", "socket", "waiting")

    def __init__(self, control: Control, connection: socket.socket) -> None:
        self.socket = connection
        self.waiting = 0
        self.last = time.monotonic()
        self._control = control
        self._ipc = Ipc(MAX_COMMAND)
        self._outbox = bytearray()

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def answer(self, request: Envelope, **fields: Any) -> None:
        """Answer a request, which must have been handed to the handler. Does not wait; a client that is gone is no error."""
        self.waiting -= 1
        if not self.closed:
            self._send({"op": request["op"], **({"id": request["id"]} if "id" in request else {}), **fields})

    def _send(self, answer: Envelope) -> None:
        try:
            self._outbox += _ANSWERS.send(answer)
        except LocalProtocolError as exc:
            self._outbox += _ANSWERS.send({"op": answer["op"], "ok": False, "error": f"the answer is too large: {exc}"})
        self.flush()

    def on_event(self, mask: int) -> None:
        """The selector says that it can be read or written."""
        try:
            if mask & selectors.EVENT_WRITE:
                self.flush()
            if mask & selectors.EVENT_READ and not self.closed:
                self._receive()
        except (OSError, ProtocolError):
            self.close()

    def _receive(self) -> None:
        # A small piece at a time: a client that sends thousands of commands at once gets its turn like everybody else.
        try:
            data = self.socket.recv(4096)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self.last = time.monotonic()
        for envelope in self._ipc.receive_data(data):
            self.waiting += 1
            if self.waiting > MAX_WAITING:
                self.answer(envelope, ok=False, error="too many commands at once")
            else:
                self._control.handle(self, envelope)

    def flush(self) -> None:
        """Send what the kernel takes; the selector brings us back for the rest."""
        if self.closed:
            return
        try:
            while self._outbox:
                sent = self.socket.send(self._outbox)
                del self._outbox[:sent]
                self.last = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        reading = selectors.EVENT_READ if len(self._outbox) < HIGH_WATER else 0
        writing = selectors.EVENT_WRITE if self._outbox else 0
        self._control.selector.modify(self.socket, reading | writing, self.on_event)

    def close(self) -> None:
        if not self.closed:
            self._control.selector.unregister(self.socket)
            self.socket.close()
            self._control.clients.discard(self)


class Control:
    """The listening side, in the master's selector. ``handle(client, envelope)`` answers now or later through ``client.answer``."""

    def __init__(self, selector: selectors.BaseSelector, listener: socket.socket, handle: Callable[[Client, Envelope], None]) -> None:
        self.selector = selector
        self.handle = handle
        self.listener = listener
        self.clients: set[Client] = set()
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        try:
            connection, _ = self.listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: make room, or the listener stays readable and we spin
            self._close_stalest()
            return
        if len(self.clients) >= MAX_CLIENTS:
            self._close_stalest()
        connection.setblocking(False)
        client = Client(self, connection)
        self.clients.add(client)
        self.selector.register(connection, selectors.EVENT_READ, client.on_event)

    def _close_stalest(self) -> None:
        if self.clients:
            min(self.clients, key=lambda client: (client.waiting > 0, client.last)).close()

    def tick(self, now: float) -> None:
        """Close who has been idle for too long."""
        for client in [client for client in self.clients if not client.waiting and now - client.last > IDLE]:
            client.close()

    def forget(self) -> None:
        """Close the descriptors in a freshly forked child, without a word to anybody."""
        self.listener.close()
        for client in self.clients:
            client.socket.close()

    def close(self) -> None:
        for client in list(self.clients):
            client.flush()
            client.close()
        with suppress(KeyError):
            self.selector.unregister(self.listener)
        self.listener.close()


def listen(path: Path) -> socket.socket:
    """Open the control socket, 0600. The directory is locked by us, so what is there was left behind. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Between bind and chmod the 0700 directory protects it; the umask belongs to all threads and is left alone.
        listener.bind(os.fspath(path))
        os.chmod(path, 0o600)
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


# The client -----------------------------------------------------------------------------------------------------------------------


def request(where: Path, envelope: Envelope, timeout: float) -> Envelope:
    """Send one envelope and wait for its answer, both within ``timeout`` seconds.

    ``where`` is the control socket or its state directory. Raises ConnectionLost when nobody listens there or the answer does not come in
    time. An answer whose ``ok`` is false is returned like any other.
    """
    path = where / CONTROL_SOCKET if where.is_dir() else where
    deadline = time.monotonic() + timeout
    ipc = Ipc()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(_left(deadline))
            connection.connect(os.fspath(path))
            connection.sendall(ipc.send(envelope))
            while True:
                connection.settimeout(_left(deadline))
                data = connection.recv(65536)
                if not data:
                    raise ConnectionLost("the server closed the control connection")
                for answer in ipc.receive_data(data):
                    if answer.get("id") == envelope.get("id"):
                        return answer
        except TimeoutError:
            raise ConnectionLost(f"the server did not answer within {timeout:.0f} s") from None
        except OSError as exc:
            raise ConnectionLost(f"no server answers at {path}: {exc.strerror or exc}") from exc


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def restart(where: Path, timeout: float) -> Envelope:
    """Ask for a restart and wait until the new master has replaced every worker, all within ``timeout`` seconds.

    Returns the restart's answer: ``ok`` is false with ``error`` when the configuration does not load or the new workers cannot boot.
    Raises ConnectionLost when the server did not come back.
    """
    deadline = time.monotonic() + timeout
    before = request(where, {"op": "status"}, timeout)["server"]["restarts"]
    answer = request(where, {"op": "restart"}, timeout)
    while answer["ok"]:
        left = deadline - time.monotonic()
        if left <= 0:
            return {**answer, "ok": False, "error": f"not over after {timeout:.0f} s"}
        server = _status_again(where, left)
        if server and not server["rolling"] and (server["restarts"] > before or server["last_roll_error"]):
            error = server["last_roll_error"]
            return {**answer, "ok": False, "error": error} if error else answer
        time.sleep(0.05)
    return answer


def _status_again(where: Path, timeout: float) -> dict[str, Any] | None:
    """The status's server part; None when it was cut off by the very exec we wait for. Raises ConnectionLost when the server is gone."""
    try:
        server: dict[str, Any] = request(where, {"op": "status"}, timeout)["server"]
    except ConnectionLost:
        if not alive(where if where.is_dir() else where.parent):
            raise
        return None
    return server


def wait_gone(where: Path, timeout: float) -> bool:
    """Wait until the server of this control socket or state directory has ended; False when it still lives after ``timeout`` seconds."""
    directory = where.parent if where.name == CONTROL_SOCKET else where
    deadline = time.monotonic() + timeout
    while alive(directory):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
