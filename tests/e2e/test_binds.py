"""Where the real server listens: several addresses, descriptors, sockets of systemd; and what proxies in front of it say of the client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from laraman.protocols.proxy import SIGNATURE
from tests.certificates import Authority
from tests.conftest import DEADLINE, clean_environment, free_ports, wait_until
from tests.e2e.tools import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

APP = """
import json, os

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = json.dumps({name: scope[name] for name in ("scheme", "client", "server")}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""

GET = b"GET /there HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def ask(address: Any, data: bytes = GET) -> dict[str, Any]:
    """What the application saw; empty when there was no answer. ``address`` is of a socket: host and port, or a path."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(address)
        return answer(sock, data)


def answer(sock: Any, data: bytes = GET) -> dict[str, Any]:
    try:
        sock.sendall(data)
        _, _, body = read_all(sock).partition(b"\r\n\r\n")
    except (ConnectionResetError, BrokenPipeError):
        return {}
    found = re.search(rb"\{.*\}", body)
    return json.loads(found[0]) if found else {}


def running_lines(output: str) -> list[str]:
    return re.findall(r"running on (.*) \(Press CTRL\+C to quit\)", output)


@contextlib.contextmanager
def own_process(directory: Path, command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server that another process than the fixture starts, until it is stopped with SIGTERM."""
    (directory / "app.py").write_text(APP)
    environ = clean_environment({"TMPDIR": str(directory), **options.pop("environ", {})})
    with (directory / "output.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=environ, stdout=log, stderr=subprocess.STDOUT, **options)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, (directory / "output.txt").read_text()
    finally:
        process.kill()
        process.wait(DEADLINE)


LARAMAN = [sys.executable, "-m", "laraman", "start", "app:app"]


# Addresses ----------------------------------------------------------------------------------------------------------------------------


def test_several_addresses(server: Callable[..., Server], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (plain,) = free_ports(1)
    path = str(tmp_path / "laraman.sock")
    running = server(
        *("app:app", *authority.issue("server").options, "--uds-mode", "0600"),
        *("--bind", "127.0.0.1:0", "--bind", f"http://127.0.0.1:{plain}", "--bind", f"unix:{path}", "--bind", "[::1]:0"),
        files={"app.py": APP},
    )
    addresses = running.status()["server"]["addresses"]
    first, last = (int(addresses[index].rpartition(":")[2]) for index in (0, 3))
    assert addresses == [f"https://127.0.0.1:{first}", f"http://127.0.0.1:{plain}", f"https+unix://{path}", f"https://[::1]:{last}"]
    assert running_lines(running.output) == [*addresses[:2], f"unix socket {path}", addresses[3]]
    assert (stat.S_IMODE(os.stat(path).st_mode), 0 not in (first, last)) == (0o600, True)
    context = authority.client()
    for family, address, seen in (
        (socket.AF_INET, ("127.0.0.1", first), ["127.0.0.1", first]),
        (socket.AF_INET6, ("::1", last), ["::1", last]),
        (socket.AF_UNIX, path, [path, None]),
    ):
        with socket.socket(family) as raw:
            raw.settimeout(DEADLINE)
            raw.connect(address)
            with context.wrap_socket(raw, server_hostname="localhost") as secured:
                told = answer(secured)
        assert (told["scheme"], told["server"], told["client"] is None) == ("https", seen, family == socket.AF_UNIX)
    told = ask(("127.0.0.1", plain))
    assert (told["scheme"], told["server"]) == ("http", ["127.0.0.1", plain])
    assert running.cli("restart", "--name", str(first)).returncode == 0
    assert running.status()["server"]["addresses"] == addresses
    assert ask(("127.0.0.1", plain))["server"] == ["127.0.0.1", plain]
    assert running.stop() == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--bind", "ftp://127.0.0.1:1"), "--bind ftp://127.0.0.1:1: ftp is not spoken there"),
        (("--bind", "https://127.0.0.1:1"), "--bind https://127.0.0.1:1 needs a certificate"),
        (("--bind", "127.0.0.1:1", "--bind", "http://127.0.0.1:1"), "--bind: http://127.0.0.1:1 is there twice"),
        (("--bind", "systemd"), "--bind systemd: no socket was passed to this process"),
        (("--bind", "nonsense"), "'nonsense' is not of the form"),
    ],
)
def test_addresses_that_cannot_be(arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    from laraman.cli import main

    assert main(["start", "app:app", *arguments]) == 2
    assert line in capsys.readouterr().err


def test_a_unix_socket_keeps_the_permissions_of_the_one_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    path.chmod(0o640)
    with own_process(tmp_path, [*LARAMAN, "--uds", str(path), "--no-access-log", "--forwarded-allow-ips", "*"]):
        wait_until(lambda: "Application startup complete" in (tmp_path / "output.txt").read_text(), what="the start")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert ask(str(path)) == {"scheme": "http", "client": None, "server": [str(path), None]}
        # Nobody on a unix socket has an address, so its proxies are trusted where everybody is.
        proxied = GET.replace(b"Host", b"X-Forwarded-For: 203.0.113.9\r\nHost")
        assert ask(str(path), proxied)["client"] == ["203.0.113.9", 0]
    assert not path.exists()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_descriptor_0(tmp_path: Path, family: socket.AddressFamily) -> None:
    with socket.socket(family) as listening:
        listening.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "given.sock"))
        listening.listen()
        name = listening.getsockname()
        with own_process(tmp_path, [*LARAMAN, "--fd", "0"], stdin=listening):
            told = ask(name)
            assert told["server"] == ([*name] if family == socket.AF_INET else [name, None])
        text = (tmp_path / "output.txt").read_text()
        assert running_lines(text) == [f"http://127.0.0.1:{name[1]}" if family == socket.AF_INET else f"unix socket {name}"]
        # It is not ours: its name stays, and its owner goes on listening.
        with socket.socket(family) as again:
            again.settimeout(DEADLINE)
            again.connect(name)


def test_restarts_that_take_an_address_away_or_are_refused(tmp_path: Path) -> None:
    def settings(*addresses: str) -> None:
        (tmp_path / "pyproject.toml").write_text(f"[tool.laraman]\nbind = {json.dumps(addresses)}\n")

    def restart() -> int:
        environ = clean_environment({"TMPDIR": str(tmp_path)})
        return subprocess.run([sys.executable, "-m", "laraman", "restart"], cwd=tmp_path, env=environ, timeout=DEADLINE).returncode

    stays, goes, new = (str(tmp_path / f"{name}.sock") for name in ("stays", "goes", "new"))
    settings(f"unix:{stays}", f"unix:{goes}")
    with own_process(tmp_path, [*LARAMAN, "--name", "x"]):
        wait_until(lambda: "Application startup complete" in (tmp_path / "output.txt").read_text(), what="the start")
        assert ask(goes)["server"] == [goes, None]
        settings(f"unix:{stays}")
        assert restart() == 0
        assert (os.path.exists(goes), ask(stays)["server"]) == (False, [stays, None])
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings(f"unix:{new}", f"127.0.0.1:{taken.getsockname()[1]}")
            assert restart() == 1
        assert not os.path.exists(new), "nobody would accept there"
        assert ask(stays)["server"] == [stays, None]
    assert list(tmp_path.glob("*.sock")) == []


# systemd ------------------------------------------------------------------------------------------------------------------------------

#: Does what systemd does between fork and exec: puts the sockets from descriptor 3 on and says so.
PARENT = """
import os, sys
given = [os.dup(int(number)) for number in sys.argv[1].split(",")]
kept = [os.dup2(descriptor, 100 + index) for index, descriptor in enumerate(given)]
for index, descriptor in enumerate(kept):
    os.dup2(descriptor, 3 + index, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES="web:side")
os.execv(sys.argv[2], sys.argv[2:])
"""


def under_systemd(directory: Path, sockets: list[socket.socket], *arguments: str, **environ: str) -> Any:
    numbers = [sock.fileno() for sock in sockets]
    command = [sys.executable, "-c", PARENT, ",".join(map(str, numbers)), *LARAMAN, *arguments]
    return own_process(directory, command, pass_fds=numbers, environ=environ)


def test_a_life_under_systemd(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        told: list[dict[str, str]] = []
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)

        def heard(word: str) -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    told.append(dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines()))
            return any(word in message for message in told)

        def changes() -> list[str]:
            heard("")
            return [next(iter(message)) for message in told if "WATCHDOG" not in message]

        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        names = [sock.getsockname() for sock in sockets]
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        process = stack.enter_context(under_systemd(tmp_path, sockets, **environ))
        wait_until(lambda: heard("READY"), what="READY=1")
        [ready] = [message for message in told if "READY" in message]
        assert (ready["MAINPID"], ready["STATUS"]) == (str(process.pid), "running")
        assert running_lines((tmp_path / "output.txt").read_text()) == [f"http://127.0.0.1:{name[1]}" for name in names]
        for name in names:
            assert ask(name)["server"] == [*name]
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: changes() == ["READY", "RELOADING", "READY"], what="a reload")
        restarted = subprocess.run(
            [sys.executable, "-m", "laraman", "restart"], cwd=tmp_path, env=clean_environment({"TMPDIR": str(tmp_path)}), timeout=DEADLINE
        )
        assert restarted.returncode == 0
        wait_until(lambda: changes() == ["READY", "RELOADING", "READY", "RELOADING", "READY"], what="a restart")
        for name in names:
            assert ask(name)["server"] == [*name]
        signs = len([message for message in told if "WATCHDOG" in message])
        wait_until(lambda: heard("") or len([message for message in told if "WATCHDOG" in message]) > signs, what="a sign of life")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert changes()[-1] == "STOPPING"
        assert all("MONOTONIC_USEC" in message for message in told if "RELOADING" in message)


def test_one_of_systemd_s_sockets_by_its_name(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        web, side = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        (port,) = free_ports(1)
        stack.enter_context(under_systemd(tmp_path, [web, side], "--bind", "systemd:side", "--bind", f"127.0.0.1:{port}"))
        assert ask(side.getsockname())["server"] == [*side.getsockname()]
        wait_until(lambda: len(running_lines((tmp_path / "output.txt").read_text())) == 2, what="the lines")
        assert ask(("127.0.0.1", port))["server"] == ["127.0.0.1", port]


def test_an_address_that_is_asked_for_is_stronger_than_systemd(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed, under_systemd(tmp_path, [passed], "--port", str(free_ports(1)[0])):
        wait_until(lambda: running_lines((tmp_path / "output.txt").read_text()), what="the line")
        assert str(passed.getsockname()[1]) not in running_lines((tmp_path / "output.txt").read_text())[0]
        wait_until(lambda: "Application startup complete" in (tmp_path / "output.txt").read_text(), what="the start")


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd is not installed")
def test_systemd_itself(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with own_process(tmp_path, ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *LARAMAN]):
        wait_until(lambda: "Listening on" in (tmp_path / "output.txt").read_text(), what="the socket")
        assert ask(("127.0.0.1", port))["server"] == ["127.0.0.1", port]


# Proxies ------------------------------------------------------------------------------------------------------------------------------


def test_the_proxy_protocol(server: Callable[..., Server], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    running = server(
        *("app:app", *authority.issue("server").options, "--proxy-protocol", "--forwarded-allow-ips", "127.0.0.1,10.0.0.0/8"),
        *("--bind", "http://127.0.0.1:0", "--bind", "127.0.0.1:0", "--bind", f"http+unix://{tmp_path / 'x.sock'}"),
        files={"app.py": APP},
    )
    plain, secure = (("127.0.0.1", int(address.rpartition(":")[2])) for address in running.status()["server"]["addresses"][:2])
    line = b"PROXY TCP4 203.0.113.9 198.51.100.1 56324 443\r\n"
    binary = SIGNATURE + b"\x21\x11\x00\x0c" + bytes([203, 0, 113, 10, 198, 51, 100, 1]) + struct.pack("!HH", 56325, 443)
    assert ask(plain, line + GET) == {"scheme": "http", "client": ["203.0.113.9", 56324], "server": [*plain]}
    assert ask(plain, binary + GET)["client"] == ["203.0.113.10", 56325]
    assert ask(plain, b"PROXY UNKNOWN\r\n" + GET)["client"][0] == "127.0.0.1"
    with socket.create_connection(secure, DEADLINE) as raw:
        raw.sendall(line)
        with authority.client().wrap_socket(raw, server_hostname="localhost") as secured:
            assert answer(secured) == {"scheme": "https", "client": ["203.0.113.9", 56324], "server": [*secure]}
            (row,) = running.connections()
            assert (row["client"], row["peer"].partition(":")[0]) == ("203.0.113.9:56324", "127.0.0.1")
    # A field of the client's own counts when the PROXY header says that the client is a trusted proxy.
    claimed = GET.replace(b"Host", b"X-Forwarded-For: 6.6.6.6\r\nHost")
    assert ask(plain, line + claimed)["client"] == ["203.0.113.9", 56324]
    assert ask(plain, line.replace(b"203.0.113.9", b"10.1.2.3") + claimed)["client"] == ["6.6.6.6", 0]
    # Without the header nobody is served, and past the proxy nobody comes.
    assert ask(plain) == {}
    assert ask(str(tmp_path / "x.sock"), line + GET) == {}
    assert '203.0.113.9:56324 - "GET /there HTTP/1.1" 200' in running.output
    assert "was refused: no header of the PROXY protocol" in running.output
