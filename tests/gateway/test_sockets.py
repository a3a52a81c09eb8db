"""MainSocket and TaskSocket against peers that do what no gateway should: hang up, be silent, answer in the wrong order, speak another dialect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from laraman import events, gateway
from laraman.errors import Busy, ConfigError, ConnectionClosed, ConnectionLost, LinkDown, LocalProtocolError, RemoteProtocolError
from laraman.gateway import NetBus
from laraman.gateway.peer import Peer
from laraman.protocols.netsvr import Command, Dialect, Netsvr, Packet, addr_to_prefix
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.conftest import free_ports
from tests.gateway.clients import InWorker, config, elsewhere, in_worker
from tests.gateway.scripted import Scripted, hang_up, registers, scripted
from tests.net.serving import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from laraman.net.connection import Connection

pytestmark = pytest.mark.anyio

COUNT = pb.UniqIdCountResp(count=3)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    events.forget([__name__])


def heard() -> list[Any]:
    """Every event that comes to a handler from now on."""
    seen: list[Any] = []
    for register in (gateway.on_open, gateway.on_message, gateway.on_close):
        register(lambda event: seen.append(event))
    return seen


def send(connection: Connection, command: Command, message: Any) -> None:
    connection.send_nowait(Packet(command, message))


def broken(command: Command) -> bytes:
    """A frame whose body is no protobuf."""
    return b"\0\0\0\x06" + command.to_bytes(4, "big") + b"\xff\xff"


@contextlib.asynccontextmanager
async def worker_at(script: dict[Command, Any], **fields: Any) -> AsyncIterator[tuple[InWorker, Scripted]]:
    """A worker with a gateway of which only the port for events works."""
    async with scripted(script, kind="worker") as peer:
        one = elsewhere(worker_addr=peer.addr, task_addr="127.0.0.1:9", **fields)
        async with in_worker(config(one)) as here:
            yield here, peer


# Events ---------------------------------------------------------------------------------------------------------------------------


async def test_registration_says_what_is_wanted() -> None:
    async with scripted({Command.REGISTER: registers()}, kind="worker") as peer, scripted({Command.REGISTER: registers()}, kind="task") as tasks:
        one = elsewhere(worker_addr=peer.addr, task_addr=tasks.addr, events=5, secret="hush")
        async with in_worker(config(one)) as here:
            assert [(main.link.state, main.extended) for main in here.bus.mains] == [("UP", True)]
            assert peer.of(Command.REGISTER) == [pb.RegisterReq(events=5, features=1, secret="hush")]
            assert {link.row()["name"] for link in here.worker.links} == {f"gateway {peer.addr} events", f"gateway {tasks.addr} commands"}


async def test_only_the_workers_that_are_named_take_events() -> None:
    async with scripted({Command.REGISTER: registers(), Command.UNIQ_ID_COUNT: COUNT}) as peer:
        one = elsewhere(worker_addr=peer.addr, task_addr=peer.addr, dialect="d8", workers=("chat",))
        async with in_worker(config(one), name="http") as here:
            assert (here.bus.mains, peer.packets) == ([], [])
            assert (await here.bus.uniq_id_count()).count == 3  # which dials
        async with in_worker(config(one), name="chat") as here:
            assert len(here.bus.mains) == 1


async def test_events_right_behind_the_answer_are_not_lost() -> None:
    """Spec section 5.2: the segment of RegisterResp may carry events already."""
    seen = heard()

    def register(connection: Connection, packet: Packet) -> None:
        codec = connection.protocol
        frames = [
            codec.send(Packet(Command.REGISTER, registers())),
            codec.send(Packet(Command.CONN_OPEN, pb.ConnOpen(uniq_id="a", raw_query="q", sub_protocols=["p"]))),
            codec.send(Packet(Command.TRANSFER, pb.Transfer(uniq_id="a", customer_id="c", session="s", topics=["t"], data=b"1", binary=True))),
            codec.send(Packet(Command.CONN_CLOSE, pb.ConnClose(uniq_id="a", customer_id="c", session="s", topics=["t"]))),
        ]
        wire = b"".join(frames)
        connection.transport.write(wire[:-3])
        asyncio.get_running_loop().call_later(0.02, connection.transport.write, wire[-3:])

    async with worker_at({Command.REGISTER: register}) as (here, _):
        await until(lambda: len(seen) == 3)
        assert seen == [
            gateway.Opened(uniq_id="a", raw_query="q", sub_protocols=("p",)),
            gateway.Message(uniq_id="a", customer_id="c", session="s", topics=("t",), data=b"1", binary=True),
            gateway.Closed(uniq_id="a", customer_id="c", session="s", topics=("t",)),
        ]
        assert seen[1].bus is here.bus


@pytest.mark.parametrize("code", [1, 2, 3])
async def test_a_refused_registration_is_logged_once_and_tried_again(code: int, caplog: pytest.LogCaptureFixture) -> None:
    async with worker_at({Command.REGISTER: pb.RegisterResp(code=code, message="Nope")}, secret="hush") as (here, peer):
        await until(lambda: len(peer.packets) >= 3)
        assert len(peer.connections) >= 3  # each time on a connection of its own
        link = here.bus.mains[0].link
        warned = [record for record in caplog.records if record.levelno >= logging.WARNING and link.name in record.getMessage()]
        assert [f"code {code} Nope" in record.getMessage() for record in warned] == [True]
        peer.script[Command.REGISTER] = registers()
        await until(lambda: link.state == "UP")
    assert "hush" not in caplog.text


async def test_a_gateway_that_hangs_up_right_after_the_registration() -> None:
    seen = heard()
    answers = 0

    def register(connection: Connection, packet: Packet) -> None:
        nonlocal answers
        answers += 1
        send(connection, Command.REGISTER, registers())
        if answers < 3:
            connection.close()
        else:
            send(connection, Command.TRANSFER, pb.Transfer(uniq_id="a", data=b"1"))

    async with worker_at({Command.REGISTER: register}) as (_, _):
        await until(lambda: seen)
    assert answers == 3


async def test_a_worker_does_not_wait_for_a_gateway_that_is_away() -> None:
    [port] = free_ports(1)
    begun = time.monotonic()
    async with in_worker(config(elsewhere(worker_addr=f"127.0.0.1:{port}", task_addr="127.0.0.1:9"))) as here:
        assert time.monotonic() - begun < 1.5
        async with scripted({Command.REGISTER: registers()}, kind="worker", port=port):
            await until(lambda: here.bus.mains[0].link.state == "UP")


async def test_a_worker_waits_two_seconds_for_a_gateway_that_is_silent() -> None:
    async with scripted({}, kind="worker") as peer:
        begun = time.monotonic()
        async with in_worker(config(elsewhere(worker_addr=peer.addr, task_addr="127.0.0.1:9", connect_timeout=30.0))):
            assert 1.9 < time.monotonic() - begun < 4


async def test_an_event_that_is_no_protobuf_is_dropped_alone(caplog: pytest.LogCaptureFixture) -> None:
    seen = heard()

    def register(connection: Connection, packet: Packet) -> None:
        send(connection, Command.REGISTER, registers())
        connection.transport.write(broken(Command.TRANSFER))
        send(connection, Command.TRANSFER, pb.Transfer(uniq_id="a", data=b"1"))

    async with worker_at({Command.REGISTER: register}) as (_, _):
        await until(lambda: seen)
    assert caplog.text.count("whose body is no protobuf") == 1


async def test_ids_of_another_address_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    seen = heard()

    def register(connection: Connection, packet: Packet) -> None:
        send(connection, Command.REGISTER, registers())
        for _ in range(3):
            send(connection, Command.TRANSFER, pb.Transfer(uniq_id="0a00000117ae6b00f31086de24c2", data=b"1"))

    async with worker_at({Command.REGISTER: register}) as (_, _):
        await until(lambda: len(seen) == 3)
    assert caplog.text.count("its uniqIds begin with 0a00000117ae") == 1


async def test_while_too_much_waits_the_gateway_is_not_read_and_heartbeats_go_on() -> None:
    gate = asyncio.Event()
    done = 0

    @gateway.on_message
    async def slow(message: gateway.Message) -> None:
        nonlocal done
        await gate.wait()
        done += 1

    async with scripted({Command.REGISTER: registers()}, kind="worker") as peer:
        one = elsewhere(worker_addr=peer.addr, task_addr="127.0.0.1:9", heartbeat_interval_millisecond=20)
        async with in_worker(config(one, concurrency=1)) as here:
            connection = peer.connections[0]
            message = pb.Transfer(uniq_id="a", data=b"x" * 4096)
            total = 0
            while not connection.writing_paused:  # the gateway's side feels it
                send(connection, Command.TRANSFER, message)
                total += 1
                await asyncio.sleep(0)
            assert here.worker.in_flight < 1300
            before = connection.bytes_in
            await until(lambda: connection.bytes_in >= before + 3 * 18)
            gate.set()
            await until(lambda: done == total)


async def test_leaving_waits_for_the_answer_and_reads_on() -> None:
    seen = heard()

    def unregister(connection: Connection, packet: Packet) -> None:
        send(connection, Command.TRANSFER, pb.Transfer(uniq_id="a", data=b"before"))
        send(connection, Command.UNREGISTER, pb.UnRegisterResp())
        asyncio.get_running_loop().call_later(0.02, send, connection, Command.TRANSFER, pb.Transfer(uniq_id="a", data=b"after"))

    async with worker_at({Command.REGISTER: registers("number 7"), Command.UNREGISTER: unregister}) as (here, peer):
        begun = time.monotonic()
        await here.leave(replaced=True)
        assert time.monotonic() - begun < 0.45  # a gateway of laraman's needs no more
        assert peer.of(Command.UNREGISTER) == [pb.UnRegisterReq(conn_id="number 7")]
        assert [message.data for message in seen] == [b"before", b"after"]
        peer.connections[0].abort()
        await until(lambda: here.bus.mains[0].link.state != "UP")
        await anyio.sleep(0.3)
        assert len(peer.of(Command.REGISTER)) == 1  # not again


@pytest.mark.parametrize(("replaced", "least", "most"), [(True, 0.5, 3.0), (False, 0.0, 0.45)])
async def test_a_foreign_gateway_gets_time_to_use_the_successor(replaced: bool, least: float, most: float) -> None:
    script = {Command.REGISTER: registers(features=0), Command.UNREGISTER: pb.UnRegisterResp()}
    async with worker_at(script) as (here, _):
        begun = time.monotonic()
        await here.leave(replaced)
        assert least <= time.monotonic() - begun < most


@pytest.mark.parametrize("answer", [None, hang_up])
async def test_a_gateway_that_does_not_let_go_is_not_waited_for_long(answer: Any) -> None:
    async with worker_at({Command.REGISTER: registers(), Command.UNREGISTER: answer}, send_receive_timeout=0.3) as (here, _):
        begun = time.monotonic()
        await here.leave()
        assert time.monotonic() - begun < 1


# Dialects -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect.D5, Dialect.D3])
@pytest.mark.parametrize("found_out", [False, True])
async def test_older_gateways_with_one_port(dialect: Dialect, found_out: bool) -> None:
    seen = heard()

    def register(connection: Connection, packet: Packet) -> None:
        send(connection, Command.REGISTER, registers(features=0))
        send(connection, Command.CONN_OPEN, pb.ConnOpenLegacy(uniq_id="a", sub_protocols=["p"], remote_addr="1.2.3.4"))

    info = pb.ConnInfoResp(items={"a": pb.ConnInfoRespItem(session="s")})
    script = {Command.REGISTER: register, Command.LIMIT: pb.LimitResp(on_open=1), Command.CONN_INFO: info, Command.UNREGISTER: pb.UnRegisterResp()}
    script[Command.UNIQ_ID_COUNT] = pb.UniqIdCountResp()
    async with scripted(script, dialect=dialect) as peer:
        one = elsewhere(worker_addr=peer.addr, dialect="auto" if found_out else dialect, process_cmd_goroutine_num=25)
        async with in_worker(config(one)) as here:
            await until(lambda: seen)
            assert seen == [gateway.Opened(uniq_id="a", sub_protocols=("p",), remote_addr="1.2.3.4")]
            assert peer.of(Command.REGISTER) == [pb.RegisterReq(events=7, process_cmd_goroutine_num=25)]
            mine = addr_to_prefix(peer.addr) + "0" * 16
            assert (await here.bus.conn_info(mine)).items["a"].session == "s"
            if dialect is Dialect.D3:
                with pytest.raises(LocalProtocolError, match="no command"):
                    await here.bus.topic_customer_id_to_uniq_ids_list("t")


async def test_the_worker_port_of_a_new_gateway_is_not_enough(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted({Command.REGISTER: registers()}, kind="worker") as peer:
        one = elsewhere(worker_addr=peer.addr, send_receive_timeout=0.3)
        async with NetBus(config(one)) as bus:
            with pytest.raises(LinkDown, match="task_addr, its port for commands, is not set"):
                await bus.uniq_id_count()
    with pytest.raises(ConfigError, match="task_addr is not set"):
        Peer(elsewhere(worker_addr="127.0.0.1:6061", dialect="d8"))


# Commands -------------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def bus_to(script: dict[Command, Any], **fields: Any) -> AsyncIterator[tuple[NetBus, Scripted]]:
    """A bus in a script, and the gateway of laraman's kind that it talks to."""
    async with scripted({Command.REGISTER: registers(), **script}, kind="task") as peer:
        one = elsewhere(task_addr=peer.addr, **fields)
        async with NetBus(config(one)) as bus:
            yield bus, peer


def link_of(bus: NetBus) -> Any:
    return bus._gateways[0].first.link


def state(bus: NetBus) -> Any:
    return link_of(bus).state


def echo(connection: Connection, packet: Packet) -> None:
    """Answers which question it was."""
    send(connection, packet.command, pb.CheckOnlineResp(uniq_ids=packet.message.uniq_ids))  # type: ignore[union-attr]


async def test_questions_do_not_wait_for_each_other() -> None:
    asked: list[Packet] = []

    def hold(connection: Connection, packet: Packet) -> None:
        asked.append(packet)
        if len(asked) == 100:
            for one in asked:
                echo(connection, one)

    async with bus_to({Command.CHECK_ONLINE: hold}) as (bus, peer):
        ids = [f"{addr_to_prefix(peer.addr)}{number:016}" for number in range(100)]
        answers = await asyncio.gather(*(bus.check_online(uniq_id) for uniq_id in ids))
        assert [answer.uniq_ids for answer in answers] == [{uniq_id} for uniq_id in ids]
        assert len(peer.connections) == 2  # one of them asked whether this is a gateway of laraman's


async def test_an_answer_to_another_question_ends_the_connection_and_all_questions_on_it() -> None:
    async with bus_to({}) as (bus, peer):
        gate = asyncio.Event()

        async def wrong(connection: Connection, packet: Packet) -> None:
            await gate.wait()
            send(connection, Command.TOPIC_COUNT, pb.TopicCountResp(count=9))

        peer.script[Command.UNIQ_ID_COUNT] = wrong
        questions = [asyncio.ensure_future(ask()) for ask in (bus.uniq_id_count, bus.customer_id_count, bus.topic_list)]
        await until(lambda: Command.UNIQ_ID_COUNT in peer.commands)
        gate.set()
        begun = time.monotonic()
        outcomes = await asyncio.gather(*questions, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 3
        assert "TOPIC_COUNT" in str(outcomes[0])
        assert time.monotonic() - begun < 2
        peer.script[Command.UNIQ_ID_COUNT] = COUNT
        assert (await bus.uniq_id_count()).count == 3  # on a new connection


async def test_silence_ends_at_the_deadline_and_the_next_question_is_asked_on_a_new_connection() -> None:
    late: list[Connection] = []

    async with bus_to({Command.UNIQ_ID_COUNT: lambda connection, _: late.append(connection)}, send_receive_timeout=0.5) as (bus, peer):
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer to UNIQ_ID_COUNT within 0\.5 s"):
            await bus.uniq_id_count()
        assert time.monotonic() - begun < 1.5
        peer.script[Command.UNIQ_ID_COUNT] = COUNT
        assert (await bus.uniq_id_count()).count == 3
        assert peer.live is not late[0]


async def test_the_end_of_a_connection_is_noticed_at_once() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: hang_up, Command.TOPIC_COUNT: pb.TopicCountResp(count=1)}, send_receive_timeout=5.0) as (bus, _):
        begun = time.monotonic()
        with pytest.raises(ConnectionLost):
            await bus.uniq_id_count()
        assert time.monotonic() - begun < 3
        assert (await bus.topic_count()).count == 1


async def test_after_a_restart_of_the_gateway_no_command_is_lost() -> None:
    """The PHP client loses two, and calls the first a success."""
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}) as (bus, peer):
        await bus.uniq_id_count()
        peer.live.abort()
        await until(lambda: link_of(bus).error)  # it is dialled again at once: that it is down can be over before anybody looks
        for text in ("1", "2", "3"):
            await bus.broadcast(text)
        await until(lambda: [message.data for message in peer.of(Command.BROADCAST)] == [b"1", b"2", b"3"])


async def test_a_question_that_was_given_up_does_not_shift_the_answers() -> None:
    async with bus_to({Command.CHECK_ONLINE: echo}) as (bus, peer):
        ids = [f"{addr_to_prefix(peer.addr)}{number:016}" for number in range(3)]
        await bus.check_online(ids[0])
        given_up = asyncio.ensure_future(bus.check_online(ids[1]))
        await asyncio.sleep(0)
        given_up.cancel()
        assert (await bus.check_online(ids[2])).uniq_ids == {ids[2]}
        assert given_up.cancelled()


async def test_an_answer_that_is_no_protobuf_fails_its_question_only() -> None:
    def garbage(connection: Connection, packet: Packet) -> None:
        connection.transport.write(broken(Command.UNIQ_ID_COUNT))

    async with bus_to({Command.UNIQ_ID_COUNT: garbage, Command.TOPIC_COUNT: pb.TopicCountResp(count=1)}) as (bus, _):
        outcomes = await asyncio.gather(bus.uniq_id_count(), bus.topic_count(), return_exceptions=True)
        assert isinstance(outcomes[0], RemoteProtocolError)
        assert outcomes[1].count == 1  # type: ignore[union-attr]


async def test_a_command_that_no_gateway_would_take_is_refused_here() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}, max_size=1000) as (bus, peer):
        with pytest.raises(LocalProtocolError, match="more than the 1000"):
            await bus.broadcast("x" * 1000)
        await bus.broadcast("x" * 900)
        await bus.uniq_id_count()
        assert len(peer.of(Command.BROADCAST)) == 1


# A gateway that is away -----------------------------------------------------------------------------------------------------------


async def test_calls_wait_for_a_gateway_that_has_just_gone_and_later_ones_do_not() -> None:
    [port] = free_ports(1)
    async with NetBus(config(elsewhere(task_addr=f"127.0.0.1:{port}", send_receive_timeout=0.4))) as bus:
        begun = time.monotonic()
        outcomes = await asyncio.gather(bus.uniq_id_count(), bus.broadcast("x"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LinkDown] * 2
        assert 0.35 < time.monotonic() - begun < 1.5
        begun = time.monotonic()
        for call in (bus.uniq_id_count, lambda: bus.broadcast("y")):
            with pytest.raises(LinkDown):
                await call()
        assert time.monotonic() - begun < 0.35
        async with scripted({Command.REGISTER: registers(), Command.UNIQ_ID_COUNT: COUNT}, kind="task", port=port) as peer:
            await until(lambda: state(bus) == "UP")
            assert (await bus.uniq_id_count()).count == 3
            assert peer.of(Command.BROADCAST) == []  # what has failed is not sent later


async def test_a_call_that_waits_is_carried_out_when_the_gateway_comes() -> None:
    [port] = free_ports(1)
    async with NetBus(config(elsewhere(task_addr=f"127.0.0.1:{port}", send_receive_timeout=10.0))) as bus:
        calls = [asyncio.ensure_future(bus.broadcast(str(number))) for number in range(5)]
        await until(lambda: bus._gateways[0].first.link.error is not None)
        async with scripted({Command.REGISTER: registers()}, kind="task", port=port) as peer:
            await asyncio.gather(*calls)
            await until(lambda: [message.data for message in peer.of(Command.BROADCAST)] == [b"0", b"1", b"2", b"3", b"4"])


async def test_the_policy_that_queues() -> None:
    [port] = free_ports(1)
    fields = {"task_addr": f"127.0.0.1:{port}", "send_receive_timeout": 0.3, "queue": 3, "overflow": "drop_oldest"}
    async with NetBus(config(elsewhere(**fields))) as bus:
        for number in range(5):
            await bus.broadcast(str(number))
        with pytest.raises(LinkDown):  # a question is never queued
            await bus.uniq_id_count()
        async with scripted({Command.REGISTER: registers()}, kind="task", port=port) as peer:
            await until(lambda: [message.data for message in peer.of(Command.BROADCAST)] == [b"2", b"3", b"4"])


async def test_the_policy_that_fails() -> None:
    [port] = free_ports(1)
    async with NetBus(config(elsewhere(task_addr=f"127.0.0.1:{port}", send_receive_timeout=10.0, overflow="error"))) as bus:
        with contextlib.suppress(LinkDown):  # the first may find the link not tried yet
            async with asyncio.timeout(0.3):
                await bus.broadcast("x")
        begun = time.monotonic()
        with pytest.raises(LinkDown):
            await bus.broadcast("x")
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("overflow", "error"), [("error", Busy), ("wait", Busy), ("drop_oldest", None)])
async def test_a_gateway_that_does_not_read_costs_no_more_than_the_queue(overflow: str, error: type[Exception] | None) -> None:
    async with scripted({Command.REGISTER: registers()}, kind="task") as peer:
        one = elsewhere(task_addr=peer.addr, overflow=overflow, queue=5, send_receive_timeout=0.2)
        async with NetBus(config(one)) as bus:
            await bus.broadcast("x")
            await bus._gateways[0].first.ready()
            peer.live.transport.pause_reading()
            link = bus._gateways[0].first.link
            with contextlib.nullcontext() if error is None else pytest.raises(error):
                for _ in range(400):
                    await bus.broadcast("x" * 100_000)
            assert link.row()["queued"] == 5
            assert (link.dropped > 0) == (error is None)
            link.drop(ConnectionLost("enough"))


async def test_nobody_is_told_twice_that_the_bus_is_closed() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}) as (bus, _):
        await bus.uniq_id_count()
    with pytest.raises(ConnectionClosed):
        await bus.uniq_id_count()
    with pytest.raises(ConnectionClosed):
        await bus.broadcast("x")


async def test_a_first_call_when_the_worker_has_ended() -> None:
    async with scripted({Command.REGISTER: registers()}, kind="task") as peer:
        async with in_worker(config(elsewhere(task_addr=peer.addr)), name="billing") as here:
            pass
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="this worker has stopped"):
                await here.bus.broadcast("x")


# Silence --------------------------------------------------------------------------------------------------------------------------


async def test_after_a_long_silence_the_connection_is_tried_before_it_is_used() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}, max_idle_time=0.1) as (bus, peer):
        await bus.broadcast("1")
        await anyio.sleep(0.15)
        await asyncio.gather(bus.broadcast("2"), bus.broadcast("3"))
        await bus.broadcast("4")
        await until(lambda: len(peer.of(Command.BROADCAST)) == 4)
        assert [command for command in peer.commands if command is not Command.REGISTER] == [
            Command.BROADCAST,
            Command.UNIQ_ID_COUNT,
            *[Command.BROADCAST] * 3,
        ]


async def test_all_that_wait_for_a_gateway_that_is_silent_wait_together() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}, max_idle_time=0.1, send_receive_timeout=0.6) as (bus, peer):
        await bus.uniq_id_count()
        peer.script = {Command.REGISTER: lambda *_: None, Command.UNIQ_ID_COUNT: lambda *_: None}
        await anyio.sleep(0.15)
        begun = time.monotonic()
        outcomes = await asyncio.gather(*(bus.uniq_id_count() for _ in range(8)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LinkDown] * 8
        assert 0.5 < time.monotonic() - begun < 2.4


async def test_a_half_open_connection_is_replaced_before_a_command_is_lost_on_it() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}, max_idle_time=0.1, send_receive_timeout=0.6) as (bus, peer):
        await bus.broadcast("1")
        await until(lambda: peer.of(Command.BROADCAST))
        dead = peer.live
        dead.handler = SimpleNamespace(on_message=lambda *_: None)  # it is there, and answers nothing
        await anyio.sleep(0.15)
        await bus.broadcast("2")
        await until(lambda: [message.data for message in peer.of(Command.BROADCAST)] == [b"1", b"2"])
        assert peer.live is not dead


# Extensions -----------------------------------------------------------------------------------------------------------------------


async def test_a_foreign_gateway_is_not_spoken_to_in_extensions() -> None:
    """It hangs up on a Register at its port for commands."""
    ids = pb.UniqIdListResp(uniq_ids=["a", "b", "c"])
    script = {Command.REGISTER: hang_up, Command.UNIQ_ID_COUNT: pb.UniqIdCountResp(), Command.UNIQ_ID_LIST: ids}
    async with bus_to(script) as (bus, peer):
        await bus.broadcast("hello", exclude="b")
        await until(lambda: peer.of(Command.MULTICAST))
        assert peer.of(Command.MULTICAST) == [pb.Multicast(uniq_ids=["a", "c"], data=b"hello")]
        assert len(peer.of(Command.REGISTER)) == 1


@pytest.mark.parametrize(
    ("call", "question", "answer", "ids"),
    [
        ("topic_publish", Command.TOPIC_UNIQ_ID_LIST, pb.TopicUniqIdListResp(items={"t": pb.TopicUniqIdListRespItem(uniq_ids=["a", "b"])}), ["a"]),
        (
            "single_cast_by_customer_id",
            Command.CONN_INFO_BY_CUSTOMER_ID,
            pb.ConnInfoByCustomerIdResp(
                items={"t": pb.ConnInfoByCustomerIdRespItems(items=[pb.ConnInfoByCustomerIdRespItem(uniq_id=name) for name in "bac"])}
            ),
            ["a", "c"],
        ),
        (
            "multicast_by_customer_id",
            Command.CONN_INFO_BY_CUSTOMER_ID,
            pb.ConnInfoByCustomerIdResp(items={"t": pb.ConnInfoByCustomerIdRespItems(items=[pb.ConnInfoByCustomerIdRespItem(uniq_id="b")])}),
            None,
        ),
    ],
)
async def test_who_is_left_out_is_worked_out_here(call: str, question: Command, answer: Any, ids: list[str] | None) -> None:
    async with bus_to({Command.REGISTER: hang_up, question: answer, Command.UNIQ_ID_COUNT: COUNT}) as (bus, peer):
        await getattr(bus, call)("t", "hello", exclude=["b"])
        await bus.uniq_id_count()
        assert peer.of(Command.MULTICAST) == ([] if ids is None else [pb.Multicast(uniq_ids=ids, data=b"hello")])


async def test_a_gateway_of_ours_leaves_out_by_itself_and_is_told_what_is_text() -> None:
    async with bus_to({Command.UNIQ_ID_COUNT: COUNT}) as (bus, peer):
        await bus.broadcast("text", exclude=["a", "b"])
        await bus.topic_publish("t", b"bytes", exclude="a")
        await bus.uniq_id_count()
        assert peer.of(Command.BROADCAST) == [pb.Broadcast(data=b"text", exclude=["a", "b"])]
        assert peer.of(Command.TOPIC_PUBLISH) == [pb.TopicPublish(topics=["t"], data=b"bytes", binary=True, exclude=["a"])]


async def test_a_wrong_secret_is_an_error_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    refused = pb.RegisterResp(code=2, message="InvalidEvent")
    async with bus_to({Command.REGISTER: refused}, secret="hush", send_receive_timeout=0.3) as (bus, peer):
        with pytest.raises(LinkDown, match=r"refuses to register .* secret"):
            await bus.uniq_id_count()
        assert peer.of(Command.REGISTER)[0] == pb.RegisterReq(features=1, secret="hush")
    assert "hush" not in caplog.text


# Order ----------------------------------------------------------------------------------------------------------------------------


async def test_commands_for_one_client_keep_to_one_of_several_connections() -> None:
    came: dict[str, list[tuple[int, bytes]]] = {}

    def note(connection: Connection, packet: Packet) -> None:
        message: Any = packet.message
        came.setdefault(message.uniq_id, []).append((connection.id, message.data))

    async with bus_to({Command.SINGLE_CAST: note, Command.TOPIC_SUBSCRIBE: note}, task_connections=4) as (bus, peer):
        ids = [f"{addr_to_prefix(peer.addr)}{number:016}" for number in range(40)]
        for number in range(10):
            for uniq_id in ids:
                await (bus.single_cast(uniq_id, str(number)) if number % 2 else bus.topic_subscribe(uniq_id, "t", str(number)))
        await until(lambda: sum(map(len, came.values())) == 400)
        assert all(len({connection for connection, _ in seen}) == 1 for seen in came.values())
        assert all([data for _, data in seen] == [str(number).encode() for number in range(10)] for seen in came.values())
        assert len({connection for seen in came.values() for connection, _ in seen}) > 1
        names = sorted(socket.link.name for socket in bus._gateways[0].sockets)
        assert names == [f"gateway {peer.addr} commands{number}" for number in ("", " 2", " 3", " 4")]


async def test_heartbeats_are_the_configured_texts() -> None:
    """What arrives is the configured text in a frame, on both kinds of connections."""
    raw: list[bytes] = []

    class Recorder(Netsvr):
        def receive_data(self, data: bytes) -> list[Packet]:
            raw.append(data)
            return super().receive_data(data)

    async with scripted({Command.REGISTER: registers()}, protocol=lambda: Recorder("gateway", heartbeat=b"beat-1")) as peer:
        texts = {"worker_heartbeat_message": "beat-1", "task_heartbeat_message": "beat-1"}
        one = elsewhere(worker_addr=peer.addr, task_addr=peer.addr, dialect="d8", heartbeat_interval_millisecond=20, **texts)
        async with in_worker(config(one)):
            await until(lambda: raw.count(b"\0\0\0\x06beat-1") > 4)
