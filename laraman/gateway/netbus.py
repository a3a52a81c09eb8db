"""The NetBus: what a process can ask of websocket gateways, whichever and how many there are.

    await gateway.bus.single_cast(uniq_id, "hello")                    in a worker
    async with NetBus(config.gateway) as bus:                          in a script, which pushes and asks but gets no events
        await bus.broadcast("maintenance at noon")

Ids and topics are given one at a time or as a list, as text or numbers; an empty list does nothing. Data is text (``str``) or binary
(``bytes``); gateways other than laraman's send it as they are configured to. ``exclude`` are uniqIds that are left out.

One-way calls return a Sent, questions an Answer. They raise UnknownGateway for an id that belongs to no configured gateway, and when no gateway
could be reached what went wrong: LinkDown, Busy, ConnectionLost, ConnectionClosed, TimeoutError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from laraman.errors import ConfigError, UnknownGateway
from laraman.gateway import results
from laraman.gateway.fanout import MOST_IDS, SENT, A, Fanout, Gateway
from laraman.gateway.lanes import Lanes
from laraman.gateway.sockets import MainSocket, TaskSocket
from laraman.protocols.netsvr import Command, Packet
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from types import TracebackType

    from google.protobuf.message import Message

    from laraman.config.gateway import GatewayConfig
    from laraman.gateway.results import Sent

Ids = str | int | Iterable[str | int]
Data = str | bytes

#: Seconds that the start of a worker waits for its registrations.
REGISTER_SECONDS = 2.0

_SINGLE_CAST = Command.SINGLE_CAST
_SingleCast = pb.SingleCast


def _list(ids: Ids) -> list[str]:
    """One id or several as a list. Raises TypeError for bytes, which would be taken apart into numbers."""
    if isinstance(ids, (bytes, bytearray)):
        raise TypeError(f"an id is text or a number, not {type(ids).__name__}")
    return [str(ids)] if isinstance(ids, (str, int)) else [str(one) for one in ids]


def _content(data: Data) -> tuple[bytes, bool]:
    """The bytes to send, and whether they are binary. Raises UnicodeEncodeError for text that is none."""
    if isinstance(data, str):
        return data.encode(), False
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), True
    raise TypeError(f"data is text or bytes, not {type(data).__name__}")


def _contents(data: Iterable[Data]) -> tuple[list[bytes], bool]:
    if isinstance(data, (str, bytes)):
        return _contents([data])
    made = [_content(one) for one in data]
    kinds = {binary for _, binary in made}
    if len(kinds) > 1:
        raise TypeError("one call carries text or bytes, not both")
    return [content for content, _ in made], True in kinds


def _pairs(targets: Any, data: Iterable[Data] | None) -> tuple[list[str], list[bytes], bool]:
    """The shapes of the bulk calls: ``{target: datum}``; as many targets as data; one target and all data. Raises ValueError for another."""
    if isinstance(targets, Mapping):
        targets, data = list(targets), list(targets.values())
    names = _list(targets)
    contents, binary = _contents(data or ())
    if names and contents and len(names) not in (1, len(contents)):
        raise ValueError(f"{len(names)} targets for {len(contents)} data: as many as data, or one")
    return names, contents, binary


class NetBus(Fanout):
    """All calls to all gateways of a configuration."""

    def __init__(self, config: GatewayConfig | None = None) -> None:
        super().__init__(config)
        self.mains: list[MainSocket] = []

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> NetBus:
        if self.config is None:
            raise ConfigError("a NetBus needs a configuration to be started with")
        self._begin(self.config, self._spawn)
        await self._look_up()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._end()

    def start(self, config: GatewayConfig, worker: Any) -> None:
        """Be the bus of ``worker``: calls work from now on, and dial when they are first made. Raises ConfigError."""
        self._begin(config, worker.tasks.start_soon)
        worker.tasks.start_soon(self._look_up)

    async def register(self, worker: Any) -> None:
        """Take events in ``worker``. Returns when every gateway has registered it or could not be reached, after two seconds at most."""
        chosen = [gateway for gateway in self._gateways if worker.name in gateway.peer.config.workers]
        if not chosen or self.config is None:
            return
        # Under serial isolation the others would only wait for their turn, and the time that they may take would run.
        lanes = Lanes(worker, 1 if worker.sandbox.serial else self.config.concurrency, self.config.message_timeout)
        worker.tasks.start_soon(lanes.run)
        self.mains = [MainSocket(gateway.peer, lanes.put, self) for gateway in chosen if gateway.peer.worker_addr]
        for main in self.mains:
            worker.tasks.start_soon(main.link.run)
        for gateway in chosen:
            for socket in gateway.sockets:
                socket.start()
        with anyio.move_on_after(REGISTER_SECONDS):
            while not all(main.tried for main in self.mains):
                await anyio.sleep(0.01)

    async def unregister(self, replaced: bool) -> None:
        """Take no more events. ``replaced``: there is a successor, which has just been registered."""
        async with anyio.create_task_group() as group:
            for main in self.mains:
                group.start_soon(main.leave, replaced)

    # Sending to clients ----------------------------------------------------------------------------------------------------------

    async def single_cast(self, uniq_id: str, data: Data) -> Sent:
        """To one client."""
        content, binary = _content(data)
        gateway = self._routes.get(uniq_id[:12]) or await self._find(uniq_id)
        await gateway.socket(uniq_id).send(Packet(_SINGLE_CAST, _SingleCast(uniq_id=uniq_id, data=content, binary=binary)))
        return SENT

    async def single_cast_bulk(self, uniq_ids: Mapping[str, Data] | Ids, data: Iterable[Data] | None = None) -> Sent:
        """To each client its own data, or all data to one, in order: ``{id: data}``, ``(ids, data)`` or ``(id, data)``. Raises ValueError."""
        ids, contents, binary = _pairs(uniq_ids, data)
        if not ids or not contents:
            return SENT
        if len(ids) == 1:
            return await self._send_to(ids[0], Command.SINGLE_CAST_BULK, pb.SingleCastBulk(uniq_ids=ids, data=contents, binary=binary))

        def make(places: list[int]) -> Message:
            return pb.SingleCastBulk(uniq_ids=[ids[place] for place in places], data=[contents[place] for place in places], binary=binary)

        return await self._send_grouped(ids, Command.SINGLE_CAST_BULK, make)

    async def multicast(self, uniq_ids: Ids, data: Data) -> Sent:
        """To these clients; to one given twice, twice."""
        content, binary = _content(data)
        ids = _list(uniq_ids)
        return await self._send_grouped(
            ids, Command.MULTICAST, lambda places: pb.Multicast(uniq_ids=[ids[place] for place in places], data=content, binary=binary)
        )

    async def broadcast(self, data: Data, exclude: Ids = ()) -> Sent:
        """To every client."""
        content, binary = _content(data)
        return await self._send_but(Command.BROADCAST, pb.Broadcast(data=content, binary=binary), _list(exclude), _everybody)

    async def topic_publish(self, topics: Ids, data: Data, exclude: Ids = ()) -> Sent:
        """To everybody in these topics; to who is in two of them, twice."""
        content, binary = _content(data)
        if not (names := _list(topics)):
            return SENT
        message = pb.TopicPublish(topics=names, data=content, binary=binary)
        return await self._send_but(Command.TOPIC_PUBLISH, message, _list(exclude), _subscribers)

    async def topic_publish_bulk(self, topics: Mapping[str, Data] | Ids, data: Iterable[Data] | None = None) -> Sent:
        """To each topic its own data, or all data to one: shapes as in ``single_cast_bulk``."""
        names, contents, binary = _pairs(topics, data)
        if not names or not contents:
            return SENT
        return await self._send_all(Command.TOPIC_PUBLISH_BULK, pb.TopicPublishBulk(topics=names, data=contents, binary=binary))

    # Sending to customers --------------------------------------------------------------------------------------------------------

    async def single_cast_by_customer_id(self, customer_id: str | int, data: Data, exclude: Ids = ()) -> Sent:
        """To all clients of one customer."""
        content, binary = _content(data)
        message = pb.SingleCastByCustomerId(customer_id=str(customer_id), data=content, binary=binary)
        return await self._send_but(Command.SINGLE_CAST_BY_CUSTOMER_ID, message, _list(exclude), _customer)

    async def multicast_by_customer_id(self, customer_ids: Ids, data: Data, exclude: Ids = ()) -> Sent:
        """To all clients of these customers."""
        content, binary = _content(data)
        if not (names := _list(customer_ids)):
            return SENT
        message = pb.MulticastByCustomerId(customer_ids=names, data=content, binary=binary)
        return await self._send_but(Command.MULTICAST_BY_CUSTOMER_ID, message, _list(exclude), _customers)

    async def single_cast_bulk_by_customer_id(
        self, customer_ids: Mapping[str | int, Data] | Ids, data: Iterable[Data] | None = None
    ) -> Sent:
        """To each customer their own data, or all data to one: shapes as in ``single_cast_bulk``."""
        names, contents, binary = _pairs(customer_ids, data)
        if not names or not contents:
            return SENT
        message = pb.SingleCastBulkByCustomerId(customer_ids=names, data=contents, binary=binary)
        return await self._send_all(Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID, message)

    # What is known of a client ---------------------------------------------------------------------------------------------------

    async def conn_info_update(
        self, uniq_id: str, *, new_session: str = "", new_customer_id: str | int = "", new_topics: Ids = (), data: Data = ""
    ) -> Sent:
        """Replace what is given, then send ``data``. Nothing can be emptied with it: see ``conn_info_delete``."""
        message = pb.ConnInfoUpdate(
            uniq_id=uniq_id, new_session=new_session, new_customer_id=str(new_customer_id), new_topics=_list(new_topics), data=_content(data)[0]
        )
        return await self._send_to(uniq_id, Command.CONN_INFO_UPDATE, message)

    async def conn_info_delete(
        self, uniq_id: str, *, del_session: bool = False, del_customer_id: bool = False, del_topic: bool = False, data: Data = ""
    ) -> Sent:
        """Empty what is said, then send ``data``. ``del_topic``: all topics."""
        message = pb.ConnInfoDelete(
            uniq_id=uniq_id, del_session=del_session, del_customer_id=del_customer_id, del_topic=del_topic, data=_content(data)[0]
        )
        return await self._send_to(uniq_id, Command.CONN_INFO_DELETE, message)

    async def topic_subscribe(self, uniq_id: str, topics: Ids, data: Data = "") -> Sent:
        """Add the client to these topics, then send it ``data``."""
        if not (names := _list(topics)):
            return SENT
        return await self._send_to(uniq_id, Command.TOPIC_SUBSCRIBE, pb.TopicSubscribe(uniq_id=uniq_id, topics=names, data=_content(data)[0]))

    async def topic_unsubscribe(self, uniq_id: str, topics: Ids, data: Data = "") -> Sent:
        """Take the client out of these topics, then send it ``data``."""
        if not (names := _list(topics)):
            return SENT
        return await self._send_to(uniq_id, Command.TOPIC_UNSUBSCRIBE, pb.TopicUnsubscribe(uniq_id=uniq_id, topics=names, data=_content(data)[0]))

    async def topic_delete(self, topics: Ids, data: Data = "") -> Sent:
        """Take everybody out of these topics, and send ``data`` once to each who was in one."""
        if not (names := _list(topics)):
            return SENT
        return await self._send_all(Command.TOPIC_DELETE, pb.TopicDelete(topics=names, data=_content(data)[0]))

    # Ending connections ----------------------------------------------------------------------------------------------------------

    async def force_offline(self, uniq_ids: Ids, data: Data = "") -> Sent:
        """Send ``data`` as the last message, if any, and close these clients' connections."""
        ids, content = _list(uniq_ids), _content(data)[0]
        return await self._send_grouped(
            ids, Command.FORCE_OFFLINE, lambda places: pb.ForceOffline(uniq_ids=[ids[place] for place in places], data=content)
        )

    async def force_offline_by_customer_id(self, customer_ids: Ids, data: Data = "") -> Sent:
        """The same for all clients of these customers."""
        if not (names := _list(customer_ids)):
            return SENT
        message = pb.ForceOfflineByCustomerId(customer_ids=names, data=_content(data)[0])
        return await self._send_all(Command.FORCE_OFFLINE_BY_CUSTOMER_ID, message)

    async def force_offline_guest(self, uniq_ids: Ids, data: Data = "", delay: int = 0) -> Sent:
        """The same, after ``delay`` seconds, for those of these clients that then have neither a session nor a customer id."""
        ids, content = _list(uniq_ids), _content(data)[0]
        return await self._send_grouped(
            ids,
            Command.FORCE_OFFLINE_GUEST,
            lambda places: pb.ForceOfflineGuest(uniq_ids=[ids[place] for place in places], data=content, delay=delay),
        )

    # Questions about clients -----------------------------------------------------------------------------------------------------

    async def check_online(self, uniq_ids: Ids) -> results.CheckOnline:
        """Which of these clients are online."""
        return await self._ask_grouped(results.CheckOnline, _list(uniq_ids), Command.CHECK_ONLINE)

    async def conn_info(
        self, uniq_ids: Ids, req_customer_id: bool = True, req_session: bool = True, req_topic: bool = True
    ) -> results.ConnInfo:
        """What is known of these clients."""
        wanted = {"req_customer_id": req_customer_id, "req_session": req_session, "req_topic": req_topic}
        return await self._ask_grouped(results.ConnInfo, _list(uniq_ids), Command.CONN_INFO, **wanted)

    async def conn_info_by_customer_id(
        self, customer_ids: Ids, req_uniq_id: bool = True, req_session: bool = True, req_topic: bool = True
    ) -> results.ConnInfoByCustomerId:
        """What is known of these customers' clients."""
        if not (names := _list(customer_ids)):
            return results.ConnInfoByCustomerId({}, {})
        wanted = {"req_uniq_id": req_uniq_id, "req_session": req_session, "req_topic": req_topic}
        return await self._ask_all(results.ConnInfoByCustomerId, Command.CONN_INFO_BY_CUSTOMER_ID, customer_ids=names, **wanted)

    async def uniq_id_list(self) -> results.UniqIdList:
        return await self._ask_all(results.UniqIdList, Command.UNIQ_ID_LIST)

    async def uniq_id_count(self) -> results.UniqIdCount:
        return await self._ask_all(results.UniqIdCount, Command.UNIQ_ID_COUNT)

    async def customer_id_list(self) -> results.CustomerIdList:
        return await self._ask_all(results.CustomerIdList, Command.CUSTOMER_ID_LIST)

    async def customer_id_count(self) -> results.CustomerIdCount:
        return await self._ask_all(results.CustomerIdCount, Command.CUSTOMER_ID_COUNT)

    # Questions about topics ------------------------------------------------------------------------------------------------------

    async def topic_list(self) -> results.TopicList:
        return await self._ask_all(results.TopicList, Command.TOPIC_LIST)

    async def topic_count(self) -> results.TopicCount:
        return await self._ask_all(results.TopicCount, Command.TOPIC_COUNT)

    async def topic_uniq_id_list(self, topics: Ids) -> results.TopicUniqIdList:
        return await self._ask_topics(results.TopicUniqIdList, Command.TOPIC_UNIQ_ID_LIST, topics)

    async def topic_uniq_id_count(self, topics: Ids = (), all_topic: bool = False) -> results.TopicUniqIdCount:
        return await self._ask_topics(results.TopicUniqIdCount, Command.TOPIC_UNIQ_ID_COUNT, topics, all_topic)

    async def topic_customer_id_list(self, topics: Ids) -> results.TopicCustomerIdList:
        return await self._ask_topics(results.TopicCustomerIdList, Command.TOPIC_CUSTOMER_ID_LIST, topics)

    async def topic_customer_id_count(self, topics: Ids = (), all_topic: bool = False) -> results.TopicCustomerIdCount:
        return await self._ask_topics(results.TopicCustomerIdCount, Command.TOPIC_CUSTOMER_ID_COUNT, topics, all_topic)

    async def topic_customer_id_to_uniq_ids_list(self, topics: Ids) -> results.TopicCustomerIdToUniqIdsList:
        return await self._ask_topics(results.TopicCustomerIdToUniqIdsList, Command.TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST, topics)

    async def _ask_topics(self, kind: type[A], command: Command, topics: Ids, all_topic: bool = False) -> A:
        names = _list(topics)
        if all_topic:
            return await self._ask_all(kind, command, count_all=True)
        return await self._ask_all(kind, command, topics=names) if names else kind({}, {})

    # Questions to the gateways themselves ----------------------------------------------------------------------------------------

    async def metrics(self) -> results.Metrics:
        """What the gateways have counted."""
        return await self._ask_all(results.Metrics, Command.METRICS)

    async def limit(self, *, on_open: int = 0, on_message: int = 0, addr: str = "") -> results.Limit:
        """Set the limits per second that are given, and return those that hold; of the gateway with the task address ``addr`` or of all."""
        packet = Packet(Command.LIMIT, pb.LimitReq(on_open=on_open, on_message=on_message))
        asked = [gateway for gateway in self._configured() if addr in ("", gateway.addr)]
        if not asked:
            raise UnknownGateway(f"no gateway in [tool.laraman.gateway] has the task address {addr!r}")
        return results.Limit(*await self._together({gateway: gateway.first.ask(packet) for gateway in asked}))

    # All but some ----------------------------------------------------------------------------------------------------------------

    async def _send_but(self, command: Command, message: Any, exclude: list[str], whom: Any) -> Sent:
        """``whom`` finds out who would get it, where the gateway does not know how to leave somebody out."""
        if not exclude:
            return await self._send_all(command, message)
        return await self._sent({gateway: self._send_one_but(gateway, Packet(command, message), exclude, whom) for gateway in self._configured()})

    async def _send_one_but(self, gateway: Gateway, packet: Packet, exclude: list[str], whom: Any) -> None:
        socket = gateway.first
        await socket.ready()
        message: Any = packet.message
        if socket.extended:
            kind: Any = type(message)
            spared = kind(exclude=exclude)
            spared.MergeFrom(message)
            await socket.send(Packet(packet.command, spared))
        else:
            left_out = {*exclude}
            ids = [uniq_id for uniq_id in await whom(socket, message) if uniq_id not in left_out]
            for begin in range(0, len(ids), MOST_IDS):
                await socket.send(Packet(Command.MULTICAST, pb.Multicast(uniq_ids=ids[begin : begin + MOST_IDS], data=message.data)))


async def _everybody(socket: TaskSocket, message: pb.Broadcast) -> Iterable[str]:
    return (await socket.ask(Packet(Command.UNIQ_ID_LIST))).uniq_ids  # type: ignore[no-any-return]


async def _subscribers(socket: TaskSocket, message: pb.TopicPublish) -> Iterable[str]:
    items = (await socket.ask(Packet(Command.TOPIC_UNIQ_ID_LIST, pb.TopicUniqIdListReq(topics=message.topics)))).items
    return [uniq_id for topic in message.topics if topic in items for uniq_id in items[topic].uniq_ids]


async def _customer(socket: TaskSocket, message: pb.SingleCastByCustomerId) -> Iterable[str]:
    return await _connections(socket, [message.customer_id])


async def _customers(socket: TaskSocket, message: pb.MulticastByCustomerId) -> Iterable[str]:
    return await _connections(socket, message.customer_ids)


async def _connections(socket: TaskSocket, customer_ids: Iterable[str]) -> Iterable[str]:
    request = pb.ConnInfoByCustomerIdReq(customer_ids=customer_ids, req_uniq_id=True)
    items = (await socket.ask(Packet(Command.CONN_INFO_BY_CUSTOMER_ID, request))).items
    return [item.uniq_id for connections in items.values() for item in connections.items]
