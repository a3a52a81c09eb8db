"""Ask a process that listens on a unix socket: JSON there, JSON back. Blocking, for programs that have no event loop.

    reply = call("/run/app.sock", {"op": "broadcast", "text": "closing time"})

    python ipc_client.py /run/app.sock '{"op": "broadcast", "text": "closing time"}' 5      # the same from a shell; 5 are the seconds

A request is a 4-byte big-endian length and so many bytes of JSON; so is the reply. The other side is a ``request+unix://`` worker of laraman, or
EasySwoole's unix process. Nothing but Python's own library is needed: this file can be copied into any program as it is (MIT).

What can go wrong, all of it a CallError:

    Unreachable     nobody listens there, or not for us: nothing was sent
    Late            no reply in time; whether the request was handled is not known
    Broken          the other side hung up, or what it sent is no reply; whether the request was handled is not known
    TooLarge        the request or its reply is longer than ``max_size``; a request was not sent then

A value that JSON cannot hold is a TypeError or ValueError, as ``json.dumps`` raises it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from typing import Any

__all__ = ["Broken", "CallError", "Client", "Late", "TooLarge", "Unreachable", "call"]

#: Bytes of the largest request and reply: what a laraman worker accepts when nothing else is said.
MAX_SIZE = 10 * 1024 * 1024


class CallError(Exception):
    """There is no reply."""


class Unreachable(CallError):
    """Nobody listens there, or one may not connect. Nothing was sent."""


class Late(CallError):
    """The time is over."""


class Broken(CallError):
    """The connection ended before the reply was complete, or the reply is none."""


class TooLarge(CallError):
    """The request or the reply is longer than is allowed."""


class _Unread(Broken):
    """And it has not read the request to its end, so it has not handled it."""


def call(path: str | os.PathLike[str], obj: Any, timeout: float = 5.0, *, max_size: int = MAX_SIZE) -> Any:
    """Send one request on a connection of its own and return the reply. ``bytes`` are sent as they are, anything else as JSON; a reply that is
    not JSON comes back as ``bytes``. ``timeout`` is in seconds, for all of it: connecting, sending, the handler's work, and the reply."""
    with Client(path, timeout, max_size=max_size) as client:
        return client.call(obj)


class Client:
    """Many calls on one connection, for a worker that keeps it (``timeout_keep_alive``); others end it after the first reply.

    For one thread at a time. A connection that was ended since the last call is made anew, as after an error, and a request that it ended without
    reading, on a connection it had kept until then, is sent there. None is handled twice: when nobody knows, that is Broken, and the caller decides.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = 5.0, *, max_size: int = MAX_SIZE) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self.max_size = max_size
        self._socket: socket.socket | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent; the next call connects anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, obj: Any, timeout: float | None = None) -> Any:
        """As the function ``call``; ``timeout`` in place of the client's own."""
        body = obj if isinstance(obj, bytes) else json.dumps(obj, separators=(",", ":"), allow_nan=False).encode()
        if len(body) > self.max_size:
            raise TooLarge(f"the request has {len(body)} bytes, {self.max_size} are allowed")
        seconds = self.timeout if timeout is None else timeout
        try:
            reply = self._exchange(len(body).to_bytes(4, "big") + body, time.monotonic() + seconds)
        except TimeoutError:
            self.close()
            raise Late(f"no reply from {self.path} within {seconds:g} s") from None
        except OSError as exc:
            self.close()
            raise Broken(f"{self.path}: {exc.strerror or exc}") from exc
        except BaseException:  # whatever is left of the reply would be taken for the next one
            self.close()
            raise
        return _decoded(reply)

    def _exchange(self, data: bytes, deadline: float) -> bytes:
        if self._socket is not None and _is_closed(self._socket):
            self.close()
        if self._socket is not None:
            with contextlib.suppress(_Unread):
                return self._ask(self._socket, data, deadline)
            self.close()
        self._socket = _connected(self.path, deadline)
        return self._ask(self._socket, data, deadline)

    def _ask(self, sock: socket.socket, data: bytes, deadline: float) -> bytes:
        unread = False
        start = b""
        try:
            _send(sock, data, deadline)
        except (BrokenPipeError, ConnectionResetError):
            unread = True  # the reply, if there is one, says why
        try:
            sock.settimeout(_left(deadline))
            start = sock.recv(4)
        except ConnectionResetError:  # Linux does this to the peer of a unix socket that is closed with something unread in it, and else never
            unread = True
        if unread and not start:
            raise _Unread(f"{self.path} hung up before it had read the request")
        length = int.from_bytes(start + self._read(sock, 4 - len(start), deadline), "big")
        if length > self.max_size:
            raise TooLarge(f"the reply of {self.path} has {length} bytes, {self.max_size} are allowed")
        return self._read(sock, length, deadline)

    def _read(self, sock: socket.socket, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            sock.settimeout(_left(deadline))
            piece = sock.recv(min(size - len(data), 262144))
            if not piece:
                raise Broken(f"{self.path} hung up before its reply was complete")
            data += piece
        return bytes(data)


def _connected(path: str, deadline: float) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as exc:
        raise Unreachable(f"{path}: {exc.strerror}") from exc
    try:
        while True:
            sock.settimeout(_left(deadline))
            try:
                sock.connect(path)
            except BlockingIOError:  # its queue is full: Linux does not wait for it here
                time.sleep(min(0.01, _left(deadline)))
            else:
                return sock
    except TimeoutError:
        sock.close()
        raise
    except (OSError, ValueError) as exc:  # ValueError: a path with a zero byte
        sock.close()
        raise Unreachable(f"{path}: {getattr(exc, 'strerror', None) or exc}") from exc
    except BaseException:
        sock.close()
        raise


def _send(sock: socket.socket, data: bytes, deadline: float) -> None:
    left = memoryview(data)
    while left:
        sock.settimeout(_left(deadline))
        left = left[sock.send(left) :]


def _left(deadline: float) -> float:
    """Seconds; a socket's timeout is for one operation, so each gets what is left of the whole."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other side has ended a connection on which nothing is expected. What it may have said besides is nobody's reply."""
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body.decode())  # UTF-8 and nothing else: bytes with zeros in them would be taken for UTF-16
    except (ValueError, RecursionError):
        return body


def main(arguments: list[str]) -> int:
    """What the shell said is sent as it is, and the reply printed. 0: there is one; 1: there is none; 2: this was called in a wrong way."""
    try:
        path, body = arguments[:2]
        [timeout] = map(float, arguments[2:] or ["5"])
    except ValueError:
        print("usage: ipc_client.py SOCKET REQUEST [SECONDS]", file=sys.stderr)
        return 2
    try:
        reply = call(path, os.fsencode(body), timeout)
    except CallError as exc:
        print(exc, file=sys.stderr)
        return 1
    text = reply if isinstance(reply, bytes) else json.dumps(reply, ensure_ascii=False).encode(errors="backslashreplace")
    sys.stdout.buffer.write(text + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
