"""The embedded gateway as business processes see it: a life, registration, commands, faults, other dialects, the stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import types
from typing import Any

import pytest

from laraman.config.gateway import GatewayConfig
from laraman.errors import ConfigError
from laraman.gateway.business import Session
from laraman.gateway.embedded import gateway_worker
from laraman.gateway.identity import prefix_of
from laraman.net.address import parse_address
from laraman.protocols.netsvr import DEFAULT_HEARTBEAT, EXTENSIONS, Command, Dialect
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.gateway import gateway_running, until

pytestmark = pytest.mark.anyio

OPEN, CLOSE, TRANSFER = Command.CONN_OPEN, Command.CONN_CLOSE, Command.TRANSFER


async def test_a_browser_s_life_reaches_the_worker_and_commands_reach_the_browser() -> None:
    async with gateway_running() as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        answer = await worker.register()
        assert (answer.code, answer.message, len(answer.conn_id), answer.features) == (0, "Success", 32, 0)
        async with gateway.browser("/?token=a%20b") as browser:
            opened = await worker.event(OPEN)
            assert (opened.raw_query, opened.remote_addr) == ("token=a%20b", "127.0.0.1")
            await browser.send("hello")
            message = await worker.event(TRANSFER)
            assert (message.uniq_id, message.data) == (opened.uniq_id, b"hello")
            task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=opened.uniq_id, data=b"back"))
            assert await browser.recv() == "back"
            task.send(Command.TOPIC_SUBSCRIBE, pb.TopicSubscribe(uniq_id=opened.uniq_id, topics=["news"]))
            assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 1
        closed = await worker.event(CLOSE)
        assert (closed.uniq_id, list(closed.topics)) == (opened.uniq_id, ["news"])
        assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 0
        metrics = gateway.gateway.metrics
        assert (metrics.opens, metrics.closes, metrics.forwarded, metrics.sent, metrics.sent_bytes) == (1, 1, 3, 1, 6)


# Identifiers ----------------------------------------------------------------------------------------------------------------------------


async def test_uniq_ids_are_address_time_and_a_counter() -> None:
    async with gateway_running() as gateway:
        now = int(time.time())
        for _ in range(3):
            await gateway.open_browser()
        uniq_ids = await until(lambda: len(gateway.uniq_ids) == 3 and gateway.uniq_ids)
        assert {uniq_id[:12] for uniq_id in uniq_ids} == {gateway.prefix}
        assert all(len(uniq_id) == 28 and 0 <= int(uniq_id[12:20], 16) - now < 60 for uniq_id in uniq_ids)
        counters = [int(uniq_id[20:], 16) for uniq_id in uniq_ids]
        assert [(counter - counters[0]) & 0xFFFFFFFF for counter in counters] == [0, 1, 2]


async def test_a_conn_id_is_both_addresses_and_the_time() -> None:
    async with gateway_running() as gateway:
        worker = await gateway.worker_peer()
        await worker.register()
        ports = [int(name[1]) for name in (worker.writer.get_extra_info("peername"), worker.writer.get_extra_info("sockname"))]
        assert worker.conn_id[:24] == f"7f000001{ports[0]:04x}7f000001{ports[1]:04x}"
        assert 0 <= time.time() - int(worker.conn_id[24:], 16) < 60


@pytest.mark.parametrize("address", ["127.0.0.1:6062", "localhost:6062"])
def test_the_prefix_is_the_task_address(address: str) -> None:
    assert prefix_of(parse_address(address)) == "7f00000117ae"


def test_the_prefix_of_every_address_is_an_own_one() -> None:
    try:
        prefix = prefix_of(parse_address("0.0.0.0:6062"))
    except ConfigError:
        return  # a machine without a network
    assert prefix.endswith("17ae")
    own = socket.inet_ntoa(bytes.fromhex(prefix[:8]))
    with socket.socket() as probe:
        probe.bind((own, 0))


def test_without_an_ipv4_address_there_is_no_prefix() -> None:
    with pytest.raises(ConfigError, match="prefix"):
        prefix_of(parse_address("[::1]:6062"))


@pytest.mark.parametrize("options", [{"task_addr": "[::1]:6062"}, {"worker_addr": "[::1]:6061"}, {"worker_addr": ""}])
def test_addresses_that_cannot_be_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        gateway_worker(types.SimpleNamespace(gateway=GatewayConfig(**options)))  # type: ignore[arg-type]


def test_the_declaration() -> None:
    worker = gateway_worker(types.SimpleNamespace(gateway=GatewayConfig()))  # type: ignore[arg-type]
    assert (worker.name, worker.count, worker.exclusive) == ("gateway", 1, True)
    assert [str(bind.address) for bind in worker.binds] == ["ws://127.0.0.1:6060", "netsvr-worker://127.0.0.1:6061", "netsvr-task://127.0.0.1:6062"]


async def test_the_prefix_can_be_set() -> None:
    async with gateway_running(prefix="0123456789ab") as gateway, gateway.browser():
        (uniq_id,) = await until(lambda: gateway.uniq_ids)
        assert uniq_id.startswith("0123456789ab")


# Registration (spec section 5.2) ---------------------------------------------------------------------------------------------------------


async def test_a_registration_that_fails_leaves_the_connection_usable() -> None:
    async with gateway_running() as gateway:
        worker = await gateway.worker_peer()
        worker.writer.write(bytes.fromhex("00000005 35a4f4b9 ff"))
        _, answer = await worker.receive()
        assert (answer.code, answer.message) == (1, "UnmarshalError")
        answer = await worker.register(8)
        assert (answer.code, answer.message, answer.conn_id) == (2, "InvalidEvent", "")
        assert (await worker.register(0, features=EXTENSIONS)).code == 2
        assert (await worker.register()).code == 0
        answer = await worker.register()
        assert (answer.code, answer.message) == (3, "DuplicateRegister")


async def test_the_answer_comes_before_the_first_event() -> None:
    async with gateway_running() as gateway:
        for _ in range(5):
            await gateway.open_browser()
        await until(lambda: len(gateway.uniq_ids) == 5)
        worker = await gateway.worker_peer()
        await worker.register()
        for _ in range(5):
            await worker.event(OPEN)


async def test_unregister_is_answered_whatever_it_names_unless_it_cannot_be_read() -> None:
    async with gateway_running() as gateway:
        worker = await gateway.worker_peer()
        await worker.ask(Command.UNREGISTER, pb.UnRegisterReq(conn_id="nobody"))
        worker.writer.write(bytes.fromhex("00000005 35a4f4ba ff"))
        await worker.register()


async def test_extensions_are_for_those_who_ask_for_them() -> None:
    async with gateway_running() as gateway:
        worker, task, foreign = await gateway.worker_peer(), await gateway.task_peer(), await gateway.task_peer()
        assert (await worker.register(features=EXTENSIONS)).features == EXTENSIONS
        answer = await task.ask(Command.REGISTER, pb.RegisterReq(features=EXTENSIONS))
        assert (answer.code, answer.features, answer.conn_id) == (0, EXTENSIONS, "")
        foreign.send(Command.REGISTER, pb.RegisterReq(events=7))
        assert await foreign.ended()


# Commands ---------------------------------------------------------------------------------------------------------------------------------


async def test_replies_come_in_the_order_of_the_requests() -> None:
    async with gateway_running() as gateway:
        task = await gateway.task_peer()
        commands = [Command.UNIQ_ID_COUNT, Command.TOPIC_LIST, Command.LIMIT, Command.CHECK_ONLINE, Command.METRICS] * 50
        for command in commands:
            message = {Command.LIMIT: pb.LimitReq(), Command.CHECK_ONLINE: pb.CheckOnlineReq()}.get(command)
            task.send(command, message)
        assert [(await task.receive())[0] for _ in commands] == commands


async def test_a_request_that_cannot_be_read_is_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway_running() as gateway:
        task = await gateway.task_peer()
        for _ in range(3):
            task.writer.write(bytes.fromhex("00000005 35a4f4bb ff"))  # CheckOnline
            task.writer.write(bytes.fromhex("00000006 35a4f0d6 0801"))  # SingleCast with a number for a string
        task.send(Command.UNIQ_ID_COUNT)
        assert (await task.receive())[0] is Command.UNIQ_ID_COUNT
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_who_does_not_read_its_replies_is_not_read() -> None:
    async with gateway_running() as gateway:
        task = await gateway.task_peer(limit=1024)
        topics = [f"topic-{number:08}" for number in range(2000)]
        async with gateway.browser():
            (uniq_id,) = await until(lambda: gateway.uniq_ids)
            task.send(Command.TOPIC_SUBSCRIBE, pb.TopicSubscribe(uniq_id=uniq_id, topics=topics))
            for _ in range(400):
                task.send(Command.TOPIC_LIST)
            (session,) = [connection for connection in gateway.worker.connections if isinstance(connection, Session)]
            await until(lambda: session.reading_paused)
            assert session.messages_out < 400
            for _ in range(400):
                _, message = await task.receive()
                assert len(message.topics) == 2000
            assert not session.reading_paused


async def test_many_broadcasts_at_once_do_not_stop_the_loop() -> None:
    async with gateway_running() as gateway:
        browsers = [await gateway.open_browser(max_queue=None) for _ in range(50)]
        await until(lambda: len(gateway.uniq_ids) == 50)
        task, other = await gateway.task_peer(), await gateway.task_peer()
        for number in range(1000):
            task.send(Command.BROADCAST, pb.Broadcast(data=b"%d" % number))
        await until(lambda: gateway.gateway.metrics.sent)
        await other.ask(Command.UNIQ_ID_COUNT)
        assert gateway.gateway.metrics.sent < 50_000
        for browser in browsers:
            assert [await browser.recv() for _ in range(1000)] == [str(number) for number in range(1000)]


# The secret ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["", "wrong", "s3cre", "s3cret "])
async def test_a_wrong_secret_is_refused_and_not_logged(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway_running(secret="s3cret") as gateway:
        for peer in (await gateway.worker_peer(), await gateway.task_peer()):
            assert (await peer.register(features=EXTENSIONS, secret=secret)).code == 2
            assert await peer.ended()
    assert "s3cre" not in caplog.text.replace("shared secret", "")


async def test_a_secret_has_to_come_in_time() -> None:
    async with gateway_running(secret="s3cret", handshake_timeout=0.2) as gateway:
        known = await gateway.task_peer()
        assert (await known.register(0, secret="s3cret", features=EXTENSIONS)).code == 0
        for stranger in (await gateway.worker_peer(), await gateway.task_peer()):
            stranger.writer.write(stranger.codec.send(DEFAULT_HEARTBEAT))
            assert await stranger.ended()
        assert (await known.ask(Command.UNIQ_ID_COUNT)).count == 0


async def test_the_right_secret_opens_both_ports() -> None:
    async with gateway_running(secret="s3cret") as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        assert (await worker.register(secret="s3cret", features=EXTENSIONS)).code == 0
        assert (await task.register(0, secret="s3cret", features=EXTENSIONS)).code == 0
        assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 0


async def test_before_the_secret_there_is_nothing() -> None:
    async with gateway_running(secret="s3cret") as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        worker.send(Command.UNREGISTER, pb.UnRegisterReq(conn_id="x"))
        task.send(Command.BROADCAST, pb.Broadcast(data=b"x"))
        assert await worker.ended()
        assert await task.ended()


# Faults (spec section 14) ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["worker", "task"])
@pytest.mark.parametrize(
    "wire",
    [
        "00000000",
        "00000003 aabbcc",
        "00200001",
        "ffffffff",
        "00000004 00000000",
        "00000004 35a4f000",
        "0000000e 7e36594f74357257333570694f7f",  # a wrong heartbeat
        "00000004 35a4ece9",  # an event
        b"GET / HTTP/1.1\r\n\r\n".hex(),
    ],
)
async def test_a_bad_frame_closes_its_connection_only(port: str, wire: str, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway_running() as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        await worker.register()
        bad = await gateway.worker_peer() if port == "worker" else await gateway.task_peer()
        bad.writer.write(bytes.fromhex(wire))
        assert await bad.ended()
        async with gateway.browser():
            await worker.event(OPEN)
            assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 1
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert "Traceback" not in caplog.text


async def test_a_command_at_the_wrong_port_closes_its_connection() -> None:
    async with gateway_running() as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        await worker.register()
        worker.send(Command.UNIQ_ID_COUNT)
        task.send(Command.UNREGISTER, pb.UnRegisterReq())
        assert await worker.ended()
        assert await task.ended()
        assert not gateway.sessions()


async def test_commands_before_a_bad_frame_are_carried_out() -> None:
    async with gateway_running() as gateway, gateway.browser() as browser:
        await until(lambda: gateway.uniq_ids)
        task = await gateway.task_peer()
        task.send(Command.BROADCAST, pb.Broadcast(data=b"last words"))
        task.writer.write(bytes(4))
        assert await browser.recv() == "last words"
        assert await task.ended()


async def test_a_silent_business_connection_is_closed_and_one_with_heartbeats_is_not() -> None:
    async with gateway_running(read_deadline=0.5) as gateway:
        silent, beating = await gateway.worker_peer(), await gateway.worker_peer()
        for worker in (silent, beating):
            await worker.register()
        ended = asyncio.create_task(silent.ended())
        while not ended.done():
            beating.writer.write(beating.codec.send(DEFAULT_HEARTBEAT))
            await asyncio.sleep(0.05)
        assert len(gateway.sessions()) == 1


async def test_heartbeats_may_come_before_all_else_and_are_not_answered() -> None:
    async with gateway_running(worker_heartbeat_message="w", task_heartbeat_message="t") as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        worker.writer.write(worker.codec.send(b"w") * 3)
        task.writer.write(task.codec.send(b"t") * 3)
        await worker.register()
        await task.ask(Command.UNIQ_ID_COUNT)


# One port for everything (spec section 15) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect.D5, Dialect.D3])
async def test_older_dialects_have_one_port(dialect: Dialect) -> None:
    async with gateway_running(task_addr="", dialect=str(dialect)) as gateway:
        worker, other = await gateway.worker_peer(), await gateway.worker_peer()
        worker.codec.dialect = other.codec.dialect = dialect
        await worker.register(process_cmd_goroutine_num=25)
        async with gateway.browser("/?q=1", subprotocols=["chat"]) as browser:
            opened = await worker.event(OPEN)
            assert isinstance(opened, pb.ConnOpenLegacy)
            assert (opened.raw_query, list(opened.sub_protocols), opened.remote_addr) == ("q=1", ["chat"], "127.0.0.1")
            assert opened.uniq_id.startswith(gateway.prefix)
            worker.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=opened.uniq_id, data=b"from a registered one"))
            assert await browser.recv() == "from a registered one"
            for peer in (worker, other):
                info = await peer.ask(Command.CONN_INFO, pb.ConnInfoReq(uniq_ids=[opened.uniq_id]))
                assert list(info.items) == [opened.uniq_id]
            await browser.send("x")
            await worker.event(TRANSFER)
        await worker.event(CLOSE)


async def test_the_extensions_do_not_change_an_older_dialect_s_numbers() -> None:
    async with gateway_running(task_addr="") as gateway, gateway.browser("/?q=1"):
        worker = await gateway.worker_peer()
        await worker.register(features=EXTENSIONS)
        assert (await worker.event(OPEN)).remote_addr == "127.0.0.1"


async def test_without_a_dialect_the_single_port_speaks_the_newer_one() -> None:
    async with gateway_running(task_addr="") as gateway, gateway.browser():
        worker = await gateway.worker_peer()
        assert (await worker.register()).code == 0
        assert isinstance(await worker.event(OPEN), pb.ConnOpenLegacy)


async def test_the_single_port_takes_a_hello() -> None:
    async with gateway_running(task_addr="", secret="s3cret") as gateway:
        peer = await gateway.worker_peer()
        assert (await peer.register(0, features=EXTENSIONS, secret="s3cret")).conn_id == ""
        assert (await peer.ask(Command.UNIQ_ID_COUNT)).count == 0


# The stop -------------------------------------------------------------------------------------------------------------------------------


async def test_a_stop_tells_browsers_and_then_workers() -> None:
    async with gateway_running() as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        await worker.register()
        browsers = [await gateway.open_browser() for _ in range(5)]
        opened = {(await worker.event(OPEN)).uniq_id for _ in browsers}
        unfinished = await gateway.raw()
        started = asyncio.get_running_loop().time()
        await gateway.drain()
        assert asyncio.get_running_loop().time() - started < 2
        for browser in browsers:
            await browser.wait_closed()
            assert (browser.close_code, browser.close_reason) == (1012, "service restart")
        assert {(await worker.event(CLOSE)).uniq_id for _ in browsers} == opened
        for peer in (worker, task, unfinished):
            assert await peer.ended()
        assert not gateway.worker.connections


async def test_a_stop_has_a_deadline_whoever_does_not_read() -> None:
    async with gateway_running(rate=0) as gateway:
        worker = await gateway.worker_peer(limit=1024)
        await worker.register()
        task = await gateway.task_peer()
        stuck = await gateway.raw(limit=1024)
        stuck.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
        stuck.writer.write(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        (client,) = await until(gateway.clients)
        while not client.writing_paused:
            task.send(Command.BROADCAST, pb.Broadcast(data=b"." * 100_000))
            await task.ask(Command.UNIQ_ID_COUNT)
        started = asyncio.get_running_loop().time()
        await gateway.drain(1.0)
        assert asyncio.get_running_loop().time() - started < 1.5


async def test_who_comes_while_it_stops_is_sent_away() -> None:
    async with gateway_running() as gateway:
        peer = await gateway.raw()
        await until(lambda: gateway.worker.connections)
        gateway.gateway.browsers.stop(gateway.worker.connections)
        peer.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.reader.readline()).startswith(b"HTTP/1.1 503 ")
