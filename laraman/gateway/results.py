"""What the calls of a NetBus return.

``errors`` says which gateways did not take part and why, by their task address; ``partial`` is whether there are any. Had none of them taken
part, the call would have raised. ``data`` has each gateway's own reply, ``rows()`` the same as flat dicts with the gateway's address, and the
attributes put the gateways' replies together.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")
Row = dict[str, Any]


class Sent:
    """A command was handed to its gateways. None of them says what became of it: see ``check_online`` where that matters."""

    __slots__ = ("errors",)

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        self.errors = errors

    @property
    def partial(self) -> bool:
        """Whether a gateway did not get it."""
        return bool(self.errors)

    def __repr__(self) -> str:
        return f"Sent({dict(self.errors)!r})"


class Answer(Generic[M]):
    """The replies of several gateways to one question."""

    def __init__(self, data: Mapping[str, M], errors: Mapping[str, Exception]) -> None:
        self.data = data
        self.errors = errors

    @property
    def partial(self) -> bool:
        """Whether a gateway did not answer."""
        return bool(self.errors)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.rows()!r}{f' without {dict(self.errors)!r}' if self.errors else ''}>"

    def rows(self) -> list[Row]:
        """One dict for each item, with ``addr``, the task address of the gateway that has it."""
        return [{"addr": addr, **row} for addr, reply in self.data.items() for row in self._rows(reply)]

    def _rows(self, reply: M) -> Iterable[Row]:
        raise NotImplementedError


def _joined(lists: Iterable[Iterable[str]]) -> list[str]:
    """What is in the lists, in order, each once."""
    return list(dict.fromkeys(text for found in lists for text in found))


def _merged(replies: Iterable[Any], field: str) -> dict[str, list[str]]:
    """The items' lists, those of the same key joined."""
    lists: dict[str, list[Any]] = {}
    for reply in replies:
        for key, item in reply.items.items():
            lists.setdefault(key, []).append(getattr(item, field))
    return {key: _joined(found) for key, found in lists.items()}


def _added(replies: Iterable[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reply in replies:
        for key, count in reply.items.items():
            counts[key] = counts.get(key, 0) + count
    return counts


# Connections ----------------------------------------------------------------------------------------------------------------------


class CheckOnline(Answer[pb.CheckOnlineResp]):
    """Which of the asked ids are online."""

    @cached_property
    def uniq_ids(self) -> set[str]:
        return {uniq_id for reply in self.data.values() for uniq_id in reply.uniq_ids}

    def __contains__(self, uniq_id: object) -> bool:
        return uniq_id in self.uniq_ids

    def __iter__(self) -> Iterator[str]:
        return iter(self.uniq_ids)

    def __len__(self) -> int:
        return len(self.uniq_ids)

    def _rows(self, reply: pb.CheckOnlineResp) -> Iterable[Row]:
        return [{"uniq_ids": list(reply.uniq_ids)}]


class Info(NamedTuple):
    """Of one connection; what was not asked for is empty."""

    session: str
    customer_id: str
    topics: list[str]


class ConnInfo(Answer[pb.ConnInfoResp]):
    """What is known of the asked connections; those that are not online are absent."""

    @cached_property
    def items(self) -> dict[str, Info]:
        replies = self.data.values()
        return {uniq_id: Info(item.session, item.customer_id, list(item.topics)) for reply in replies for uniq_id, item in reply.items.items()}

    def _rows(self, reply: pb.ConnInfoResp) -> Iterable[Row]:
        for uniq_id, item in reply.items.items():
            yield {"uniq_id": uniq_id, "customer_id": item.customer_id, "session": item.session, "topics": list(item.topics)}


class CustomerInfo(NamedTuple):
    """Of one connection of a customer; what was not asked for is empty."""

    uniq_id: str
    session: str
    topics: list[str]


class ConnInfoByCustomerId(Answer[pb.ConnInfoByCustomerIdResp]):
    """The connections of the asked customers, on all gateways; who has none is absent."""

    @cached_property
    def items(self) -> dict[str, list[CustomerInfo]]:
        found: dict[str, list[CustomerInfo]] = {}
        for reply in self.data.values():
            for customer_id, connections in reply.items.items():
                mine = found.setdefault(customer_id, [])
                mine.extend(CustomerInfo(item.uniq_id, item.session, list(item.topics)) for item in connections.items)
        return found

    @property
    def uniq_ids(self) -> list[str]:
        return [item.uniq_id for connections in self.items.values() for item in connections]

    def _rows(self, reply: pb.ConnInfoByCustomerIdResp) -> Iterable[Row]:
        for customer_id, connections in reply.items.items():
            for item in connections.items:
                yield {"customer_id": customer_id, "uniq_id": item.uniq_id, "session": item.session, "topics": list(item.topics)}


class UniqIdList(Answer[pb.UniqIdListResp]):
    """All connections."""

    @cached_property
    def uniq_ids(self) -> list[str]:
        return [uniq_id for reply in self.data.values() for uniq_id in reply.uniq_ids]

    def _rows(self, reply: pb.UniqIdListResp) -> Iterable[Row]:
        return [{"uniq_ids": list(reply.uniq_ids)}]


class UniqIdCount(Answer[pb.UniqIdCountResp]):
    """How many connections there are."""

    @property
    def count(self) -> int:
        return sum(reply.count for reply in self.data.values())

    def _rows(self, reply: pb.UniqIdCountResp) -> Iterable[Row]:
        return [{"count": reply.count}]


# Customers ------------------------------------------------------------------------------------------------------------------------


class CustomerIdList(Answer[pb.CustomerIdListResp]):
    """All customers who are online, each once."""

    @cached_property
    def customer_ids(self) -> list[str]:
        return _joined(reply.customer_ids for reply in self.data.values())

    def _rows(self, reply: pb.CustomerIdListResp) -> Iterable[Row]:
        return [{"customer_ids": list(reply.customer_ids)}]


class CustomerIdCount(Answer[pb.CustomerIdCountResp]):
    """How many customers are online."""

    @property
    def count(self) -> int:
        """The most there can be: a customer may be online on several gateways and is counted by each."""
        return sum(reply.count for reply in self.data.values())

    def _rows(self, reply: pb.CustomerIdCountResp) -> Iterable[Row]:
        return [{"count": reply.count}]


# Topics ---------------------------------------------------------------------------------------------------------------------------


class TopicList(Answer[pb.TopicListResp]):
    """All topics, each once."""

    @cached_property
    def topics(self) -> list[str]:
        return _joined(reply.topics for reply in self.data.values())

    def _rows(self, reply: pb.TopicListResp) -> Iterable[Row]:
        return [{"topics": list(reply.topics)}]


class TopicCount(Answer[pb.TopicCountResp]):
    """How many topics there are."""

    @property
    def count(self) -> int:
        """The most there can be: a topic may have subscribers on several gateways."""
        return sum(reply.count for reply in self.data.values())

    def _rows(self, reply: pb.TopicCountResp) -> Iterable[Row]:
        return [{"count": reply.count}]


class TopicUniqIdList(Answer[pb.TopicUniqIdListResp]):
    """The connections in each topic; topics that nobody is in are absent."""

    @cached_property
    def items(self) -> dict[str, list[str]]:
        return _merged(self.data.values(), "uniq_ids")

    def _rows(self, reply: pb.TopicUniqIdListResp) -> Iterable[Row]:
        return [{"topic": topic, "uniq_ids": list(item.uniq_ids)} for topic, item in reply.items.items()]


class TopicUniqIdCount(Answer[pb.TopicUniqIdCountResp]):
    """How many connections are in each topic."""

    @cached_property
    def items(self) -> dict[str, int]:
        return _added(self.data.values())

    def _rows(self, reply: pb.TopicUniqIdCountResp) -> Iterable[Row]:
        return [{"topic": topic, "count": count} for topic, count in reply.items.items()]


class TopicCustomerIdList(Answer[pb.TopicCustomerIdListResp]):
    """The customers in each topic, each once."""

    @cached_property
    def items(self) -> dict[str, list[str]]:
        return _merged(self.data.values(), "customer_ids")

    def _rows(self, reply: pb.TopicCustomerIdListResp) -> Iterable[Row]:
        return [{"topic": topic, "customer_ids": list(item.customer_ids)} for topic, item in reply.items.items()]


class TopicCustomerIdToUniqIdsList(Answer[pb.TopicCustomerIdToUniqIdsListResp]):
    """The customers in each topic with their connections; netsvr 8 lists also those connections of theirs that are not in the topic."""

    @cached_property
    def items(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for reply in self.data.values():
            for topic, customers in reply.items.items():
                mine = found.setdefault(topic, {})
                for customer_id, item in customers.items.items():
                    mine.setdefault(customer_id, []).extend(item.uniq_ids)
        return found

    def _rows(self, reply: pb.TopicCustomerIdToUniqIdsListResp) -> Iterable[Row]:
        for topic, customers in reply.items.items():
            for customer_id, item in customers.items.items():
                yield {"topic": topic, "customer_id": customer_id, "uniq_ids": list(item.uniq_ids)}


class TopicCustomerIdCount(Answer[pb.TopicCustomerIdCountResp]):
    """How many customers are in each topic."""

    @cached_property
    def items(self) -> dict[str, int]:
        """The most there can be: a customer may be in a topic on several gateways."""
        return _added(self.data.values())

    def _rows(self, reply: pb.TopicCustomerIdCountResp) -> Iterable[Row]:
        return [{"topic": topic, "count": count} for topic, count in reply.items.items()]


# The gateways themselves ----------------------------------------------------------------------------------------------------------


class Metrics(Answer[pb.MetricsResp]):
    """What the gateways have counted; the numbers are those of the specification."""

    def rows(self, precision: int = 3) -> list[Row]:
        """Rates are events per second: since the start, and moving averages of 1, 5 and 15 minutes."""
        rates = ("mean_rate", "rate1", "rate5", "rate15")
        return [
            {"addr": addr, "item": number, "count": item.count, **{rate: round(getattr(item, rate), precision) for rate in rates}}
            for addr, reply in self.data.items()
            for number, item in sorted(reply.items.items())
        ]


class Limit(Answer[pb.LimitResp]):
    """The limits that hold now, per second; 0 is none."""

    def _rows(self, reply: pb.LimitResp) -> Iterable[Row]:
        return [{"on_open": reply.on_open, "on_message": reply.on_message}]
