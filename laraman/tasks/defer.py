"""``laraman.defer``: have a task run later, whatever happens to this process, or to the server, meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio

from laraman.errors import Busy, ConfigError, ConnectionClosed, ConnectionLost, LaramanError, LinkDown
from laraman.net.current import current_worker
from laraman.net.encoding import decode, encode
from laraman.net.outbound import connect
from laraman.tasks import JOURNAL
from laraman.tasks.calling import is_outside, submit
from laraman.tasks.declared import Call, as_task
from laraman.tasks.pool import request_of

if TYPE_CHECKING:
    from laraman.net.connection import Connection
    from laraman.tasks.declared import Task

#: Seconds in which the journal is to answer, and between two attempts to reach it.
ANSWER_SECONDS, PAUSE = 10.0, 0.1
#: What one process may ask at a time.
AT_ONCE = 256
#: Characters of a key.
MAX_KEY = 200

_clerks: WeakKeyDictionary[Any, Clerk] = WeakKeyDictionary()


async def defer(task: Task[Any, Any], /, *args: Any, key: str | None = None, delay: float = 0.0, **kwargs: Any) -> str:
    """Have a task worker run ``task(*args, **kwargs)`` once ``delay`` seconds are over, and return its id.

    When this returns the task is on disk, and is run until it has succeeded once: after what it raises, after it was killed, after a crash of the
    server or the machine, after a restart. So it may be run more than once. Between two attempts there is a pause that doubles; after the last of
    ``--journal-attempts`` it is kept in the journal as failed, and that is logged. What it returns is dropped.

    While a task with the same ``key`` waits or runs this defers nothing, and returns the id of that one.

    In tests, where tasks are performed by something else (``laraman.testing``), it is run at once, and what it raises comes out.

    Raises ConfigError where there are no task workers and for what is no task, LocalProtocolError for arguments that cannot be encoded, Busy when
    ``--journal-queue`` tasks wait, LinkDown when the journal has not answered in time, and LaramanError when it cannot be written.
    """
    task = as_task(task)
    if not (isinstance(delay, (int, float)) and math.isfinite(delay) and delay >= 0):
        raise ConfigError(f"{task.name}: a delay is a number of seconds, not {delay!r}")
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= MAX_KEY):
        raise ConfigError(f"{task.name}: a key is a text of 1 to {MAX_KEY} characters, not {key!r}")
    request = request_of(Call(task, args, kwargs), task.timeout)
    id = uuid.uuid4().hex
    if is_outside():
        await submit(task, *args, **kwargs)
        return id
    worker = current_worker.get()
    if worker is None or JOURNAL not in worker.inner_paths:
        raise ConfigError("deferred tasks need a server with task workers: --task-workers")
    clerk = _clerks.get(worker)
    if clerk is None:
        clerk = _clerks[worker] = Clerk(worker)
    now = time.time()
    return await clerk.ask(id, encode([id, key, task.name, request, now + delay, now]))


class Clerk:
    """This process's connection with the journal, made when it is first needed, and again when it was lost: what was not answered is asked again."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._dialling: asyncio.Task[Connection] | None = None

    async def ask(self, id: str, message: bytes) -> str:
        """The answer."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._places:
                while True:
                    with contextlib.suppress(ConnectionLost, ConnectionClosed, OSError):
                        return await self._ask(id, message)
                    await anyio.sleep(PAUSE)
        except TimeoutError:
            raise LinkDown(f"the journal of deferred tasks has not answered within {ANSWER_SECONDS:g} s; it may have the task") from None

    async def _ask(self, id: str, message: bytes) -> str:
        connection = await self._connection()
        answer: asyncio.Future[str] = self._worker.loop.create_future()
        self._waiting[id] = answer
        try:
            await connection.send(message)
            return await answer
        finally:
            del self._waiting[id]

    async def _connection(self) -> Connection:
        if self._dialling is None or (self._dialling.done() and not _is_open(self._dialling)):
            # In a context of its own: the connection lives on when the operation that needs it first is over.
            self._dialling = self._worker.loop.create_task(self._dial(), name="dial the journal", context=self._worker.sandbox.outside())
        return await asyncio.shield(self._dialling)

    async def _dial(self) -> Connection:
        connection = await connect(f"frame+unix://{self._worker.inner_paths[JOURNAL]}", handler=self, timeout=ANSWER_SECONDS)
        connection.operates_for = None  # answers are for operations that wait for them
        return connection

    def on_message(self, connection: Connection, message: bytes) -> None:
        id, kept, kind, text = decode(message)
        answer = self._waiting.get(id)
        if answer is None or answer.done():
            return
        if kind:
            answer.set_exception(Busy(text) if kind == "busy" else LaramanError(text))
        else:
            answer.set_result(kept)

    def on_close(self, connection: Connection) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost("the journal has gone"))


def _is_open(dialling: asyncio.Task[Connection]) -> bool:
    return not dialling.cancelled() and dialling.exception() is None and dialling.result().error is None
