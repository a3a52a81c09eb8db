"""What a business process may ask of the gateway: every command of the task port, carried out on the registry. No socket, no clock.

The semantics are those of netsvr 8 (spec section 8), so that the same calls do the same with this gateway and with a real one; that is why a
publication still reaches a connection once for each of its topics. What is better is nothing that a foreign business process can trip over:

- A topic that one publication names twice counts once: else one frame could make a million messages.
- Commands are carried out at once and in order. So two sends to a client arrive in order, and a send before a kick arrives at all.
- TopicCustomerIdToUniqIdsList has subscribed connections only, as in netsvr 7. netsvr 8 adds the customer's other connections; who asks for the
  ids of a topic wants its subscribers, and both generations are about, so nobody can rely on more.
- An end that speaks laraman's extensions says whether data is text or binary, and whom to leave out.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from laraman.protocols.netsvr import Command
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from google.protobuf.message import Message

    from laraman.gateway.limits import Limits
    from laraman.gateway.metrics import Metrics
    from laraman.gateway.registry import Entry, Registry

logger = logging.getLogger("uvicorn.error")

#: Bytes that delayed kicks may hold while they are pending, and what each costs beside its message.
MAX_DELAYED = 64 * 1024 * 1024
DELAYED_COST = 512


class Outlet(Protocol):
    """The way to the clients. Not before these calls have returned may the registry change: what they are given may be a view of it."""

    def deliver(self, entries: Iterable[Entry], data: bytes, binary: bool | None) -> None:
        """One message to each, in this order; to an entry given twice, twice; there may be none. ``binary`` None: as configured."""

    def kick(self, entries: Iterable[Entry], data: bytes, reason: str) -> None:
        """``data``, if there is any, as the last message, then a close with 1008 and the reason. To a client that is being closed, nothing."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls back once, after that time."""


class Commands:
    """Carries out commands, one after the other."""

    __slots__ = ("_delayed", "_limits", "_metrics", "_one_way", "_outlet", "_queries", "_registry", "_warned", "_without_body")

    def __init__(self, registry: Registry, outlet: Outlet, metrics: Metrics, limits: Limits) -> None:
        self._registry = registry
        self._outlet = outlet
        self._metrics = metrics
        self._limits = limits
        self._delayed = 0
        self._warned = False
        self._one_way: dict[Command, Callable[[Any, bool | None], None]] = {
            Command.CONN_INFO_UPDATE: self._conn_info_update,
            Command.CONN_INFO_DELETE: self._conn_info_delete,
            Command.BROADCAST: self._broadcast,
            Command.MULTICAST: self._multicast,
            Command.MULTICAST_BY_CUSTOMER_ID: self._multicast_by_customer_id,
            Command.SINGLE_CAST: self._single_cast,
            Command.SINGLE_CAST_BULK: self._single_cast_bulk,
            Command.SINGLE_CAST_BY_CUSTOMER_ID: self._single_cast_by_customer_id,
            Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID: self._single_cast_bulk_by_customer_id,
            Command.TOPIC_SUBSCRIBE: self._topic_subscribe,
            Command.TOPIC_UNSUBSCRIBE: self._topic_unsubscribe,
            Command.TOPIC_DELETE: self._topic_delete,
            Command.TOPIC_PUBLISH: self._topic_publish,
            Command.TOPIC_PUBLISH_BULK: self._topic_publish_bulk,
            Command.FORCE_OFFLINE: self._force_offline,
            Command.FORCE_OFFLINE_BY_CUSTOMER_ID: self._force_offline_by_customer_id,
            Command.FORCE_OFFLINE_GUEST: self._force_offline_guest,
        }
        self._queries: dict[Command, Callable[[Any], Message]] = {
            Command.CHECK_ONLINE: self._check_online,
            Command.TOPIC_UNIQ_ID_LIST: self._topic_uniq_id_list,
            Command.TOPIC_UNIQ_ID_COUNT: self._topic_uniq_id_count,
            Command.TOPIC_CUSTOMER_ID_LIST: self._topic_customer_id_list,
            Command.TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST: self._topic_customer_id_to_uniq_ids_list,
            Command.TOPIC_CUSTOMER_ID_COUNT: self._topic_customer_id_count,
            Command.CONN_INFO: self._conn_info,
            Command.CONN_INFO_BY_CUSTOMER_ID: self._conn_info_by_customer_id,
            Command.LIMIT: self._limit,
        }
        self._without_body: dict[Command, Callable[[], Message]] = {
            Command.CUSTOMER_ID_LIST: lambda: pb.CustomerIdListResp(customer_ids=registry.customers),
            Command.CUSTOMER_ID_COUNT: lambda: pb.CustomerIdCountResp(count=len(registry.customers)),
            Command.UNIQ_ID_LIST: lambda: pb.UniqIdListResp(uniq_ids=registry.entries),
            Command.UNIQ_ID_COUNT: lambda: pb.UniqIdCountResp(count=len(registry.entries)),
            Command.TOPIC_LIST: lambda: pb.TopicListResp(topics=registry.topics),
            Command.TOPIC_COUNT: lambda: pb.TopicCountResp(count=len(registry.topics)),
            Command.METRICS: self._metrics_resp,
        }

    def handle(self, command: Command, message: Message | None, extended: bool = False) -> Message | None:
        """The reply to a request; None for a one-way command, and for a body that could not be decoded, which is never answered (spec section 6).

        ``extended``: the sender speaks laraman's extensions, so that what it does not call binary is text. Raises KeyError for what is no command
        of the task port: events and registration.
        """
        if message is None:
            answer = self._without_body.get(command)
            return None if answer is None else answer()
        one_way = self._one_way.get(command)
        if one_way is None:
            return self._queries[command](message)
        one_way(message, False if extended else None)
        return None

    # State ------------------------------------------------------------------------------------------------------------------------
    # Their messages have no field for the type of the data, so it is always the configured one.

    def _conn_info_update(self, message: pb.ConnInfoUpdate, _: bool | None) -> None:
        entry = self._registry.get(message.uniq_id)
        if entry is not None:
            self._registry.update(entry, message.new_session, message.new_customer_id, message.new_topics)
            self._deliver((entry,), message.data)

    def _conn_info_delete(self, message: pb.ConnInfoDelete, _: bool | None) -> None:
        entry = self._registry.get(message.uniq_id)
        if entry is not None:
            self._registry.delete(entry, message.del_session, message.del_customer_id, message.del_topic)
            self._deliver((entry,), message.data)

    def _topic_subscribe(self, message: pb.TopicSubscribe, _: bool | None) -> None:
        entry = self._registry.get(message.uniq_id)
        if entry is not None and message.topics:
            self._registry.subscribe(entry, message.topics)
            self._deliver((entry,), message.data)

    def _topic_unsubscribe(self, message: pb.TopicUnsubscribe, _: bool | None) -> None:
        entry = self._registry.get(message.uniq_id)
        if entry is not None and message.topics:
            self._registry.unsubscribe(entry, message.topics)
            self._deliver((entry,), message.data)

    def _topic_delete(self, message: pb.TopicDelete, _: bool | None) -> None:
        self._deliver(self._registry.delete_topics(message.topics), message.data)

    def _force_offline(self, message: pb.ForceOffline, _: bool | None) -> None:
        self._kick(self._entries(message.uniq_ids), message.data, "forceOffline")

    def _force_offline_by_customer_id(self, message: pb.ForceOfflineByCustomerId, _: bool | None) -> None:
        self._kick(list(self._of_customers(message.customer_ids)), message.data, "forceOfflineByCustomerId")

    def _force_offline_guest(self, message: pb.ForceOfflineGuest, _: bool | None) -> None:
        if message.delay <= 0:
            self._kick_guests(message)
            return
        body = message.SerializeToString()  # a list of ids has many times that size
        cost = len(body) + DELAYED_COST
        if self._delayed + cost > MAX_DELAYED:
            self._warn_of_delayed()
            return
        self._delayed += cost
        self._outlet.later(message.delay, lambda: self._kick_delayed(body, cost))

    def _warn_of_delayed(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("gateway: delayed kicks of %d bytes are pending, more are ignored", self._delayed)

    def _kick_delayed(self, body: bytes, cost: int) -> None:
        self._delayed -= cost
        self._warned = False
        self._kick_guests(pb.ForceOfflineGuest.FromString(body))

    def _kick_guests(self, message: pb.ForceOfflineGuest) -> None:
        self._kick([entry for entry in self._entries(message.uniq_ids) if entry.guest], message.data, "forceOfflineGuest")

    # Sending ----------------------------------------------------------------------------------------------------------------------

    def _single_cast(self, message: pb.SingleCast, binary: bool | None) -> None:
        entry = self._registry.entries.get(message.uniq_id)
        data = message.data
        if data and entry is not None:
            self._outlet.deliver((entry,), data, message.binary or binary)

    def _multicast(self, message: pb.Multicast, binary: bool | None) -> None:
        self._deliver(self._entries(message.uniq_ids), message.data, message.binary or binary)

    def _broadcast(self, message: pb.Broadcast, binary: bool | None) -> None:
        self._deliver(_without(message.exclude, self._registry.entries.values()), message.data, message.binary or binary)

    def _single_cast_by_customer_id(self, message: pb.SingleCastByCustomerId, binary: bool | None) -> None:
        found = self._registry.by_customer(message.customer_id)
        self._deliver(_without(message.exclude, found), message.data, message.binary or binary)

    def _multicast_by_customer_id(self, message: pb.MulticastByCustomerId, binary: bool | None) -> None:
        found = self._of_customers(message.customer_ids)
        self._deliver(_without(message.exclude, found), message.data, message.binary or binary)

    def _topic_publish(self, message: pb.TopicPublish, binary: bool | None) -> None:
        found = chain.from_iterable(map(self._registry.by_topic, dict.fromkeys(message.topics)))
        self._deliver(_without(message.exclude, found), message.data, message.binary or binary)

    def _single_cast_bulk(self, message: pb.SingleCastBulk, binary: bool | None) -> None:
        self._bulk(lambda uniq_id: self._entries((uniq_id,)), message.uniq_ids, message.data, message.binary or binary)

    def _single_cast_bulk_by_customer_id(self, message: pb.SingleCastBulkByCustomerId, binary: bool | None) -> None:
        self._bulk(self._registry.by_customer, message.customer_ids, message.data, message.binary or binary)

    def _topic_publish_bulk(self, message: pb.TopicPublishBulk, binary: bool | None) -> None:
        if len(message.topics) == 1 and len(message.data) > 1:  # the one case in which an empty message is sent
            found = self._registry.by_topic(message.topics[0])
            for data in message.data:
                self._outlet.deliver(found, data, message.binary or binary)
        else:
            self._bulk(self._registry.by_topic, message.topics, message.data, message.binary or binary)

    def _bulk(self, find: Callable[[str], Collection[Entry]], names: Sequence[str], data: Sequence[bytes], binary: bool | None) -> None:
        """All data to the one target, or datum by datum to as many targets; anything else is no command (spec section 8.2)."""
        if len(names) == 1:
            names = [names[0]] * len(data)
        if len(names) == len(data):
            for name, datum in zip(names, data, strict=True):
                self._deliver(find(name), datum, binary)

    def _deliver(self, entries: Iterable[Entry], data: bytes, binary: bool | None = None) -> None:
        if data:
            self._outlet.deliver(entries, data, binary)

    def _kick(self, entries: Collection[Entry], data: bytes, reason: str) -> None:
        if entries:
            self._outlet.kick(entries, data, reason)

    def _entries(self, uniq_ids: Iterable[str]) -> list[Entry]:
        """Those that are connected, in this order, as often as they are named."""
        entries = self._registry.entries
        return [entries[uniq_id] for uniq_id in uniq_ids if uniq_id in entries]

    def _of_customers(self, customer_ids: Iterable[str]) -> Iterable[Entry]:
        """The connections of all these customers; a customer named twice counts once."""
        return chain.from_iterable(map(self._registry.by_customer, dict.fromkeys(customer_ids)))

    # Queries ----------------------------------------------------------------------------------------------------------------------

    def _check_online(self, message: pb.CheckOnlineReq) -> pb.CheckOnlineResp:
        entries = self._registry.entries
        return pb.CheckOnlineResp(uniq_ids=[uniq_id for uniq_id in message.uniq_ids if uniq_id in entries])

    def _topic_uniq_id_list(self, message: pb.TopicUniqIdListReq) -> pb.TopicUniqIdListResp:
        reply = pb.TopicUniqIdListResp()
        for topic in self._known(message.topics):
            reply.items[topic].uniq_ids.extend(self._registry.topics[topic])
        return reply

    def _topic_uniq_id_count(self, message: pb.TopicUniqIdCountReq) -> pb.TopicUniqIdCountResp:
        topics = self._registry.topics
        asked = topics if message.count_all else self._known(message.topics)
        return pb.TopicUniqIdCountResp(items={topic: len(topics[topic]) for topic in asked})

    def _topic_customer_id_list(self, message: pb.TopicCustomerIdListReq) -> pb.TopicCustomerIdListResp:
        reply = pb.TopicCustomerIdListResp()
        for topic in self._known(message.topics):
            reply.items[topic].customer_ids.extend(self._customers_in(topic))
        return reply

    def _topic_customer_id_to_uniq_ids_list(self, message: pb.TopicCustomerIdToUniqIdsListReq) -> pb.TopicCustomerIdToUniqIdsListResp:
        reply = pb.TopicCustomerIdToUniqIdsListResp()
        for topic in self._known(message.topics):
            customers = reply.items[topic].items
            for entry in self._registry.by_topic(topic):
                if entry.customer_id:
                    customers[entry.customer_id].uniq_ids.append(entry.uniq_id)
        return reply

    def _topic_customer_id_count(self, message: pb.TopicCustomerIdCountReq) -> pb.TopicCustomerIdCountResp:
        asked = self._registry.topics if message.count_all else self._known(message.topics)
        return pb.TopicCustomerIdCountResp(items={topic: len(self._customers_in(topic)) for topic in asked})

    def _conn_info(self, message: pb.ConnInfoReq) -> pb.ConnInfoResp:
        reply = pb.ConnInfoResp()
        session, customer_id, topics = message.req_session, message.req_customer_id, message.req_topic
        for entry in self._entries(dict.fromkeys(message.uniq_ids)):
            item = reply.items[entry.uniq_id]
            item.session = entry.session if session else ""
            item.customer_id = entry.customer_id if customer_id else ""
            item.topics.extend(entry.topics or () if topics else ())
        return reply

    def _conn_info_by_customer_id(self, message: pb.ConnInfoByCustomerIdReq) -> pb.ConnInfoByCustomerIdResp:
        reply = pb.ConnInfoByCustomerIdResp()
        session, uniq_id, topics = message.req_session, message.req_uniq_id, message.req_topic
        for entry in self._of_customers(message.customer_ids):
            item = reply.items[entry.customer_id].items.add()
            item.session = entry.session if session else ""
            item.uniq_id = entry.uniq_id if uniq_id else ""
            item.topics.extend(entry.topics or () if topics else ())
        return reply

    def _limit(self, message: pb.LimitReq) -> pb.LimitResp:
        limits = self._limits
        limits.change(message.on_open, message.on_message)
        return pb.LimitResp(on_open=limits.on_open.rate, on_message=limits.on_message.rate)

    def _metrics_resp(self) -> pb.MetricsResp:
        reply = pb.MetricsResp()
        for number, total, mean, one, five, fifteen in self._metrics.read():
            reply.items[number].CopyFrom(pb.MetricsRespItem(item=number, count=total, mean_rate=mean, rate1=one, rate5=five, rate15=fifteen))
        return reply

    def _known(self, topics: Iterable[str]) -> dict[str, None]:
        """Those that exist, each once."""
        return {topic: None for topic in topics if topic in self._registry.topics}

    def _customers_in(self, topic: str) -> set[str]:
        return {entry.customer_id for entry in self._registry.by_topic(topic)} - {""}


def _without(exclude: Collection[str], entries: Iterable[Entry]) -> Iterable[Entry]:
    """The entries but for those ids. Nothing is copied."""
    if not exclude:
        return entries
    excluded = frozenset(exclude)
    return (entry for entry in entries if entry.uniq_id not in excluded)
