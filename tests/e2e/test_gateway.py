"""Browsers, gateway, workers: the whole way with the real binary, through reload, restart, kills and stops."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.conftest import DEADLINE, Server, free_ports, wait_until
from tests.e2e.tools import get, wait_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import asyncio, contextvars, json, os
from urllib.parse import parse_qs
import laraman
from laraman import gateway

seen = contextvars.ContextVar("seen", default=0)
heard = []
for kind in (laraman.MessageReceived, laraman.MessageTerminated):
    laraman.on(kind, lambda event: heard.append((type(event).__name__, getattr(event, "outcome", ""))))

@gateway.on_open
async def opened(event):
    await gateway.bus.single_cast(event.uniq_id, json.dumps({"id": event.uniq_id, "query": event.raw_query, "pid": os.getpid()}))

@gateway.on_message
async def message(event):
    if event.data == b"raise":
        raise RuntimeError("on purpose")
    if event.data == b"hang":
        await asyncio.sleep(3600)
    if event.data == b"slow":
        await event.reply("begun")
        await asyncio.sleep(1)
    if event.data == b"pollute":
        seen.set(seen.get() + 1)
        await event.reply(str(seen.get()))
    elif event.data == b"heard":
        await event.reply(json.dumps(heard))
    else:
        await event.reply(event.data if event.binary else event.text)

@gateway.on_close
async def closed(event):
    await gateway.bus.broadcast(json.dumps({"left": event.uniq_id}))

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive(); await send({"type": "lifespan.startup.complete"})
        await receive(); await send({"type": "lifespan.shutdown.complete"})
        return
    try:
        query = parse_qs(scope["query_string"].decode())
        if scope["path"] == "/push":
            sent = await gateway.bus.broadcast(query["data"][0])
            body = {"errors": list(sent.errors), "partial": sent.partial}
        elif scope["path"] == "/count":
            answer = await gateway.bus.uniq_id_count()
            body = {"count": answer.count, "partial": answer.partial, "errors": list(answer.errors)}
        else:
            body = {"pid": os.getpid()}
        status = 200
    except laraman.LaramanError as exc:
        status, body = 503, {"error": type(exc).__name__}
    body = json.dumps(body).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def chat(server: Callable[..., Server]) -> Callable[..., Server]:
    """Start the application above with a gateway inside: ``chat("--workers", "2")``."""

    def start(*arguments: str, environ: dict[str, str] | None = None, app: str = APP) -> Server:
        browsers, worker, task = free_ports(3)
        addresses = {"LARAMAN_GATEWAY_WORKER_ADDR": f"127.0.0.1:{worker}", "LARAMAN_GATEWAY_TASK_ADDR": f"127.0.0.1:{task}"}
        options = ("app:app", "--gateway", f"127.0.0.1:{browsers}", *arguments)
        running = server(*options, files={"app.py": app}, environ={**addresses, **(environ or {})})
        running.gateway = browsers
        return running

    return start


@pytest.fixture
def browser() -> Iterator[Callable[..., tuple[ClientConnection, dict[str, Any]]]]:
    """Open websockets: the connection, and what the worker said when it was opened."""
    with ExitStack() as stack:

        def start(running: Server, path: str = "/") -> tuple[ClientConnection, dict[str, Any]]:
            made = stack.enter_context(connect(f"ws://127.0.0.1:{running.gateway}{path}", open_timeout=DEADLINE, close_timeout=1))
            return made, json.loads(made.recv(DEADLINE))

        yield start


def ask(page: ClientConnection, message: str | bytes) -> str | bytes:
    page.send(message)
    return page.recv(DEADLINE)


def links(running: Server) -> list[dict[str, Any]]:
    return [row for row in running.connections() if row["direction"] == "out" and str(row.get("name", "")).startswith("gateway ")]


def wait_links(running: Server, count: int) -> list[dict[str, Any]]:
    def up() -> list[dict[str, Any]]:
        rows = links(running)
        return rows if len(rows) == count and all(row["state"] == "UP" for row in rows) else []

    return wait_until(up, what=f"{count} links to gateways that are up")


def gateway_pid(running: Server) -> int:
    [row] = [row for row in running.processes("gateway") if row["state"] == "ready"]
    return int(row["pid"])


def test_a_message_goes_to_a_worker_and_back_as_what_it_was(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "2")
    page, hello = browser(running, "/?name=ann&x=1")
    assert hello["query"] == "name=ann&x=1"
    assert hello["pid"] in {row["pid"] for row in running.processes()}
    assert ask(page, "text \N{SNOWMAN}") == "text \N{SNOWMAN}"
    assert ask(page, b"\0\xff") == b"\0\xff"
    other, _ = browser(running)
    assert get(running.port, f"/push?data={quote('to all')}") == (200, '{"errors": [], "partial": false}')
    assert page.recv(DEADLINE) == other.recv(DEADLINE) == "to all"
    other.close()
    assert "left" in json.loads(page.recv(DEADLINE))


def test_every_message_is_an_operation_of_its_own(chat: Callable[..., Server], browser: Any) -> None:
    running = chat()
    page, _ = browser(running)
    assert [ask(page, "pollute") for _ in range(3)] == ["1", "1", "1"]
    page.send("raise")
    heard = json.loads(ask(page, "heard"))
    assert heard[-3:] == [["MessageReceived", ""], ["MessageTerminated", "error"], ["MessageReceived", ""]]
    assert running.output.count("RuntimeError: on purpose") == 1


def test_connections_shows_both_links_of_every_worker(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "2")
    browser(running)
    rows = wait_links(running, 4)
    assert len({(row["pid"], row["name"]) for row in rows}) == 4
    assert all({"state", "age", "failures", "bytes_in", "bytes_out", "queued"} <= row.keys() for row in rows)
    assert sum(row["bytes_in"] for row in rows) > 0
    table = running.cli("connections").stdout
    assert "RETRIES" in table
    assert " events" in table
    assert " commands" in table


def test_a_killed_gateway_is_back_with_every_worker_and_http_has_not_noticed(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "2")
    wait_links(running, 4)
    page, _ = browser(running)
    failures: list[object] = []
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            try:
                status, _ = get(running.port, "/", timeout=5)
            except OSError as exc:
                failures.append(exc)
            else:
                if status != 200:
                    failures.append(status)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        first = gateway_pid(running)
        killed = time.monotonic()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: [row for row in running.processes("gateway") if row["state"] == "ready" and row["pid"] != first])
        wait_links(running, 4)
        took = time.monotonic() - killed
    finally:
        over.set()
        asking.join(DEADLINE)
    assert took < 5, f"registered again only after {took:.1f} s"
    assert failures == []
    with pytest.raises(ConnectionClosed):
        page.recv(DEADLINE)
    again, _ = browser(running)
    assert ask(again, "back") == "back"


def numbered(page: ClientConnection, count: int, during: Callable[[], object]) -> list[int]:
    """Send numbers and collect the answers, while ``during`` happens."""
    answers: list[int] = []

    def collect() -> None:
        while len(answers) < count:
            answers.append(int(page.recv(DEADLINE)))

    collecting = threading.Thread(target=collect)
    collecting.start()
    happening = threading.Thread(target=during)
    happening.start()
    number = 0
    while number < count and (happening.is_alive() or number < count // 2):
        page.send(str(number))
        number += 1
        time.sleep(0.0005)  # a pace, not a wait: the messages should last as long as what happens
    happening.join(DEADLINE)
    for rest in range(number, count):
        page.send(str(rest))
    collecting.join(DEADLINE)
    return answers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_loses_no_message(chat: Callable[..., Server], browser: Any, workers: int) -> None:
    running = chat("--workers", str(workers), environ={"LARAMAN_GATEWAY_RATE": "0"})
    page, _ = browser(running)
    before = set(wait_workers(running, workers))

    def reload() -> None:
        assert running.cli("reload").returncode == 0

    gateway = gateway_pid(running)
    answers = numbered(page, 4000, reload)
    assert sorted(answers) == list(range(4000))
    assert not before & set(wait_workers(running, workers, without=before))
    assert gateway_pid(running) == gateway  # which keeps the browsers


def test_a_killed_worker_s_browsers_go_on_with_another(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "2")
    pages = [browser(running) for _ in range(4)]
    victim = pages[0][1]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_workers(running, 2, without={victim})
    wait_links(running, 4)
    for page, _ in pages:
        assert ask(page, "still there") == "still there"


def test_a_restart_tells_the_browsers_and_they_can_come_back(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "1")
    page, _ = browser(running)
    before = gateway_pid(running)
    assert running.cli("restart").returncode == 0
    with pytest.raises(ConnectionClosed):
        page.recv(DEADLINE)
    assert page.close_code == 1012
    assert gateway_pid(running) != before
    again, _ = browser(running)
    assert ask(again, "back") == "back"


def test_a_stop_tells_the_browsers_and_ends_cleanly(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "2")
    page, _ = browser(running)
    assert running.stop() == 0
    with pytest.raises(ConnectionClosed):
        page.recv(DEADLINE)
    assert page.close_code == 1012
    assert "Traceback" not in running.output


def test_a_stop_lets_messages_be_answered(chat: Callable[..., Server], browser: Any) -> None:
    running = chat("--workers", "2")
    page, _ = browser(running)
    assert ask(page, "slow") == "begun"
    begun = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - begun < 4
    assert page.recv(DEADLINE) == "slow"
    with pytest.raises(ConnectionClosed):
        page.recv(DEADLINE)
    assert page.close_code == 1012
    assert "Traceback" not in running.output


def test_a_name_that_no_worker_has_is_warned_of(chat: Callable[..., Server]) -> None:
    running = chat(environ={"LARAMAN_GATEWAY_WORKERS": "http nobody"})
    wait_until(lambda: "there is no worker called" in running.output)
    assert "there is no worker called 'nobody'" in running.output
    assert "'http'" not in running.output


def test_of_two_gateways_one_is_down(server: Callable[..., Server]) -> None:
    """Answers are partial and say so, what is for the live one arrives, and nothing waits for the dead one for ever."""
    browsers, worker, task, dead = free_ports(4)
    config = f"""
[tool.laraman]
app = "app:app"
[tool.laraman.gateway]
sendReceiveTimeout = 0.5
netsvr = [
    {{workerAddr = "127.0.0.1:{worker}", taskAddr = "127.0.0.1:{task}"}},
    {{workerAddr = "127.0.0.1:{dead}", taskAddr = "127.0.0.1:{dead}"}},
]
"""
    alone = server("app:app", files={"app.py": APP})  # its directory and its end are those of the gateway beside it
    addresses = ("--listen", f"127.0.0.1:{browsers}", "--worker-addr", f"127.0.0.1:{worker}", "--task-addr", f"127.0.0.1:{task}")
    started = alone.cli("gateway", *addresses, "-d", "--name", "edge")
    assert started.returncode == 0, started.stderr
    running = server(files={"app.py": APP, "pyproject.toml": config})
    try:
        with connect(f"ws://127.0.0.1:{browsers}/", open_timeout=DEADLINE) as page:
            page.recv(DEADLINE)
            assert ask(page, "over the live one") == "over the live one"
            status, text = get(running.port, "/count")
            assert (status, json.loads(text)) == (200, {"count": 1, "partial": True, "errors": [f"127.0.0.1:{dead}"]})
            status, text = get(running.port, "/push?data=news")
            assert (status, json.loads(text)) == (200, {"errors": [f"127.0.0.1:{dead}"], "partial": True})
            assert page.recv(DEADLINE) == "news"
    finally:
        assert alone.cli("stop", "--name", "edge").returncode == 0


def test_without_its_gateway_a_server_boots_and_says_so(server: Callable[..., Server]) -> None:
    [dead] = free_ports(1)
    config = f'[tool.laraman.gateway]\nworkerAddr = "127.0.0.1:{dead}"\ntaskAddr = "127.0.0.1:{dead}"\nsendReceiveTimeout = 0.2\n'
    running = server("app:app", files={"app.py": APP, "pyproject.toml": config})
    assert get(running.port, "/")[0] == 200
    assert get(running.port, "/push?data=x") == (503, '{"error": "LinkDown"}')
    rows = links(running)
    assert rows
    assert all(row["state"] != "UP" and row["error"] for row in rows)
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "nonsense"), "--listen: 'nonsense' is not of the form host:port"),
        (("--lisen", "127.0.0.1:1"), "there is no option '--lisen'; did you mean '--listen'?"),
        (("--secret", "x"), "there is no option '--secret'"),
        (("--task-addr", "[::1]:6062"), "IPv4"),
    ],
)
def test_a_gateway_that_cannot_be_is_said_and_exits_with_2(server: Callable[..., Server], arguments: tuple[str, ...], message: str) -> None:
    running = server("app:app", files={"app.py": APP})
    done = running.cli("gateway", *arguments)
    assert done.returncode == 2, done
    assert message in done.stderr
    assert "Traceback" not in done.stderr
