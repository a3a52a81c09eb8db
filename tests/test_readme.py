"""The README tells the truth: its generated parts are up to date and its code runs."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import redis
from websockets.sync.client import connect

from tests.conftest import free_ports, wait_until
from tests.stores import store_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_generated_parts_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.generate(README) == README, "run `make readme`"


def test_the_first_two_shell_blocks_are_one_command_each() -> None:
    for block in blocks("sh")[:2]:
        [line] = block.splitlines()
        assert os.access(ROOT / line, os.X_OK)


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists() and target != "benchmarks/history.jsonl"] == []


def test_the_link_example_runs(server: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as peer:
        peer.settimeout(10)
        code = blocks("python")[0].replace(":9101", f":{peer.getsockname()[1]}")
        running = server("app:app", files={"app.py": code})
        connection, _ = peer.accept()
        with connection, connection.makefile("r") as lines, httpx.Client(base_url=running.url, timeout=10) as client:
            connection.settimeout(10)
            connection.sendall(b"HUILA 7.25\n")
            wait_until(lambda: client.get("/price/HUILA").json() == {"price": 7.25, "link": "UP"}, what="the price")
            assert client.post("/order/HUILA").status_code == 200
            while (line := lines.readline()) == "ping\n":
                pass
            assert line == "buy HUILA\n"


def test_the_full_duplex_example_runs(server: Callable[..., Server]) -> None:
    [code] = [block for block in blocks("python") if "gateway.on_open" in block]
    listen, worker, task = (f"127.0.0.1:{port}" for port in free_ports(3))
    environ = {"LARAMAN_GATEWAY_WORKER_ADDR": worker, "LARAMAN_GATEWAY_TASK_ADDR": task}
    running = server("app:app", "--workers", "2", "--gateway", listen, files={"app.py": code}, environ=environ)
    with connect(f"ws://{listen}/", proxy=None) as ada, connect(f"ws://{listen}/", proxy=None) as bob:

        def heard() -> bool:  # once both have been let into the lobby
            ada.send("hello")
            with contextlib.suppress(TimeoutError):
                return bob.recv(timeout=0.1) == "hello"
            return False

        wait_until(heard, what="a message from one browser to the other")
        assert httpx.post(f"{running.url}/announce", params={"text": "closing time"}, timeout=10).status_code == 200
        assert ada.recv(timeout=10) == "closing time"  # and nothing of what she said herself
        while (text := bob.recv(timeout=10)) != "closing time":
            assert text == "hello"


def test_the_example_of_channel_and_tasks_runs(server: Callable[..., Server]) -> None:
    [code] = [block for block in blocks("python") if "channel.fan_out" in block]
    running = server("app:app", "--workers", "2", "--task-workers", "1", files={"app.py": code})
    with httpx.Client(base_url=running.url, timeout=10) as client:
        assert client.post("/words", params={"text": "tea or tea"}).json() == {"tea": 2, "or": 1}
        assert [client.post("/search", params={"user": "ada"}).json()["searches"] for _ in range(3)] == [1, 2, 3]
    with contextlib.ExitStack() as stack:
        room = f"ws://{running.url.removeprefix('http://')}/rooms/tea"
        rooms = [stack.enter_context(connect(room, proxy=None)) for _ in range(8)]

        def everybody_hears() -> bool:  # once all of them are in the room
            rooms[0].send("hello")
            with contextlib.suppress(TimeoutError):
                return [other.recv(timeout=0.5) for other in rooms[1:]] == ["hello"] * 7
            return False

        wait_until(everybody_hears, what="a message from one browser to all others, in whatever worker")


def test_the_timers_and_consumers_example_runs(server: Callable[..., Server], tmp_path: Path) -> None:
    [code] = [block for block in blocks("python") if "laraman.supervise" in block]
    store = store_server("redis-server", tmp_path)
    with contextlib.closing(redis.Redis(port=store.port)) as client, contextlib.ExitStack() as stack:
        stack.callback(store.kill)
        running = server("app:app", files={"app.py": code.replace("port=6379", f"port={store.port}")})

        def told() -> bool:
            client.publish("prices", "HUILA 7.25")
            return httpx.get(f"{running.url}/price/HUILA", timeout=10).json() == 7.25

        wait_until(told, what="the price")
        assert [row["state"] for row in running.connections() if row["direction"] == "out"] == ["UP"]
        wait_until(lambda: "clean_up" in running.cli("status").stdout, what="the timer")


def test_the_worker_example_runs(server: Callable[..., Server]) -> None:
    [code] = [block for block in blocks("python") if "room:Room" in block]
    [port] = free_ports(1)
    server("room:workers", files={"room.py": code.replace(":7001", f":{port}")})
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client, client.makefile("rb") as lines:
        client.sendall(b"ada\r\n")
        assert lines.readline() == b"Hello, ada!\n"


def test_every_table_has_as_many_cells_in_each_row() -> None:
    """Otherwise it is shown as text."""
    lines = README.splitlines()
    for number, (line, next_line) in enumerate(itertools.pairwise(lines), 1):
        if line.startswith("|") and next_line.startswith("|"):
            assert line.count("|") == next_line.count("|"), f"line {number}: {line}"
