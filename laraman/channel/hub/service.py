"""The handler of the worker "hub": the sockets and the clock of `Core`, and the journal of its queues.

What one turn of the loop brings is worked on before anything is written: then the journal is, once, and each client gets what there is for it in one
piece.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman.channel.hub.clients import Client
from laraman.channel.hub.core import Core
from laraman.channel.hub.journal import Journal
from laraman.channel.hub.locks import RETURN
from laraman.channel.hub.records import put_record
from laraman.errors import ConnectionLost, RemoteProtocolError
from laraman.net.connection import Connection
from laraman.protocols.hub import Hub as Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laraman.net.bind import Bind
    from laraman.protocols.hub import Message

logger = logging.getLogger("uvicorn.error")

#: Seconds between two looks at the clock.
TICK = 0.1
#: Bytes written and not read from which on a client is full, from which on it is not heard either, because it asks and does not read the answers, and
#: from which on it is sent away.
FULL, DEAF, MOST = 1024 * 1024, 8 * 1024 * 1024, 256 * 1024 * 1024
#: The part of a stop's time in which the server's workers, which stop too, may still say something.
WORKERS_PART = 2 / 3
#: Seconds of a stop in which what was said last is read.
FLUSH = 1.0
#: Directory of the journal, in the state directory.
JOURNAL = "hub"


class Member(Connection):
    """One connection. Its frames are not operations: they are passed on. ``unheard`` are those that come when it has been sent what it is owed."""

    __slots__ = ("client", "unheard")

    handler: Hub
    protocol: Wire

    def __init__(self, hub: Hub, worker: Any) -> None:
        super().__init__(Wire(), hub, worker, write_timeout=worker.config.timeout_write, write_buffer=FULL)
        self.operates_for = None
        self.client = Client()
        self.unheard: Sequence[Message] = ()

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self.error is not None:
            return
        try:
            messages = self.protocol.receive_data(data)
        except RemoteProtocolError as exc:
            self._refuse(exc)
            return
        self.messages_in += len(messages)
        self.worker.requests += len(messages)
        self._hear([*self.unheard, *messages] if self.unheard else messages)

    def _hear(self, messages: Sequence[Message]) -> None:
        try:
            self.unheard = self.handler.heard(self.client, messages)
        except RemoteProtocolError as exc:
            self._refuse(exc)
        else:
            if self.unheard:
                self.pause()

    def go_on(self) -> None:
        """It has been sent what it is owed, and reads."""
        if self.error is None and self.unheard:
            self._hear(self.unheard)
        if not self.unheard:
            self.resume()

    def write(self, frames: list[bytes]) -> None:
        data = b"".join(frames)
        self.bytes_out += len(data)
        self.messages_out += len(frames)
        self.transport.write(data)
        unread = self.transport.get_write_buffer_size() if self.writing_paused else 0
        if unread > MOST:
            logger.warning("%s: %d bytes of what it has asked for are not read, the connection is closed", self, unread)
            self.abort(ConnectionLost("it does not read"))
        elif unread > DEAF:
            self.pause()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.client.full = True
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.handler.drained(self)
        self.go_on()

    def row(self) -> dict[str, Any]:
        return {**super().row(), "name": str(self.client)}


class Hub:
    """``core`` is told what comes, and what it says is done, once in a turn of the loop."""

    core: Core

    def on_start(self, worker: Any) -> None:
        """Take over the jobs that the journal has."""
        self._loop: asyncio.AbstractEventLoop = worker.loop
        self._members: dict[Client, Member] = {}
        self._flushing = self._unwritable = False
        directory = Path(worker.state_path, JOURNAL)
        now = self._loop.time()
        closed_until = 0.0
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:  # the one before has left jobs, or holders of locks, or was killed
            closed_until = now + RETURN
        except OSError as exc:  # there is much that can be done without
            logger.error("Hub: no journal in %s, nothing can be put into queues: %s", directory, exc.strerror)
        self.core = Core(limit=worker.config.channel_queue, used=time.time_ns() // 1000, closed_until=closed_until)
        self._journal = Journal(directory)
        jobs = self._journal.replay()
        for segment, record in jobs:
            self.core.queues.restore(record.number, record.queue, record.key, record.data, segment)
        if jobs:
            logger.info("Hub: %d jobs are in the queues", len(jobs))
        self._timer = self._loop.call_later(TICK, self._tick)

    def connection(self, worker: Any, bind: Bind) -> Member:
        return Member(self, worker)

    def on_connect(self, member: Member) -> None:
        self._members[member.client] = member

    def on_close(self, member: Member) -> None:
        if self._members.pop(member.client, None) is not None:
            self.core.lost(member.client, self._loop.time())
            self._flush_soon()

    # One turn --------------------------------------------------------------------------------------------------------------------

    def heard(self, client: Client, messages: Sequence[Message]) -> Sequence[Message]:
        """Those that are left. Raises RemoteProtocolError."""
        try:
            return self.core.receive(client, messages, self._loop.time())
        finally:
            self._flush_soon()

    def drained(self, member: Member) -> None:
        """It has read what was sent."""
        self.core.resume(member.client, self._loop.time())
        self._flush_soon()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        self.core.tick(self._loop.time())
        self._write_again()
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        core = self.core
        if core.queues.unanswered:
            self._take_down()
        while core.outbox.dirty:
            clients, core.outbox.dirty = core.outbox.dirty, []
            for client in clients:
                frames, client.out = client.out, []
                client.owed = 0
                member = self._members.get(client)
                if member is None or member.error is not None:
                    continue
                member.write(frames)
                if member.writing_paused:
                    continue
                if client.full:
                    core.resume(client, self._loop.time())
                if member.unheard:
                    self._loop.call_soon(member.go_on)

    def _take_down(self) -> None:
        """What has been put and done."""
        queues = self.core.queues
        try:
            segment = self._write(queues.records) if queues.records else 0
        except OSError as exc:
            queues.not_written(exc.strerror or str(exc))
        else:
            self._journal.release(job.segment for job in queues.written(segment, self._loop.time()))

    def _write(self, records: list[bytes]) -> int:
        """As the journal's; that it cannot is said once, and once that it can."""
        try:
            segment = self._journal.write(records)
        except OSError as exc:
            if not self._unwritable:
                self._unwritable = True
                logger.error("Hub: the journal in %s cannot be written: %s", self._journal.directory, exc.strerror)
            raise
        if self._unwritable:
            self._unwritable = False
            logger.info("Hub: the journal in %s can be written again", self._journal.directory)
        return segment

    def _write_again(self) -> None:
        """Let the oldest file of the journal go, when that has become too large for the jobs that are left."""
        queues, journal = self.core.queues, self._journal
        oldest = journal.outgrown(queues.size)
        if not oldest:
            return
        jobs = [job for job in queues.jobs() if job.segment == oldest]
        try:
            segment = self._write([put_record(job.number, job.queue.name, job.key, job.data) for job in jobs])
        except OSError:
            return
        for job in jobs:
            job.segment = segment
        journal.release([oldest] * len(jobs))

    # The stop --------------------------------------------------------------------------------------------------------------------

    async def on_drain(self, worker: Any, deadline: float | None) -> None:
        """When the whole server stops, its workers may have something to say until they are gone."""
        if worker.stop_reason == "stop":
            left = float("inf") if deadline is None else (deadline - self._loop.time()) * WORKERS_PART
            await self._until(lambda: not any(client.slot >= 0 for client in self._members), left)
        for member in tuple(self._members.values()):
            member.close(1001)
        await self._until(lambda: not self._members, FLUSH)

    async def _until(self, condition: Any, seconds: float) -> None:
        end = self._loop.time() + seconds
        while not condition() and self._loop.time() < end:
            await asyncio.sleep(0.01)

    def on_stop(self, worker: Any) -> None:
        self._timer.cancel()
        self._flush()
        self._journal.close()
        if not self.core.locks.held:
            with suppress(OSError):  # jobs are in it
                self._journal.directory.rmdir()
