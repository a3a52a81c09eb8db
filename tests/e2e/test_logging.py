"""What a server writes: lines in every format, from every worker, into the right files; and what it says when it is told to log in a wrong way."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.e2e.tools import get, read_all, read_until, send, wait_workers, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

APP = """
import asyncio, pathlib

RELEASED = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"]
    if scope["type"] == "websocket":
        await receive()
        if path == "/deny":
            return await send({"type": "websocket.close"})
        if path == "/denial":
            await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
            return await send({"type": "websocket.http.response.body", "body": b"teapot"})
        await send({"type": "websocket.accept"})
        if path == "/close":
            return await send({"type": "websocket.close", "code": 4002})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    message = {"more_body": path not in ("/unread", "/wait")}
    while message["more_body"]:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
    if path == "/raises":
        raise RuntimeError("on purpose")
    if path == "/wait":
        while message.get("type") != "http.disconnect":
            message = await receive()
        return
    if path == "/version":
        import shoplogs
        await send({"type": "http.response.start", "status": 200 + shoplogs.VERSION, "headers": []})
        return await send({"type": "http.response.body"})
    headers = [(b"x-request-id", scope["state"].get("request_id", "none").encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path == "/file":
        return await send({"type": "http.response.pathsend", "path": str(pathlib.Path(__file__).resolve())})
    if path == "/half":
        await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
        while message.get("type") != "http.disconnect":
            message = await receive()
        return
    if path == "/chunks":
        await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
    await send({"type": "http.response.body", "body": b"hello"})
    if path == "/release":
        RELEASED.set()
    if path == "/later":
        await RELEASED.wait()
"""


def lines(server: Server) -> list[dict[str, Any]]:
    """Those that are there to their ends: a file grows page by page."""
    return [json.loads(line) for line in server.output.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]


def line(server: Server, path: str) -> dict[str, Any]:
    """Wait for the only line of this path."""
    (found,) = wait_until(lambda: [entry for entry in lines(server) if entry["path"] == path], what=f"a line of {path}")
    return found


def read_head(port: int, data: bytes) -> bytes:
    with contextlib.closing(send(port, data)) as sock:
        return read_until(sock, b"\r\n\r\n")


def test_lines_of_json_are_written_at_the_end(server: Callable[..., Server]) -> None:
    running = server("app:app", "--asgi-extensions", "all", "--access-log-format", "json", "--limit-request-body", "100", files={"app.py": APP})
    (pid,) = workers(running)
    port = running.port

    # A request and all of its fields.
    fields = b'Host: a\r\nUser-Agent: ev"il\\\r\nReferer: http://r/\r\nContent-Length: 3\r\nConnection: close\r\n\r\n'
    with contextlib.closing(send(port, b"POST /b%22%0A?q=1 HTTP/1.1\r\n" + fields + b"abc")) as sock:
        client_port = sock.getsockname()[1]
        assert read_all(sock).endswith(b"\r\n\r\nhello")
    found = line(running, '/b"\n')
    assert re.fullmatch(r"[0-9a-f]{32}", found.pop("request_id"))
    assert 0 < found.pop("duration") < DEADLINE
    assert found.pop("time").endswith("Z")
    assert found == {
        **{"client": "127.0.0.1", "client_port": client_port, "method": "POST", "path": '/b"\n', "query": "q=1", "http_version": "1.1"},
        **{"scheme": "http", "status": 200, "request_bytes": 3, "response_bytes": 5, "user_agent": 'ev"il\\', "referer": "http://r/"},
        **{"worker": 0, "pid": pid},
    }

    # Bodies of every kind; chunks count with their framing.
    for path, size in (("/chunks", 10 + 5 + len("a\r\n\r\n5\r\n\r\n0\r\n\r\n")), ("/file", len(APP)), ("/plain", 5)):
        assert get(port, path)[0] == 200
        assert line(running, path)["response_bytes"] == size
    assert b"200 OK" in read_head(port, b"HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (line(running, "/head")["response_bytes"], line(running, "/head")["method"]) == (0, "HEAD")
    with contextlib.closing(send(port, b"POST /continue HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")) as sock:
        assert b" 100 " in read_until(sock, b"\r\n\r\n")
        sock.sendall(b"ab")
        read_until(sock, b"hello")
    assert (line(running, "/continue")["request_bytes"], line(running, "/continue")["response_bytes"]) == (2, 5)

    # Several requests in one packet, the second with a body, are told apart. What runs after a response keeps no line back.
    second = b"POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd"
    packet = b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n" + second + b"GET /three HTTP/1.1\r\nHost: a\r\n\r\n"
    with contextlib.closing(send(port, packet)) as sock:
        line(running, "/three")
    assert [line(running, path)["request_bytes"] for path in ("/one", "/two", "/three")] == [0, 4, 0]
    assert [line(running, path)["response_bytes"] for path in ("/one", "/two", "/three")] == [5, 5, 5]
    get(port, "/later")
    assert line(running, "/later")["status"] == 200
    get(port, "/release")

    # Identifiers.
    for given, kept in ((b"abc-1.2:3/+=@~_", True), (b"a b", False), (b"\xe9", False), (b"x" * 128, True), (b"x" * 129, False), (b"", False)):
        path = b"/id%d" % len(given)
        answer = read_head(port, b"GET %b HTTP/1.1\r\nHost: a\r\nX-Request-ID: %b\r\n\r\n" % (path, given))
        identifier = line(running, path.decode())["request_id"]
        assert b"x-request-id: %b\r\n" % identifier.encode() in answer  # the application has found it in its scope
        assert (identifier == given.decode("latin-1")) is kept
    ids = [entry["request_id"] for entry in lines(running)]
    assert len(set(ids)) == len(ids)

    # What has no good end.
    assert get(port, "/raises")[0] == 500
    assert (line(running, "/raises")["status"], line(running, "/raises")["response_bytes"]) == (500, 21)
    send(port, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").close()
    assert (line(running, "/wait")["status"], line(running, "/wait")["response_bytes"]) == (499, 0)
    with contextlib.closing(send(port, b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n")) as sock:
        read_until(sock, b"x" * 10)
    assert (line(running, "/half")["status"], line(running, "/half")["response_bytes"]) == (200, 15)
    assert b" 413 " in read_head(port, b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
    assert (line(running, "/large")["status"], line(running, "/large")["method"]) == (413, "POST")
    large = b"POST /grows HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n" + b"x" * 128
    assert b" 413 " in read_head(port, large)
    assert (line(running, "/grows")["status"], line(running, "/grows")["request_bytes"]) == (413, 128)
    assert b" 400 " in read_head(port, b"NO NO NO\r\n\r\n")
    unknown = [entry for entry in lines(running) if entry["method"] == "-"]
    assert {(entry["path"], entry["status"], entry["client"]) for entry in unknown} == {("-", 400, "127.0.0.1")}

    # Sessions.
    with connect(f"ws://127.0.0.1:{port}/session?a=1") as websocket:
        websocket.send("12345")
        websocket.close(4001)
    found = line(running, "/session")
    assert (found["status"], found["close_code"], found["scheme"], found["method"], found["query"]) == (101, 4001, "ws", "GET", "a=1")
    assert found["request_bytes"] >= 5 + 6
    with connect(f"ws://127.0.0.1:{port}/close") as websocket, contextlib.suppress(ConnectionClosed):
        websocket.recv()
    assert line(running, "/close")["close_code"] == 4002
    for path, status in (("/deny", 403), ("/denial", 418)):
        with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{port}{path}"):
            pass
        assert line(running, path)["status"] == status
        assert "close_code" not in line(running, path)
    assert '"WebSocket /session?a=1" [accepted]' in running.output

    # Each was logged once, and nothing in another form.
    counts = collections.Counter(entry["path"] for entry in lines(running))
    assert {path for path, count in counts.items() if count > 1} <= {"-"}
    assert 'HTTP/1.1"' not in running.output


CONFIG = """
version: 1
disable_existing_loggers: false
formatters:
  access: {"()": uvicorn.logging.AccessFormatter, fmt: 'A %(process)d %(client_addr)s "%(request_line)s" %(status_code)s', use_colors: false}
  mine: {"()": shoplogs.Formatter}
handlers:
  access: {class: logging.FileHandler, filename: access.log, formatter: access}
  console: {class: logging.StreamHandler, formatter: mine, stream: ext://sys.stderr}
loggers:
  uvicorn: {handlers: [console], level: INFO, propagate: false}
  uvicorn.access: {handlers: [access], level: INFO, propagate: false}
"""
FORMATTER = """
import logging

VERSION = 1

class Formatter(logging.Formatter):
    def format(self, record):
        return f"MINE {record.getMessage()}"
"""


def test_a_configuration_counts_in_the_master_and_in_every_worker(server: Callable[..., Server]) -> None:
    files = {"app.py": APP, "log.yaml": CONFIG, "shoplogs.py": FORMATTER}
    running = server("app:app", "--workers", "2", "--log-config", "log.yaml", "--log-brand", "uvicorn", files=files)
    path, config = running.directory / "access.log", running.directory / "log.yaml"

    def request(name: str) -> None:
        assert get(running.port, name)[0] == 200

    for number in range(20):
        request(f"/{number}")
    wait_until(lambda: path.read_text().count("\n") == 20)
    found = [re.fullmatch(r'A (\d+) 127\.0\.0\.1:\d+ "GET /(\d+) HTTP/1\.1" 200 OK', text) for text in path.read_text().splitlines()]
    assert sorted(int(match[2]) for match in found if match) == list(range(20))
    assert {int(match[1]) for match in found if match} <= set(workers(running))
    output = running.output.splitlines()
    assert all(text.startswith("MINE ") for text in output)
    assert f"MINE Uvicorn running on http://127.0.0.1:{running.port} (Press CTRL+C to quit)" in output
    assert output.count("MINE Application startup complete.") == 2

    path.rename(path.with_name("access.log.1"))
    running.process.send_signal(signal.SIGUSR1)
    wait_until(path.exists)

    def written() -> bool:
        request("/new")
        return path.read_text().count("/new") >= 2

    wait_until(written)

    # What the configuration has imported of the application is new code for new workers all the same.
    assert get(running.port, "/version")[0] == 201
    (running.directory / "shoplogs.py").write_text(FORMATTER.replace("VERSION = 1", "VERSION = 2  # new"))
    assert running.cli("reload").returncode == 0
    assert get(running.port, "/version")[0] == 202

    # A restart with a configuration that cannot be read is refused; so is one that is only found out when it is used. Both name the line.
    before = workers(running)
    config.write_text(CONFIG + "}")
    result = running.cli("restart")
    assert result.returncode != 0
    assert f"log.yaml:{len(CONFIG.splitlines()) + 1}: " in result.stderr + result.stdout
    assert workers(running) == before
    config.write_text(CONFIG.replace("class: logging.StreamHandler", "class: shoplogs.NotThere"))
    running.cli("restart")
    wait_until(lambda: "The restart failed, the old workers stay: log.yaml:9: Unable to configure handler 'console': " in running.output)
    assert workers(running) == before
    request("/")
    config.write_text(CONFIG.replace("A %(process)d", "B %(process)d"))
    assert running.cli("restart").returncode == 0
    wait_workers(running, 2, without=set(before))
    request("/after")
    assert re.search(r'^B \d+ .*"GET /after HTTP/1\.1" 200 OK$', path.read_text(), re.MULTILINE)


QUEUE = """
import logging
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue

class Queued(QueueHandler):
    def __init__(self):
        super().__init__(SimpleQueue())
        file = logging.FileHandler("queued.log")
        file.setFormatter(logging.Formatter("%(process)d %(message)s"))
        QueueListener(self.queue, file).start()
"""
QUEUED_APP = """
import logging

async def app(scope, receive, send):
    if scope["type"] == "http":
        logging.getLogger("shop").warning("sold")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

logging.getLogger("shop")  # is here before a worker that is forked from a template
"""


@pytest.mark.parametrize("arguments", [("--workers", "2"), ("--preload",)])
def test_handlers_with_threads_work_in_every_worker(server: Callable[..., Server], arguments: tuple[str, ...]) -> None:
    root, loggers = {"handlers": ["all"], "level": "INFO"}, {"uvicorn": {"level": "INFO"}}
    configuration = {"version": 1, "handlers": {"all": {"class": "shoplogs.Queued"}}, "loggers": loggers}
    files = {"app.py": QUEUED_APP, "shoplogs.py": QUEUE, "log.json": json.dumps({**configuration, "root": root})}
    running = server("app:app", *arguments, "--log-config", "log.json", files=files)
    path, pids = running.directory / "queued.log", workers(running)

    def served() -> bool:
        assert get(running.port)[0] == 200
        return all(re.search(rf'^{pid} sold$', path.read_text(), re.MULTILINE) for pid in pids)

    wait_until(served)
    assert all(f"{pid} Application startup complete." in path.read_text() for pid in pids)

    # Who comes later than an edit that went wrong serves all the same.
    (running.directory / "log.json").write_text("{")
    os.kill(pids[0], signal.SIGKILL)
    wait_workers(running, len(pids), without={pids[0]})
    wait_until(lambda: "log.json:1: Expecting property name" in running.output)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--log-config", "bad.json"], "laraman: bad.json:2: Expecting value"),
        (["--log-config", "bad.json", "-d"], "laraman: bad.json:2: Expecting value"),
        (["--log-config", "none.ini"], "laraman: cannot read the log configuration none.ini: No such file or directory"),
        (["--log-config", "class.json"], "laraman: class.json:3: Unable to configure handler 'x': "),
        (["--log-config", "class.json", "--log-file", "x"], "laraman: --log-config and --log-file exclude each other: each says where the log goes"),
        (["--access-log-format", "%(pth)s"], "laraman: --access-log-format: there is no field 'pth'; did you mean 'path'?"),
    ],
)
def test_a_wrong_configuration_is_a_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "bad.json").write_text('{"version":\n}')
    (tmp_path / "class.json").write_text('{"version": 1,\n"handlers": {\n"x": {"class": "nowhere.X"}}}')
    command = [sys.executable, "-m", "laraman", "start", "app:app", "--port", "0", *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=clean_environment({}), capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 2
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


# Beside uvicorn -------------------------------------------------------------------------------------------------------------------


class Program:
    """A program that serves until it gets SIGTERM, after one request."""

    def __init__(self, directory: Path, *command: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.output = ""
        with (directory / "out.txt").open("w+b") as out:
            arguments = [argument.replace("PORT", str(self.port)) for argument in command]
            process = subprocess.Popen([sys.executable, *arguments], cwd=directory, env=clean_environment({}), stdout=out, stderr=out)
            try:
                wait_until(lambda: self._answers() or process.poll() is not None)
                get(self.port, "/x?y=1")
                wait_until(lambda: (directory / "out.txt").read_text().count("startup complete") == (2 if "--workers" in command else 1))
            finally:
                process.terminate()
                process.wait(DEADLINE)
            self.output = (directory / "out.txt").read_text()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def lines(self) -> list[str]:
        """Without what is different each time."""
        return [re.sub(r":\d+", ":PORT", re.sub(r"\d{3,}(?=(\x1b\[0m)?\])", "PID", text)) for text in self.output.splitlines()]


@pytest.mark.parametrize("colours", ["False", "True", "None"])
def test_a_program_says_what_uvicorn_says(tmp_path: Path, colours: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    code = "import {} as server; server.run('app:app', port=PORT, use_colors=" + colours + ", log_level='{}', {})"
    theirs = Program(tmp_path, "-c", code.format("uvicorn", "info", "")).lines()
    ours = Program(tmp_path, "-c", code.format("laraman", "info", "log_brand='uvicorn'")).lines()
    assert ours == theirs
    assert len(theirs) == 9
    assert ("\x1b" in theirs[0]) is (colours == "True")


#: What launchers wait for, in their order.
AWAITED = ("running on", "parent process", "Started server", "Waiting for application startup", "startup complete", "GET", "exiting.", "Stopping")


def test_a_server_says_what_uvicorns_workers_say(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)

    def said(command: tuple[str, ...]) -> tuple[list[str], collections.Counter[str]]:
        found = Program(tmp_path, *command, "app:app", "--port", "PORT", "--workers", "2").lines()
        first = [next(text for text in found if word in text) for word in AWAITED]
        assert sorted(map(found.index, first)) == list(map(found.index, first))
        return first, collections.Counter(text for text in found if "child process" not in text)

    theirs, all_theirs = said(("-m", "uvicorn"))
    ours, all_ours = said(("-m", "laraman", "--log-brand", "uvicorn"))
    assert ours == theirs
    assert all_ours == all_theirs


def test_a_program_may_change_the_configuration_in_place(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    code = (
        "import laraman, laraman.log\n"
        "laraman.log.LOGGING_CONFIG['formatters']['access']['fmt'] = 'CHANGED %(request_line)s'\n"
        "laraman.run('app:app', port=PORT)"
    )
    assert "CHANGED GET /x?y=1 HTTP/1.1" in Program(tmp_path, "-c", code).output.splitlines()


def test_trace_shows_every_message(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    code = "import {} as server; server.run('app:app', port=PORT, log_level='trace')"

    def said(name: str) -> list[str]:
        found = Program(tmp_path, "-c", code.format(name)).lines()
        return [re.sub(r"'headers': .*|scope=.*", "...", text) for text in found if " - ASGI [" in text]

    ours = said("laraman")
    assert ours == said("uvicorn")
    assert len(ours) == 5


def test_without_streams_there_is_a_server_all_the_same(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = f"exec {sys.executable} -m laraman app:app --port {free_port} <&- >&- 2>&-"
    with subprocess.Popen(["sh", "-c", command], cwd=tmp_path, env=clean_environment({})) as process:
        try:

            def served() -> bool:
                assert process.poll() is None
                with contextlib.suppress(OSError):
                    return get(free_port)[0] == 200
                return False

            wait_until(served)
            streams = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        finally:
            process.terminate()
        assert process.wait(DEADLINE) == 0
    assert streams == [os.devnull] * 3
