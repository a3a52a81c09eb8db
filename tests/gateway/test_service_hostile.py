"""What one hostile peer does to the gateway does not reach the others."""

from __future__ import annotations

import asyncio
import logging
import resource
import struct
from typing import TYPE_CHECKING

import pytest

from laraman.gateway.browsers import open_limit
from laraman.protocols.netsvr import Command
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.gateway import DEADLINE, gateway_running, until

if TYPE_CHECKING:
    from tests.gateway.gateway import Peer, Running

pytestmark = pytest.mark.anyio

REQUEST = b"".join(
    line + b"\r\n"
    for line in (
        b"GET / HTTP/1.1",
        b"Host: localhost",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"",
    )
)


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A frame of a client, with a mask of zeros."""
    assert len(payload) < 126
    return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(8, struct.pack("!H", code) + reason)


async def raw_browser(gateway: Running, *frames: bytes) -> Peer:
    """A websocket that has sent these frames in one piece with its request."""
    peer = await gateway.raw()
    peer.writer.write(REQUEST + b"".join(frames))
    await peer.reader.readuntil(b"\r\n\r\n")
    return peer


# A close that waits behind messages which are held -------------------------------------------------------------------------------------


async def held_close(gateway: Running) -> Peer:
    """It has sent too much, and then a close: that is answered, but not handled yet."""
    peer = await raw_browser(gateway, *[frame(1, b"x")] * 20, close_frame(1000))
    await until(lambda: any(client.protocol.close_sent for client in gateway.clients()))
    return peer


async def test_a_kick_meets_a_close_that_waits() -> None:
    async with gateway_running(rate=0.1, burst=5) as gateway:
        task = await gateway.task_peer()
        peer = await held_close(gateway)
        browser = await gateway.open_browser()
        task.send(Command.FORCE_OFFLINE, pb.ForceOffline(uniq_ids=gateway.uniq_ids))
        assert (await task.ask(Command.UNIQ_ID_COUNT)).count <= 2
        await until(lambda: not gateway.uniq_ids)
        await browser.wait_closed()
        assert browser.close_code == 1008
        assert await peer.ended()


async def test_a_stop_meets_a_close_that_waits() -> None:
    async with gateway_running(rate=0.1, burst=5) as gateway:
        peer = await held_close(gateway)
        browser = await gateway.open_browser()
        await gateway.drain()
        await browser.wait_closed()
        assert browser.close_code == 1012
        assert await peer.ended()


# Logs ----------------------------------------------------------------------------------------------------------------------------------


async def test_the_reason_of_a_close_writes_no_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="uvicorn.error")
    async with gateway_running() as gateway:
        peer = await raw_browser(gateway, close_frame(1002, b"x\nERROR:    forged\x1b[2J"))
        assert await peer.ended()
    text = caplog.text
    assert "forged" in text
    assert "\nERROR:    forged" not in text
    assert "\x1b" not in text


# Floods of frames that are no messages -------------------------------------------------------------------------------------------------


FLOODS = {
    "pings": [frame(9)] * 500,
    "pongs": [frame(10, b"x")] * 500,
    "fragments": [bytes((1,)) + frame(1)[1:], *[bytes((0,)) + frame(0)[1:]] * 500],
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_frames_without_a_message_count_against_the_rate(kind: str) -> None:
    async with gateway_running(rate=0.1, burst=100) as gateway:
        await raw_browser(gateway, *FLOODS[kind])
        await until(lambda: [client.throttled for client in gateway.clients()] == [True])
        read = gateway.clients()[0].bytes_in
        async with gateway.browser() as other:
            await (await other.ping())
        assert gateway.clients()[0].bytes_in == read


async def test_a_few_pings_are_answered_and_counted() -> None:
    async with gateway_running(rate=1, burst=10) as gateway:
        async with gateway.browser() as browser:
            for _ in range(3):
                await (await browser.ping())
        assert gateway.gateway.metrics.heartbeats == 3


# Workers that do not read --------------------------------------------------------------------------------------------------------------


async def test_no_browser_is_let_in_that_no_worker_has_room_for() -> None:
    async with gateway_running() as gateway:
        stalled = await gateway.worker_peer(limit=1024)
        await stalled.register()
        session = gateway.sessions()[0]
        session.queue._max_events = 10
        browser = await gateway.open_browser(close_timeout=0.1)
        async with asyncio.timeout(DEADLINE):
            while not session.queue.full:
                await browser.send(b"." * 20_000)
                await asyncio.sleep(0)
        refused = await gateway.open_browser()
        async with asyncio.timeout(DEADLINE):
            await refused.wait_closed()
        assert refused.close_code == 1013
        assert gateway.gateway.metrics.opens_refused == 1
        with_room = await gateway.worker_peer()
        await with_room.register()
        async with gateway.browser():
            await with_room.event(Command.CONN_OPEN)
        await browser.close()


# Too many connections ------------------------------------------------------------------------------------------------------------------


async def test_browsers_leave_room_for_workers(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway_running() as gateway:
        gateway.gateway.browsers.room = 3
        silent = [await gateway.raw() for _ in range(3)]
        for _ in range(2):
            refused = await gateway.raw()
            assert await refused.ended()
        worker = await gateway.worker_peer()
        assert (await worker.register()).code == 0
        assert caplog.text.count("no room for more browsers") == 1
        assert gateway.gateway.metrics.opens_refused == 2
        for peer in (*silent, worker):
            peer.close()
        await until(lambda: not gateway.worker.connections)
        async with gateway.browser() as browser:
            await (await browser.ping())


def test_as_many_files_may_be_open_as_the_process_can_ask_for() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        limit = open_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
        assert limit == before[1] or before[1] == resource.RLIM_INFINITY
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# One command that makes very many messages ---------------------------------------------------------------------------------------------


async def test_a_browser_that_one_command_is_too_much_for_is_closed() -> None:
    async with gateway_running(buffer=65536) as gateway:
        task = await gateway.task_peer()
        slow = await gateway.raw(limit=1024)  # it reads no more than that when it is not asked to
        slow.writer.write(REQUEST)
        (uniq_id,) = await until(lambda: gateway.uniq_ids)
        task.send(Command.MULTICAST, pb.Multicast(uniq_ids=[uniq_id] * 60_000, data=b"x" * 1000))
        await until(lambda: not gateway.uniq_ids)
        assert gateway.gateway.metrics.sent_bytes < 30_000_000
        assert gateway.gateway.metrics.not_sent > 0
