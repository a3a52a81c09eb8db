from __future__ import annotations

import pytest

from laraman.channel.hub.clients import Client
from laraman.channel.hub.topics import CHUNK
from laraman.errors import RemoteProtocolError
from laraman.protocols.hub import COUNT, HELLO_BODY, SECONDS, VERSION, Op
from tests.channel.hub.books import Books

OK = Op.OK


@pytest.fixture
def books() -> Books:
    return Books()


def subscribe(books: Books, client: Client, id: int, pattern: str, limit: int = 10) -> None:
    assert books.ask(client, Op.SUBSCRIBE, id, pattern, COUNT.pack(limit)) == [(OK, id, "", b"")]


def publish(books: Books, client: Client, topic: str, data: bytes) -> int:
    """How many subscriptions it went to."""
    books.core.receive(client, [(Op.PUBLISH, 5, topic, data)], books.now)
    ((_, _, _, body),) = [message for message in books.hear(client) if message[:2] == (OK, 5)]
    return int(COUNT.unpack(body)[0])


# Clients --------------------------------------------------------------------------------------------------------------------------


def test_hello_comes_first(books: Books) -> None:
    with pytest.raises(RemoteProtocolError, match="before hello"):
        books.ask(Client(), Op.PUBLISH, 0, "a", b"")
    with pytest.raises(RemoteProtocolError, match="version 9"):
        books.ask(Client(), Op.HELLO, 1, "http", HELLO_BODY.pack(9, 0, 1))


@pytest.mark.parametrize(
    ("op", "name", "body"),
    [
        (99, "", b""),
        (Op.HELLO, "again", HELLO_BODY.pack(VERSION, 0, 1)),
        (Op.SUBSCRIBE, "a", b""),
        (Op.SUBSCRIBE, "a.>.b", COUNT.pack(1)),
        (Op.SUBSCRIBE, "a..b", COUNT.pack(1)),
        (Op.SUBSCRIBE, "a", COUNT.pack(0)),
        (Op.PUT, "q", b"\0\5k"),
        (Op.WORK, "q", b""),
        (Op.ACK, "q", b"1"),
        (Op.CALL, "no-target", SECONDS.pack(1)),
        (Op.SET, "t", SECONDS.pack(-1) + b"\0\1k"),
        (Op.SET, "t", SECONDS.pack(0) + b"\0\1kx"),
        (Op.ACQUIRE, "l", SECONDS.pack(float("nan"))),
        (Op.RENEW, "l", b""),
    ],
)
def test_nonsense_is_told_so_and_nothing_else_happens(books: Books, op: int, name: str, body: bytes) -> None:
    client = books.join()
    ((answer, id, fault, _),) = books.ask(client, op, 7, name, body)
    assert (answer, id, fault) == (Op.ERROR, 7, "bad")
    subscribe(books, client, 8, "a")


def test_an_id_goes_for_one_thing(books: Books) -> None:
    client = books.join()
    subscribe(books, client, 7, "a")
    assert [message[2] for message in books.ask(client, Op.SUBSCRIBE, 7, "b", COUNT.pack(1))] == ["bad"]
    assert [message[2] for message in books.ask(client, Op.SUBSCRIBE, 0, "b", COUNT.pack(1))] == ["bad"]


# Topics ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "topics", "others"),
    [
        ("orders.new", ["orders.new"], ["orders", "orders.new.x", "Orders.new"]),
        ("orders.*", ["orders.new", "orders.*"], ["orders", "orders.new.x"]),
        ("*.new", ["orders.new"], ["new", "orders.old"]),
        ("orders.>", ["orders.new", "orders.new.x"], ["orders", "order.new"]),
        (">", ["a", "a.b.c"], []),
    ],
)
def test_patterns(books: Books, pattern: str, topics: list[str], others: list[str]) -> None:
    client, publisher = books.join(), books.join()
    assert publish(books, publisher, topics[0], b"x") == 0
    subscribe(books, client, 2, pattern)
    for topic in topics * 2:  # the second time it is remembered
        assert publish(books, publisher, topic, b"x") == 1, topic
        assert books.hear(client) == [(Op.MESSAGE, 2, topic, b"x")]
    for topic in others * 2:
        assert publish(books, publisher, topic, b"x") == 0, topic
    books.ask(client, Op.CANCEL, 2)
    assert publish(books, publisher, topics[0], b"x") == 0


def test_each_subscription_gets_its_own(books: Books) -> None:
    client, other = books.join(), books.join()
    subscribe(books, client, 2, "a.*")
    subscribe(books, client, 3, "a.b")
    subscribe(books, other, 2, "a.b")
    assert publish(books, other, "a.b", b"x") == 3
    assert sorted(books.hear(client)) == [(Op.MESSAGE, 2, "a.b", b"x"), (Op.MESSAGE, 3, "a.b", b"x")]
    books.core.lost(client, books.now)
    assert publish(books, other, "a.b", b"x") == 1


def test_who_does_not_read_gets_the_newest(books: Books) -> None:
    slow, quick, publisher = books.join(), books.join(), books.join()
    subscribe(books, slow, 2, "t", limit=2)
    subscribe(books, quick, 2, "t", limit=1)
    slow.full = True
    for i in range(5):
        publish(books, publisher, "t", b"%d" % i)
    assert books.hear(slow) == []
    assert [body for _, _, _, body in books.hear(quick)] == [b"0", b"1", b"2", b"3", b"4"], "the others do not notice"
    books.core.resume(slow, books.now)
    assert books.hear(slow) == [(Op.DROPPED, 2, "", COUNT.pack(3)), *((Op.MESSAGE, 2, "t", body) for body in (b"3", b"4"))]
    assert not slow.full


def test_what_waited_is_sent_in_portions_and_in_order(books: Books) -> None:
    slow, publisher = books.join(), books.join()
    subscribe(books, slow, 2, "t", limit=10)
    slow.full = True
    for i in range(3):
        publish(books, publisher, "t", b"%d" % i * CHUNK)
    books.core.resume(slow, books.now)
    publish(books, publisher, "t", b"last")
    assert slow.full
    assert [body[:1] for _, _, _, body in books.hear(slow)] == [b"0"]
    while slow.full:
        books.core.resume(slow, books.now)
    assert [body[:4] for _, _, _, body in books.hear(slow)] == [b"1111", b"2222", b"last"]


# Calls ----------------------------------------------------------------------------------------------------------------------------


def member(books: Books, slot: int, *methods: str) -> Client:
    client = books.join("http", slot)
    assert books.ask(client, Op.METHODS, 2, "", "\n".join(methods).encode()) == [(OK, 2, "", b"")]
    return client


def test_a_call_and_its_answer(books: Books) -> None:
    caller, server = books.join(), member(books, 0, "f", "g")
    assert books.call(caller, 5, "f@http", b"arguments") == []
    ((op, number, method, data),) = books.hear(server)
    assert (op, method, data) == (Op.CALL, "f", b"arguments")
    assert books.ask(server, Op.RESULT, number, "", b"result") == []
    assert books.hear(caller) == [(Op.RESULT, 5, "", b"result")]
    assert books.ask(server, Op.RESULT, number, "", b"again") == []
    assert books.hear(caller) == []


def test_any_member_is_the_one_with_the_least_to_do(books: Books) -> None:
    caller, members = books.join(), [member(books, slot, "f") for slot in range(3)]
    members[1].full = True
    for id in range(5, 11):
        books.call(caller, id, "f@http")
    assert [len(client.serving) for client in members] == [3, 0, 3]


def test_a_slot_is_its_newest_process(books: Books) -> None:
    caller, old, new = books.join(), member(books, 1, "f"), member(books, 1, "f")
    books.call(caller, 5, "f@http[1]")
    assert (len(books.hear(old)), len(books.hear(new))) == (0, 1)
    books.core.lost(new, books.now)
    assert [message[:3] for message in books.hear(caller)] == [(Op.ERROR, 5, "down")]
    books.call(caller, 6, "f@http[1]")
    assert len(books.hear(old)) == 1


@pytest.mark.parametrize(("target", "fault"), [("f@nobody", "down"), ("f@http[7]", "down"), ("h@http", "method"), ("h@http[0]", "method")])
def test_who_cannot_be_called(books: Books, target: str, fault: str) -> None:
    caller, server = books.join(), member(books, 0, "f")
    for op in (Op.CALL, Op.CALL_ALL):
        ((answer, id, name, _),) = books.call(caller, 5, target, op=op)
        assert (answer, id, name) == (Op.ERROR, 5, fault)
    assert books.hear(server) == []


def test_all_are_called_and_each_answers_for_itself(books: Books) -> None:
    caller, first, second, third = books.join(), member(books, 0, "f"), member(books, 1, "f"), member(books, 2, "f")
    member(books, 3, "g")
    assert books.call(caller, 5, "f@http", b"x", op=Op.CALL_ALL) == [(OK, 5, "", COUNT.pack(3))]
    for client in (first, second):
        ((_, number, _, _),) = books.hear(client)
        books.ask(client, Op.RESULT, number, "", b"answer")
    books.core.lost(third, books.now)
    answers = books.hear(caller)
    assert answers[:2] == [(Op.RESULT, 5, "http[0]", b"answer"), (Op.RESULT, 5, "http[1]", b"answer")]
    assert answers[2][:3] == (Op.ERROR, 5, "down")
    assert answers[2][3].startswith(b"http[2]: ")


def test_a_call_ends_with_its_time_and_with_its_caller(books: Books) -> None:
    caller, server = books.join(), member(books, 0, "f")
    books.call(caller, 5, "f@http", timeout=1.0)
    books.call(caller, 6, "f@http")
    books.call(caller, 7, "f@http")
    first, second, third = (number for _, number, _, _ in books.hear(server))
    books.wait(1.5)
    assert [message[:3] for message in books.hear(caller)] == [(Op.ERROR, 5, "late")]
    books.ask(caller, Op.CANCEL, 6)
    books.core.lost(caller, books.now)
    assert books.hear(server) == [(Op.CANCEL, number, "", b"") for number in (first, second, third)]
    assert not server.serving
