from __future__ import annotations

import pytest

from laraman.channel.hub.records import records_in
from laraman.protocols.hub import JOB, SECONDS, Message, Op
from tests.channel.hub.books import Books

OK = Op.OK


@pytest.fixture
def books() -> Books:
    return Books()


def given(messages: list[Message]) -> list[tuple[bytes, int]]:
    """Data and attempt of the jobs among these messages."""
    return [(body[JOB.size :], JOB.unpack_from(body)[1]) for op, _, _, body in messages if op == Op.GIVEN]


def jobs(messages: list[Message]) -> list[bytes]:
    """What an acknowledgement of them begins with."""
    return [body[: JOB.size] for op, _, _, body in messages if op == Op.GIVEN]


def depth(books: Books, queue: str = "q") -> tuple[int, ...]:
    """Waiting, delayed, given."""
    jobs = [job for job in books.core.queues.jobs() if job.queue.name == queue]
    given = sum(job.consumer is not None for job in jobs)
    delayed = sum(number in job.queue.jobs for job in jobs[:1] for _, number in job.queue.delayed)
    return len(jobs) - given - delayed, delayed, given


def test_jobs_are_given_in_turns_and_as_many_as_are_wanted(books: Books) -> None:
    first, second, producer = books.join(), books.join(), books.join()
    books.work(first, 2, "q")
    books.work(second, 2, "q", prefetch=2)
    for i in range(5):
        ((op, _, _, body),) = books.put(producer, "q", b"%d" % i)
        assert (op, JOB.unpack(body)) == (OK, (101 + i, 0))
    mine, others = books.hear(first), books.hear(second)
    assert given(mine) == [(b"0", 1)]
    assert given(others) == [(b"1", 1), (b"2", 1)]
    answer = books.ask(first, Op.ACK, 3, "q", jobs(mine)[0])
    assert answer[-1] == (OK, 3, "", b"")
    assert given(answer) == [(b"3", 1)]
    assert depth(books) == (1, 0, 3)


def test_a_put_is_answered_when_the_journal_has_it(books: Books) -> None:
    worker, producer = books.join(), books.join()
    books.work(worker, 2, "q")
    books.broken = "No space left on device"
    ((op, id, fault, text),) = books.put(producer, "q", b"lost", key="k")
    assert (op, id, fault) == (Op.ERROR, 9, "failed")
    assert b"No space left" in text
    assert books.hear(worker) == []
    books.broken = ""
    assert books.put(producer, "q", b"kept", key="k")[0][0] == OK
    assert given(books.hear(worker)) == [(b"kept", 1)]


def test_a_full_queue_is_busy_and_loses_nothing() -> None:
    books = Books(limit=2)
    producer = books.join()
    assert [books.put(producer, "q", b"x")[0][:3] for _ in range(3)] == [(OK, 9, ""), (OK, 9, ""), (Op.ERROR, 9, "busy")]
    assert books.put(producer, "other", b"x")[0][0] == OK
    assert depth(books) == (2, 0, 0)


def test_a_key_is_there_once_until_it_is_done(books: Books) -> None:
    producer = books.join()
    first, again = books.put(producer, "q", b"x", key="k"), books.put(producer, "q", b"y", key="k")
    assert first == again
    assert depth(books) == (1, 0, 0)
    message = books.work(producer, 2, "q")
    books.ask(producer, Op.ACK, 3, "q", jobs(message)[0])
    assert books.put(producer, "q", b"z", key="k") != first


def test_a_silent_consumer_loses_its_job_and_may_still_have_done_it(books: Books) -> None:
    silent, other = books.join(), books.join()
    books.put(silent, "q", b"x")
    books.put(silent, "q", b"y")
    first = books.work(silent, 2, "q", visibility=1.0, prefetch=2)
    assert given(first) == [(b"x", 1), (b"y", 1)]
    silent.full = True  # so that they do not come back to it
    books.wait(1.5)
    assert books.ask(silent, Op.ACK, 3, "q", jobs(first)[0]) == [(OK, 3, "", b"")], "nobody else had it"
    second = books.work(other, 2, "q")
    assert given(second) == [(b"y", 2)]
    assert [message[:3] for message in books.ask(silent, Op.ACK, 4, "q", jobs(first)[1])] == [(Op.ERROR, 4, "gone")]
    assert books.ask(other, Op.ACK, 3, "q", jobs(second)[0]) == [(OK, 3, "", b"")]
    assert [message[:3] for message in books.ask(other, Op.ACK, 4, "q", jobs(second)[0])] == [(Op.ERROR, 4, "gone")]
    assert depth(books) == (0, 0, 0)


def test_who_says_that_it_is_at_work_keeps_its_job(books: Books) -> None:
    worker = books.join()
    books.put(worker, "q", b"x")
    (job,) = jobs(books.work(worker, 2, "q", visibility=1.0))
    for _ in range(5):
        books.wait(0.8)
        assert books.ask(worker, Op.EXTEND, 3, "q", job) == [(OK, 3, "", b"")]
    books.wait(1.5)
    assert given(books.hear(worker)) == [(b"x", 2)]


def test_a_job_is_given_back(books: Books) -> None:
    worker = books.join()
    books.put(worker, "q", b"x")
    books.put(worker, "q", b"y")
    (job,) = jobs(books.work(worker, 2, "q"))
    answer = books.ask(worker, Op.NACK, 3, "q", job + SECONDS.pack(0))
    assert given(answer) == [(b"x", 2)], "before those that have never been given"
    answer = books.ask(worker, Op.NACK, 3, "q", jobs(answer)[0] + SECONDS.pack(2))
    assert given(answer) == [(b"y", 1)]
    assert depth(books) == (0, 1, 1)
    books.ask(worker, Op.ACK, 3, "q", jobs(answer)[0])
    books.wait(1.5)
    assert books.hear(worker) == []
    books.wait(1.0)
    assert given(books.hear(worker)) == [(b"x", 3)]


@pytest.mark.parametrize("end", ["lost", "cancel"])
def test_what_a_consumer_had_that_ended_goes_to_others(books: Books, end: str) -> None:
    first, second = books.join(), books.join()
    for i in range(3):
        books.put(first, "q", b"%d" % i)
    assert len(jobs(books.work(first, 2, "q", prefetch=2))) == 2
    assert given(books.work(second, 2, "q", prefetch=5)) == [(b"2", 1)]
    if end == "lost":
        books.core.lost(first, books.now)
    else:
        assert books.ask(first, Op.CANCEL, 2) == []
    assert sorted(given(books.hear(second))) == [(b"0", 2), (b"1", 2)]
    books.put(second, "q", b"new")
    assert books.hear(first) == []


def test_an_acknowledgement_is_for_one_attempt(books: Books) -> None:
    client = books.join()
    books.put(client, "q", b"x")
    (first,) = jobs(books.work(client, 2, "q", visibility=1.0))
    books.wait(1.5)
    (second,) = jobs(books.hear(client))
    assert [message[:3] for message in books.ask(client, Op.ACK, 3, "q", first)] == [(Op.ERROR, 3, "gone")]
    assert books.ask(client, Op.ACK, 4, "q", second) == [(OK, 4, "", b"")]


def test_one_job_and_no_more(books: Books) -> None:
    taker = books.join()
    for i in range(2):
        books.put(taker, "q", b"%d" % i)
    (job,) = jobs(books.work(taker, 2, "q", op=Op.TAKE))
    assert books.ask(taker, Op.ACK, 3, "q", job) == [(OK, 3, "", b"")]
    assert depth(books) == (1, 0, 0)
    assert not taker.consumers


def test_some_jobs_and_no_more(books: Books) -> None:
    taker, producer = books.join(), books.join()
    for i in range(3):
        books.put(producer, "q", b"%d" % i)
    answer = books.work(taker, 2, "q", prefetch=2, op=Op.TAKE)
    assert given(answer) == [(b"0", 1), (b"1", 1)]
    assert books.ask(taker, Op.CANCEL, 2) == []
    assert depth(books) == (1, 0, 2), "they are still its own"
    for job in jobs(answer):
        assert books.ask(taker, Op.ACK, 3, "q", job) == [(OK, 3, "", b"")]
    assert depth(books) == (1, 0, 0)
    assert not taker.consumers


def test_a_consumer_that_does_not_read_is_given_nothing(books: Books) -> None:
    slow, other = books.join(), books.join()
    books.work(slow, 2, "q")
    slow.full = True
    books.put(other, "q", b"x")
    assert books.hear(slow) == []
    books.core.resume(slow, books.now)
    assert given(books.hear(slow)) == [(b"x", 1)]


def test_nothing_is_kept_of_a_queue_that_nobody_uses(books: Books) -> None:
    client = books.join()
    books.put(client, "q", b"x")
    (job,) = jobs(books.work(client, 2, "q"))
    books.ask(client, Op.ACK, 3, "q", job)
    books.ask(client, Op.CANCEL, 2)
    assert not books.core.queues._queues


def test_what_was_done_while_the_journal_could_not_be_written_is_written_as_soon_as_it_can(books: Books) -> None:
    worker = books.join()
    books.put(worker, "q", b"x", key="k")
    (job,) = jobs(books.work(worker, 2, "q"))
    written = len(books.journal)
    books.broken = "No space left on device"
    assert [message[:3] for message in books.ask(worker, Op.ACK, 3, "q", job)] == [(Op.ERROR, 3, "failed")]
    assert books.hear(worker) == [], "that it still cannot is said once"
    books.broken = ""
    assert books.hear(worker) == []
    assert [record.put for record in (next(records_in(data))[1] for data in books.journal[written:])] == [False]
    assert not books.core.queues.unanswered
