"""The client that other programs copy: against sockets that do everything wrong, in a process without laraman."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman import ipc_client
from laraman.ipc_client import Broken, Client, Late, TooLarge, Unreachable, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def read(sock: socket.socket) -> bytes:
    """One frame's body; b"" at the end of the connection."""
    with sock.makefile("rb") as file:
        return file.read(int.from_bytes(file.read(4), "big"))


@pytest.fixture
def listening(tmp_path: Path) -> Callable[..., AbstractContextManager[str]]:
    """``with listening(serve) as path``: each connection, one after another, is given to ``serve`` in a thread."""

    numbers = itertools.count()

    @contextlib.contextmanager
    def listen(serve: Callable[[socket.socket], Any]) -> Iterator[str]:
        path = str(tmp_path / f"{next(numbers)}.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()

            def work() -> None:
                with contextlib.suppress(OSError):  # the test is over
                    while True:
                        with listener.accept()[0] as sock:
                            serve(sock)

            thread = threading.Thread(target=work)
            thread.start()
            try:
                yield path
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(10)
                assert not thread.is_alive()

    return listen


def test_json_there_and_back(listening: Any) -> None:
    with listening(lambda sock: sock.sendall(framed(read(sock)))) as path:
        for value in ({"text": "Grüße 长度", "n": [1, None, 0.5]}, None, "x" * 1_000_000, "\ud800"):
            assert call(path, value) == value
        assert call(path, b"my name is siam") == b"my name is siam"
        for body in (b"1\0", b'"\0', b"\xff", b"\xef\xbb\xbf1"):  # that is no JSON, nor JSON in UTF-16
            assert call(path, body) == body
        assert call(Path(path), 1) == 1
        for wrong in (object(), float("nan")):
            with pytest.raises((TypeError, ValueError)):
                call(path, wrong)


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreachable, match=r"none\.sock: No such file"):
        call(str(tmp_path / "none.sock"), 1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "left.sock"))
    for path in (str(tmp_path / "left.sock"), str(tmp_path / ("x" * 200)), "with\0zero"):
        with pytest.raises(Unreachable):
            call(path, 1)
    with monkeypatch.context() as patched:
        patched.setattr(ipc_client.socket, "socket", no_descriptor)
        with pytest.raises(Unreachable, match=r"app\.sock: Too many open files"):
            call("app.sock", 1)


def no_descriptor(*given: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_queue_that_is_full_and_stays_so(tmp_path: Path) -> None:
    path = str(tmp_path / "full.sock")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        for _ in range(3):
            filling = stack.enter_context(socket.socket(socket.AF_UNIX))
            filling.setblocking(False)
            filling.connect_ex(path)
        with pytest.raises(Late, match=r"no reply from .* within 0\.2 s"):
            call(path, 1, 0.2)


def drip(sock: socket.socket) -> None:
    """A reply in pieces that come in time each, and too late together."""
    read(sock)
    with contextlib.suppress(OSError):
        for byte in framed(b"x" * 1000):
            sock.send(bytes([byte]))
            time.sleep(0.05)


def test_the_deadline_is_for_the_whole_call(listening: Any) -> None:
    begun = time.monotonic()
    for serve in (read, drip):
        with listening(lambda sock, serve=serve: (serve(sock), sock.recv(1))) as path, pytest.raises(Late):
            call(path, 1, 0.3)
    assert time.monotonic() - begun < 5
    with listening(lambda sock: time.sleep(1)) as path, pytest.raises(Late):
        call(path, "x" * 5_000_000, 0.3)  # that is never read


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", Broken),
        (b"\0\0", Broken),
        (b"\0\0\0\x0fmy", Broken),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TooLarge),
        (b"\xff\xff\xff\xff", TooLarge),
    ],
)
def test_what_is_no_reply(listening: Any, reply: bytes, error: type[Exception]) -> None:
    with listening(lambda sock: (read(sock), sock.sendall(reply))) as path, pytest.raises(error):
        call(path, {"op": "x"})


def test_a_request_that_is_too_large_is_not_sent_and_one_that_the_server_refuses_is_told_why(listening: Any) -> None:
    def refuse(sock: socket.socket) -> None:
        sock.recv(4)
        sock.sendall(framed(b'{"res":"fail","msg":"too long"}'))

    with listening(refuse) as path:
        with pytest.raises(TooLarge, match="the request has 102 bytes, 101 are allowed"):
            call(path, "x" * 100, max_size=101)
        assert call(path, "x" * 5_000_000) == {"res": "fail", "msg": "too long"}  # most of it was not taken


def test_many_calls_on_one_connection(listening: Any) -> None:
    connections: list[int] = []

    def serve(sock: socket.socket) -> None:
        connections.append(0)
        while body := read(sock):
            connections[-1] += 1
            if body == b'"leave"':
                sock.sendall(framed(b"bye"))
                return
            if body != b'"silence"':
                sock.sendall(framed(body))

    with listening(serve) as path, Client(path, 5) as client:
        assert [client.call(n) for n in range(5)] == [0, 1, 2, 3, 4]
        assert connections == [5]
        with pytest.raises(Late):
            client.call("silence", 0.2)
        assert client.call(7) == 7  # on a new one: a late reply could be taken for this one's
        assert client.call("leave") == b"bye"
        while not ipc_client._is_closed(client._socket):  # type: ignore[arg-type]
            time.sleep(0.01)
        assert client.call(8) == 8
        assert connections == [6, 2, 1]
        client.close()
        assert client.call(9) == 9


def test_what_a_kept_connection_has_ended_without_reading_is_sent_on_a_new_one(listening: Any) -> None:
    bodies: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        while body := read(sock):
            bodies.append(body)
            if body == b'"unknown"':
                return  # nobody knows what has become of it
            sock.sendall(framed(body))
            if body == b'"last"':
                sock.recv(1, socket.MSG_PEEK)
                return

    with listening(serve) as path, Client(path, 5) as client:
        assert [client.call(value) for value in ("last", "last", "x" * 1_000_000, "y")] == ["last", "last", "x" * 1_000_000, "y"]
        assert [len(body) for body in bodies] == [6, 6, 1_000_002, 3]
        with pytest.raises(Broken, match="hung up before its reply was complete"):
            client.call("unknown")
        assert bodies.count(b'"unknown"') == 1
    with listening(lambda sock: sock.recv(1)) as path, pytest.raises(Broken, match="hung up before it had read the request"):
        call(path, "one")  # on a connection of its own it has had its try


def test_the_file_alone_is_enough(listening: Any, tmp_path: Path) -> None:
    shutil.copy(ipc_client.__file__, tmp_path / "ipc_client.py")
    code = "import sys, ipc_client; print(ipc_client.call(sys.argv[1], {'n': 1}), 'laraman' in sys.modules, 'asyncio' in sys.modules)"
    with listening(lambda sock: sock.sendall(framed(json.dumps([json.loads(read(sock))]).encode()))) as path:
        result = subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[{'n': 1}] False False\n", "")


def test_from_a_shell(listening: Any) -> None:
    def ask(*arguments: str) -> tuple[int, str, str]:
        result = subprocess.run([sys.executable, ipc_client.__file__, *arguments], capture_output=True, text=True, timeout=30)
        return result.returncode, result.stdout, result.stderr

    with listening(lambda sock: sock.sendall(framed(read(sock)))) as path:
        assert ask(path, '{"text": "长度"}', "20") == (0, '{"text": "长度"}\n', "")
        assert ask(path, "my name is siam") == (0, "my name is siam\n", "")
        assert ask(path, r'"\ud800"') == (0, '"\\ud800"\n', "")
        command = [sys.executable, ipc_client.__file__, path, b"\xff\xfe"]
        environ = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"}
        assert subprocess.run(command, env=environ, capture_output=True, timeout=30).stdout == b"\xff\xfe\n"
    assert ask("none.sock", "1") == (1, "", "none.sock: No such file or directory\n")
    for wrong in ((), ("a",), ("a", "b", "c"), ("a", "b", "1", "2")):
        code, out, error = ask(*wrong)
        assert (code, out) == (2, "")
        assert error.startswith("usage: ")
