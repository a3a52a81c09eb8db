"""The handler of the worker "journal": keeps the file of deferred tasks, and gives them to the task workers.

There is one process of it, which a reload leaves alone. What the others defer in one turn of its loop is written in one transaction, in a thread, and
answered when that is on disk. Task workers are given no more at a time than all of them but one could run, so that who waits for a task finds one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from laraman.errors import Busy, LaramanError, LinkDown, RemoteProtocolError, TaskError
from laraman.net.connection import Connection
from laraman.net.door import Door
from laraman.net.encoding import decode, encode
from laraman.net.link import Backoff
from laraman.protocols.framing import Frame
from laraman.tasks import NAME
from laraman.tasks.journal import FAILED, RUNNING, WAITING, Deferred, Journal, Order
from laraman.tasks.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.bind import Bind

logger = logging.getLogger("uvicorn.error")

#: Up to so many seconds, twice as many after each attempt, between two attempts; at least half of it.
PAUSE = Backoff(base=2.0, cap=3600.0, random=lambda: 0.5 + random.random() / 2)
#: Seconds until a task that could not be begun, or a file that could not be written, is tried again.
SOON = 1.0
#: Seconds between two looks at what others may have changed in the file.
LOOK = 5.0
#: The part of a stop's time in which the server's processes, which stop too, may still defer.
MEMBERS_PART = 2 / 3
#: Orders that may wait for the file before no more is read.
MAX_ORDERS = 1000


class Member(Connection):
    """A process that defers. What it says is no operation."""

    __slots__ = ()

    def __init__(self, keeper: Keeper, worker: Any) -> None:
        super().__init__(Frame(), keeper, worker, write_timeout=worker.config.timeout_write)
        self.operates_for = None


class Keeper:
    def on_start(self, worker: Any) -> None:
        """Raises BootError where the file cannot be had."""
        self._worker = worker
        self._attempts: int = worker.config.journal_attempts
        self._places = max(1, worker.config.task_workers - 1)
        self._pool = Pool(worker.inner_paths[NAME], self._places, self._places, worker)
        self._journal = Journal(Path(worker.state_path, worker.unfinished), worker.config.journal_queue)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laraman-journal")
        self._orders: list[tuple[Order, asyncio.Future[Any]]] = []
        self._ordered, self._changed = asyncio.Event(), asyncio.Event()
        self._held: set[Member] = set()
        self._running: set[str] = set()
        self._draining = False
        self._opened = worker.loop.time()
        self._listening = worker.binds[0].socket.dup()
        self._listening.setblocking(False)
        self._moved = 0
        worker.links.add(self)
        worker.tasks.start_soon(self._write, name="journal")
        worker.tasks.start_soon(self._feed, name="deferred tasks")
        logger.info("Journal %s: %d tasks wait, %d have failed", self._journal.path, *map(self._journal.counts.__getitem__, (WAITING, FAILED)))

    async def on_drain(self, worker: Any, deadline: float | None) -> None:
        """Begin no more. While what runs is finished others may defer: at a stop until they are gone, at a restart their successors too."""
        self._draining = True
        door = Door(worker, lambda: Member(self, worker))
        door.open(self._listening)
        now = worker.loop.time()
        until = float("inf") if deadline is None else now + (deadline - now) * MEMBERS_PART
        while self._running or (worker.stop_reason == "stop" and worker.connections and worker.loop.time() < until):
            await asyncio.sleep(0.01)
        door.close()
        for member in tuple(worker.connections):
            member.close(1001)

    def on_stop(self, worker: Any) -> None:
        self._thread.shutdown()
        self._journal.close()
        worker.links.discard(self)

    # What others defer -----------------------------------------------------------------------------------------------------------

    def connection(self, worker: Any, bind: Bind) -> Member:
        return Member(self, worker)

    def on_message(self, member: Member, message: bytes) -> None:
        try:
            deferred = _deferred(message)
        except RemoteProtocolError as exc:
            logger.warning("Journal: %s is let go: %s", member, exc)
            member.close(1002)
            return
        self._order(self._journal.add, deferred).add_done_callback(lambda future: self._answer(member, deferred, future))
        if len(self._orders) > MAX_ORDERS:
            member.pause()
            self._held.add(member)

    def _answer(self, member: Member, deferred: Deferred, future: asyncio.Future[Any]) -> None:
        if future.cancelled() or member.error is not None:
            return
        error = future.exception()
        kind = "" if error is None else "busy" if isinstance(error, Busy) else "error"
        with contextlib.suppress(LaramanError):  # it does not read, and will ask again
            member.send_nowait(encode([deferred.id, "" if error else future.result(), kind, str(error or "")]))
        self._changed.set()

    # The file --------------------------------------------------------------------------------------------------------------------

    def _order(self, method: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._worker.loop.create_future()
        self._orders.append((Order(method, arguments), future))
        self._ordered.set()
        return future

    async def _write(self) -> None:
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            given, self._orders = self._orders, []
            orders = [order for order, _ in given]
            try:
                results = await self._worker.loop.run_in_executor(self._thread, self._journal.carry_out, orders)
            except sqlite3.Error as exc:
                logger.error("The journal %s cannot be written: %s", self._journal.path, exc)
                results = [LaramanError(f"the journal cannot be written: {exc}")] * len(given)
                if not self._journal.there:
                    self._worker.retire("its file has been removed")  # the next one makes it anew
            for (_, future), result in zip(given, results, strict=True):
                _settle(future, result)
            while self._held and len(self._orders) <= MAX_ORDERS:
                self._held.pop().resume()

    async def _must(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Until it is written."""
        while True:
            try:
                return await self._order(method, *arguments)
            except LaramanError:
                await asyncio.sleep(SOON)

    # What is due -----------------------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        while not self._draining:
            self._changed.clear()
            due: float | None = None
            free = self._places - len(self._running)
            if free > 0:
                taken, due = await self._must(self._journal.take, free, time.time())
                for deferred in taken:
                    self._begin(deferred)
                if len(taken) == free:
                    due = None
            seconds = LOOK if due is None else min(LOOK, due - time.time())
            with anyio.move_on_after(seconds) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                await self._must(self._journal.count)

    def _begin(self, deferred: Deferred) -> None:
        self._running.add(deferred.id)
        self._worker.in_flight += 1
        self._worker.tasks.start_soon(self._attempt, deferred, name=f"deferred task {deferred.task}")

    async def _attempt(self, deferred: Deferred) -> None:
        try:
            if deferred.attempts > self._attempts:
                await self._fail(deferred, "the server ended while it ran")
                return
            await self._pool.run(deferred.task, deferred.request)
        except (LinkDown, Busy) as exc:  # it was not begun
            await self._must(self._journal.again, deferred.id, deferred.attempts - 1, time.time() + SOON, str(exc))
        except TaskError as exc:
            await self._try_again(deferred, exc.traceback or str(exc), str(exc))
        except LaramanError as exc:
            await self._try_again(deferred, str(exc), str(exc))
        else:
            await self._must(self._journal.done, deferred.id)
        finally:
            self._running.discard(deferred.id)
            self._worker.in_flight -= 1
            self._worker.requests += 1
            self._moved += 1
            self._changed.set()

    async def _try_again(self, deferred: Deferred, error: str, line: str) -> None:
        if deferred.attempts >= self._attempts:
            await self._fail(deferred, error)
            return
        pause = PAUSE.delay(deferred.attempts - 1)
        what = "Deferred task %s (%s) failed, attempt %d of %d; the next is in %.1f s: %s"
        logger.warning(what, deferred.task, deferred.id, deferred.attempts, self._attempts, pause, line)
        await self._must(self._journal.again, deferred.id, deferred.attempts, time.time() + pause, error)

    async def _fail(self, deferred: Deferred, error: str) -> None:
        what = "Deferred task %s (%s) has failed and is kept in %s as failed, after %d attempts: %s"
        logger.error(what, deferred.task, deferred.id, self._journal.path, deferred.attempts, error)
        await self._must(self._journal.failed, deferred.id, error)

    def row(self) -> dict[str, Any]:
        """What ``laraman connections`` shows: ``queued`` is what waits, ``failures`` what is kept as failed, ``messages_out`` counts the attempts."""
        counts = self._journal.counts
        return {
            "pid": os.getpid(),
            "worker": self._worker.name,
            "slot": self._worker.slot,
            "direction": "out",
            "protocol": "sqlite",
            "local": "",
            "peer": str(self._journal.path),
            "state": "UP",
            **dict.fromkeys(("bytes_in", "bytes_out", "messages_in")),
            "messages_out": self._moved,
            "age": round(self._worker.loop.time() - self._opened, 3),
            "name": "deferred tasks",
            "queued": counts[WAITING],
            "running": counts[RUNNING],
            "failures": counts[FAILED],
        }


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _deferred(message: bytes) -> Deferred:
    """Raises RemoteProtocolError."""
    match decode(message):
        case [str(id), None | str() as key, str(task), bytes(request), float(due), float(deferred)]:
            return Deferred(id, key, task, request, due, 0, deferred)
        case _:
            raise RemoteProtocolError("it is no deferred task")
