from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laraman.channel.hub import tables
from laraman.protocols.hub import INCREMENT_BODY, SECONDS, SIZE, TOKEN, Op, pack_value, take_text, take_value, text
from tests.channel.hub.books import Books

if TYPE_CHECKING:
    from laraman.channel.hub.clients import Client

OK = Op.OK


class Table:
    """One client's view of a table."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.client = books.join()

    def ask(self, op: int, body: bytes) -> bytes:
        ((answer, _, fault, found),) = self.books.ask(self.client, op, 5, "t", body)
        return found if answer == OK else fault.encode()

    def get(self, key: str) -> int | bytes | None:
        return take_value(self.ask(Op.GET, text(key)))

    def set(self, key: str, value: int | bytes, ttl: float = 0.0) -> bytes:
        return self.ask(Op.SET, SECONDS.pack(ttl) + text(key) + pack_value(value))

    def increment(self, key: str, by: int = 1, ttl: float = 0.0) -> bytes:
        return self.ask(Op.INCREMENT, INCREMENT_BODY.pack(by, ttl) + text(key))

    def swap(self, key: str, old: int | bytes | None, new: int | bytes | None, ttl: float = 0.0) -> bytes:
        before = pack_value(old)
        return self.ask(Op.COMPARE_AND_SET, SECONDS.pack(ttl) + text(key) + SIZE.pack(len(before)) + before + pack_value(new))

    def keys(self) -> list[str]:
        body, at, found = self.ask(Op.KEYS, b""), 0, []
        while at < len(body):
            key, at = take_text(body, at)
            found.append(key)
        return found


@pytest.fixture
def table() -> Table:
    return Table(Books())


def test_a_table(table: Table) -> None:
    assert table.get("a") is None
    assert table.set("a", b"data") == b""
    assert table.set("b", 7) == b""
    assert (table.get("a"), table.get("b"), table.keys()) == (b"data", 7, ["a", "b"])
    assert table.ask(Op.DELETE, text("a")) == b"\1"
    assert table.ask(Op.DELETE, text("a")) == b"\0"
    assert table.keys() == ["b"]


def test_counting(table: Table) -> None:
    assert take_value(table.increment("n", 2)) == 2
    assert take_value(table.increment("n", -5)) == -3
    table.set("text", b"x")
    assert table.increment("text") == b"bad"
    table.set("large", 2**63 - 1)
    assert table.increment("large") == b"bad"
    assert (table.get("text"), table.get("large")) == (b"x", 2**63 - 1)


def test_comparing(table: Table) -> None:
    assert table.swap("a", b"x", b"y") == b"\0"
    assert table.swap("a", None, b"y") == b"\1"
    assert table.swap("a", None, b"z") == b"\0"
    assert table.swap("a", b"y", 1) == b"\1"
    assert table.get("a") == 1
    assert table.swap("a", 1, None) == b"\1"
    assert table.keys() == []


def test_keys_end(table: Table) -> None:
    table.set("a", 1, ttl=1.0)
    table.set("b", 1, ttl=1.0)
    table.set("b", 2, ttl=10.0)
    table.set("c", 1, ttl=1.0)
    table.set("c", 2)
    table.increment("n", ttl=1.0)
    table.books.wait(0.9)
    table.increment("n", ttl=10.0)  # which has its end already
    assert sorted(table.keys()) == ["a", "b", "c", "n"]
    table.books.now += 0.2
    assert (table.get("a"), table.get("n"), sorted(table.keys())) == (None, None, ["b", "c"]), "whether it has been looked at or not"
    table.books.wait(0.0)
    assert take_value(table.increment("n")) == 1
    table.books.wait(10.0)
    assert sorted(table.keys()) == ["c", "n"]


def test_a_full_table_is_busy(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_KEYS", 2)
    assert [table.set(key, 1) for key in ("a", "b", "c")] == [b"", b"", b"busy"]
    assert table.set("a", 2) == b""
    monkeypatch.setattr(tables, "MAX_SIZE", 100)
    assert table.set("a", bytes(100)) == b"busy"
    assert table.get("a") == 2
    table.ask(Op.DELETE, text("a"))
    table.ask(Op.DELETE, text("b"))
    assert table.set("a", bytes(90)) == b""


def test_what_was_deleted_before_its_end_is_not_remembered_for_ever(table: Table) -> None:
    for _ in range(5000):
        table.set("a", 1, ttl=3600.0)
        table.ask(Op.DELETE, text("a"))
    assert len(table.books.core.tables._ends) < 2000


# Locks ----------------------------------------------------------------------------------------------------------------------------


def acquire(books: Books, client: Client, id: int, lease: float = 10.0) -> int:
    """The token; 0 when it has to wait."""
    return token(books.ask(client, Op.ACQUIRE, id, "l", SECONDS.pack(lease)))


def token(messages: list[tuple[int, int, str, bytes]]) -> int:
    return int(TOKEN.unpack(messages[0][3])[0]) if messages else 0


def renew(books: Books, client: Client, number: int, lease: float = 10.0) -> str:
    ((op, _, fault, _),) = books.ask(client, Op.RENEW, 90, "l", TOKEN.pack(number) + SECONDS.pack(lease))
    return fault if op == Op.ERROR else "renewed"


def release(books: Books, client: Client, number: int) -> str:
    ((op, _, fault, _),) = books.ask(client, Op.RELEASE, 91, "l", TOKEN.pack(number))
    return fault if op == Op.ERROR else "released"


def test_one_at_a_time_in_the_order_of_asking() -> None:
    books = Books()
    first, second, third = books.join(), books.join(), books.join()
    mine = acquire(books, first, 5)
    assert mine > 100
    assert (acquire(books, second, 5), acquire(books, third, 5), acquire(books, third, 6)) == (0, 0, 0)
    assert release(books, second, mine + 1) == "gone"
    assert release(books, first, mine) == "released"
    next_one = token(books.hear(second))
    assert next_one > mine
    books.ask(third, Op.CANCEL, 5)
    books.core.lost(second, books.now)
    assert books.hear(third) == [], "it may be at work"
    books.wait(10.1)
    ((_, id, _, body),) = books.hear(third)
    assert (id, TOKEN.unpack(body)[0] > next_one) == (6, True)


def test_a_lease_is_renewed_or_lost() -> None:
    books = Books()
    holder, other = books.join(), books.join()
    mine = acquire(books, holder, 5)
    assert acquire(books, other, 5) == 0
    for _ in range(3):
        books.wait(8.0)
        assert renew(books, holder, mine) == "renewed"
    assert books.hear(other) == []
    books.wait(10.1)
    assert renew(books, holder, mine) == "gone"
    assert token(books.hear(other)) > mine


def test_the_holders_of_a_hub_that_was_killed_come_first() -> None:
    books = Books(closed_until=1002.0)
    holder, other = books.join(), books.join()
    assert acquire(books, other, 5) == 0
    assert renew(books, holder, 7000) == "renewed"
    books.wait(5.0)
    assert books.hear(other) == []
    assert release(books, holder, 7000) == "released"
    assert token(books.hear(other)) == 7001


def test_nothing_is_kept_of_a_lock_that_nobody_wants() -> None:
    books = Books()
    client = books.join()
    release(books, client, acquire(books, client, 5))
    acquire(books, client, 6, lease=1.0)
    books.wait(1.1)
    assert not books.core.locks.held


def test_nobody_can_use_up_the_tokens() -> None:
    books = Books()
    client = books.join()
    for number in (0, 2**63, 2**64 - 1):
        assert renew(books, client, number) == "bad"
    assert acquire(books, client, 5) > 100
