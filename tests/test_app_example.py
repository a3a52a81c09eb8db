"""The example, served by the real binary: what the README promises about it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

ROOT = str(Path(__file__).parent.parent)


@pytest.fixture
def example(server: Callable[..., Server], free_port: int) -> Server:
    """Two HTTP workers, each with a Link that is UP, and the ticker."""
    running = server(
        *("app_example.main:app", "--listener", "app_example.listeners", "--app-dir", ROOT, "--workers", "2"),
        environ={"TICKER_PORT": str(free_port)},
    )
    wait_until(lambda: [row["state"] for row in links(running)] == ["UP", "UP"], what="two links that are UP")
    return running


@pytest.fixture
def client(example: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=example.url, timeout=10) as session:
        yield session


def links(running: Server) -> list[dict[str, Any]]:
    return [row for row in running.connections() if row["direction"] == "out"]


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """(name, data) of each server-sent event."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_pages_and_json(client: httpx.Client) -> None:
    for path, part in (("/", "Sidamo"), ("/label", 'type="file"'), ("/echo", "new WebSocket")):
        page = client.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert part in page.text
    assert len(client.get("/api/coffees").json()) == 4
    assert client.get("/api/coffees/HUILA").json()["origin"] == "Colombia"
    assert client.get("/api/coffees/TEA").status_code == 404
    assert client.get("/api/health").json()["ticker"] == "UP"


def test_an_upload_is_measured(client: httpx.Client) -> None:
    data = os.urandom(3_000_000)
    answer = client.post("/label", files={"file": ("label.png", data)}, headers={"accept": "application/json"})
    assert answer.json() == {"name": "label.png", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert "label.png" in client.post("/label", files={"file": ("label.png", data)}).text
    assert client.post("/label", data={"file": "no file"}).status_code == 422


def test_prices_come_over_the_link(example: Server, client: httpx.Client) -> None:
    answer = client.get("/ticker/price/HUILA")
    assert answer.status_code == 200
    assert answer.json()["symbol"] == "HUILA"
    assert answer.json()["price"] > 0
    assert client.get("/ticker/price/TEA").status_code == 404
    assert sum(row["messages_out"] for row in links(example)) >= 2


def test_server_sent_events_carry_what_the_ticker_pushes(client: httpx.Client) -> None:
    with client.stream("GET", "/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for name, data in events(response):
            assert name == "clock"
            if data["prices"]:
                assert set(data["prices"]) == {"SIDAMO", "HUILA", "MANDHELING", "NYERI"}
                return
    pytest.fail("the stream ended without prices")


def test_websocket_echo(example: Server) -> None:
    with connect(f"ws://127.0.0.1:{example.port}/ws") as socket:
        for text in ("hello", "", "€" * 100_000):
            socket.send(text)
            assert socket.recv(timeout=10) == text


def test_status_and_connections_show_both_directions(example: Server) -> None:
    with connect(f"ws://127.0.0.1:{example.port}/ws") as socket:
        socket.send("one")
        socket.recv(timeout=10)
        out = links(example)
        into = [row for row in example.connections() if row["direction"] == "in"]

        def both_counted() -> bool:  # the counts come with the workers' beats
            rows = example.processes()
            return [sum(row[f"connections_{direction}"] for row in rows) for direction in ("in", "out")] == [1, 2]

        wait_until(both_counted, what="one connection in and two out")
    assert [(row["name"], row["protocol"], row["worker"]) for row in out] == [("ticker", "frame", "http")] * 2
    assert sorted(row["worker"] for row in into) == ["http", "ticker", "ticker"]
    for verb, words in (("status", ("http", "ticker", "ready")), ("connections", ("ticker", "frame", "UP"))):
        table = example.cli(verb)
        assert table.returncode == 0
        assert all(word in table.stdout for word in words), table.stdout


def test_without_the_ticker_pages_go_on_and_prices_come_back(example: Server, client: httpx.Client) -> None:
    [ticker] = example.processes("ticker")
    os.kill(ticker["pid"], signal.SIGSTOP)  # accepts, never answers
    late = client.get("/ticker/price/HUILA")
    assert (late.status_code, late.text) == (504, "the ticker did not answer in time")
    assert client.get("/").status_code == 200
    os.kill(ticker["pid"], signal.SIGKILL)
    wait_until(lambda: client.get("/ticker/price/HUILA").status_code == 200, what="a price from the ticker's successor")


def test_where_no_link_is_kept_a_price_is_not_available(server: Callable[..., Server]) -> None:
    alone = server("app_example.main:app", "--app-dir", ROOT)
    answer = httpx.get(f"{alone.url}/ticker/price/HUILA", timeout=10)
    assert (answer.status_code, answer.text, answer.headers["retry-after"]) == (503, "the ticker is not connected", "1")


def test_a_stop_ends_streams_and_websockets(example: Server) -> None:
    with (
        httpx.stream("GET", f"{example.url}/events", timeout=10) as response,
        connect(f"ws://127.0.0.1:{example.port}/ws", close_timeout=5) as socket,
    ):
        stream = events(response)
        assert next(stream)[0] == "clock"
        socket.send("hello")
        assert socket.recv(timeout=10) == "hello"
        example.process.send_signal(signal.SIGTERM)
        assert [name for name, _ in stream][-1] == "bye"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert example.process.wait(8) == 0
    assert "Traceback" not in example.output
