"""GatewayWorker's words, said to the real embedded gateway with real browsers' connections."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from laraman import gateway
from laraman.config import GatewayConfig
from laraman.gateway import words
from tests.conftest import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Server

pytestmark = pytest.mark.anyio

APP = "async def app(scope, receive, send):\n    assert scope['type'] == 'lifespan'\n"


class Client(NamedTuple):
    """One connection, as it is here and as the gateway calls it."""

    socket: ClientConnection
    id: str

    async def heard(self) -> list[str | bytes]:
        """What it has received before the word that ``everything`` sends to all."""
        received = []
        with anyio.fail_after(10):
            while (data := await self.socket.recv()) != "that was it":
                received.append(data)
        return received


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def clients(server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Client]]:
    """Four connections to a gateway of their own, and a bus to it in this process."""
    listen, worker, task = (f"127.0.0.1:{port}" for port in free_ports(3))
    environ = {"LARAMAN_GATEWAY_WORKER_ADDR": worker, "LARAMAN_GATEWAY_TASK_ADDR": task}
    server("app:app", "--gateway", listen, files={"app.py": APP}, environ=environ)
    config = GatewayConfig(embedded=True, worker_addr=worker, task_addr=task)
    async with gateway.NetBus(config) as bus, contextlib.AsyncExitStack() as stack:
        monkeypatch.setattr(gateway, "bus", bus)
        made: list[Client] = []
        for _ in range(4):
            socket = await stack.enter_async_context(connect(f"ws://{listen}/", proxy=None))
            [new] = set(await words.get_all_client_id_list()) - {client.id for client in made}
            made.append(Client(socket, new))
        yield made


async def everything(*clients: Client) -> list[list[str | bytes]]:
    await words.send_to_all("that was it")
    return [await client.heard() for client in clients]


async def test_sends_reach_whom_they_are_for(clients: list[Client]) -> None:
    ada, bob, eve, guest = clients
    await words.bind_uid(ada.id, 1)
    await words.bind_uid(bob.id, 1)
    await words.bind_uid(eve.id, "eve")
    await words.join_group(ada.id, ["red", "blue"])
    await words.join_group(eve.id, "blue")
    await words.send_to_all("all but bob and eve", exclude=[bob.id, eve.id])
    await words.send_to_client(guest.id, "guest")
    await words.send_to_client([ada.id, guest.id, ada.id, eve.id], "ada and guest, once", exclude=eve.id)
    await words.send_to_uid(1, "uid 1")
    await words.send_to_uid([1, "eve", 1], "uids but ada", exclude=ada.id)
    await words.send_to_group("blue", "blue")
    await words.send_to_group(["red", "blue"], "red and blue but eve", exclude=[eve.id])
    await words.send_to_group("nobody's", "nobody")
    assert await everything(*clients) == [
        ["all but bob and eve", "ada and guest, once", "uid 1", "blue", "red and blue but eve", "red and blue but eve"],
        ["uid 1", "uids but ada"],
        ["uids but ada", "blue"],
        ["all but bob and eve", "guest", "ada and guest, once"],
    ]


async def test_text_stays_text_and_bytes_stay_bytes(clients: list[Client]) -> None:
    await words.bind_uid(clients[0].id, "ada")
    await words.join_group(clients[0].id, "red")
    for data in ("häh?", b"\xff\0"):
        await words.send_to_all(data)
        await words.send_to_client(clients[0].id, data)
        await words.send_to_uid("ada", data)
        await words.send_to_group("red", data)
    assert await everything(clients[0]) == [["häh?"] * 4 + [b"\xff\0"] * 4]


async def test_uids(clients: list[Client]) -> None:
    ada, again, eve, guest = (client.id for client in clients)
    await words.bind_uid(ada, "ada")
    await words.bind_uid(again, "ada")
    await words.bind_uid(eve, "nobody yet")
    await words.bind_uid(eve, "eve")  # one uid per client: the first is gone
    assert set(await words.get_client_id_by_uid("ada")) == {ada, again}
    assert [await words.get_uid_by_client_id(client) for client in (ada, eve, guest)] == ["ada", "eve", None]
    assert [await words.is_uid_online(uid) for uid in ("ada", "eve", "nobody yet")] == [True, True, False]
    assert sorted(await words.get_all_uid_list()) == ["ada", "eve"]
    assert await words.get_all_uid_count() == 2
    await words.unbind_uid(ada)
    assert await words.get_client_id_by_uid("ada") == [again]
    await words.unbind_uid(again)
    assert (await words.is_uid_online("ada"), await words.get_all_uid_count()) == (False, 1)


async def test_clients(clients: list[Client]) -> None:
    ada = clients[0].id
    unknown = ada[:12] + "0" * (len(ada) - 12)
    assert set(await words.get_all_client_id_list()) == {client.id for client in clients}
    assert await words.get_all_client_count() == 4
    assert [await words.is_online(client) for client in (ada, unknown)] == [True, False]
    assert await words.get_uid_by_client_id(unknown) is None
    assert await words.get_session(unknown) == {}


async def test_groups(clients: list[Client]) -> None:
    ada, bob, eve, _ = (client.id for client in clients)
    await words.bind_uid(ada, "ada")
    await words.bind_uid(bob, "ada")
    await words.join_group(ada, ["red", 7])
    await words.join_group(bob, "red")
    await words.join_group(eve, "blue")
    assert sorted(await words.get_all_group_id_list()) == ["7", "blue", "red"]
    assert set(await words.get_client_id_list_by_group("red")) == {ada, bob}
    assert [await words.get_client_count_by_group(group) for group in ("red", 7, "none")] == [2, 1, 0]
    assert [await words.get_uid_list_by_group(group) for group in ("red", "blue", "none")] == [["ada"], [], []]
    assert [await words.get_uid_count_by_group(group) for group in ("red", "blue")] == [1, 0]
    assert {group: set(ids) for group, ids in (await words.get_all_group_client_id_list()).items()} == {"red": {ada, bob}, "7": {ada}, "blue": {eve}}
    assert await words.get_all_group_client_count() == {"red": 2, "7": 1, "blue": 1}
    assert await words.get_all_group_uid_list() == {"red": ["ada"], "7": ["ada"], "blue": []}
    assert await words.get_all_group_uid_count() == {"red": 1, "7": 1, "blue": 0}
    await words.leave_group(ada, "red")
    await words.ungroup([7, "blue"])
    assert await words.get_all_group_client_count() == {"red": 1}


async def test_with_nobody_in_a_group_the_lists_are_empty(clients: list[Client]) -> None:
    assert await words.get_all_group_id_list() == []
    assert (await words.get_all_group_client_id_list(), await words.get_all_group_uid_list()) == ({}, {})
    assert (await words.get_all_group_client_count(), await words.get_all_group_uid_count()) == ({}, {})
    assert await words.get_client_sessions_by_group("none") == {}


async def test_sessions(clients: list[Client]) -> None:
    ada, bob, *_ = (client.id for client in clients)
    await words.set_session(ada, {"name": "Ada", "cart": {"HUILA": 1}})
    await words.update_session(ada, {"cart": {"NYERI": 2}, "name": None})
    assert await words.get_session(ada) == {"name": None, "cart": {"HUILA": 1, "NYERI": 2}}
    await words.update_session(bob, {"name": "Bob"})
    await words.join_group(bob, "red")
    assert await words.get_client_sessions_by_group("red") == {bob: {"name": "Bob"}}
    sessions = await words.get_all_client_sessions()
    assert {client: session for client, session in sessions.items() if session} == {ada: await words.get_session(ada), bob: {"name": "Bob"}}
    await words.set_session(ada, {})
    assert await words.get_session(ada) == {}


async def test_a_session_that_is_no_object_is_an_error(clients: list[Client]) -> None:
    for foreign in ("[]", "a:1:{}"):
        await gateway.bus.conn_info_update(clients[0].id, new_session=foreign)
        with pytest.raises(ValueError, match=r"JSON object|Expecting value"):
            await words.get_session(clients[0].id)


async def test_a_closed_client_hears_the_last_words(clients: list[Client]) -> None:
    ada, bob, *_ = clients
    await words.close_client(ada.id, "closing time")
    await words.close_client([bob.id])
    with anyio.fail_after(10):
        assert await ada.socket.recv() == "closing time"
        for client in (ada, bob):
            with pytest.raises(ConnectionClosed) as closed:
                await client.socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
    assert await words.get_all_client_count() == 2


def test_the_table_in_the_readme_is_complete() -> None:
    text = (Path(__file__).parent.parent.parent / "README.md").read_text()
    table = text.partition("<!-- words -->")[2].partition("<!-- /words -->")[0].partition("|---|")[2]
    assert set(re.findall(r"`(\w+)`", table)) == {*words.__all__, "on_open", "on_message", "on_close"}
    assert all(hasattr(gateway, name) for name in words.__all__)
