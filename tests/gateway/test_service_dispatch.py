"""Which worker gets an event of a browser, in which order, and what happens while none can take it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

from laraman.protocols.netsvr import Command
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.gateway import Peer, gateway_running, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from websockets.asyncio.client import ClientConnection

    from laraman.gateway.business import Session
    from tests.gateway.gateway import Running

pytestmark = pytest.mark.anyio

OPEN, CLOSE, TRANSFER = Command.CONN_OPEN, Command.CONN_CLOSE, Command.TRANSFER
BULK = b"." * 20_000


async def stalled_worker(gateway: Running, events: int = 7) -> tuple[Peer, Session]:
    """A registered worker that reads only when the test does, with room for 20 events."""
    peer = await gateway.worker_peer(limit=1024)
    await peer.register(events)
    session = gateway.sessions()[-1]
    session.queue._max_events = 20
    return peer, session


COUNT = 600


@contextlib.asynccontextmanager
async def flooding(gateway: Running, session: Session) -> AsyncIterator[ClientConnection]:
    """A browser that sends COUNT numbered messages, and whose worker connection is full by now; more than the kernel's buffers hold."""

    async def send() -> None:
        for number in range(COUNT):
            await browser.send(b"%06d" % number + BULK)

    browser = await gateway.open_browser()
    sending = asyncio.create_task(send())
    await until(lambda: len(session.queue.events) >= 20)
    yield browser
    await sending


async def numbers(worker: Peer, first: int = 0) -> list[int]:
    """The numbers of all messages up to the last one."""
    found = [first]
    while found[-1] != COUNT - 1:
        found.append(int((await worker.event(TRANSFER)).data[:6]))
    return found[1:]


# Who gets what ------------------------------------------------------------------------------------------------------------------------


async def test_a_client_stays_with_its_worker_and_workers_get_the_same_number() -> None:
    async with gateway_running() as gateway:
        workers = [await gateway.worker_peer() for _ in range(3)]
        for worker in workers:
            await worker.register()
        browsers = [await gateway.open_browser() for _ in range(6)]
        for _ in range(5):
            for browser in browsers:
                await browser.send("x")
        for browser in browsers:
            await browser.close()
        for worker in workers:
            events = [await worker.receive() for _ in range(14)]
            lives = {message.uniq_id: [command for command, other in events if other.uniq_id == message.uniq_id] for _, message in events}
            assert list(lives.values()) == [[OPEN, *[TRANSFER] * 5, CLOSE]] * 2
        assert [session.clients for session in gateway.sessions()] == [0, 0, 0]


async def test_workers_get_what_they_registered_for() -> None:
    async with gateway_running() as gateway:
        opens, closes, messages = [await gateway.worker_peer() for _ in range(3)]
        for worker, events in ((opens, 1), (closes, 2), (messages, 4)):
            await worker.register(events)
        for _ in range(2):
            async with gateway.browser() as browser:
                await browser.send("x")
            await opens.event(OPEN)
            await messages.event(TRANSFER)
            await closes.event(CLOSE)


async def test_other_bits_of_the_mask_are_ignored() -> None:
    async with gateway_running() as gateway:
        worker = await gateway.worker_peer()
        assert (await worker.register(8 | 4)).code == 0
        async with gateway.browser() as browser:
            await browser.send("x")
            await worker.event(TRANSFER)


async def test_a_close_never_comes_before_a_message() -> None:
    async with gateway_running() as gateway:
        worker = await gateway.worker_peer()
        await worker.register()
        for _ in range(10):
            async with gateway.browser() as browser:
                for number in range(20):
                    await browser.send(str(number))
            await worker.event(OPEN)
            assert [(await worker.event(TRANSFER)).data for _ in range(20)] == [b"%d" % number for number in range(20)]
            await worker.event(CLOSE)


async def test_events_carry_the_state_of_their_moment() -> None:
    async with gateway_running() as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        await worker.register()
        async with gateway.browser() as browser:
            uniq_id = (await worker.event(OPEN)).uniq_id
            task.send(Command.CONN_INFO_UPDATE, pb.ConnInfoUpdate(uniq_id=uniq_id, new_session="s", new_customer_id="c", new_topics=["t"]))
            assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 1
            await browser.send("x")
            message = await worker.event(TRANSFER)
            assert (message.session, message.customer_id, list(message.topics)) == ("s", "c", ["t"])
        closed = await worker.event(CLOSE)
        assert (closed.session, closed.customer_id, list(closed.topics)) == ("s", "c", ["t"])


# Nobody is there --------------------------------------------------------------------------------------------------------------------


async def test_events_wait_for_a_worker_in_order() -> None:
    async with gateway_running() as gateway:
        browsers = [await gateway.open_browser() for _ in range(2)]
        for number in range(3):
            for browser in browsers:
                await browser.send(str(number))
        await browsers[0].close()
        await until(lambda: len(gateway.gateway.dispatcher.held.events) == 9)
        worker = await gateway.worker_peer()
        await worker.register()
        events = [await worker.receive() for _ in range(9)]
        first, second = dict.fromkeys(message.uniq_id for _, message in events)
        for uniq_id, last in ((first, [CLOSE]), (second, [])):
            assert [command for command, message in events if message.uniq_id == uniq_id] == [OPEN, TRANSFER, TRANSFER, TRANSFER, *last]
            assert [message.data for command, message in events if message.uniq_id == uniq_id and command is TRANSFER] == [b"0", b"1", b"2"]
        await browsers[1].send("live")
        assert (await worker.event(TRANSFER)).data == b"live"


async def test_events_wait_only_so_long() -> None:
    async with gateway_running(hold=0.3) as gateway:
        async with gateway.browser() as browser:
            await browser.send("lost")
            await until(lambda: gateway.gateway.metrics.not_forwarded == 2)
            worker = await gateway.worker_peer()
            await worker.register()
            await browser.send("kept")
            assert (await worker.event(TRANSFER)).data == b"kept"
        await worker.event(CLOSE)
        assert not gateway.gateway.dispatcher.held.events


async def test_of_whom_nobody_has_heard_nobody_hears_the_end() -> None:
    async with gateway_running(hold=0.3) as gateway:
        async with gateway.browser():
            await until(lambda: gateway.gateway.metrics.not_forwarded == 1)
        await until(lambda: not gateway.uniq_ids)
        worker = await gateway.worker_peer()
        await worker.register()
        assert await worker.silent()


async def test_without_hold_nothing_waits() -> None:
    async with gateway_running(hold=0) as gateway, gateway.browser() as browser:
        await browser.send("lost")
        await until(lambda: gateway.gateway.metrics.not_forwarded == 2)
        worker = await gateway.worker_peer()
        await worker.register()
        await browser.send("kept")
        assert (await worker.event(TRANSFER)).data == b"kept"


async def test_what_nobody_asks_for_delays_nothing() -> None:
    async with gateway_running(hold=60) as gateway:
        worker = await gateway.worker_peer()
        await worker.register(4)
        async with gateway.browser() as browser:
            await browser.send("x")
            assert (await worker.event(TRANSFER)).data == b"x"


async def test_messages_wait_behind_an_open_whose_worker_is_being_replaced() -> None:
    async with gateway_running(hold=60) as gateway:
        opens, messages = await gateway.worker_peer(), await gateway.worker_peer()
        await opens.register(1)
        await messages.register(4)
        opens.close()
        await until(lambda: len(gateway.sessions()) == 1)
        async with gateway.browser() as browser:
            await browser.send("x")
            assert await messages.silent()
            successor = await gateway.worker_peer()
            await successor.register(1)
            await successor.event(OPEN)
            await messages.event(TRANSFER)


async def test_when_too_much_waits_browsers_are_not_read_and_nobody_is_let_in() -> None:
    async with gateway_running(rate=0) as gateway:
        held = gateway.gateway.dispatcher.held
        held._max_events = 20
        async with gateway.browser() as browser:
            for number in range(40):
                await browser.send(str(number))
            (client,) = await until(gateway.clients)
            await until(lambda: client.blocked)
            assert len(held.events) == 20
            refused = await gateway.open_browser()
            await refused.wait_closed()
            assert refused.close_code == 1013
            worker = await gateway.worker_peer()
            await worker.register()
            await worker.event(OPEN)
            assert [(await worker.event(TRANSFER)).data for _ in range(40)] == [b"%d" % number for number in range(40)]
            assert not client.reading_paused


async def test_browsers_are_read_on_when_what_waited_was_given_up() -> None:
    async with gateway_running(rate=0, hold=0.3) as gateway:
        gateway.gateway.dispatcher.held._max_events = 5
        async with gateway.browser() as browser:
            for number in range(12):
                await browser.send(str(number))
            await until(lambda: gateway.gateway.metrics.not_forwarded == 13)
            (client,) = gateway.clients()
            assert not client.reading_paused


# A worker that does not read ----------------------------------------------------------------------------------------------------------


async def test_a_worker_that_does_not_read_stops_its_clients_and_loses_nothing() -> None:
    async with gateway_running(rate=0) as gateway:
        worker, session = await stalled_worker(gateway)
        async with flooding(gateway, session):
            (client,) = gateway.clients()
            await until(lambda: client.blocked and client.reading_paused)
            assert len(session.queue.events) < 30
            await worker.event(OPEN)
            assert await numbers(worker, -1) == list(range(COUNT))
            assert not client.reading_paused


async def test_a_worker_that_does_not_read_is_given_no_new_clients_and_stops_no_others() -> None:
    async with gateway_running(rate=0) as gateway:
        worker, session = await stalled_worker(gateway)
        async with flooding(gateway, session):
            healthy = await gateway.worker_peer()
            await healthy.register()
            for _ in range(3):
                async with gateway.browser() as other:
                    await healthy.event(OPEN)
                    await other.send("x")
                    await healthy.event(TRANSFER)
                await healthy.event(CLOSE)
            await worker.event(OPEN)
            await numbers(worker)


async def test_what_waits_for_a_worker_that_dies_goes_to_another() -> None:
    async with gateway_running(rate=0) as gateway:
        worker, session = await stalled_worker(gateway)
        async with flooding(gateway, session):
            successor = await gateway.worker_peer()
            await successor.register()
            first = int(session.queue.events[0].message.data[:6])
            worker.close()
            assert await numbers(successor, first - 1) == list(range(first, COUNT))


async def test_what_waits_for_a_worker_that_dies_waits_for_the_next_one() -> None:
    async with gateway_running(rate=0) as gateway:
        worker, session = await stalled_worker(gateway)
        async with flooding(gateway, session) as browser:
            first = int(session.queue.events[0].message.data[:6])
            worker.close()
            await until(lambda: not gateway.sessions())
            successor = await gateway.worker_peer()
            await successor.register()
            assert await numbers(successor, first - 1) == list(range(first, COUNT))
            await browser.close()
            await successor.event(CLOSE)


async def test_what_a_dead_worker_had_comes_before_what_waited_meanwhile() -> None:
    async with gateway_running(rate=0, hold=60) as gateway:
        worker, session = await stalled_worker(gateway, 5)
        closes, task = await gateway.worker_peer(), await gateway.task_peer()
        await closes.register(2)
        closes.close()
        browser = await gateway.open_browser()
        sending = asyncio.gather(*(browser.send(b"%06d" % number + BULK) for number in range(COUNT)), return_exceptions=True)
        await until(lambda: len(session.queue.events) >= 20)
        task.send(Command.FORCE_OFFLINE, pb.ForceOffline(uniq_ids=gateway.uniq_ids))
        await until(lambda: gateway.gateway.dispatcher.held.events)
        waiting = [event.message.data[:6] for event in session.queue.events]
        worker.close()
        await until(lambda: not session.queue.events)
        successor = await gateway.worker_peer()
        await successor.register()
        assert [(await successor.event(TRANSFER)).data[:6] for _ in waiting] == waiting
        await successor.event(CLOSE)
        browser.transport.abort()
        await sending


async def test_a_worker_that_breaks_the_protocol_gets_nothing_more() -> None:
    async with gateway_running(rate=0) as gateway:
        worker, session = await stalled_worker(gateway)
        async with flooding(gateway, session):
            successor = await gateway.worker_peer()
            await successor.register()
            first = int(session.queue.events[0].message.data[:6])
            worker.writer.write(bytes(4))
            async with asyncio.timeout(5):  # it does not read, so its end takes ten seconds
                assert await numbers(successor, first - 1) == list(range(first, COUNT))


async def test_a_worker_that_never_reads_is_cut_off() -> None:
    async with gateway_running(rate=0, send_deadline=0.3) as gateway:
        _, session = await stalled_worker(gateway)
        async with flooding(gateway, session):
            await until(lambda: not gateway.sessions())
            assert "read nothing" in str(session.error)


# Leaving ------------------------------------------------------------------------------------------------------------------------------


async def test_what_waits_is_sent_before_the_answer_to_unregister() -> None:
    async with gateway_running(rate=0) as gateway:
        worker, session = await stalled_worker(gateway)
        async with flooding(gateway, session):
            successor = await gateway.worker_peer()
            await successor.register()
            last = int(session.queue.events[-1].message.data[:6])
            worker.send(Command.UNREGISTER, pb.UnRegisterReq(conn_id=worker.conn_id))
            await until(lambda: not session.registered)
            assert not session.queue.events
            await worker.event(OPEN)
            got = []
            while (packet := await worker.receive())[0] is TRANSFER:
                got.append(int(packet[1].data[:6]))
            assert packet[0] is Command.UNREGISTER
            assert got == list(range(len(got)))
            assert got[-1] >= last
            assert await numbers(successor, len(got) - 1) == list(range(len(got), COUNT))
            assert (await worker.register()).code == 3


async def test_nobody_can_unregister_another() -> None:
    async with gateway_running() as gateway:
        worker, other = await gateway.worker_peer(), await gateway.worker_peer()
        await worker.register()
        for conn_id in (worker.conn_id, "", "0" * 32):
            await other.ask(Command.UNREGISTER, pb.UnRegisterReq(conn_id=conn_id))
        async with gateway.browser():
            await worker.event(OPEN)


async def test_a_worker_is_replaced_without_a_gap() -> None:
    async with gateway_running(rate=0) as gateway:
        worker = await gateway.worker_peer()
        await worker.register()
        async with gateway.browser() as browser:
            sent = itertools.count()
            got: list[int] = []
            await worker.event(OPEN)
            for _ in range(10):
                for _ in range(20):
                    await browser.send(str(next(sent)))
                successor = await gateway.worker_peer()
                await successor.register()
                worker.send(Command.UNREGISTER, pb.UnRegisterReq(conn_id=worker.conn_id))
                while (packet := await worker.receive())[0] is TRANSFER:
                    got.append(int(packet[1].data))
                assert packet[0] is Command.UNREGISTER
                worker.close()
                worker = successor
            await browser.send("-1")
            while (message := await worker.event(TRANSFER)).data != b"-1":
                got.append(int(message.data))
            assert got == list(range(next(sent)))
