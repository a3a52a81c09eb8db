from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from laraman.channel.fanout import fan_out
from laraman.errors import LocalProtocolError
from tests.net.serving import until

if TYPE_CHECKING:
    from tests.channel.hubs import AHub

pytestmark = pytest.mark.anyio


class WebSocket:
    """As Starlette's: what is put into ``coming`` is received."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.broken = False
        self.failed = 0

    async def receive(self) -> dict[str, Any]:
        return await self.coming.get()

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        if self.broken:
            self.failed += 1
            raise OSError("gone")
        self.sent.append(message)

    def say(self, **message: Any) -> None:
        self.coming.put_nowait({"type": "websocket.receive", **message})

    def leave(self) -> None:
        self.coming.put_nowait({"type": "websocket.disconnect", "code": 1000})


async def failed(socket: WebSocket) -> None:
    await until(lambda: socket.failed)


async def subscribed(hub: AHub, count: int) -> None:
    await until(lambda: sum(len(client.subscriptions) for client in hub.hub._members) == count)


async def test_what_one_sends_all_get_as_it_is(hub: AHub) -> None:
    sockets = [WebSocket(), WebSocket()]
    clients = [hub.client(), hub.client()]
    tasks = [asyncio.create_task(fan_out(client, socket, "chat")) for client, socket in zip(clients, sockets, strict=True)]
    await subscribed(hub, 2)
    sockets[0].say(text="hello")
    sockets[0].say(bytes=b"\x00", text=None)
    await clients[1].publish("chat", {"n": 1})
    await until(lambda: all(len(socket.sent) == 3 for socket in sockets))
    for socket in sockets:
        assert {"type": "websocket.send", "text": "hello"} in socket.sent
        assert {"type": "websocket.send", "bytes": b"\x00"} in socket.sent
        assert {"type": "websocket.send", "text": '{"n": 1}'} in socket.sent
        socket.leave()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    await subscribed(hub, 0)


async def test_one_that_only_listens(hub: AHub) -> None:
    socket, client = WebSocket(), hub.client()
    task = asyncio.create_task(fan_out(client, socket, "chat.>", publish=False))
    await subscribed(hub, 1)
    socket.say(text="for nobody")
    await client.publish("chat.a", "x")
    await until(lambda: socket.sent)
    socket.leave()
    await asyncio.wait_for(task, 10)
    assert [message["text"] for message in socket.sent] == ["x"]


async def test_one_that_does_not_read_is_closed_and_keeps_nobody(hub: AHub) -> None:
    slow, quick, client = WebSocket(), WebSocket(), hub.client()
    slow.reads.clear()
    ending = asyncio.create_task(fan_out(client, slow, "chat", queue=2, overflow="close"))
    other = asyncio.create_task(fan_out(client, quick, "chat"))
    await until(lambda: client._watched and len(client._watched["chat"].subscriptions) == 2)
    await subscribed(hub, 1)
    for number in range(10):
        await client.publish("chat", str(number))
    await until(lambda: len(quick.sent) == 10)
    slow.reads.set()
    await asyncio.wait_for(ending, 10)
    assert slow.sent[-1] == {"type": "websocket.close", "code": 1013, "reason": "too slow"}
    assert len(slow.sent) <= 4
    quick.leave()
    await asyncio.wait_for(other, 10)


async def test_one_that_is_gone_ends_it_and_one_that_cannot_be_sent_to_raises(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.channel.fanout.GONE_SECONDS", 0.2)
    client = hub.client()
    for leaves in (True, False):
        socket = WebSocket()
        socket.broken = True
        task = asyncio.create_task(fan_out(client, socket, "chat"))
        await subscribed(hub, 1)
        await client.publish("chat", "x")
        await failed(socket)
        if leaves:
            socket.leave()
            await asyncio.wait_for(task, 10)
        else:
            with pytest.raises(OSError, match="gone"):
                await asyncio.wait_for(task, 10)
        await subscribed(hub, 0)


async def test_what_cannot_be_published_is_raised_by_itself(hub: AHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.net.encoding.MAX_PAYLOAD", 100)
    socket = WebSocket()
    socket.say(text="x" * 101)
    with pytest.raises(LocalProtocolError, match="more than the 100"):
        await fan_out(hub.client(), socket, "chat")
