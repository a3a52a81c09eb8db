"""The example, served by the real binary: what the README promises about it."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conftest import wait_until
from tests.example import ROOT, Guest, links, start_example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server


@pytest.fixture
def example(server: Callable[..., Server]) -> Server:
    """Two HTTP workers, each with its Links UP, the ticker, and the gateway."""
    return start_example(server)


@pytest.fixture
def client(example: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=example.url, timeout=10) as session:
        yield session


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """(name, data) of each server-sent event."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_pages_and_json(example: Server, client: httpx.Client) -> None:
    for path, part in (("/", "Sidamo"), ("/label", 'type="file"'), ("/echo", "new WebSocket"), ("/chat", f'data-port="{example.gateway}"')):
        page = client.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert part in page.text
    assert client.get("/static/chat.js").headers["content-type"].startswith("text/javascript")
    assert len(client.get("/api/coffees").json()) == 4
    assert client.get("/api/coffees/HUILA").json()["origin"] == "Colombia"
    assert client.get("/api/coffees/TEA").status_code == 404
    assert client.get("/api/health").json()["ticker"] == "UP"


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
            return [sum(row[f"connections_{direction}"] for row in rows) for direction in ("in", "out")] == [1, 6]

        wait_until(both_counted, what="one connection in, and to the ticker and two to the gateway out of each worker")
    assert [(row["name"], row["protocol"], row["worker"]) for row in out] == [("ticker", "frame", "http")] * 2
    assert sorted(row["worker"] for row in into) == ["gateway"] * 4 + ["http", "ticker", "ticker"]
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


def test_without_a_link_and_a_gateway_prices_and_the_chat_are_not_available(server: Callable[..., Server]) -> None:
    alone = server("app_example.main:app", "--app-dir", ROOT)
    answer = httpx.get(f"{alone.url}/ticker/price/HUILA", timeout=10)
    assert (answer.status_code, answer.text, answer.headers["retry-after"]) == (503, "the ticker is not connected", "1")
    assert 'data-port=""' in httpx.get(f"{alone.url}/chat", timeout=10).text
    answer = httpx.post(f"{alone.url}/api/rooms/lobby/messages", json={"text": "hello"}, timeout=10)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert httpx.get(f"{alone.url}/api/rooms", timeout=10).status_code == 503
    answer = httpx.post(f"{alone.url}/label", files={"file": b"a picture"}, timeout=10)
    assert (answer.status_code, answer.text) == (503, "deferred tasks need a server with task workers: --task-workers")


# The chat -------------------------------------------------------------------------------------------------------------------------


def test_people_in_a_room_hear_each_other_and_nobody_else_does(example: Server) -> None:
    with Guest(example, "ada") as ada, Guest(example, "bob") as bob, Guest(example, "eve", "huila") as eve:
        ada.say(type="say", room="lobby", text=" good morning ", id="1")
        for guest in (ada, bob):
            said = guest.hear("message")
            assert (said["from"], said["text"], said["room"], said["id"], said["via"]) == ("ada", "good morning", "lobby", "1", "chat")
        eve.say(type="say", room="lobby", text="me too")
        assert eve.hear("error")["code"] == "room"
        eve.say(type="say", room="huila", text="echo")
        assert eve.hear("message")["text"] == "echo"  # the first message she hears


def test_members_come_and_go(example: Server, client: httpx.Client) -> None:
    with Guest(example, "ada") as ada:
        with Guest(example, "bob") as bob:
            ada.hear("members", room="lobby", members=["ada", "bob"], count=2)
            bob.join("huila")
            assert bob.hear("joined")["members"] == ["bob"]
            ada.hear("members", room="lobby", members=["ada"])
            counts = {row["room"]: row["count"] for row in client.get("/api/rooms").json()}
            assert counts == {"lobby": 1, "sidamo": 0, "huila": 1, "mandheling": 0, "nyeri": 0}
            bob.join("lobby")
            ada.hear("members", members=["ada", "bob"])
            bob.say(type="leave")
            bob.hear("left")
            ada.hear("members", members=["ada"])
            bob.join("lobby")
            ada.hear("members", members=["ada", "bob"])
        ada.hear("members", members=["ada"])
        ada.say(type="ping")
        assert ada.hear("pong")["members"] == ["ada"]


def test_a_private_message_reaches_its_target_alone(example: Server) -> None:
    with Guest(example, "ada") as ada, Guest(example, "bob", "huila") as bob, Guest(example, "eve") as eve:
        ada.say(type="tell", to="bob", text="between us", id="7")
        for guest in (ada, bob):
            said = guest.hear("private")
            assert (said["from"], said["to"], said["text"], said["id"]) == ("ada", "bob", "between us", "7")
        eve.say(type="ping")
        while (said := json.loads(eve.socket.recv(timeout=10)))["type"] != "pong":
            assert said["type"] != "private"
        ada.say(type="tell", to="nobody", text="hello?", id="8")
        assert ada.hear("error", id="8")["error"] == "nobody is not here"


def test_a_nickname_belongs_to_who_came_first_and_may_come_back(example: Server) -> None:
    with Guest(example, "ada", key="hers"):
        with Guest(example, "ada", key="another") as thief:
            assert (thief.answer["type"], thief.answer["code"]) == ("error", "nick")
            thief.say(type="say", room="lobby", text="it is me")
            assert thief.hear("error")["code"] == "room"
            thief.say(type="tell", to="ada", text="it is me")
            assert thief.hear("error")["error"] == "join first"
        with Guest(example, "ada", key="hers") as again:
            assert (again.answer["members"], again.answer["count"]) == (["ada"], 1)


def test_a_request_reaches_browsers(example: Server, client: httpx.Client) -> None:
    with Guest(example, "ada") as ada, Guest(example, "bob", "huila") as bob:
        answer = client.post("/api/rooms/lobby/messages", json={"from": "the kitchen", "text": "the oven is free"})
        assert (answer.status_code, answer.json()) == (202, {"room": "lobby", "people": 1})
        said = ada.hear("message")
        assert (said["from"], said["text"], said["via"]) == ("the kitchen", "the oven is free", "http")
        answer = client.post("/api/users/bob/messages", json={"text": "your cup is ready"})
        assert (answer.status_code, answer.json()) == (202, {"nick": "bob", "pages": 1})
        assert bob.hear("private")["from"] == "the house"


@pytest.mark.parametrize(
    ("path", "request_", "status"),
    [
        ("/api/rooms/attic/messages", {"json": {"text": "hello"}}, 404),
        ("/api/users/nobody/messages", {"json": {"text": "hello"}}, 404),
        ("/api/rooms/lobby/messages", {"json": {}}, 422),
        ("/api/rooms/lobby/messages", {"json": ["text"]}, 422),
        ("/api/rooms/lobby/messages", {"json": {"text": "x" * 2001}}, 422),
        ("/api/rooms/lobby/messages", {"json": {"text": "hello", "from": "\u202e"}}, 422),
        ("/api/rooms/lobby/messages", {"content": b"{", "headers": {"content-type": "application/json"}}, 422),
        ("/api/rooms/lobby/messages", {"content": b"[" * 10_000, "headers": {"content-type": "application/json"}}, 422),
        ("/api/rooms/lobby/messages", {"json": {"text": "x" * 20_000}}, 413),
        ("/api/rooms/lobby/messages", {"data": {"text": "hello"}}, 415),
    ],
)
def test_a_push_that_is_wrong_is_refused(client: httpx.Client, path: str, request_: dict[str, Any], status: int) -> None:
    assert client.post(path, **request_).status_code == status


def test_bad_requests_are_answered_and_harm_nobody(example: Server) -> None:
    with Guest(example, "ada") as ada, Guest(example, "bob") as bob:
        nonsense: list[str | bytes] = [
            *("", "{", "null", "[]", "7", "{}", '{"type": 7}', '{"type": ["join"]}', '{"type": "__init__"}', "[" * 100_000),
            *('{"type": "join"}', '{"type": "join", "nick": "x", "room": "attic", "key": "k"}'),
            *('{"type": "join", "nick": "", "room": "lobby", "key": "k"}', '{"type": "join", "nick": "y", "room": "lobby", "key": ""}'),
            '{"type": "join", "nick": "\u202e", "room": "lobby", "key": "k"}',
            *('{"type": "say", "room": "lobby"}', '{"type": "say", "room": "lobby", "text": " "}', '{"type": "tell", "to": {}, "text": "x"}'),
            *(b"\xff\xfe", b"\0"),
        ]
        for data in nonsense:
            ada.socket.send(data)
            assert ada.hear("error")["error"], data
        ada.say(type="say", room="lobby", text="\ud800 and that was it", id=7)
        assert bob.hear("message")["text"] == "\ud800 and that was it"
    assert "Traceback" not in example.output


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
