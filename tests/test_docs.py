"""The pages in docs/ tell the truth: their links lead somewhere and their code runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import make_server

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.conftest import DEADLINE, clean_environment, find_tool, free_ports, wait_until
from tests.e2e.tools import read_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


class Page:
    def __init__(self, name: str) -> None:
        self.text = (ROOT / "docs" / name).read_text()

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL)

    def block(self, language: str, part: str) -> str:
        """The one in which this occurs."""
        [block] = [block for block in self.blocks(language) if part in block]
        return block

    def file(self, name: str) -> dict[str, str]:
        """The block that begins with this file's name, for the fixture ``server``."""
        [block] = [block for block in self.blocks("python") if block.startswith(f"# {name}")]
        return {name: block}


def run(directory: Path, *command: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=DEADLINE)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_have_as_many_cells_in_each_row(path: Path) -> None:
    tables = "\n".join(line if line.startswith("|") else "" for line in path.read_text().splitlines()).split("\n\n")
    for table in filter(str.strip, tables):
        assert len({line.replace(r"\|", "").count("|") for line in table.strip().splitlines()}) == 1, table


def test_the_request_process(server: Callable[..., Server]) -> None:
    page = Page("request-process.md")
    files = page.file("resident.py")
    [many] = re.findall(r'`(Worker\("many".*?\))`', page.text)
    files["resident.py"] += f"\nworkers.append({many})\n"
    directory = server("resident:workers", files=files).directory
    run(directory, sys.executable, "-c", page.block("python", "reply = call("))
    run(directory, sys.executable, "-c", page.block("python", "with Client("))
    ask, pipe = page.block("sh", "printf").splitlines()
    assert run(directory, "sh", "-c", ask.replace("python", sys.executable, 1)) == '{"res": "ok", "sum": 6}\n'
    find_tool("socat")
    assert run(directory, "sh", "-c", pipe).endswith('{"res":"ok","msg":"长度相同"}')
    shutil.copy(ROOT / "app_example/php/laraman.php", directory)
    (directory / "ask.php").write_text(page.block("php", "laraman_call"))
    assert run(directory, find_tool("php", "php-cli"), "ask.php") == "6\n"


def test_a_synchronous_application_reaches_browsers(server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page("request-process.md")
    listen, worker, task = (f"127.0.0.1:{port}" for port in free_ports(3))
    environ = {"LARAMAN_GATEWAY_WORKER_ADDR": worker, "LARAMAN_GATEWAY_TASK_ADDR": task}
    web = "async def app(scope, receive, send): ..."
    files = {**page.file("desk.py"), "pyproject.toml": page.block("toml", "desk"), "web.py": web}
    running = server("--gateway", listen, files=files, environ=environ)
    monkeypatch.chdir(running.directory)
    names: dict[str, object] = {"__name__": "shop"}
    exec(page.file("shop.py")["shop.py"], names)
    with make_server("127.0.0.1", 0, names["app"]) as flask, connect(f"ws://{listen}/", proxy=None) as browser:  # type: ignore[arg-type]
        thread = threading.Thread(target=flask.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{flask.server_port}/orders"
            answer = httpx.post(url, json={"item": "the last cake"}, timeout=DEADLINE)
            assert (answer.status_code, answer.json()) == (201, {"told": 1})
            assert browser.recv(timeout=DEADLINE) == "the last cake is gone"
            assert running.stop() == 0
            assert httpx.post(url, json={"item": "the last cake"}, timeout=DEADLINE).json() == {"told": 0}
        finally:
            flask.shutdown()
            thread.join(DEADLINE)


@pytest.fixture(scope="module")
def workers_page() -> Page:
    return Page("workers.md")


def speak(port: int, *lines: str) -> list[str]:
    """Each line's answer."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock, sock.makefile("rw") as file:
        answers = []
        for line in lines:
            file.write(f"{line}\n")
            file.flush()
            answers.append(file.readline().removesuffix("\n"))
        return answers


def test_the_programs_of_workers(server: Callable[..., Server], workers_page: Page) -> None:
    names = ("room", "door", "semicolons", "relay")
    ports = dict(zip(("7001", "7003", "7004", "7005"), free_ports(4), strict=True))
    files = {}
    for name in names:
        for file, code in workers_page.file(f"{name}.py").items():
            files[file] = re.sub(r"\b700\d\b", lambda found: str(ports[found[0]]), code)
    together = "".join(f"import {name}\n" for name in names) + f"workers = [*{'.workers, *'.join(names)}.workers]\n"
    running = server("together:workers", "--interface", "workers", files={**files, "together.py": together})
    room, door, semicolons, relay = ports.values()

    with (
        socket.create_connection(("127.0.0.1", room), DEADLINE) as ada,
        socket.create_connection(("127.0.0.1", relay), DEADLINE) as bob,  # comes through the relay, to the same room
        ada.makefile("r") as heard,
    ):
        wait_until(lambda: sum(row["worker"] == "room" for row in running.connections()) == 2, what="two in the room")
        bob.sendall(b"good evening\n")
        assert re.fullmatch(r"guest \d+: good evening\n", heard.readline())
    with connect(f"ws://127.0.0.1:{door}/hall?key=sesame", proxy=None) as guest:
        guest.send("hello")
        assert guest.recv(timeout=DEADLINE) == "/hall hello"
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{door}/hall?key=wrong", proxy=None):
        pass
    assert refused.value.response.status_code == 403
    with socket.create_connection(("127.0.0.1", semicolons), DEADLINE) as sock:
        sock.sendall(b"one;three;")
        assert read_until(sock, b"3;5;") == b"3;5;"
        sock.sendall(b"x" * 2000)
        assert sock.recv(1) == b""
    assert running.stop() == 0
    assert "Traceback" not in running.output


def test_a_program_that_starts_itself(tmp_path: Path, free_port: int, workers_page: Page) -> None:
    code = workers_page.file("greeting.py")["greeting.py"].replace("7002", str(free_port))
    (tmp_path / "greeting.py").write_text(code)
    process = subprocess.Popen([sys.executable, "greeting.py"], cwd=tmp_path, env=clean_environment({}), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(free_port), what="the program")
        assert speak(free_port, "world", "again") == ["Hello, world!", "Hello, again!"]
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0


@pytest.fixture(scope="module")
def tasks_page() -> Page:
    return Page("tasks.md")


def together(page: Page, *names: str) -> dict[str, str]:
    """The files of a page, and an application that has theirs under their names."""
    files = {file: code for name in names for file, code in page.file(f"{name}.py").items()}
    mounts = "".join(f"import {name}\napp.mount('/{name}', {name}.app)\n" for name in names)
    return {**files, "together.py": f"from fastapi import FastAPI\napp = FastAPI()\n{mounts}"}


def test_tasks(server: Callable[..., Server], tasks_page: Page) -> None:
    files = together(tasks_page, "primes", "page", "report", "orders", "plain")
    running = server("together:app", "--task-workers", "2", "--journal-attempts", "1", files=files)
    with httpx.Client(base_url=running.url, timeout=DEADLINE) as client:
        assert client.get("/primes/primes").json() == {"below": 1000, "primes": 168}
        assert client.get("/page/", params={"name": "Ada"}).json() == {"revenue": 12, "greeting": "Good morning, Ada"}
        assert client.get("/page/totals").json() == [3, 7, 11]
        assert [json.loads(line)["page"] for line in client.get("/report/report").text.splitlines()] == [1, 2, 3]
        assert client.get("/report/pack").json() == {"last": {"packed": "cake", "done": 2, "of": 2}, "result": 2}
        for order in (7, 13):
            assert client.post(f"/orders/orders/{order}").json() == {"order": order}
        assert len(client.post("/plain/orders/8").json()["deferred"]) == 32
    invoices = running.directory / "invoices.txt"
    wait_until(lambda: invoices.exists() and invoices.read_text() == "invoice 7\ninvoice 8\n", what="the invoices")
    wait_until(lambda: "has failed and is kept in" in running.output, what="the failure")
    look, retry = tasks_page.block("sql", "SELECT").splitlines()
    [path] = running.directory.glob(".laraman/*/journal.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        [[_, task, attempts, error]] = database.execute(look).fetchall()
        assert (task, attempts, error.splitlines()[-1]) == ("orders:send_invoice", 1, "ConnectionError: the mail server is away")
        with database:
            database.execute(retry)
    wait_until(lambda: running.output.count("has failed and is kept in") == 2, what="another attempt")
    assert [row["state"] for row in running.processes("journal")] == ["ready"]


def test_tests_of_tasks(tmp_path: Path, tasks_page: Page) -> None:
    for name, code in {**tasks_page.file("primes.py"), **tasks_page.file("test_primes.py")}.items():
        (tmp_path / name).write_text(code)
    assert "2 passed" in run(tmp_path, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_primes.py")


@pytest.fixture(scope="module")
def channel_page() -> Page:
    return Page("channel.md")


def test_the_channel(server: Callable[..., Server], channel_page: Page) -> None:
    files = together(channel_page, "rooms", "news", "sessions", "mails", "limits")
    running = server("together:app", "--workers", "2", files={**files, **channel_page.file("push.py")})
    hall = f"ws://127.0.0.1:{running.port}/rooms/rooms/hall"
    with connect(hall, proxy=None) as ada:
        for _ in range(4):  # of which some are in the other worker
            with connect(hall, proxy=None) as bob:
                hears(bob, ada)

    def ask(method: str, path: str, **params: Any) -> Any:
        """On a connection of its own: of whichever worker."""
        return httpx.request(method, f"{running.url}{path}", params=params, timeout=DEADLINE, verify=False).json()

    pids = {row["pid"] for row in running.processes()}
    first, second = (row["pid"] for row in sorted(running.processes(), key=lambda row: row["slot"]))
    ask("PUT", "/news/prices/cake", price=3)
    for _ in range(10):
        wait_until(lambda: ask("GET", "/news/prices") == {"prices.cake": {"price": 3.0}}, what="the price")
    run(running.directory, sys.executable, "push.py", f"unix://{next(running.directory.glob('.laraman/*/hub.sock'))}")
    wait_until(lambda: ask("GET", "/news/prices").get("prices.tea") == {"price": 4.5}, what="what another program has published")
    answer = ask("GET", "/sessions/pids")
    assert (answer["first"], answer["any"] in pids) == (first, True)
    assert second != first
    for _ in range(6):
        ask("POST", "/sessions/seen/ada")
    assert ask("DELETE", "/sessions/seen/ada") == {"found": 6}
    assert ask("POST", "/mails/mails", to="ada@example.com")["job"]
    wait_until(lambda: "sent to ada@example.com" in running.output, what="the mail")
    assert [ask("GET", "/limits/search", user="ada").get("found") for _ in range(4)] == [[], [], [], None]
    numbers = [ask("POST", "/limits/report") for _ in range(3)]
    assert [answer["number"] for answer in numbers] == [1, 2, 3]
    assert numbers == sorted(numbers, key=lambda answer: answer["token"])
    assert running.stop() == 0
    assert "Traceback" not in running.output


def hears(listener: ClientConnection, speaker: ClientConnection) -> None:
    """Until it is subscribed it may hear nothing, so it is said again."""
    for _ in range(int(DEADLINE / 0.2)):
        speaker.send("hello")
        with contextlib.suppress(TimeoutError):
            assert listener.recv(timeout=0.2) == "hello"
            return
    pytest.fail("it was not heard")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_other_ways_to_declare_one(server: Callable[..., Server], workers_page: Page, free_port: int) -> None:
    room = workers_page.file("room.py")
    web = "async def app(scope, receive, send): ..."
    listener = workers_page.block("python", "def add_room").replace("7001", str(free_port))
    running = server("web:app", "--listener", "rooms", files={**room, "web.py": web, "rooms.py": listener})
    assert [row["state"] for row in running.processes("room")] == ["ready"]
    assert running.stop() == 0
    table = workers_page.block("toml", "workers.room").replace("7001", str(free_port))
    running = server("web:app", files={**room, "web.py": web, "pyproject.toml": table})
    assert [row["state"] for row in running.processes("room")] == ["ready"]


def test_timers_and_consumers(server: Callable[..., Server], workers_page: Page) -> None:
    timers = workers_page.file("app.py")
    for seconds, soon in (("every(60, jitter=5)", "every(0.2)"), ("after(10", "after(0.1")):
        assert seconds in timers["app.py"]
        timers["app.py"] = timers["app.py"].replace(seconds, soon)
    asked = []

    def tell(feed: ServerConnection) -> None:
        assert feed.request is not None
        asked.append(feed.request.path)
        feed.send("7.25")  # and hangs up

    with serve(tell, "127.0.0.1", 0) as peer:
        thread = threading.Thread(target=peer.serve_forever)
        thread.start()
        try:
            consumer = workers_page.file("feed.py")["feed.py"].replace("7006", str(peer.socket.getsockname()[1]))
            declared = '[tool.laraman]\nlisteners = ["feed"]\n[tool.laraman.workers.feed]\n'
            running = server("app:app", "--workers", "2", files={**timers, "feed.py": consumer, "pyproject.toml": declared})
            for row in running.processes():
                wait_until(lambda pid=row["pid"]: f"{pid} has refreshed" in running.output, what="a timer")
            wait_until(lambda: running.output.count("ten seconds") == 2, what="the timers that run once")
            wait_until(lambda: running.output.count("received 7.25") >= 2, what="a second feed after the first has ended")
        finally:
            peer.shutdown()
            thread.join(DEADLINE)
    assert set(asked) == {"/prices"}
    rows = {row["name"] for row in running.connections() if row["direction"] != "in"}
    assert rows == {"prices"}
    row = re.compile(r"^app\.clean_up +cron 0 3 \* \* \*, once per server +http:0 ", re.MULTILINE)
    wait_until(lambda: row.search(running.cli("status").stdout), what="the row of a timer, which comes with a beat")
    assert "cleaning up" not in running.output
