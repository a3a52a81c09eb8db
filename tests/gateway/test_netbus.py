"""All calls of a NetBus, with the embedded gateway and real browsers' connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from websockets.exceptions import ConnectionClosed

from laraman import events, gateway
from laraman.config.gateway import GatewayConfig
from laraman.errors import ConfigError, LinkDown, UnknownGateway
from laraman.events import OperationTerminated
from laraman.gateway import NetBus
from laraman.net.dial import resolve as resolve_name
from laraman.sandbox.surroundings import Sandbox
from tests.conftest import free_ports
from tests.gateway.clients import config, elsewhere, in_worker
from tests.gateway.gateway import DEADLINE, Running, gateway_running, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from websockets.asyncio.client import ClientConnection

    from laraman.gateway.results import Answer

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    events.forget([__name__])


def entry(running: Running, **fields: Any) -> GatewayConfig:
    """How a server is configured that talks to this gateway."""
    _, worker, task = running.addresses
    return elsewhere(worker_addr=worker, task_addr=task, **fields)


class Site:
    """A gateway or two, a bus, and browsers: ``ids[n]`` is what the gateway calls ``browsers[n]``."""

    def __init__(self, bus: NetBus, gateways: list[Running], stack: contextlib.AsyncExitStack) -> None:
        self.bus = bus
        self.gateways = gateways
        self.browsers: list[ClientConnection] = []
        self.ids: list[str] = []
        self._stack = stack

    async def browse(self, count: int, which: int = 0) -> list[str]:
        running = self.gateways[which]
        for _ in range(count):
            self.browsers.append(await self._stack.enter_async_context(running.browser()))
            [new] = set(running.uniq_ids) - set(self.ids)
            self.ids.append(new)
        return self.ids[-count:]

    async def received(self) -> list[list[str | bytes]]:
        """What each browser has received up to here."""
        await self.bus.broadcast("that was it")
        return [await self._heard(browser) for browser in self.browsers]

    async def _heard(self, browser: ClientConnection) -> list[str | bytes]:
        seen = []
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionClosed):
                while (data := await browser.recv()) != "that was it":
                    seen.append(data)
        return seen


@contextlib.asynccontextmanager
async def site(gateways: int = 1, **fields: Any) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(gateway_running(**fields)) for _ in range(gateways)]
        bus = await stack.enter_async_context(NetBus(config(*(entry(one) for one in running))))
        yield Site(bus, running, stack)


# Sending --------------------------------------------------------------------------------------------------------------------------


async def test_to_one_to_some_to_all() -> None:
    async with site() as here:
        a, b, c = await here.browse(3)
        await here.bus.single_cast(a, "one")
        await here.bus.multicast([a, c, a], "some")
        await here.bus.multicast(b, "scalar")
        await here.bus.broadcast(b"\xff all", exclude=b)
        await here.bus.broadcast("text", exclude=[a, b])
        assert await here.received() == [["one", "some", "some", b"\xff all"], ["scalar"], ["some", b"\xff all", "text"]]


async def test_bulk_in_all_its_shapes() -> None:
    async with site() as here:
        a, b = await here.browse(2)
        await here.bus.single_cast_bulk({a: "1", b: "2"})
        await here.bus.single_cast_bulk([a, b], ["3", "4"])
        await here.bus.single_cast_bulk(a, ["5", "6"])
        await here.bus.single_cast_bulk([a], [b"7", b"8"])
        await here.bus.single_cast_bulk([a, a], ["9", "10"])
        assert await here.received() == [["1", "3", "5", "6", b"7", b"8", "9", "10"], ["2", "4"]]


async def test_bulk_that_no_gateway_would_understand() -> None:
    async with site() as here:
        a, b = await here.browse(2)
        with pytest.raises(ValueError, match="2 targets for 3 data"):
            await here.bus.single_cast_bulk([a, b], ["1", "2", "3"])
        with pytest.raises(TypeError, match="not both"):
            await here.bus.single_cast_bulk([a, b], ["1", b"2"])
        for wrong in (5, None, ["list"]):
            with pytest.raises(TypeError, match="data is text or bytes"):
                await here.bus.single_cast(a, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="an id is text or a number, not bytes"):
            await here.bus.topic_publish(b"news", "x")  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            await here.bus.broadcast("\ud800")
        assert await here.received() == [[], []]


async def test_customers_by_name_and_number() -> None:
    async with site() as here:
        a, b, c = await here.browse(3)
        await here.bus.conn_info_update(a, new_customer_id=7)
        await here.bus.conn_info_update(b, new_customer_id="7")
        await here.bus.conn_info_update(c, new_customer_id="eve")
        await here.bus.single_cast_by_customer_id(7, "seven")
        await here.bus.single_cast_by_customer_id("7", "not b", exclude=b)
        await here.bus.multicast_by_customer_id([7, "eve", 7], "both")
        await here.bus.multicast_by_customer_id("eve", b"eve", exclude=[a])
        await here.bus.single_cast_bulk_by_customer_id({7: "n", "eve": "e"})
        await here.bus.single_cast_bulk_by_customer_id(7, ["x", "y"])
        assert await here.received() == [
            ["seven", "not b", "both", "n", "x", "y"],
            ["seven", "both", "n", "x", "y"],
            ["both", b"eve", "e"],
        ]


async def test_topics() -> None:
    async with site() as here:
        a, b = await here.browse(2)
        await here.bus.topic_subscribe(a, ["red", "blue"], "welcome")
        await here.bus.topic_subscribe(b, "red")
        await here.bus.topic_publish("red", "1")
        await here.bus.topic_publish(["red", "blue"], "2", exclude=b)
        await here.bus.topic_publish_bulk({"red": "3", "blue": "4"})
        await here.bus.topic_publish_bulk("blue", ["5", "6"])
        await here.bus.topic_unsubscribe(a, "blue", "bye")
        await here.bus.topic_publish("blue", "nobody")
        await here.bus.topic_delete("red", "over")
        await here.bus.topic_publish("red", "nobody")
        assert await here.received() == [["welcome", "1", "2", "2", "3", "4", "5", "6", "bye", "over"], ["1", "3", "over"]]


async def test_what_is_known_of_a_client() -> None:
    async with site() as here:
        [a] = await here.browse(1)
        await here.bus.conn_info_update(a, new_session="s", new_customer_id="c", new_topics=["t"], data="updated")
        assert (await here.bus.conn_info(a)).items == {a: ("s", "c", ["t"])}
        await here.bus.conn_info_delete(a, del_session=True, data="deleted")
        assert (await here.bus.conn_info([a])).items == {a: ("", "c", ["t"])}
        await here.bus.conn_info_delete(a, del_customer_id=True, del_topic=True)
        assert (await here.bus.conn_info(a)).items == {a: ("", "", [])}
        assert await here.received() == [["updated", "deleted"]]


async def test_ending_connections() -> None:
    async with site() as here:
        a, b, c, d = await here.browse(4)
        await here.bus.conn_info_update(b, new_customer_id=7)
        await here.bus.force_offline([a], "last words")
        await here.bus.force_offline_by_customer_id(7, "bye")
        await here.bus.force_offline_guest([c], "guest")
        await here.bus.force_offline_guest(d, delay=3600)
        assert await here.received() == [["last words"], ["bye"], ["guest"], []]
        for browser in here.browsers[:3]:
            with contextlib.suppress(ConnectionClosed):
                await browser.recv()
            assert browser.close_code == 1008
        assert (await here.bus.uniq_id_list()).uniq_ids == [d]


async def test_empty_lists_do_nothing() -> None:
    async with site() as here:
        await here.browse(1)
        bus = here.bus
        calls: list[Any] = [
            bus.multicast([], "x"),
            bus.multicast_by_customer_id([], "x"),
            bus.single_cast_bulk({}),
            bus.single_cast_bulk([], []),
            bus.single_cast_bulk_by_customer_id([], []),
            bus.topic_publish([], "x"),
            bus.topic_publish_bulk({}),
            bus.topic_subscribe(here.ids[0], []),
            bus.topic_unsubscribe(here.ids[0], []),
            bus.topic_delete([]),
            bus.force_offline([]),
            bus.force_offline_by_customer_id([]),
            bus.force_offline_guest([]),
        ]
        assert [(await call).partial for call in calls] == [False] * len(calls)
        questions: list[Any] = [
            bus.check_online([]),
            bus.conn_info([]),
            bus.conn_info_by_customer_id([]),
            bus.topic_uniq_id_list([]),
            bus.topic_uniq_id_count([]),
            bus.topic_customer_id_list([]),
            bus.topic_customer_id_count([]),
            bus.topic_customer_id_to_uniq_ids_list([]),
        ]
        assert [(await question).rows() for question in questions] == [[]] * len(questions)
        assert await here.received() == [[]]


# Questions, over two gateways -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[tuple[Site, str, str, str, str, str]]:
    """a and b at one gateway, c at another; a and c are customer 7 and in "red", b is eve and in "blue"."""
    async with site(2) as here:
        a, b = await here.browse(2, 0)
        [c] = await here.browse(1, 1)
        for uniq_id, customer, topic in ((a, 7, "red"), (b, "eve", "blue"), (c, 7, "red")):
            await here.bus.conn_info_update(uniq_id, new_customer_id=customer, new_topics=topic)
        yield here, a, b, c, *(running.addresses[2] for running in here.gateways)


async def test_sends_over_two_gateways() -> None:
    async with two() as (here, a, b, c, *_):
        bus = here.bus
        await bus.broadcast("all")
        await bus.multicast([c, a], "some")
        await bus.single_cast_bulk({a: "for a", c: "for c", b: "for b"})
        await bus.single_cast_by_customer_id(7, "seven")
        await bus.topic_publish(["red", "blue"], "topic", exclude=[c])
        sent = await bus.force_offline([a, c], "bye")
        assert (sent.partial, sent.errors) == (False, {})
        assert await here.received() == [
            ["all", "some", "for a", "seven", "topic", "bye"],
            ["all", "for b", "topic"],
            ["all", "some", "for c", "seven", "bye"],
        ]


async def test_answers_of_two_gateways_are_put_together() -> None:
    async with two() as (here, a, b, c, first, second):
        bus = here.bus
        nobody = a[:12] + "0" * 16
        online = await bus.check_online([a, c, nobody])
        assert (online.uniq_ids, a in online, nobody in online, len(online)) == ({a, c}, True, False, 2)
        assert online.rows() == [{"addr": first, "uniq_ids": [a]}, {"addr": second, "uniq_ids": [c]}]
        info = await bus.conn_info([a, c], req_topic=False)
        assert info.items == {a: ("", "7", []), c: ("", "7", [])}
        assert info.rows() == [
            {"addr": first, "uniq_id": a, "customer_id": "7", "session": "", "topics": []},
            {"addr": second, "uniq_id": c, "customer_id": "7", "session": "", "topics": []},
        ]
        customers = await bus.conn_info_by_customer_id([7, "eve", "nobody"])
        assert {name: {item.uniq_id for item in items} for name, items in customers.items.items()} == {"7": {a, c}, "eve": {b}}
        assert set(customers.uniq_ids) == {a, b, c}
        assert {"addr": second, "customer_id": "7", "uniq_id": c, "session": "", "topics": ["red"]} in customers.rows()
        assert set((await bus.uniq_id_list()).uniq_ids) == {a, b, c}
        assert ((await bus.uniq_id_count()).count, (await bus.uniq_id_count()).rows()[1]) == (3, {"addr": second, "count": 1})
        assert sorted((await bus.customer_id_list()).customer_ids) == ["7", "eve"]
        assert (await bus.customer_id_count()).count == 3  # at most
        assert sorted((await bus.topic_list()).topics) == ["blue", "red"]
        assert (await bus.topic_count()).count == 3


async def test_topics_of_two_gateways_are_put_together() -> None:
    async with two() as (here, a, b, c, first, second):
        bus = here.bus
        lists = (await bus.topic_uniq_id_list(["red", "blue", "none"])).items
        assert {topic: set(ids) for topic, ids in lists.items()} == {"red": {a, c}, "blue": {b}}
        assert (await bus.topic_uniq_id_count("red")).items == {"red": 2}
        assert (await bus.topic_uniq_id_count(all_topic=True)).items == {"red": 2, "blue": 1}
        assert (await bus.topic_customer_id_list(["red", "blue"])).items == {"red": ["7"], "blue": ["eve"]}
        assert (await bus.topic_customer_id_count("red")).items == {"red": 2}  # at most
        assert (await bus.topic_customer_id_count(all_topic=True)).items == {"red": 2, "blue": 1}
        found = (await bus.topic_customer_id_to_uniq_ids_list(["red", "blue"])).items
        as_sets = {topic: {name: set(ids) for name, ids in items.items()} for topic, items in found.items()}
        assert as_sets == {"red": {"7": {a, c}}, "blue": {"eve": {b}}}
        assert {"addr": second, "topic": "red", "customer_id": "7", "uniq_ids": [c]} in (await bus.topic_customer_id_to_uniq_ids_list("red")).rows()
        assert {"addr": first, "topic": "red", "count": 1} in (await bus.topic_uniq_id_count("red")).rows()


async def test_metrics_and_limits() -> None:
    async with site(2, open_rate=100, message_rate=200) as here:
        await here.browse(2)
        first, second = (running.addresses[2] for running in here.gateways)
        rows = (await here.bus.metrics()).rows()
        assert next(row for row in rows if row["item"] == 1 and row["addr"] == first)["count"] == 2
        assert set(rows[0]) == {"addr", "item", "count", "mean_rate", "rate1", "rate5", "rate15"}
        assert (await here.bus.limit()).rows() == [{"addr": addr, "on_open": 100, "on_message": 200} for addr in (first, second)]
        assert (await here.bus.limit(on_message=5, addr=second)).rows() == [{"addr": second, "on_open": 100, "on_message": 5}]
        assert (await here.bus.limit(addr=first)).rows()[0]["on_message"] == 200
        with pytest.raises(UnknownGateway, match=r"'127\.0\.0\.1:1'"):
            await here.bus.limit(addr="127.0.0.1:1")


# One of two is down ---------------------------------------------------------------------------------------------------------------


async def test_one_of_two_gateways_down() -> None:
    [port] = free_ports(1)
    down = f"127.0.0.1:{port}"
    async with gateway_running() as running, contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(NetBus(config(entry(running), elsewhere(task_addr=down, send_receive_timeout=0.3))))
        here = Site(bus, [running], stack)
        a, b = await here.browse(2)
        up = running.addresses[2]
        lost = f"7f000001{port:04x}" + "0" * 16
        begun = time.monotonic()
        sent = await bus.broadcast("all")
        assert time.monotonic() - begun < 2
        assert (sent.partial, list(sent.errors), type(sent.errors[down])) == (True, [down], LinkDown)
        answers: list[Answer[Any]] = [
            await bus.uniq_id_count(),
            await bus.check_online([a, lost]),
            await bus.conn_info_by_customer_id("nobody"),
            await bus.topic_uniq_id_count(all_topic=True),
            await bus.metrics(),
        ]
        assert all(answer.partial and list(answer.data) == [up] and list(answer.errors) == [down] for answer in answers)
        assert "LinkDown" in repr(answers[0])
        for partial in (await bus.multicast([a, lost], "some"), await bus.topic_publish("t", "x", exclude=a), await bus.force_offline([lost, b])):
            assert list(partial.errors) == [down]
        assert not (await bus.single_cast(a, "one")).partial
        for call in (bus.single_cast(lost, "x"), bus.check_online(lost), bus.topic_subscribe(lost, "t")):
            with pytest.raises(LinkDown):
                await call
        assert await here.received() == [["all", "some", "one"], ["all"]]


async def test_an_unknown_id_is_an_error_and_in_a_list_a_partial_one() -> None:
    async with site() as here:
        [a] = await here.browse(1)
        foreign = "0a0000ff17ae" + "0" * 16
        bus = here.bus
        for call in (bus.single_cast(foreign, "x"), bus.multicast([foreign], "x"), bus.conn_info(foreign), bus.single_cast("", "x")):
            with pytest.raises(UnknownGateway, match=r"no gateway in .* has the prefix"):
                await call
        assert issubclass(UnknownGateway, LookupError)
        sent = await here.bus.multicast([foreign, a, foreign], "some")
        assert {prefix: type(error) for prefix, error in sent.errors.items()} == {foreign[:12]: UnknownGateway}
        online = await here.bus.check_online([foreign, a])
        assert (online.uniq_ids, online.partial) == ({a}, True)
        assert await here.received() == [["some"]]


async def test_a_prefix_that_is_not_the_address() -> None:
    async with gateway_running(prefix="0a00000117ae") as running, contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(NetBus(config(entry(running, prefix="0a00000117ae"))))
        here = Site(bus, [running], stack)
        [a] = await here.browse(1)
        assert a.startswith("0a00000117ae")
        await bus.single_cast(a, "hello")
        assert await here.received() == [["hello"]]


async def test_a_gateway_by_name_even_when_the_name_was_not_known_at_first(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    known = False

    async def resolve(host: str, port: int) -> list[str]:
        if host == "gateway.test" and not known:
            raise OSError("gateway.test is not known")
        return ["::1", "127.0.0.1"] if host == "gateway.test" else await resolve_name(host, port)

    monkeypatch.setattr("laraman.gateway.peer.resolve", resolve)
    monkeypatch.setattr("laraman.net.dial.resolve", resolve)
    async with gateway_running() as running, contextlib.AsyncExitStack() as stack:
        port = running.addresses[2].rpartition(":")[2]
        bus = await stack.enter_async_context(NetBus(config(elsewhere(task_addr=f"gateway.test:{port}"))))
        here = Site(bus, [running], stack)
        [a] = await here.browse(1)
        with pytest.raises(UnknownGateway):
            await bus.single_cast(a, "x")
        assert "gateway.test is not known" in caplog.text
        known = True
        await bus.single_cast(a, "hello")
        assert await here.received() == [["hello"]]


async def test_more_ids_than_fit_into_a_frame() -> None:
    async with site() as here:
        [a] = await here.browse(1)
        many = [f"{a[:12]}{number:016x}" for number in range(150_000)]
        assert (await here.bus.check_online([*many, a])).uniq_ids == {a}
        assert list((await here.bus.conn_info([*many, a])).items) == [a]
        await here.bus.multicast([*many, a], "hello")
        assert await here.received() == [["hello"]]


async def test_a_shared_secret() -> None:
    async with gateway_running(secret="hush") as running, contextlib.AsyncExitStack() as stack:
        async with in_worker(config(entry(running, secret="hush"))) as worker:
            here = Site(worker.bus, [running], stack)
            [a] = await here.browse(1)
            assert worker.bus.mains[0].extended
            await worker.bus.broadcast("x", exclude=a)
            assert await here.received() == [[]]
        for wrong in ("", "Hush"):
            async with NetBus(config(entry(running, secret=wrong, send_receive_timeout=0.3))) as bus:
                with pytest.raises(LinkDown):
                    await bus.uniq_id_count()


@pytest.mark.parametrize("secret", ["", "hush"])
async def test_the_embedded_gateway_with_one_port(secret: str) -> None:
    @gateway.on_message
    async def received(message: gateway.Message) -> None:
        await message.reply(message.text)

    @gateway.on_open
    async def opened(event: gateway.Opened) -> None:
        await gateway_bus.bus.single_cast(event.uniq_id, f"{event.remote_addr} {event.raw_query}")

    async with gateway_running(task_addr="", secret=secret) as running:
        settings = GatewayConfig(embedded=True, worker_addr=running.addresses[1], task_addr="", secret=secret)
        async with in_worker(settings) as gateway_bus, running.browser("/?q") as browser:
            await browser.send("hello")
            assert [await browser.recv(), await browser.recv()] == ["127.0.0.1 q", "hello"]


async def test_a_bus_that_has_no_gateway_says_so() -> None:
    with pytest.raises(ConfigError, match="needs a configuration"):
        await NetBus().__aenter__()
    for call in (NetBus().broadcast("x"), NetBus().single_cast("a", "x"), NetBus().uniq_id_count()):
        with pytest.raises(ConfigError, match="no gateway here"):
            await call


# In workers -----------------------------------------------------------------------------------------------------------------------


async def test_from_a_browser_to_a_handler_and_back() -> None:
    seen: list[Any] = []

    @gateway.on_open
    async def opened(event: gateway.Opened) -> None:
        seen.append(("open", event.raw_query, event.remote_addr))

    @gateway.on_message
    async def received(message: gateway.Message) -> None:
        await message.reply(message.data if message.binary else message.text.upper())

    @gateway.on_close
    async def closed(event: gateway.Closed) -> None:
        seen.append(("close", event.uniq_id))

    async with gateway_running() as running, in_worker(config(entry(running))):
        async with running.browser("/?room=1") as browser:
            await browser.send("hello")
            await browser.send(b"\xff")
            assert [await browser.recv(), await browser.recv()] == ["HELLO", b"\xff"]
            [uniq_id] = running.uniq_ids
        await until(lambda: len(seen) == 2)
    assert seen == [("open", "room=1", "127.0.0.1"), ("close", uniq_id)]


async def test_a_message_is_an_operation_once_and_only_in_the_worker_that_it_is_for() -> None:
    """Neither the gateway's connections nor the links of its clients make operations of what they pass on."""
    told: list[Any] = []
    events.on(OperationTerminated, told.append)

    @gateway.on_message
    async def received(message: gateway.Message) -> None:
        await gateway_bus.bus.topic_count()  # a question and its answer
        await message.reply(message.data)

    async with gateway_running() as running:
        running.worker.sandbox = Sandbox(running.worker)
        async with in_worker(config(entry(running))) as gateway_bus, running.browser() as browser:
            await browser.send("hello")
            await browser.recv()
            await until(lambda: told)
    assert [(event.message.text, event.worker) for event in told] == [("hello", gateway_bus.worker)]


async def test_under_serial_isolation_messages_wait_where_their_time_does_not_run() -> None:
    most = 0

    @gateway.on_message
    async def received(message: gateway.Message) -> None:
        nonlocal most
        await asyncio.sleep(0.01)  # the others come meanwhile
        most = max(most, sum(task.get_name() == "message" for task in asyncio.all_tasks()))
        await message.reply(message.data)

    async with gateway_running() as running, in_worker(config(entry(running)), isolation="serial"), contextlib.AsyncExitStack() as stack:
        browsers = [await stack.enter_async_context(running.browser()) for _ in range(5)]
        for browser in browsers:
            await browser.send("hello")
        for browser in browsers:
            await browser.recv()
    assert most == 1


async def test_a_gateway_that_was_restarted_has_its_workers_again() -> None:
    @gateway.on_message
    async def received(message: gateway.Message) -> None:
        await message.reply(message.text)

    listen, worker, task = (f"127.0.0.1:{port}" for port in free_ports(3))
    ports = {"listen": listen, "worker_addr": worker, "task_addr": task}
    async with in_worker(config(elsewhere(worker_addr=worker, task_addr=task))) as here:  # and it was not there at first
        for _ in range(3):
            async with gateway_running(**ports) as running:
                begun = time.monotonic()
                await until(running.sessions)
                assert time.monotonic() - begun < 5
                async with asyncio.timeout(DEADLINE), running.browser() as browser:
                    await browser.send("hello")  # and commands have their way back as soon as events have
                    assert await browser.recv() == "hello"
                assert (await here.bus.uniq_id_count()).count == len(running.uniq_ids)


@pytest.mark.parametrize("extended", [True, False], ids=["laraman", "foreign"])
async def test_a_reload_loses_no_event(extended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not extended:
        monkeypatch.setattr("laraman.gateway.peer.EXTENSIONS", 0)
    seen: list[int] = []

    @gateway.on_message
    async def received(message: gateway.Message) -> None:
        await anyio.sleep(0.001)
        seen.append(int(message.text))

    async def chatter(browser: ClientConnection, stopped: Callable[[], bool]) -> int:
        count = 0
        while not stopped():
            await browser.send(str(count))
            count += 1
            await anyio.sleep(0.001)
        return count

    over = False
    async with gateway_running(rate=0) as running, contextlib.AsyncExitStack() as stack:
        settings = config(entry(running))
        browsers = [await stack.enter_async_context(running.browser()) for _ in range(4)]
        talks = []
        worker = await stack.enter_async_context(in_worker(settings))
        assert worker.bus.mains[0].extended == extended
        talks = [asyncio.ensure_future(chatter(browser, lambda: over)) for browser in browsers]
        for slot in range(1, 6):
            successor = await stack.enter_async_context(in_worker(settings, slot=slot))
            await worker.leave(replaced=True)
            worker = successor
        over = True
        total = sum(await asyncio.gather(*talks))
        await until(lambda: len(seen) == total)
        assert total > 100
