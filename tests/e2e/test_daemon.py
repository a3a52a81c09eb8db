"""``-d`` and the verbs that find the daemon again; sockets, titles and counts of workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from laraman.config.cpus import cpu_count
from tests.conftest import DEADLINE, Server, clean_environment, wait_until
from tests.e2e.apps import FILES
from tests.e2e.tools import children, get, wait_workers, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def daemon(server: Callable[..., Server]) -> Callable[..., Server]:
    """Start a daemon; its command has returned."""

    def start(*arguments: str, files: dict[str, str] = FILES, environ: dict[str, str] | None = None) -> Server:
        running = server("app:app", "-d", *arguments, files=files, environ=environ, ready=False)
        assert running.process.wait(DEADLINE) == 0, running.output
        return running

    return start


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_daemon_is_ready_when_its_command_returns(daemon: Callable[..., Server]) -> None:
    slow = FILES["app.py"] + "\ntime.sleep(0.2)\n"
    running = daemon("--workers", "2", "--port", "0", files={"app.py": slow})
    (line,) = running.output.splitlines()
    address = line.split()[3]
    assert line.startswith("Laraman running on http://127.0.0.1:")
    port = int(address.rpartition(":")[2])
    assert port > 0
    assert get(port)[0] == 200
    (state,) = running.directory.glob(".laraman/*/")
    assert state.name == str(port)
    master = int((state / "laraman.pid").read_text())
    assert {path.name: oct(mode(path)) for path in state.iterdir()} == {
        "laraman.pid": "0o600",
        "control.sock": "0o600",
        "laraman.log": "0o600",
        "hub.sock": "0o600",
        "laraman.leases": "0o777",  # which only the workers get at
    }
    assert mode(state) == mode(state.parent) == 0o700
    assert (state.parent / ".gitignore").read_text() == "*\n"
    assert os.getsid(master) != os.getsid(0)
    assert set(children(master)) == set(workers(running))
    shown = running.cli("status")
    assert shown.returncode == 0
    assert address in shown.stdout
    with http_get(port) as kept:
        rows = json.loads(running.cli("connections", "--json").stdout)["rows"]
        assert [row["peer"].rpartition(":")[2] for row in rows] == [str(kept.sock.getsockname()[1])]
        assert rows[0]["protocol"] == "http"
        assert rows[0]["direction"] == "in"
    before = set(workers(running))
    assert running.cli("reload").returncode == 0
    before |= set(wait_workers(running, 2, without=before))
    assert running.cli("restart").returncode == 0
    wait_workers(running, 2, without=before)
    assert int((state / "laraman.pid").read_text()) == master
    assert get(port)[0] == 200
    assert running.cli("stop").returncode == 0
    assert [path.name for path in state.iterdir()] == ["laraman.log"]
    assert "Traceback" not in (state / "laraman.log").read_text()
    with pytest.raises(ConnectionRefusedError):
        get(port)


class http_get:
    """A keep-alive connection that has had one answer."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)

    def __enter__(self) -> http.client.HTTPConnection:
        self._connection.request("GET", "/")
        assert self._connection.getresponse().read()
        return self._connection

    def __exit__(self, *exc: object) -> None:
        self._connection.close()


def test_two_instances_in_one_directory(daemon: Callable[..., Server]) -> None:
    running = daemon("--name", "one")
    second = running.cli("start", "app:app", "-d", "--name", "two", "--port", "0")
    assert second.returncode == 0, second.stderr
    unclear = running.cli("status")
    assert unclear.returncode == 2
    (line,) = unclear.stderr.splitlines()
    assert "one (pid" in line
    assert "two (pid" in line
    assert json.loads(running.cli("status", "--name", "two", "--json").stdout)["server"]["name"] == "two"
    assert running.cli("stop", "--name", "one").returncode == 0
    assert json.loads(running.cli("status", "--json").stdout)["server"]["name"] == "two"
    assert running.cli("stop").returncode == 0
    assert running.cli("status").returncode == 1


def test_the_same_port_twice(daemon: Callable[..., Server], free_port: int) -> None:
    running = daemon("--port", str(free_port))
    for arguments in (("-d",), ()):
        again = running.cli("start", "app:app", "--port", str(free_port), *arguments)
        assert again.returncode == 3
        assert "Address already in use" in again.stderr
        assert len([line for line in again.stderr.splitlines() if not line.startswith("INFO:")]) == 1, again.stderr
    assert get(free_port)[0] == 200
    assert running.cli("status").returncode == 0  # the refused ones have not taken its files along
    same_name = running.cli("start", "app:app", "-d", "--port", "0", "--name", str(free_port))
    assert same_name.returncode == 3
    assert "already running with pid" in same_name.stderr


@pytest.fixture
def long_directory() -> Iterator[Path]:
    """A directory in which the path of a control socket is too long."""
    with tempfile.TemporaryDirectory(prefix="x" * 100) as path:
        yield Path(path).resolve()


def test_a_path_too_long_for_a_socket_does_not_stop_a_start(long_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (long_directory / "app.py").write_text(FILES["app.py"])
    running = Server(long_directory, ("app:app", "-d", "--port", "0"), {"TMPDIR": str(tmp_path_factory.mktemp("t"))})
    try:
        assert running.process.wait(DEADLINE) == 0, running.output
        shown = running.cli("status", "--json")
        assert shown.returncode == 0, shown.stderr
        assert get(int(json.loads(shown.stdout)["server"]["name"]))[0] == 200
        assert running.cli("stop").returncode == 0
    finally:
        running.close()


def test_a_state_directory_that_cannot_be_made_does_not_stop_a_start(server: Callable[..., Server]) -> None:
    running = server("app:app", files={**FILES, ".laraman": "a file is in the way\n"})
    assert running.cli("status").returncode == 0
    assert get(running.port)[0] == 200
    assert running.cli("stop").returncode == 0
    assert running.process.wait(DEADLINE) == 0


def test_no_state_directory_at_all_does_not_stop_a_start(server: Callable[..., Server], free_port: int) -> None:
    # Root may write everywhere, so all the places have a file in the way.
    files = {**FILES, ".laraman": "", f"tmp/laraman-{os.geteuid()}": ""}
    running = server("app:app", "--port", str(free_port), files=files, ready=False, environ={"TMPDIR": "tmp", "XDG_RUNTIME_DIR": "app.py"})
    wait_until(lambda: "Application startup complete." in running.output)
    wait_until(lambda: answers(free_port))
    assert "No state directory can be created" in running.output
    assert running.cli("status").returncode == 1
    assert running.stop() == 0


def answers(port: int) -> bool:
    try:
        return get(port)[0] == 200
    except ConnectionRefusedError:
        return False


# Where it listens, and what ps shows ----------------------------------------------------------------------------------------------


def test_a_unix_socket(server: Callable[..., Server]) -> None:
    running = server("app:app", "--uds", "web.sock", files=FILES)
    path = running.directory / "web.sock"
    for verb in ("reload", "restart"):
        assert unix_get(path).endswith(b" hello")
        assert running.cli(verb).returncode == 0
    assert unix_get(path).endswith(b" hello")
    assert running.stop() == 0
    assert not path.exists()


def unix_get(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(os.fspath(path))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
        return data


def test_a_stale_unix_socket_is_replaced_and_a_file_is_not(server: Callable[..., Server]) -> None:
    running = server("app:app", "--uds", "web.sock", files=FILES)
    for pid in (running.pid, *workers(running)):
        os.kill(pid, signal.SIGKILL)
    running.process.wait()
    assert (running.directory / "web.sock").exists()
    assert running.cli("start", "app:app", "--uds", "web.sock", "-d").returncode == 0
    assert unix_get(running.directory / "web.sock").endswith(b" hello")
    taken = running.cli("start", "app:app", "--uds", "web.sock", "--name", "other")
    assert taken.returncode == 3
    assert "another process listens there" in taken.stderr
    assert running.cli("stop").returncode == 0
    refused = running.cli("start", "app:app", "--uds", "app.py")
    assert refused.returncode == 3
    assert (running.directory / "app.py").read_text() == FILES["app.py"]


def test_an_inherited_descriptor(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FILES["app.py"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "laraman", "start", "app:app", "--fd", str(listening.fileno())]
        output = tmp_path / "output.txt"
        with output.open("wb") as log:
            descriptors = [listening.fileno()]
            process = subprocess.Popen(command, cwd=tmp_path, env=clean_environment({}), pass_fds=descriptors, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or "startup complete" in output.read_text())
            assert process.poll() is None, output.read_text()
            assert get(port)[0] == 200
            restarted = subprocess.run([sys.executable, "-m", "laraman", "restart"], cwd=tmp_path, capture_output=True, timeout=DEADLINE)
            assert restarted.returncode == 0, restarted.stderr
            assert get(port)[0] == 200
        finally:
            process.terminate()
            assert process.wait(DEADLINE) == 0, output.read_text()
        with closing(socket.create_connection(("127.0.0.1", port))):
            pass  # it is the parent's, and it still listens


def test_port_zero_is_printed_and_titles_say_who_is_who(server: Callable[..., Server]) -> None:
    running = server("app:app", "--workers", "2", files=FILES)
    assert f"Laraman running on http://127.0.0.1:{running.port} (Press CTRL+C to quit)" in running.output
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() for pid in workers(running)}
    assert list(titles.values()) == [f"laraman: http {slot} http://127.0.0.1:{running.port}" for slot in (0, 1)]


@pytest.mark.parametrize(("wanted", "factor"), [("auto", 1), ("auto*2", 2)])
def test_as_many_workers_as_cpus(server: Callable[..., Server], wanted: str, factor: int) -> None:
    running = server("app:app", "--workers", wanted, files=FILES)
    assert len(workers(running)) == cpu_count() * factor
