"""The gateway's side to browsers: who gets in, abuse, limits, slow readers, compression."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from laraman.protocols.netsvr import EXTENSIONS, Command
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.gateway import DEADLINE, Peer, gateway_running, until
from tests.protocols.test_upgrade import frame, head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway.gateway import Running

pytestmark = pytest.mark.anyio

OPEN, CLOSE, TRANSFER = Command.CONN_OPEN, Command.CONN_CLOSE, Command.TRANSFER


async def answer(gateway: Running, request: bytes) -> bytes:
    """All that the gateway says to this before it closes the connection."""
    peer = await gateway.raw()
    peer.writer.write(request)
    async with asyncio.timeout(DEADLINE):
        return await peer.reader.read()


async def raw_websocket(gateway: Running, **changes: Any) -> Peer:
    """A websocket whose frames the test writes itself."""
    peer = await gateway.raw(limit=1024)
    peer.writer.write(head(Host=gateway.addresses[0], **changes))
    async with asyncio.timeout(DEADLINE):
        assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return peer


async def close_frame(peer: Peer) -> tuple[int, bytes]:
    """Code and reason of the close that comes next, pongs left aside; behind it comes the end."""
    async with asyncio.timeout(DEADLINE):
        while (first := await peer.reader.readexactly(2))[0] != 0x88:
            await peer.reader.readexactly(first[1])
        payload = await peer.reader.readexactly(first[1])
        peer.writer.write_eof()
        assert await peer.reader.read() == b""
    return struct.unpack("!H", payload[:2])[0], payload[2:]


@contextlib.asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Running, Peer, Peer]]:
    """A gateway with a worker that speaks the extensions, and a task connection."""
    async with gateway_running(**options) as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        await worker.register(features=EXTENSIONS)
        yield gateway, worker, task


# The handshake ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(Upgrade=None, Connection=None), 200),
        (head("/health?x=1", Upgrade=None, Connection=None, Origin="https://evil.example"), 200),
        (head("/elsewhere"), 404),
        (head("/elsewhere", Origin="https://evil.example"), 404),
        (head(Origin="https://evil.example"), 403),
        (head(Origin="https://evil.example", Sec_WebSocket_Version="8"), 403),
        (head(Origin="https://example.com.evil.example"), 403),
        (head(Origin="null"), 403),
        (head(Origin="https://[broken"), 403),
        (head(Upgrade="h2c"), 400),
        (head(Connection="keep-alive"), 400),
        (head(Sec_WebSocket_Version="8"), 426),
        (head(Sec_WebSocket_Key="short"), 400),
        (head(method="POST"), 405),
        (b"\x16\x03\x01 this is tls\r\n\r\n", 400),
        (head(X="y" * 40_000), 431),
    ],
)
async def test_what_is_no_websocket_for_us_gets_an_answer_and_no_events(request_head: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (gateway, worker, _):
        response = await answer(gateway, request_head)
        assert response.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nConnection: close\r\n" in response
        assert (b"\r\n\r\nHello laraman" in response) == (status == 200)
        assert await worker.silent()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        (None, {}),
        ("http://example.com", {}),
        ("https://EXAMPLE.com:8443", {}),
        ("https://other.example", {"origins": ("https://other.example",)}),
        ("https://any.example", {"origins": ("*",)}),
        ("null", {"origins": ("*",)}),
    ],
)
async def test_who_may_come_in(origin: str | None, options: dict[str, Any]) -> None:
    async with gateway_running(**options) as gateway:
        peer = await gateway.raw()
        peer.writer.write(head(Host="example.com:6060", Origin=origin))
        assert (await peer.reader.readline()).startswith(b"HTTP/1.1 101 ")


async def test_a_listed_origin_is_exact() -> None:
    async with gateway_running(origins=("https://good.example",)) as gateway:
        for origin in ("http://good.example", "https://good.example.evil.com", "https://good.example:444"):
            assert (await answer(gateway, head(Origin=origin))).startswith(b"HTTP/1.1 403 ")


async def test_what_the_request_says_is_passed_on() -> None:
    async with served(path="/ws") as (gateway, worker, _):
        headers = {"X-Forwarded-For": "192.0.2.1, 192.0.2.2", "X-Real-IP": "192.0.2.1", "Connection": "keep-alive, Upgrade"}
        async with gateway.browser("/ws?a=b&c", subprotocols=["chat.v2", "chat.v1"], additional_headers=headers) as browser:
            opened = await worker.event(OPEN)
            assert browser.subprotocol == "chat.v2"
            assert list(opened.sub_protocols) == ["chat.v2", "chat.v1"]
            assert (opened.raw_query, opened.x_forwarded_for, opened.x_real_ip) == ("a=b&c", "192.0.2.1, 192.0.2.2", "192.0.2.1")
        plain = await gateway.worker_peer()
        await plain.register()
        worker.close()
        await until(lambda: len(gateway.sessions()) == 1)
        async with gateway.browser("/ws", subprotocols=["chat.v2"]):
            assert not (await plain.event(OPEN)).sub_protocols


async def test_frames_glued_to_the_request_are_read() -> None:
    async with served() as (gateway, worker, _):
        peer = await gateway.raw()
        peer.writer.write(head() + frame(b"early") + frame(b"second"))
        await worker.event(OPEN)
        assert [(await worker.event(TRANSFER)).data for _ in range(2)] == [b"early", b"second"]


async def test_a_handshake_has_a_deadline() -> None:
    async with served(handshake_timeout=0.2) as (gateway, worker, _):
        silent, slow = await gateway.raw(), await gateway.raw()
        slow.writer.write(head()[:-2])
        assert await silent.ended()
        assert await slow.ended()
        assert await worker.silent()


async def test_a_connection_that_says_nothing_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (gateway, worker, _):
        for _ in range(5):
            (await gateway.raw()).close()
        assert await worker.silent()
        assert gateway.gateway.browsers._handshakes == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_only_so_many_may_be_about_to_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.gateway.browsers.MAX_HANDSHAKES", 2)
    async with gateway_running() as gateway:
        waiting = [await gateway.raw() for _ in range(2)]
        await until(lambda: len(gateway.worker.connections) == 2)
        assert await (await gateway.raw()).ended()
        for peer in waiting:
            peer.writer.write(head())
            assert (await peer.reader.readline()).startswith(b"HTTP/1.1 101 ")
        async with gateway.browser():
            pass


@pytest.mark.parametrize("options", [{"max_clients": 1}, {"open_rate": 1}])
async def test_who_is_too_many_is_asked_to_come_again(options: dict[str, Any]) -> None:
    async with served(**options) as (gateway, worker, _):
        async with gateway.browser():
            await worker.event(OPEN)
            refused = await gateway.open_browser()
            await refused.wait_closed()
            assert (refused.close_code, refused.close_reason) == (1013, "open rate limited, try again later")
            assert gateway.gateway.metrics.opens_refused == 1
        await worker.event(CLOSE)
        assert await worker.silent()


# Messages -----------------------------------------------------------------------------------------------------------------------------


async def test_text_and_binary_are_told_apart_where_the_worker_understands_it() -> None:
    async with served() as (gateway, worker, task):
        await task.ask(Command.REGISTER, pb.RegisterReq(features=EXTENSIONS))
        async with gateway.browser() as browser:
            uniq_id = (await worker.event(OPEN)).uniq_id
            for sent in ("text", b"binary"):
                await browser.send(sent)
                message = await worker.event(TRANSFER)
                assert message.binary == isinstance(sent, bytes)
                task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=uniq_id, data=message.data, binary=message.binary))
                assert await browser.recv() == sent


@pytest.mark.parametrize(("send_type", "received"), [("text", ["plain", b"\xff"]), ("binary", [b"plain", b"\xff"])])
async def test_a_foreign_worker_s_data_has_the_configured_type(send_type: str, received: list[Any]) -> None:
    async with gateway_running(send_type=send_type) as gateway, gateway.browser() as browser:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        await worker.register()
        uniq_id = (await worker.event(OPEN)).uniq_id
        await browser.send(b"binary")
        assert not (await worker.event(TRANSFER)).binary
        for data in (b"plain", b"\xff"):
            task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=uniq_id, data=data))
        assert [await browser.recv() for _ in range(2)] == received


async def test_a_push_before_a_kick_arrives() -> None:
    async with served() as (gateway, worker, task):
        for _ in range(20):
            browser = await gateway.open_browser()
            uniq_id = (await worker.event(OPEN)).uniq_id
            task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=uniq_id, data=b"push"))
            task.send(Command.FORCE_OFFLINE, pb.ForceOffline(uniq_ids=[uniq_id], data=b"last"))
            task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=uniq_id, data=b"too late"))
            assert [message async for message in ignoring_the_end(browser)] == ["push", "last"]
            assert (browser.close_code, browser.close_reason) == (1008, "forceOffline")
            await worker.event(CLOSE)


async def ignoring_the_end(browser: Any) -> AsyncIterator[Any]:
    with contextlib.suppress(ConnectionClosed):
        async for message in browser:
            yield message


async def test_a_kicked_client_is_gone_at_once_and_heard_no_more() -> None:
    async with served() as (gateway, worker, task):
        peer = await raw_websocket(gateway)
        uniq_id = (await worker.event(OPEN)).uniq_id
        task.send(Command.FORCE_OFFLINE, pb.ForceOffline(uniq_ids=[uniq_id]))
        await worker.event(CLOSE)
        peer.writer.write(frame(b"still here"))
        assert not (await task.ask(Command.CHECK_ONLINE, pb.CheckOnlineReq(uniq_ids=[uniq_id]))).uniq_ids
        assert await worker.silent()
        assert await peer.ended()  # two seconds later, though it has not answered the close


async def test_the_client_s_close_is_echoed() -> None:
    async with served() as (gateway, worker, _):
        browser = await gateway.open_browser()
        await browser.close(4001, "bye")
        assert browser.protocol.close_rcvd is not None
        assert (browser.protocol.close_rcvd.code, browser.protocol.close_rcvd.reason) == (4001, "bye")
        await worker.event(OPEN)
        await worker.event(CLOSE)


async def test_heartbeats_are_swallowed() -> None:
    async with served() as (gateway, worker, _), gateway.browser() as browser:
        await worker.event(OPEN)
        await browser.send("~3yPvmnz~")
        await browser.send(b"~3yPvmnz~")
        await browser.send("real")
        assert (await worker.event(TRANSFER)).data == b"real"
        assert gateway.gateway.metrics.heartbeats == 2


# Abuse --------------------------------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A message of 100 MB in a frame of 100 KB."""
    compressor = zlib.compressobj(wbits=-12)
    data = b"".join(compressor.compress(bytes(2**20)) for _ in range(100)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return b"\xc2\xff" + struct.pack("!Q", len(data) - 4) + bytes(4) + data[:-4]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x81\x02hi", 1002),  # unmasked
        (frame(b"x", 0xA1), 1002),  # a reserved bit
        (frame(b"x", 0x83), 1002),  # a reserved opcode
        (frame(b"x", 0x80), 1002),  # the continuation of nothing
        (frame(b"x", 0x01) + frame(b"y", 0x81), 1002),  # a message inside another
        (frame(b"x" * 126, 0x89), 1002),  # a long ping
        (frame(b"x", 0x09), 1002),  # a fragmented ping
        (frame(b"\x03\xe7", 0x88), 1002),  # close code 999
        (frame(b"\xff"), 1007),
        (frame(b"\xff\xff", 0xC1), 1007),
        (frame(b"", 0x82)[:1] + b"\xff" + struct.pack("!Q", 2**40) + bytes(4), 1009),
        (frame(b"x" * 600, 0x02) + frame(b"x" * 600, 0x80), 1009),
        (bomb(), 1009),
    ],
)
async def test_abuse_closes_that_client_only(wire: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    async with served(max_size=1000) as (gateway, worker, task), gateway.browser() as bystander:
        bystander_id = (await worker.event(OPEN)).uniq_id
        peer = await raw_websocket(gateway, Sec_WebSocket_Extensions="permessage-deflate")
        uniq_id = (await worker.event(OPEN)).uniq_id
        peer.writer.write(frame(b"before") + wire + frame(b"behind"))
        assert (await close_frame(peer))[0] == code
        assert (await worker.event(TRANSFER)).data == b"before"
        assert (await worker.event(CLOSE)).uniq_id == uniq_id
        task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=bystander_id, data=b"well"))
        assert await bystander.recv() == "well"
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert f"closed with {code}" in warnings[0]


async def test_who_floods_is_slowed_down_and_stops_nobody() -> None:
    async with served(rate=50, burst=20) as (gateway, worker, _):
        flooder = await raw_websocket(gateway)
        await worker.event(OPEN)
        flooder.writer.write(frame(b"x") * 200_000)
        (client,) = gateway.clients()
        await until(lambda: client.throttled)
        assert client.messages_in < 1000
        async with gateway.browser() as bystander:
            await bystander.send("hello")
            seen = []
            while b"hello" not in seen:
                command, message = await worker.receive()
                if command is TRANSFER:
                    seen.append(message.data)
        assert client.bytes_in < 2**20


async def test_messages_beyond_the_rate_come_later_and_all_of_them() -> None:
    async with served(rate=100, burst=5) as (gateway, worker, _), gateway.browser() as browser:
        await worker.event(OPEN)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(40):
            await browser.send(str(number))
        assert [(await worker.event(TRANSFER)).data for _ in range(40)] == [b"%d" % number for number in range(40)]
        assert loop.time() - start > 0.25
        assert gateway.gateway.metrics.messages_over_rate == 0


async def test_the_gateway_s_own_limit_drops() -> None:
    async with served(message_rate=5) as (gateway, worker, _), gateway.browser() as browser:
        await worker.event(OPEN)
        for number in range(20):
            await browser.send(str(number))
        await until(lambda: gateway.gateway.metrics.messages_refused)
        assert (await worker.event(TRANSFER)).data == b"0"


async def test_who_pings_and_does_not_read_is_not_read() -> None:
    async with served(rate=0) as (gateway, worker, _):
        peer = await raw_websocket(gateway)
        await worker.event(OPEN)
        (client,) = gateway.clients()
        peer.writer.write(frame(b"p" * 125, 0x89) * 200_000)
        await until(lambda: client.writing_paused)
        assert client.reading_paused
        async with gateway.browser() as bystander:
            await bystander.send("hello")
            await worker.event(OPEN)
            await worker.event(TRANSFER)
        assert client.transport.get_write_buffer_size() < 2**20


# Silence ------------------------------------------------------------------------------------------------------------------------------


async def test_a_silent_client_is_closed_and_one_that_answers_pings_is_not() -> None:
    async with served(idle_timeout=0.6, ping_interval=0.2) as (gateway, worker, _), gateway.browser(ping_interval=None) as browser:
        await worker.event(OPEN)
        peer = await raw_websocket(gateway)
        uniq_id = (await worker.event(OPEN)).uniq_id
        assert await close_frame(peer) == (1001, b"heartbeat timeout")
        assert (await worker.event(CLOSE)).uniq_id == uniq_id
        await browser.send("still here")
        await worker.event(TRANSFER)


async def test_without_pings_a_client_has_to_speak() -> None:
    async with served(idle_timeout=0.5, ping_interval=0) as (gateway, _, _task):
        silent, speaking = await gateway.open_browser(ping_interval=None), await gateway.open_browser(ping_interval=None)
        while silent.close_code is None:
            await speaking.send("~3yPvmnz~")
            await asyncio.sleep(0.05)
        assert silent.close_code == 1001
        assert speaking.close_code is None


# Slow readers -------------------------------------------------------------------------------------------------------------------------


async def overfed(gateway: Running, worker: Peer, task: Peer) -> tuple[Peer, Any, int]:
    """A client that has not read, and has been sent more than there is room for; and the number of messages."""
    peer = await raw_websocket(gateway)
    uniq_id = (await worker.event(OPEN)).uniq_id
    (client,) = gateway.clients()
    count = 0
    while not gateway.gateway.metrics.not_sent:
        for _ in range(100):
            task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=uniq_id, data=b"%06d" % count + b"." * 10_000))
            count += 1
        await task.ask(Command.UNIQ_ID_COUNT)
        assert client._backlog_size <= gateway.config.buffer
    return peer, client, count


async def message_numbers(peer: Peer) -> AsyncIterator[int]:
    async with asyncio.timeout(DEADLINE):
        while (first := await peer.reader.readexactly(4))[0] == 0x81:
            payload = await peer.reader.readexactly(struct.unpack("!H", first[2:])[0])
            yield int(payload[:6])
        yield -struct.unpack("!H", first[2:])[0]


async def test_a_slow_reader_is_closed() -> None:
    async with served(buffer=100_000) as (gateway, worker, task):
        peer, client, _ = await overfed(gateway, worker, task)
        await worker.event(CLOSE)
        assert not gateway.uniq_ids
        numbers = [number async for number in message_numbers(peer)]
        assert numbers[-1] == -1013
        assert numbers[:-1] == list(range(len(numbers) - 1))
        peer.writer.write_eof()
        await until(lambda: client.state == "CLOSED")


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
async def test_a_slow_reader_misses_messages(policy: str) -> None:
    async with served(buffer=100_000, slow_reader=policy) as (gateway, worker, task):
        peer, client, count = await overfed(gateway, worker, task)
        dropped = gateway.gateway.metrics.not_sent
        numbers = []
        async for number in message_numbers(peer):
            numbers.append(number)
            if len(numbers) == count - dropped:
                break
        kept = numbers[:-20]  # the backlog has room for nine
        assert kept == list(range(len(kept)))
        assert (numbers[-1] == count - 1) == (policy == "drop_oldest")
        assert (numbers == list(range(len(numbers)))) == (policy == "drop_newest")
        await until(lambda: client.ready)
        task.send(Command.BROADCAST, pb.Broadcast(data=b"%06d" % count + b"." * 1000))
        assert await anext(aiter(message_numbers(peer))) == count


async def test_a_slow_reader_stops_nobody_else() -> None:
    async with served(buffer=100_000) as (gateway, worker, task), gateway.browser() as bystander:
        await worker.event(OPEN)
        peer = await raw_websocket(gateway)
        await worker.event(OPEN)
        received = 0
        while not gateway.gateway.metrics.not_sent:
            for _ in range(20):
                task.send(Command.BROADCAST, pb.Broadcast(data=b"." * 10_000))
            for _ in range(20):
                assert len(await bystander.recv()) == 10_000
                received += 1
        assert (await worker.event(CLOSE)).uniq_id not in gateway.uniq_ids
        assert len(gateway.uniq_ids) == 1
        peer.close()


# Many ---------------------------------------------------------------------------------------------------------------------------------


async def test_a_large_broadcast_is_compressed_once_for_those_who_want_it() -> None:
    async with served() as (gateway, worker, task):
        browsers = [await gateway.open_browser(compression="deflate" if number % 2 else None) for number in range(10)]
        for _ in browsers:
            await worker.event(OPEN)
        before = gateway.gateway.metrics.sent_bytes
        for data in (b"small", b"large " * 1000, b"large " * 1000):
            task.send(Command.BROADCAST, pb.Broadcast(data=data))
            for browser in browsers:
                assert (await browser.recv()) == data.decode()
        assert gateway.gateway.metrics.sent_bytes - before < 10 * 7 + 10 * 6004 + 10 * 200
        assert gateway.gateway.metrics.sent == 30
        for browser in browsers:
            await browser.send("large " * 1000)
            assert (await worker.event(TRANSFER)).data == b"large " * 1000


async def test_compression_can_be_turned_off() -> None:
    async with served(deflate=False) as (gateway, _, task), gateway.browser() as browser:
        task.send(Command.BROADCAST, pb.Broadcast(data=b"large " * 1000))
        assert await browser.recv() == "large " * 1000
        assert not browser.protocol.extensions


async def test_a_broadcast_reaches_all_but_those_it_leaves_out() -> None:
    async with served() as (gateway, worker, task):
        browsers = [await gateway.open_browser() for _ in range(20)]
        for _ in browsers:
            await worker.event(OPEN)
        uniq_ids = gateway.uniq_ids
        task.send(Command.BROADCAST, pb.Broadcast(data=b"some", exclude=uniq_ids[:10]))
        task.send(Command.BROADCAST, pb.Broadcast(data=b"all"))
        received = dict.fromkeys(("some", "all"), 0)
        for browser in browsers:
            while (message := await browser.recv()) != "all":
                received[str(message)] += 1
            received["all"] += 1
        assert received == {"some": 10, "all": 20}


async def test_a_page_of_another_site_is_refused_with_a_status() -> None:
    async with gateway_running() as gateway:
        with pytest.raises(InvalidStatus) as info:
            await gateway.open_browser(origin="https://evil.example")
        assert info.value.response.status_code == 403
