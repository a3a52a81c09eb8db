"""The link with the hub: what is asked goes out in one piece per turn of the loop, and what is answered finds who waits for it.

While the hub is away questions wait until it is back or their time is over. Those that had been sent and were not answered are sent again if that
can do no harm (``again``), and fail with LinkDown if it could. What stands (a subscription, a consumer) is asked for anew each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

from laraman.errors import Busy, ConnectionClosed, LinkDown, LocalProtocolError, RemoteProtocolError, TaskError
from laraman.net.link import Backoff, Link, State
from laraman.protocols.hub import COUNT, Fault, Hub, Op, frame, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.connection import Connection
    from laraman.protocols.hub import Message

logger = logging.getLogger("uvicorn.error")

#: Bytes that are not left for the end of the turn.
PIECE = 64 * 1024
#: Seconds between two looks for questions whose time is over: a timer for each would cost more than the question.
LOOK = 0.05
#: How soon a hub is looked for again: it is on this machine, and started anew within moments.
BACKOFF = Backoff(base=0.05, cap=1.0)

_ERROR = int(Op.ERROR)
#: What is an answer, as integers: those of an enum are looked up more slowly.
_ANSWERS = frozenset(map(int, (Op.OK, Op.ERROR, Op.RESULT)))

#: Whose waiting the hub is told the end of.
_CANCELLED = frozenset({Op.CALL, Op.CALL_ALL, Op.ACQUIRE, Op.TAKE, Op.WORK, Op.SUBSCRIBE})
#: Whose time may be over although the hub is there.
_WAITING = frozenset({Op.CALL, Op.CALL_ALL, Op.ACQUIRE})


class Gone(LookupError):
    """The job or the lock is not ours any more."""


def error_of(fault: str, text: str) -> Exception:
    """What an ERROR of the hub is to who has asked."""
    match fault:
        case Fault.BUSY | Fault.FAILED:
            return Busy(text)
        case Fault.METHOD:
            return TaskError("LookupError", text)
        case Fault.GONE:
            return Gone(text)
        case Fault.LATE:
            return TimeoutError(text)
        case Fault.BAD:
            return LocalProtocolError(text)
    return LinkDown(text)


class Question:
    """``answered`` is what the hub has to say about it."""

    __slots__ = ("again", "data", "due", "future", "op", "seconds", "sent")

    def __init__(self, op: int, data: bytes, seconds: float, again: bool) -> None:
        loop = asyncio.get_running_loop()
        self.op = op
        self.data = data
        self.seconds = seconds
        self.again = again
        self.sent = False
        self.due = loop.time() + seconds
        self.future: asyncio.Future[Any] = loop.create_future()

    def answered(self, op: int, name: str, body: bytes) -> None:
        if self.future.done():
            return
        if op == _ERROR:
            self.future.set_exception(error_of(name, body.decode(errors="replace")))
        else:
            self.future.set_result(body)


class QuestionToAll(Question):
    """One that many answer. The result is a list of who it was and the answer or the error."""

    __slots__ = ("answers", "count")

    def __init__(self, op: int, data: bytes, seconds: float, again: bool) -> None:
        super().__init__(op, data, seconds, again)
        self.answers: list[tuple[str, bytes | Exception]] = []
        self.count = -1

    def answered(self, op: int, name: str, body: bytes) -> None:
        if self.future.done():
            return
        if self.count < 0:
            if op == _ERROR:
                super().answered(op, name, body)
                return
            (self.count,) = take(COUNT, body)
        elif op == _ERROR:
            text = body.decode(errors="replace")
            self.answers.append((text.partition(": ")[0], error_of(name, text)))
        else:
            self.answers.append((name, body))
        if len(self.answers) == self.count:
            self.future.set_result(self.answers)


class _Codec:
    """The messages of one read are one, and what is sent is frames already."""

    def __init__(self) -> None:
        self._hub = Hub()

    def receive_data(self, data: bytes) -> list[list[Message]]:
        messages = self._hub.receive_data(data)
        return [messages] if messages else []

    def receive_eof(self) -> None:
        self._hub.receive_eof()

    def send(self, message: bytes) -> bytes:
        return message


class Asking:
    """``hello`` introduces this process. ``heard`` is told what is no answer, ``restored`` that the hub is there, ``lost`` that it is not."""

    def __init__(
        self,
        url: str,
        hello: Callable[[int], bytes],
        heard: Callable[[int, int, str, bytes], None],
        restored: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self.link = Link(
            url, name="hub", protocol=_Codec, handshake=self._greet, on_message=self._receive, on_up=self._up, on_down=self._down, backoff=BACKOFF
        )
        self.link.operates = False
        #: The connection, while the hub is there.
        self.connection: Connection | None = None
        #: What is asked for anew whenever the hub is back.
        self.standing: dict[int, bytes] = {}
        self._hello = hello
        self._heard = heard
        self._restored = restored
        self._lost = lost
        self._greeted: Connection | None = None
        self._questions: dict[int, Question] = {}
        self._numbers = itertools.count(1)
        self._out: list[bytes] = []
        self._size = 0
        self._there = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None

    # Life ------------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self.link.run(), name="hub")

    async def stop(self) -> None:
        """Send what waits and hang up. Who still waits for an answer is told that there will be none."""
        self._flush()
        for question in self._questions.values():
            self._fail(question, ConnectionClosed("the channel was closed"))
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        if self._looking is not None:
            self._looking.cancel()

    async def _greet(self, connection: Connection) -> None:
        connection.send_nowait(self._hello(self.number()))
        messages = await connection.receive()
        op, _, fault, body = messages[0]
        if op != Op.OK:
            raise RemoteProtocolError(f"the hub refuses this process: {fault} {body.decode(errors='replace')}")
        self._greeted = connection

    def _up(self, link: Link) -> None:
        self.connection = self._greeted
        self._out.clear()
        self._size = 0
        self._restored()
        for data in self.standing.values():
            self.say(data)
        for id, question in self._questions.items():
            if not question.sent:
                question.sent = True
                if id not in self.standing:
                    self.say(question.data)
        self._there.set()

    def _down(self, link: Link, error: BaseException | None) -> None:
        self.connection = None
        self._there.clear()
        for question in self._questions.values():
            if question.again:
                question.sent = False
            elif question.sent:
                self._fail(question, LinkDown(f"the hub went away before it answered, what was asked may have been done: {error}"))
        self._lost()

    def _fail(self, question: Question, error: Exception) -> None:
        if not question.future.done():
            question.future.set_exception(error)

    # Sending ---------------------------------------------------------------------------------------------------------------------

    def number(self) -> int:
        """The next one for a question."""
        return next(self._numbers) % 0xFFFFFFFF + 1

    @property
    def reads(self) -> bool:
        """The hub is there and takes what is said."""
        connection = self.connection
        return connection is not None and not connection.writing_paused and connection.error is None

    async def room(self, seconds: float) -> None:
        """Return when it ``reads``. Raises LinkDown when that takes longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.reads:
                    await self._there.wait()
                    if self.connection is not None:
                        await self.connection.writable()
                    await asyncio.sleep(0)  # a connection that was lost is told of in a moment
                return
        raise self._away(seconds)

    def _away(self, seconds: float) -> LinkDown:
        if self.link.state is State.UP:
            return LinkDown(f"the hub did not answer in {seconds:g} s")
        return LinkDown(f"the hub is away: {self.link.error or 'it has not answered yet'}")

    def say(self, data: bytes) -> None:
        """A frame that is not answered, or whose answer somebody waits for. Nothing happens while the hub is away."""
        if self.connection is None:
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)
        self._size += len(data)
        if self._size > PIECE:
            self._flush()

    def _flush(self) -> None:
        connection = self.connection
        if connection is None or connection.error is not None:
            self._out.clear()
        elif connection.writing_paused:  # answers do not ask for room
            if self._writing is None or self._writing.done():
                self._writing = asyncio.get_running_loop().create_task(self._flush_later(connection))
            return
        elif self._out:
            connection.messages_out += len(self._out) - 1
            connection.send_nowait(b"".join(self._out))
            self._out.clear()
        self._size = 0

    async def _flush_later(self, connection: Connection) -> None:
        await connection.writable()
        self._flush()

    # Asking ----------------------------------------------------------------------------------------------------------------------

    async def ask(self, op: int, name: str, body: bytes, seconds: float, *, again: bool) -> bytes:
        """The body of the answer. Raises what the hub says, and LinkDown when it says nothing in time: TimeoutError where others are waited for."""
        id = self.number()
        answer: bytes = await self.ask_as(id, Question(op, frame(op, id, name, body), seconds, again))
        return answer

    async def ask_as(self, id: int, question: Question) -> Any:
        self._questions[id] = question
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK, self._look)
        if self.connection is not None and self.connection.error is None:
            question.sent = True
            self.say(question.data)
        try:
            return await question.future
        except BaseException:
            if question.op in _CANCELLED:
                self.forget(id)
            raise
        finally:
            del self._questions[id]

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(LOOK, self._look) if self._questions else None
        now = loop.time()
        for question in self._questions.values():
            if question.due <= now:
                waits = question.op in _WAITING and self.connection is not None
                late = TimeoutError(f"there was no answer in {question.seconds:g} s") if waits else self._away(question.seconds)
                self._fail(question, late)

    def forget(self, id: int) -> None:
        """What goes by this number is not wanted any more."""
        self.standing.pop(id, None)
        self.say(frame(Op.CANCEL, id, "", b""))

    # Receiving -------------------------------------------------------------------------------------------------------------------

    def _receive(self, link: Link, messages: list[Message]) -> None:
        if self.connection is not None:
            self.connection.messages_in += len(messages) - 1
        questions, heard = self._questions, self._heard
        for op, id, name, body in messages:
            if op in _ANSWERS and (question := questions.get(id)) is not None:
                question.answered(op, name, body)
            else:
                try:
                    heard(op, id, name, body)
                except Exception:
                    logger.exception("Link hub: what the hub said could not be worked on")
