"""What runs once per server runs once for each period, through reloads, kills and a restart of the master; consumers are kept alive."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.server import serve

from tests.conftest import free_ports, wait_until
from tests.e2e.tools import wait_workers
from tests.stores import StoreServer, store_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

PERIOD = 0.1

TIMED = f"""
import asyncio, os
from pathlib import Path
import laraman

def mark(word):
    with open("marks.txt", "a") as file:
        file.write(f"{{os.getpid()}} {{word}}\\n")

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"hello"}})

@laraman.every({PERIOD}, singleton=True, name="once")
async def once():
    # What is noted is the moment that this call is for.
    (noted,) = Path(".laraman").glob("*/laraman.leases/timer.once-*")
    moment = int(noted.read_text().split()[1])
    mark(f"begun {{moment}}")
    await asyncio.sleep(0.03)
    mark(f"ended {{moment}}")

@laraman.every(0.2, name="each")
def each():
    mark("each")

@laraman.every(0.3, name="bad")
def bad():
    mark("bad")
    raise RuntimeError("of the timer")

laraman.after(0.1, lambda: mark("after"))

@laraman.cron("* * * * * *", singleton=True)
def every_second():
    mark("cron")

@laraman.every(60, worker="other")
def nobody():
    mark("nobody")
"""
LISTENERS = """
import laraman
from app import mark

@laraman.on(laraman.TickReceived)
def received(event):
    if event.tick == "once":
        mark("received")

laraman.every(0.2, lambda: mark("from the listener module"), name="listening")
"""


def marks(server: Server) -> list[tuple[int, str]]:
    path = server.directory / "marks.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), word) for pid, _, word in (line.partition(" ") for line in lines)]


def moments(server: Server, word: str = "begun") -> list[int]:
    return [int(text.split()[1]) for _, text in marks(server) if text.startswith(word)]


def wait_for_ticks(server: Server, more: int) -> None:
    goal = len(moments(server)) + more
    wait_until(lambda: len(moments(server)) >= goal, what=f"{goal} ticks\n{server.output}")


def test_once_per_period_through_reloads_kills_and_a_restart(server: Callable[..., Server]) -> None:
    files = {"app.py": TIMED.replace('worker="other"', 'worker="http"'), "listen.py": LISTENERS}
    running = server("app:app", "--workers", "2", "--listener", "listen", files=files)
    period = round(PERIOD * 1e6)
    wait_for_ticks(running, 5)
    pids = wait_workers(running, 2)
    for _ in range(2):  # nothing is lost on the way to the successor, who makes up for what came due meanwhile
        assert running.cli("reload").returncode == 0
        pids = wait_workers(running, 2, without=set(pids))
        wait_for_ticks(running, 3)
    calm = moments(running)
    assert calm == sorted(set(calm))
    assert not any(moment % period for moment in calm)
    gaps = Counter((after - before) // period for before, after in pairwise(calm))
    assert set(calm[:-1]) <= set(moments(running, "ended")), "a reload has cut a call off"
    assert gaps[1] > gaps.total() / 2, gaps  # a busy machine may miss some

    for pid in (pids[0], pids[1]):  # of slot 0, then of the other one
        os.kill(pid, signal.SIGKILL)
        pids = wait_workers(running, 2, without={pid})
        wait_for_ticks(running, 3)
    assert running.cli("restart").returncode == 0
    pids = wait_workers(running, 2, without=set(pids))
    wait_for_ticks(running, 3)

    begun = moments(running)
    assert begun == sorted(set(begun)), "a period was begun twice"
    told = marks(running)
    words = Counter(word for _, word in told)
    holders = {pid for pid, word in told if word.startswith("begun")}
    assert words["received"] == len(begun)
    assert set(moments(running, "ended")) <= set(begun)
    assert len(begun) - len(moments(running, "ended")) <= 2  # the one that was killed, and one that runs now
    assert words["nobody"] == 0
    assert Counter(pid for pid, word in told if word == "after").most_common(1)[0][1] == 1
    assert {pid for pid, word in told if word == "cron"} <= holders
    assert pids[1] not in holders
    for word in ("each", "after", "bad", "from the listener module"):  # in every process, whoever holds leases
        wait_until(lambda word=word: set(pids) <= {pid for pid, said in marks(running) if said == word}, what=word)
    wait_until(lambda: running.output.count("Timer bad raised") > 2)
    wait_until(lambda: "once per server" in running.cli("status").stdout)  # it comes with a beat
    directory = running.directory / ".laraman"
    assert list(directory.glob("*/laraman.leases/timer.once-*"))
    assert running.stop() == 0
    assert not list(directory.glob("*/laraman.leases"))


def test_what_cannot_run_is_refused_at_the_start(server: Callable[..., Server]) -> None:
    refused = server("app:app", files={"app.py": TIMED}, ready=False)
    assert refused.process.wait(30) == 2
    assert "timer app.nobody: no worker is called 'other', there is http" in refused.output
    refused = server("app:app", files={"app.py": "import laraman\nlaraman.supervise('x', print, scope='cluster')\n" + TIMED}, ready=False)
    assert refused.process.wait(30) == 2
    assert "consumer x runs once per cluster: name the cluster's store with --cluster" in refused.output
    refused = server("app:app", files={"app.py": "import laraman\nlaraman.cron('61 * * * *', print)\n"}, ready=False)
    assert refused.process.wait(30) == 2
    assert "cron line '61 * * * *': '61' is no minute" in refused.output
    assert "Traceback" not in refused.output


CONSUMING = """
import os
import laraman
from redis.asyncio import Redis
from websockets.asyncio.client import connect

def mark(word):
    with open("marks.txt", "a") as file:
        file.write(f"{os.getpid()} {word}\\n")

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

async def orders():
    async with Redis.from_url(os.environ["REDIS"]) as client, client.pubsub() as feed:
        await feed.subscribe("orders")
        mark("subscribed")
        async for message in feed.listen():
            if message["type"] == "message":
                mark("order " + message["data"].decode())

async def prices():
    async with connect(os.environ["FEED"]) as feed:
        async for message in feed:
            mark("price " + message)

quick = laraman.Backoff(base=0.1, cap=0.3)
laraman.supervise("orders", orders, scope="server", backoff=quick)
laraman.supervise("prices", prices, scope="server", backoff=quick)
laraman.supervise("orders of the cluster", orders, scope="cluster", backoff=quick)
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[StoreServer]:
    started = store_server("redis-server", tmp_path)
    yield started
    started.kill()


class Feed:
    """A websocket server that sends numbers; it can be gone and come back on the same port."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.sent = 0
        self.clients: set[Any] = set()
        self.start()

    def start(self) -> None:
        self._server = serve(self._send, "127.0.0.1", self.port)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _send(self, client: Any) -> None:
        self.clients.add(client)
        with contextlib.suppress(Exception):
            while True:
                self.sent += 1
                client.send(str(self.sent))
                if client.close_code is not None:
                    break
                with contextlib.suppress(TimeoutError):
                    client.recv(timeout=0.05)
        self.clients.discard(client)

    def kill(self) -> None:
        self._server.shutdown()
        for client in tuple(self.clients):
            with contextlib.suppress(OSError):
                client.socket.shutdown(2)
        self._thread.join()


@pytest.fixture
def feed() -> Iterator[Feed]:
    started = Feed()
    yield started
    started.kill()


def test_consumers_live_in_one_process_through_the_death_of_their_peers(
    server: Callable[..., Server], redis: StoreServer, feed: Feed
) -> None:
    environ = {"REDIS": redis.url, "FEED": f"ws://127.0.0.1:{feed.port}", "LARAMAN_CLUSTER": redis.url}
    running = server("app:app", "--workers", "2", files={"app.py": CONSUMING}, environ=environ)

    def said(word: str) -> int:
        return sum(text.startswith(word) for _, text in marks(running))

    def orders_arrive() -> None:
        """Published until both subscribers have one more."""
        goal = said("order ") + 2
        wait_until(lambda: publish(redis, str(goal)) and said("order ") >= goal, what=f"{goal} orders\n{running.output}")

    def rows() -> dict[str, tuple[str, int]]:
        return {row["name"]: (row["state"], row["slot"]) for row in running.connections() if row["protocol"] == "consumer"}

    orders_arrive()
    wait_until(lambda: said("price ") > 3, what="prices")
    assert rows() == {"orders": ("UP", 0), "prices": ("UP", 0), "orders of the cluster": ("UP", 0)}
    (pid,) = {pid for pid, _ in marks(running)}

    redis.kill()
    feed.kill()
    wait_until(lambda: "DOWN" in {state for state, _ in rows().values()}, what="a consumer that is DOWN")
    prices = said("price ")
    redis.start()
    feed.start()
    orders_arrive()
    wait_until(lambda: said("price ") > prices + 3, what="prices again")
    assert {pid for pid, _ in marks(running)} == {pid}

    # The successor consumes when the predecessor has ended.
    assert running.cli("reload").returncode == 0
    (successor, _) = wait_workers(running, 2, without={pid})
    wait_until(lambda: Counter(marks(running))[successor, "subscribed"] >= 2, what=f"the successor\n{running.output}")
    orders_arrive()
    first = next(index for index, (writer, _) in enumerate(marks(running)) if writer == successor)
    assert {writer for writer, _ in marks(running)[first:]} == {successor}
    assert running.output.count("Consumer prices ended and is started again") == 1


def publish(redis: StoreServer, text: str) -> bool:
    from redis import Redis

    with Redis(port=redis.port) as client:
        return bool(client.publish("orders", text))


CLUSTER = """
import os
import laraman
from redis import Redis

store = Redis.from_url(os.environ["LARAMAN_CLUSTER"], decode_responses=True)

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

@laraman.every(0.1, singleton="cluster", name="once")
def once():
    with open("marks.txt", "a") as file:
        file.write(f"{os.getpid()} begun {store.get('laraman:{timer.once}:noted').split()[1]}\\n")
"""


def test_once_in_a_cluster_of_two_servers(server: Callable[..., Server], redis: StoreServer) -> None:
    environ = {"LARAMAN_CLUSTER": redis.url}
    servers = [server("app:app", "--workers", "2", files={"app.py": CLUSTER}, environ=environ) for _ in range(2)]
    first = wait_until(lambda: next((running for running in servers if moments(running)), None), what="a first tick")
    second = next(running for running in servers if running is not first)
    wait_for_ticks(first, 5)
    assert first.cli("reload").returncode == 0
    wait_until(lambda: len({pid for running in servers for pid, _ in marks(running)}) > 1, what="another holder")
    holder = max(servers, key=lambda running: max(moments(running), default=0))
    other = first if holder is second else second
    assert holder.stop() == 0
    wait_for_ticks(other, 5)
    begun = [moment for running in servers for moment in moments(running)]
    assert len(begun) == len(set(begun)), "a period was begun twice"
    assert not any(moment % 100_000 for moment in begun)
