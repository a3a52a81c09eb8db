"""Links: outbound connections that are kept.

States, and the steps there are between them:

    DOWN        no connection                   time to dial -> DIALING; closed -> CLOSED
    DIALING     resolving and connecting        connected -> HANDSHAKE; refused, no answer in time -> DOWN; closed -> CLOSED
    HANDSHAKE   both sides introduce themselves done -> UP; failed, no answer in time -> DOWN; closed -> CLOSING
    UP          messages go both ways           lost, or the peer is silent for too long -> DOWN; closed -> CLOSING
    CLOSING     what is queued is sent          sent, or a second later -> CLOSED
    CLOSED      for good

Between DOWN and DIALING a link waits for a random time that grows with the failures behind it: when a peer comes back, its many
clients must not all come in the same moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import anyio

from laraman import events
from laraman.errors import Busy, ConfigError, ConnectionClosed, ConnectionLost, IllegalTransition, LinkDown, LocalProtocolError
from laraman.events import aemit
from laraman.net.connection import Connection, name_text
from laraman.net.current import current_worker as current_worker
from laraman.net.outbound import FLUSH_SECONDS, Route
from laraman.net.session import Kept, KeptWebSocket, Session
from laraman.protocols.websocket import Ping
from laraman.sandbox.operation import LINK

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from anyio.abc import TaskStatus

    from laraman.protocols import Protocol

logger = logging.getLogger("uvicorn.error")

#: Seconds in which those who are told that a link is up or down may keep it.
TELL_SECONDS = 5.0


class State(StrEnum):
    DOWN = "DOWN"
    DIALING = "DIALING"
    HANDSHAKE = "HANDSHAKE"
    UP = "UP"
    CLOSING = "CLOSING"
    CLOSED = "CLOSED"


STEPS: dict[State, frozenset[State]] = {
    State.DOWN: frozenset({State.DIALING, State.CLOSED}),
    State.DIALING: frozenset({State.HANDSHAKE, State.DOWN, State.CLOSED}),
    State.HANDSHAKE: frozenset({State.UP, State.DOWN, State.CLOSING}),
    State.UP: frozenset({State.DOWN, State.CLOSING}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt: anything up to ``base * 2 ** failures`` seconds, but no more than ``cap`` ("full jitter").

    ``random`` returns a float in [0, 1).
    """

    base: float = 0.5
    cap: float = 30.0
    random: Callable[[], float] = random.random

    def ceiling(self, failures: int) -> float:
        """The longest wait, in seconds, after this many failures in a row."""
        return min(self.cap, self.base * 2.0 ** min(failures, 60))

    def delay(self, failures: int) -> float:
        """A wait, in seconds, after this many failures in a row."""
        return self.ceiling(failures) * self.random()


class Link:
    """An outbound connection that is kept: dialled, greeted, kept alive, dialled again when it is lost.

        feed = laraman.link("frame://127.0.0.1:9100", on_message=receive, heartbeat=(5, b"ping"), timeout=15)

        @laraman.on(WorkerStarting)
        async def connect(event):
            event.worker.tasks.start_soon(feed.run)      # or: await event.worker.tasks.start(feed.run)

    ``on_message(link, message)``, ``on_up(link)`` and ``on_down(link, error)`` may be plain or ``async``; what they raise is logged and changes
    nothing. Messages are handed over one after another; while they are not taken, the peer is not read. Each such call is an operation of the
    worker; under ``--isolation serial`` it waits for no other, which may be waiting for what the link brings. ``handshake(connection)`` is ``async``
    and talks with ``connection.send`` and ``connection.receive``; the link is UP when it returns, and tries anew when it raises or takes
    longer than ``connect_timeout`` seconds. ``heartbeat`` is a number of seconds and the message to send so often, whatever handlers do.
    ``timeout`` is the number of seconds without a byte from the peer after which it is taken for dead (None: the kernel's keep-alive decides);
    the server of a websocket is asked three times in it, with pings, unless there is a ``heartbeat``.
    ``protocol`` makes the codec of each connection, in place of the one that the URL's scheme names. ``ssl``, ``proxy``, ``headers``,
    ``subprotocols``, ``max_message`` and the URLs are those of ``laraman.connect``.

    Up to ``queue`` messages wait while the link is not UP or its peer does not read. When there is no room, ``overflow`` decides: "wait" until
    there is, "drop_oldest", or "error" (Busy, or LinkDown when that is the cause). With ``required`` a worker that does
    ``await worker.tasks.start(link.run)`` is not started before the link is UP; without it the boot does not need the peer.

    Raises ConfigError for an address, protocol or option that cannot be.
    """

    #: False where messages are only passed on, to where they become operations or the answers of operations that wait.
    operates = True

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        protocol: Callable[[], Protocol] | None = None,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        max_message: int | None = None,
        on_message: Callable[[Link, Any], Any] | None = None,
        on_up: Callable[[Link], Any] | None = None,
        on_down: Callable[[Link, BaseException | None], Any] | None = None,
        handshake: Callable[[Connection], Awaitable[Any]] | None = None,
        heartbeat: tuple[float, Any] | None = None,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        backoff: Backoff | None = None,
        queue: int = 1000,
        overflow: str = "wait",
        required: bool = False,
    ) -> None:
        if overflow not in ("wait", "drop_oldest", "error"):
            raise ConfigError(f"link {url!r}: overflow is {overflow!r}, not wait, drop_oldest or error")
        if queue < 1 or connect_timeout <= 0 or (timeout is not None and timeout <= 0) or (heartbeat is not None and heartbeat[0] <= 0):
            raise ConfigError(f"link {url!r}: queue, connect_timeout, timeout and the heartbeat's seconds must be positive")
        self._route = Route(url, protocol, ssl, proxy, headers, subprotocols, max_message)
        self.address = self._route.address
        if heartbeat is None and timeout is not None and self._route.websocket:
            heartbeat = (timeout / 3, Ping())
        self.name = name or str(self.address)
        self.on_message = on_message
        self.on_up = on_up
        self.on_down = on_down
        self.required = required
        self.state = State.DOWN
        #: Why the last connection or attempt ended, and how many have failed since the link was last up for a while.
        self.error: BaseException | None = None
        self.failures = 0
        #: Messages that "drop_oldest" has dropped.
        self.dropped = 0
        self.worker: Any = None
        self._handshake = handshake
        self._heartbeat = heartbeat
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._backoff = backoff or Backoff()
        self._limit = queue
        self._overflow = overflow
        self._queue: deque[Any] = deque()
        self._connection: Connection | None = None
        self._previous: Connection | None = None  # the one before, while its messages are still handled
        self._totals = [0, 0, 0, 0]  # bytes in and out, messages in and out, of all connections before
        self._since = 0.0
        self._scope: anyio.CancelScope | None = None
        self._task_status: TaskStatus[None] | None = None
        self._queued = asyncio.Event()
        self._room = asyncio.Event()
        self._sooner = asyncio.Event()
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Link {self.name} {self.state}>"

    def _step(self, state: State) -> None:
        if state not in STEPS[self.state]:
            raise IllegalTransition(f"link {self.name} cannot go from {self.state} to {state}")
        self.state = state
        self._since = asyncio.get_running_loop().time()

    # Sending ---------------------------------------------------------------------------------------------------------------------

    async def send(self, message: Any, timeout: float = 30.0) -> None:
        """Send ``message``, or queue it until it can be sent. Order is kept.

        With the overflow "wait", waits up to ``timeout`` seconds for room. Messages that were handed to a connection which then died are
        not sent again: whether they arrived cannot be known. Raises ConnectionClosed when the link is closed, Busy or LinkDown when there
        is no room, LocalProtocolError when the protocol does not allow the message and that can be told at once.
        """
        if self._overflow == "wait" and self._is_full():
            with anyio.move_on_after(timeout):
                while self._is_full():
                    self._room.clear()
                    await self._room.wait()
        self.send_nowait(message)

    def send_nowait(self, message: Any) -> None:
        """The same without waiting: "wait" counts as "error"."""
        if self.state in (State.CLOSING, State.CLOSED):
            raise ConnectionClosed(f"link {self.name} is closed")
        connection = self._connection
        up = self.state is State.UP and connection is not None and connection.error is None
        if up and connection is not None and not self._queue and not connection.writing_paused:
            connection.send_nowait(message)
            return
        if self._is_full():
            if self._overflow != "drop_oldest":
                raise Busy(f"{self._limit} messages wait on link {self.name}") if up else LinkDown(f"link {self.name} is down: {self.error}")
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(message)
        self._queued.set()

    def _is_full(self) -> bool:
        return len(self._queue) >= self._limit and self.state not in (State.CLOSING, State.CLOSED)

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the link until it is closed or this task is cancelled. Once per link: CLOSED is for good."""
        if self._scope is not None or self.state is not State.DOWN:
            raise IllegalTransition(f"link {self.name} has been run already")
        self.worker = current_worker.get()
        self._since = asyncio.get_running_loop().time()
        if self.worker is not None:
            self.worker.links.add(self)
        if self.required:
            self._task_status = task_status
        else:
            task_status.started()
        try:
            with anyio.CancelScope() as self._scope:
                await self._keep()
        finally:
            self._end()

    async def close(self) -> None:
        """Send what is queued, for a second at most, and close. Idempotent; returns when the link is CLOSED."""
        if self._scope is None:
            if self.state is State.DOWN:
                self._end()
        else:
            self._scope.cancel()
            await self.closed()

    def drop(self, error: ConnectionLost) -> None:
        """Give the present connection up because of ``error``, and dial anew."""
        if self._connection is not None and self.state in (State.HANDSHAKE, State.UP):
            self._connection.abort(error)

    def retry(self) -> None:
        """Wait no longer than after a first failure: there are signs that the peer is back. Nothing happens while the link is not DOWN."""
        self._sooner.set()

    async def closed(self) -> None:
        """Return when the link is CLOSED."""
        await self._over.wait()

    def _end(self) -> None:
        self._step(State.CLOSED)
        if self._queue:
            logger.warning("Link %s: closed with %d messages unsent", self.name, len(self._queue))
        self._queue.clear()
        if self._previous is not None:
            self._previous.cancel()
        if self.worker is not None:
            self.worker.links.discard(self)
        self._room.set()
        self._over.set()

    async def _keep(self) -> None:
        while True:
            try:
                await self._live_once()
            except Exception as exc:  # whatever a handshake raises: a link is kept
                self._failed(exc)
            self._sooner.clear()
            with anyio.move_on_after(self._backoff.delay(self.failures)):
                await self._sooner.wait()
                await anyio.sleep(self._backoff.delay(0))  # links that come and go would wake each other without a pause
            self.failures += 1

    def _failed(self, exc: BaseException) -> None:
        was_up = self.state is State.UP
        if self.state is not State.DOWN:
            self._step(State.DOWN)
        level = logging.WARNING if was_up or self.error is None else logging.DEBUG  # once, not at each attempt
        self.error = exc
        logger.log(level, "Link %s is down: %s", self.name, exc or type(exc).__name__)

    async def _live_once(self) -> None:
        """Dial, greet, stay. Ends with an exception: the one that says why the link is down."""
        self._step(State.DIALING)
        session = Session(self, self._previous)
        try:
            kind = KeptWebSocket if self._route.websocket else Kept
            connection = await self._route.dial(lambda codec: kind(codec, session, None, "out"), self._connect_timeout)
            self._step(State.HANDSHAKE)
            self._connection = connection
            await self._greet(connection)
            self._step(State.UP)
            await self._stay(connection, session)
        except asyncio.CancelledError:
            if self._connection is not None:
                await self._say_goodbye(self._connection)
            raise
        except Exception as exc:
            if self._connection is not None:
                await self._lose(self._connection, exc)
            raise
        finally:
            session.greeted.set()
            self._count()

    async def _greet(self, connection: Connection) -> None:
        if self._handshake is not None:
            try:
                async with asyncio.timeout(self._connect_timeout) as limit:
                    await self._handshake(connection)
            except TimeoutError:
                if limit.expired():
                    raise TimeoutError(f"the handshake took longer than {self._connect_timeout:g} s") from None
                raise
        if connection.error is not None:
            raise connection.error

    async def _stay(self, connection: Connection, session: Session) -> None:
        begun = asyncio.get_running_loop().time()
        async with anyio.create_task_group() as group:
            group.start_soon(self._pump, connection)
            group.start_soon(self._beat, connection)
            group.start_soon(self._watch, connection)
            logger.info("Link %s is up", self.name)
            await self._tell(events.LinkUp(link=self), self.on_up)
            self._report_started()
            session.greeted.set()
            await connection.wait_closed()
            group.cancel_scope.cancel()
        # A peer that accepts and hangs up at once has not helped; one that stayed for longer than we waited for it has.
        if asyncio.get_running_loop().time() - begun > self._backoff.ceiling(self.failures):
            self.failures = 0
        raise connection.error or ConnectionLost("the connection was lost")

    def _report_started(self) -> None:
        if self._task_status is not None:
            self._task_status.started()
            self._task_status = None

    async def _lose(self, connection: Connection, error: Exception) -> None:
        was_up = self.state is State.UP
        connection.abort()
        self._failed(error)
        if was_up:
            await self._tell(events.LinkDown(link=self, error=error), self.on_down, error)

    async def _say_goodbye(self, connection: Connection) -> None:
        if self.state is State.DOWN:
            return  # it was lost just before, and that is being told
        was_up = self.state is State.UP
        self._step(State.CLOSING)
        with anyio.move_on_after(FLUSH_SECONDS, shield=True):
            if was_up:
                await self._flush(connection)
            connection.close()
            connection.handler.greeted.set()
            await connection.wait_closed()
            await connection.wait_idle()
        connection.cancel()
        if was_up:
            with anyio.move_on_after(FLUSH_SECONDS, shield=True):
                await self._tell(events.LinkDown(link=self, error=None), self.on_down, None)

    async def _flush(self, connection: Connection) -> None:
        with contextlib.suppress(ConnectionLost, ConnectionClosed):
            while self._queue:
                await self._send_oldest(connection)

    async def _tell(self, event: events.Event, callback: Callable[..., Any] | None, *arguments: Any) -> None:
        with anyio.move_on_after(TELL_SECONDS) as scope:
            if callback is not None:
                try:
                    await self._call(callback, *arguments)
                except Exception:
                    logger.exception("Link %s: %r raised", self.name, callback)
            await aemit(event)
        if scope.cancelled_caught:
            logger.warning("Link %s: telling %s took too long and was cut short", self.name, type(event).__name__)

    async def _call(self, callback: Callable[..., Any], *arguments: Any) -> None:
        if self.worker is not None and self.operates:
            await self.worker.sandbox.run(callback, self, *arguments, kind=LINK, subject=self.name)
        else:
            result = callback(self, *arguments)
            if isawaitable(result):
                await result

    # While it is up --------------------------------------------------------------------------------------------------------------

    async def _pump(self, connection: Connection) -> None:
        """Send what is queued."""
        with contextlib.suppress(ConnectionLost, ConnectionClosed):
            while True:
                while self._queue:
                    await self._send_oldest(connection)
                self._queued.clear()
                await self._queued.wait()

    async def _send_oldest(self, connection: Connection) -> None:
        message = self._queue.popleft()
        try:
            await connection.send(message)
        except LocalProtocolError as exc:
            logger.error("Link %s: a queued message was dropped: %s", self.name, exc)
        except BaseException:  # it was not written: ``send`` waits before it writes, not after
            self._queue.appendleft(message)
            raise
        if len(self._queue) < self._limit:
            self._room.set()

    async def _beat(self, connection: Connection) -> None:
        if self._heartbeat is None:
            return
        seconds, message = self._heartbeat
        with contextlib.suppress(ConnectionLost, ConnectionClosed):
            while True:
                await anyio.sleep(seconds)
                if not connection.writing_paused:  # what is under way already shows that we live
                    connection.send_nowait(message)

    async def _watch(self, connection: Connection) -> None:
        """Give a silent peer up. Looks are counted, not seconds, because a loop that was blocked has seen one look's worth of silence, not more."""
        if self._timeout is None:
            return
        looks = 4
        quiet = 0
        seen = connection.bytes_in
        while True:
            await anyio.sleep(self._timeout / looks)
            heard = connection.bytes_in != seen or connection.reading_paused
            seen = connection.bytes_in
            quiet = 0 if heard else quiet + 1
            if quiet == looks:
                connection.abort(ConnectionLost(f"nothing was received for {self._timeout:g} s"))

    # What people see -------------------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            counters = (connection.bytes_in, connection.bytes_out, connection.messages_in, connection.messages_out)
            self._totals = [total + more for total, more in zip(self._totals, counters, strict=True)]
            self._previous = connection if connection.running is not None else None

    def row(self) -> dict[str, Any]:
        """What ``laraman connections`` shows. ``age`` is in seconds since the last change of state, counters are the link's, over all connections."""
        worker, connection = self.worker, self._connection
        bytes_in, bytes_out, messages_in, messages_out = self._totals
        if connection is not None:
            bytes_in, bytes_out = bytes_in + connection.bytes_in, bytes_out + connection.bytes_out
            messages_in, messages_out = messages_in + connection.messages_in, messages_out + connection.messages_out
        return {
            "pid": os.getpid(),
            "worker": "" if worker is None else worker.name,
            "slot": None if worker is None else worker.slot,
            "direction": "out",
            "protocol": self.address.scheme + ("+tls" if self.address.tls else ""),
            "local": "" if connection is None else name_text(connection.local),
            "peer": self.address.path or name_text((self.address.host, self.address.port)),
            "state": str(self.state),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "messages_in": messages_in,
            "messages_out": messages_out,
            "age": round(asyncio.get_running_loop().time() - self._since, 3),
            "name": self.name,
            "queued": len(self._queue),
            "dropped": self.dropped,
            "failures": self.failures,
            "error": None if self.error is None else str(self.error) or type(self.error).__name__,
        }


#: ``laraman.link(...)`` reads better where one is declared.
link = Link
