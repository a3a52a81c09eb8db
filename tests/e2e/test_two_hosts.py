"""Two servers with two state directories and two ports, as on two hosts, that only Redis or NATS joins, with TLS and a password."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from laraman import channel
from tests.conftest import DEADLINE, wait_until
from tests.secure_stores import PASSWORD, SecureStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

APP = """
from fastapi import FastAPI, WebSocket
from laraman import channel

app = FastAPI()


@app.websocket("/chat")
async def chat(websocket: WebSocket):
    await websocket.accept()
    await channel.fan_out(websocket, "chat")


@app.put("/jobs")
async def put():
    return await channel.put("jobs", "fine")
"""


@pytest.fixture(params=["redis-server", "nats-server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SecureStore]:
    made = SecureStore(request.param, tmp_path)
    yield made
    made.server.kill()


def put(host: Server) -> bool:
    return httpx.put(f"{host.url}/jobs", timeout=DEADLINE).status_code == 200


def open_all(stack: contextlib.ExitStack, host: Server) -> list[ClientConnection]:
    return [stack.enter_context(connect(f"ws://127.0.0.1:{host.port}/chat")) for _ in range(2)]


def all_hear(clients: list[ClientConnection], text: str) -> None:
    """Each of them says something, and all get all of it, once all are subscribed, which the first finds out."""
    wait_until(lambda: _is_heard(clients, f"{text}?{next(_numbers)}"), what=f"all to hear {text}", timeout=2 * DEADLINE)
    for number, client in enumerate(clients):
        client.send(f"{text} {number}")
        assert [each.recv(timeout=DEADLINE) for each in clients] == [f"{text} {number}"] * len(clients)


def _is_heard(clients: list[ClientConnection], text: str) -> bool:
    clients[0].send(text)
    return sum(_hears(client, text) for client in clients) == len(clients)


def _hears(client: ClientConnection, text: str) -> bool:
    with contextlib.suppress(TimeoutError):
        while client.recv(timeout=0.5) != text:
            pass
        return True
    return False


_numbers = itertools.count()


def test_hosts_hear_each_other_also_when_the_store_was_away_and_when_one_of_them_was(server: Callable[..., Server], store: SecureStore) -> None:
    files = {"app.py": APP, "pyproject.toml": f'[tool.laraman]\nworkers = 2\nchannel = "{store.url()}"\n'}
    hosts = [server("app:app", files=files) for _ in range(2)]
    assert len({(host.port, host.directory) for host in hosts}) == 2
    with contextlib.ExitStack() as stack:
        one, other = (open_all(stack, host) for host in hosts)
        all_hear(one + other, "hello")

        assert put(hosts[0])
        store.server.kill()
        wait_until(lambda: all(f"The channel's server {store.place} is away" in host.output for host in hosts), what="it to be said")
        store.server.start()
        wait_until(lambda: put(hosts[1]), what="the store's readiness")
        all_hear(one + other, "again")

        for pid in [row["pid"] for row in hosts[1].status()["processes"]] + [hosts[1].pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        hosts[1].process.wait(DEADLINE)
        all_hear(one, "alone")
        hosts.append(server("app:app", files=files))
        all_hear(one + open_all(stack, hosts[2]), "together")

        async def queued() -> list[Any]:
            async with channel.connect(store.url()) as there:
                return [(await there.get("jobs", timeout=DEADLINE)).data for _ in range(2)]

        assert asyncio.run(queued()) == ["fine", "fine"]
        told = [host.output for host in hosts]
        for command in (("status", "--json"), ("connections", "--json"), ("config", "app:app"), ("config", "app:app", "--json")):
            result = hosts[0].cli(*command)
            assert result.returncode == 0, result.stderr
            told.append(result.stdout + result.stderr)
    assert not any("Traceback" in text for text in told)
    assert not any(PASSWORD in text or store.url() in text or "bob:" in text for text in told)


def test_a_password_that_is_wrong_is_said_in_one_line_and_not_shown(server: Callable[..., Server], store: SecureStore) -> None:
    running = server("app:app", "--channel", store.url(password="wr0ng"), files={"app.py": APP})
    assert not put(running)
    said = [line for line in running.output.splitlines() if "channel's server" in line and "is away" in line]
    assert len(said) == 1
    assert store.place in said[0]
    assert "wr0ng" not in running.output


@pytest.mark.parametrize("url", ["redis://bob:wr0ng/1@host", "tls://bob:wr0ng@host?ssl_ca_certs=/nowhere", "nats://bob:wr0ng@host?x=1"])
def test_a_url_that_cannot_be_ends_the_start_with_one_line(server: Callable[..., Server], url: str) -> None:
    refused = server("app:app", "--channel", url, files={"app.py": APP}, ready=False)
    assert refused.process.wait(DEADLINE) == 2
    assert len(refused.output.strip().splitlines()) == 1, refused.output
    assert "wr0ng" not in refused.output
