"""Who is connected, as whom, with which session and topics: the gateway's whole state, and only in memory. No socket, no clock.

A connection has one customerId at most and any number of topics; a customer any number of connections. A customer and a topic exist while they have
a connection. The empty string names neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laraman.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: Connections by uniqId. A dict and not a set: it keeps the order of arrival, its keys are the ids, and an exclusion is a look at the key.
Entries = dict[str, "Entry"]


class Entry:
    """One connection. ``client`` is the service's own; ``topics`` is None while there are none. Read it freely; only the Registry changes it.

    After ``close`` it keeps the values it had, which is what the business side is told.
    """

    __slots__ = ("client", "customer_id", "session", "topics", "uniq_id")

    def __init__(self, uniq_id: str, client: Any) -> None:
        self.uniq_id = uniq_id
        self.client = client
        self.customer_id = ""
        self.session = ""
        self.topics: set[str] | None = None

    @property
    def guest(self) -> bool:
        """Neither session nor customerId: not logged in (spec section 11.4)."""
        return not (self.session or self.customer_id)


class Registry:
    """``entries`` by uniqId, and the same connections in ``customers`` and ``topics``, by name and uniqId. Read them; change them by the methods.

    Every method that takes an Entry wants one that is open here.
    """

    __slots__ = ("customers", "entries", "topics")

    def __init__(self) -> None:
        self.entries: Entries = {}
        self.customers: dict[str, Entries] = {}
        self.topics: dict[str, Entries] = {}

    def open(self, uniq_id: str, client: Any) -> Entry:
        """A new guest. Raises IllegalTransition when the id is taken."""
        if uniq_id in self.entries:
            raise IllegalTransition(f"connection {uniq_id} is open already")
        entry = self.entries[uniq_id] = Entry(uniq_id, client)
        return entry

    def close(self, uniq_id: str) -> Entry | None:
        """Forgets the connection and returns its last state; None when there is none of this id."""
        entry = self.entries.pop(uniq_id, None)
        if entry is not None:
            if entry.customer_id:
                _remove(self.customers, entry.customer_id, uniq_id)
            for topic in entry.topics or ():
                _remove(self.topics, topic, uniq_id)
        return entry

    # Looking up. The views are live: a caller that changes the registry while it walks through one must copy it first.

    def get(self, uniq_id: str) -> Entry | None:
        return self.entries.get(uniq_id)

    def by_customer(self, customer_id: str) -> Collection[Entry]:
        found = self.customers.get(customer_id)
        return () if found is None else found.values()

    def by_topic(self, topic: str) -> Collection[Entry]:
        found = self.topics.get(topic)
        return () if found is None else found.values()

    # Changing.

    def update(self, entry: Entry, session: str = "", customer_id: str = "", topics: Collection[str] = ()) -> None:
        """Applies what is not empty (spec section 8.1, ConnInfoUpdate). ``topics`` replace all that there were."""
        if session:
            entry.session = session
        if customer_id:
            self._bind(entry, customer_id)
        if topics:
            self.delete(entry, topics=True)
            self.subscribe(entry, topics)

    def delete(self, entry: Entry, session: bool = False, customer_id: bool = False, topics: bool = False) -> None:
        """Clears what is flagged (spec section 8.1, ConnInfoDelete)."""
        if session:
            entry.session = ""
        if customer_id:
            self._bind(entry, "")
        if topics:
            self.unsubscribe(entry, list(entry.topics or ()))

    def subscribe(self, entry: Entry, topics: Iterable[str]) -> None:
        """Adds to the topics of the connection. Empty names are skipped."""
        for topic in topics:
            if topic:
                if entry.topics is None:
                    entry.topics = set()
                entry.topics.add(topic)
                self.topics.setdefault(topic, {})[entry.uniq_id] = entry

    def unsubscribe(self, entry: Entry, topics: Iterable[str]) -> None:
        """Takes from the topics of the connection. Topics that it does not hold are skipped."""
        for topic in topics:
            if entry.topics is not None and topic in entry.topics:
                _leave(entry, topic)
                _remove(self.topics, topic, entry.uniq_id)

    def delete_topics(self, topics: Iterable[str]) -> Collection[Entry]:
        """Takes the topics from everybody. The connections that lost at least one, each once."""
        losers: Entries = {}
        for topic in topics:
            members = self.topics.pop(topic, {})
            losers.update(members)
            for entry in members.values():
                _leave(entry, topic)
        return losers.values()

    def _bind(self, entry: Entry, customer_id: str) -> None:
        if entry.customer_id:
            _remove(self.customers, entry.customer_id, entry.uniq_id)
        entry.customer_id = customer_id
        if customer_id:
            self.customers.setdefault(customer_id, {})[entry.uniq_id] = entry


def _leave(entry: Entry, topic: str) -> None:
    assert entry.topics is not None
    entry.topics.discard(topic)
    if not entry.topics:
        entry.topics = None


def _remove(index: dict[str, Entries], name: str, uniq_id: str) -> None:
    members = index[name]
    del members[uniq_id]
    if not members:
        del index[name]
