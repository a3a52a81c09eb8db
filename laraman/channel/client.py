"""The channel by way of the embedded hub: what an application does, in the hub's words (``laraman.protocols.hub``)."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import TYPE_CHECKING, Any

from laraman.channel.asking import Asking, Gone, Question, QuestionToAll
from laraman.channel.interface import ANSWER_SECONDS, Channel
from laraman.channel.jobs import Job
from laraman.protocols.hub import (
    COUNT,
    HELLO_BODY,
    INCREMENT_BODY,
    JOB,
    SECONDS,
    SIZE,
    TOKEN,
    VERSION,
    WORK_BODY,
    Op,
    frame,
    pack_value,
    take,
    take_text,
    take_value,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.channel.jobs import Work
    from laraman.channel.tables import Value
    from laraman.net.connection import Connection

#: Of what is said most often: as integers.
_PUBLISH, _CALL, _RESULT = int(Op.PUBLISH), int(Op.CALL), int(Op.RESULT)

logger = logging.getLogger("uvicorn.error")

#: Messages of one pattern that the hub keeps while this process does not read (32 MiB at most); then the oldest are dropped, and counted.
HUB_QUEUE = 100_000
#: Seconds after the deadline of a call to all in which the hub says who has not answered.
LATE_SECONDS = 1.0


class HubChannel(Channel):
    """``url`` is the hub's: ``unix:///path``."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._line = Asking(url, self._hello, self._heard, self._restored, self._lost)
        self._patterns: dict[int, str] = {}
        self._consumers: dict[int, Work] = {}
        self._takers: dict[int, tuple[asyncio.Future[Job], float]] = {}
        self._served: dict[int, Callable[[], Any]] = {}
        self._unwanted: dict[int, str] = {}  # locks that nobody waits for any more, and that may have been given
        self._served_methods: list[str] = []
        self._was_there = False
        self._hears: dict[int, Callable[[int, str, bytes], None]] = {
            int(Op.MESSAGE): self._hear_message,
            int(Op.DROPPED): self._hear_dropped,
            int(Op.GIVEN): self._hear_given,
            int(Op.CALL): self._hear_call,
            int(Op.CANCEL): self._hear_cancel,
            int(Op.OK): self._hear_late_ok,
            int(Op.ERROR): self._hear_error,
        }

    async def _open(self) -> None:
        self._line.start()

    async def _shut(self) -> None:
        await self._line.stop()

    def _hello(self, id: int) -> bytes:
        return frame(Op.HELLO, id, self.name, HELLO_BODY.pack(VERSION, -1 if self.slot is None else self.slot, os.getpid()))

    def _restored(self) -> None:
        if self._served_methods:
            self._line.say(frame(Op.METHODS, 0, "", "\n".join(self._served_methods).encode()))
        if self._was_there:
            self._interrupted()
        self._was_there = True

    def _lost(self) -> None:
        """What others wanted from this process, they have been told, is not to be had."""
        for cancel in tuple(self._served.values()):
            cancel()
        self._served.clear()
        for work in self._consumers.values():
            work.lost()

    # Topics ----------------------------------------------------------------------------------------------------------------------

    async def _publish(self, topic: str, payload: bytes) -> None:
        if not self._line.reads:
            await self._line.room(ANSWER_SECONDS)
        self._line.say(frame(_PUBLISH, 0, topic, payload))

    async def _watch(self, pattern: str) -> None:
        id = self._line.number()
        self._patterns[id] = pattern
        try:
            await self._stand(id, Op.SUBSCRIBE, pattern, COUNT.pack(HUB_QUEUE))
        except BaseException:
            del self._patterns[id]
            raise

    async def _stand(self, id: int, op: Op, name: str, body: bytes) -> None:
        """Ask for something that is asked for anew whenever the hub is back."""
        self._line.standing[id] = data = frame(op, id, name, body)
        await self._line.ask_as(id, Question(op, data, ANSWER_SECONDS, again=True))

    async def _unwatch(self, pattern: str) -> None:
        for id in [id for id, watched in self._patterns.items() if watched == pattern]:
            del self._patterns[id]
            self._line.forget(id)

    def _hear_message(self, id: int, name: str, body: bytes) -> None:
        pattern = self._patterns.get(id)
        if pattern is not None:
            self._delivered(pattern, name, body)

    def _hear_dropped(self, id: int, name: str, body: bytes) -> None:
        if id in self._patterns:
            self._missed(self._patterns[id], take(COUNT, body)[0])

    # Queues ----------------------------------------------------------------------------------------------------------------------

    async def _put(self, queue: str, key: str, payload: bytes, timeout: float) -> str:
        answer = await self._line.ask(Op.PUT, queue, text(key) + payload, timeout, again=True)
        return str(take(JOB, answer)[0])

    async def _take(self, queue: str, count: int, visibility: float, timeout: float) -> list[Job]:
        id = self._line.number()
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._takers[id] = future, visibility
        try:
            async with asyncio.timeout(timeout):
                await self._stand(id, Op.TAKE, queue, WORK_BODY.pack(visibility, 1))
                job = await future
        except BaseException as exc:
            self._line.forget(id)  # what comes nevertheless is given back
            came = [future.result()] if future.done() and not future.cancelled() else []
            if not isinstance(exc, TimeoutError):
                for job in came:
                    self._give_back(job.queue, *job.handle)
                raise
            if came:
                return came
            await self._line.room(0.0)  # else that is why
            return []
        finally:
            del self._takers[id]
        self._line.standing.pop(id, None)
        return [job]

    async def _consume(self, work: Work) -> None:
        id = self._line.number()
        self._consumers[id] = work
        try:
            await self._stand(id, Op.WORK, work.queue, WORK_BODY.pack(work.visibility, work.prefetch))
        except BaseException:
            del self._consumers[id]
            raise

    async def _leave(self, work: Work) -> None:
        """The hub takes back what it has."""
        for id in [id for id, consumer in self._consumers.items() if consumer is work]:
            del self._consumers[id]
            self._line.forget(id)
            work.lost()

    def _hear_given(self, id: int, name: str, body: bytes) -> None:
        number, attempt = take(JOB, body)
        payload = body[JOB.size :]
        if (work := self._consumers.get(id)) is not None:
            work.given(Job(self, name, str(number), payload, attempt, work.visibility, (number, attempt)))
            return
        taker, visibility = self._takers.get(id, (None, 0.0))
        if taker is not None and not taker.done():
            taker.set_result(Job(self, name, str(number), payload, attempt, visibility, (number, attempt)))
        else:
            self._give_back(name, number, attempt)

    def _give_back(self, queue: str, number: int, attempt: int) -> None:
        self._line.say(frame(Op.NACK, 0, queue, JOB.pack(number, attempt) + SECONDS.pack(0.0)))

    async def _ack(self, job: Job) -> bool:
        return await self._settle(Op.ACK, job)

    async def _nack(self, job: Job, delay: float) -> bool:
        return await self._settle(Op.NACK, job, SECONDS.pack(delay))

    async def _extend(self, job: Job) -> bool:
        return await self._settle(Op.EXTEND, job)

    async def _settle(self, op: Op, job: Job, rest: bytes = b"") -> bool:
        try:
            await self._line.ask(op, job.queue, JOB.pack(*job.handle) + rest, ANSWER_SECONDS, again=True)
        except Gone:
            return False
        return True

    # Calls -----------------------------------------------------------------------------------------------------------------------

    async def _serve(self, methods: list[str]) -> None:
        self._served_methods = methods
        await self._line.ask(Op.METHODS, "", "\n".join(methods).encode(), ANSWER_SECONDS, again=True)

    async def _withdraw(self) -> None:
        await self._serve([])  # what came before is routed by now, and is here before the answer

    async def _call(self, name: str, slot: int | None, method: str, payload: bytes, timeout: float) -> bytes:
        line = self._line
        id = line.number()
        data = frame(_CALL, id, f"{method}@{name}" if slot is None else f"{method}@{name}[{slot}]", SECONDS.pack(timeout) + payload)
        try:
            answer: bytes = await line.ask_as(id, Question(_CALL, data, timeout, again=False))
            return answer
        except TimeoutError:
            raise TimeoutError(f"{method} of {name if slot is None else f'{name}[{slot}]'} did not answer in {timeout:g} s") from None

    async def _call_all(self, name: str, method: str, payload: bytes, timeout: float) -> list[bytes | Exception]:
        id = self._line.number()
        data = frame(Op.CALL_ALL, id, f"{method}@{name}", SECONDS.pack(timeout) + payload)
        try:
            answers = await self._line.ask_as(id, QuestionToAll(Op.CALL_ALL, data, timeout + LATE_SECONDS, again=False))
        except TimeoutError:
            raise TimeoutError(f"{method} of {name} did not answer in {timeout:g} s, nor did the hub") from None
        return [answer for _, answer in sorted(answers, key=lambda each: _slot(each[0]))]

    def _hear_call(self, id: int, name: str, body: bytes) -> None:
        cancel = self._called(name, body, functools.partial(self._reply, self._line.connection, id))
        if cancel is not None:
            self._served[id] = cancel

    def _reply(self, connection: Connection | None, id: int, answer: bytes) -> None:
        self._served.pop(id, None)
        if self._line.connection is connection:  # else it is another hub, which has given the number to another call
            self._line.say(frame(_RESULT, id, "", answer))

    def _hear_cancel(self, id: int, name: str, body: bytes) -> None:
        cancel = self._served.pop(id, None)
        if cancel is not None:
            cancel()

    # Tables and locks ------------------------------------------------------------------------------------------------------------

    async def _get(self, table: str, key: str) -> Value | None:
        return take_value(await self._line.ask(Op.GET, table, text(key), ANSWER_SECONDS, again=True))

    async def _set(self, table: str, key: str, value: Value, ttl: float | None) -> None:
        await self._line.ask(Op.SET, table, SECONDS.pack(ttl or 0.0) + text(key) + pack_value(value), ANSWER_SECONDS, again=True)

    async def _increment(self, table: str, key: str, by: int, ttl: float | None) -> int:
        answer = await self._line.ask(Op.INCREMENT, table, INCREMENT_BODY.pack(by, ttl or 0.0) + text(key), ANSWER_SECONDS, again=False)
        return int(take_value(answer) or 0)

    async def _compare_and_set(self, table: str, key: str, old: Value | None, new: Value | None, ttl: float | None) -> bool:
        before, after = pack_value(old), pack_value(new)
        body = SECONDS.pack(ttl or 0.0) + text(key) + SIZE.pack(len(before)) + before + after
        return await self._line.ask(Op.COMPARE_AND_SET, table, body, ANSWER_SECONDS, again=False) == b"\x01"

    async def _delete(self, table: str, key: str) -> bool:
        return await self._line.ask(Op.DELETE, table, text(key), ANSWER_SECONDS, again=False) == b"\x01"

    async def _keys(self, table: str) -> list[str]:
        answer = await self._line.ask(Op.KEYS, table, b"", ANSWER_SECONDS, again=True)
        keys, at = [], 0
        while at < len(answer):
            key, at = take_text(answer, at)
            keys.append(key)
        return keys

    async def _acquire(self, name: str, lease: float, timeout: float) -> int | None:
        id = self._line.number()
        question = Question(Op.ACQUIRE, frame(Op.ACQUIRE, id, name, SECONDS.pack(lease)), timeout, again=True)
        try:
            answer = await self._line.ask_as(id, question)
        except TimeoutError:
            self._give_up(id, name)
            return None
        except asyncio.CancelledError:
            self._give_up(id, name)
            if question.future.done() and not question.future.cancelled() and question.future.exception() is None:
                self._hear_late_ok(id, "", question.future.result())
            raise
        return int(take(TOKEN, answer)[0])

    def _give_up(self, id: int, name: str) -> None:
        """Nobody wants the lock any more that is being asked for; if the answer is under way it is given back."""
        self._unwanted[id] = name
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._unwanted.pop, id, None)

    def _hear_late_ok(self, id: int, name: str, body: bytes) -> None:
        lock = self._unwanted.pop(id, None)
        if lock is not None:
            self._line.say(frame(Op.RELEASE, 0, lock, body))

    async def _renew(self, name: str, token: int, lease: float) -> bool:
        try:
            await self._line.ask(Op.RENEW, name, TOKEN.pack(token) + SECONDS.pack(lease), ANSWER_SECONDS, again=True)
        except Gone:
            return False
        return True

    async def _release(self, name: str, token: int) -> None:
        try:
            await self._line.ask(Op.RELEASE, name, TOKEN.pack(token), ANSWER_SECONDS, again=True)
        except Gone:
            logger.debug("lock %s was not ours any more when it was given back", name)

    # The rest --------------------------------------------------------------------------------------------------------------------

    def _heard(self, op: int, id: int, name: str, body: bytes) -> None:
        hear = self._hears.get(op)
        if hear is not None:
            hear(id, name, body)

    def _hear_error(self, id: int, name: str, body: bytes) -> None:
        logger.warning("Link hub: the hub says %s: %s", name, body.decode(errors="replace"))


def _slot(member: str) -> tuple[str, int]:
    """Of "http[2]", for order."""
    name, _, slot = member.partition("[")
    return name, int(slot[:-1]) if slot[:-1].isdecimal() else -1
