"""The two kinds of connections that a business process keeps to a gateway; both are Links.

A MainSocket is registered for events and hands them over. A TaskSocket carries commands, and requests with their answers: the gateway answers
in the order it was asked, so requests are sent without waiting for each other, and an answer belongs to the oldest that has none yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from laraman.errors import Busy, ConnectionClosed, ConnectionLost, LinkDown, LocalProtocolError, RemoteProtocolError
from laraman.gateway.handlers import Closed, Message, Opened, closed, opened
from laraman.gateway.peer import hello, registered
from laraman.net.link import Backoff, Link, State
from laraman.protocols.netsvr import EXTENSIONS, Command, Netsvr, Packet
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.gateway.peer import Peer
    from laraman.net.connection import Connection

logger = logging.getLogger("uvicorn.error")

#: A gateway that was restarted has its workers back within seconds, however long it was away.
BACKOFF = Backoff(base=0.25, cap=3.0)
#: Seconds between RegisterResp and Unregister of another connection in which a foreign gateway may not have begun to use the new one, and
#: seconds in which events may come after the answer to Unregister.
ROTATION_SECONDS, GRACE_SECONDS = 0.5, 0.1

_OPEN, _CLOSE, _TRANSFER, _UNREGISTER = Command.CONN_OPEN, Command.CONN_CLOSE, Command.TRANSFER, Command.UNREGISTER


def _heartbeat(peer: Peer, text: bytes) -> tuple[float, bytes] | None:
    return (peer.config.heartbeat_interval_millisecond / 1000, text) if text else None


class MainSocket:
    """Registered for the events of one gateway, again after every loss. ``put`` takes an Opened, Message or Closed.

    What ``put`` returns is awaited before more is read. ``bus`` is what Message.reply sends with.
    """

    def __init__(self, peer: Peer, put: Callable[[Any], Awaitable[None] | None], bus: Any = None) -> None:
        config = peer.config
        self.link = Link(
            f"netsvr://{peer.worker_addr}",
            name=f"gateway {peer.worker_addr} events",
            protocol=lambda: Netsvr("business", heartbeat=peer.worker_heartbeat),
            on_message=self._receive,
            on_up=peer.is_back,
            on_down=self._lost,
            handshake=self._register,
            heartbeat=_heartbeat(peer, peer.worker_heartbeat),
            connect_timeout=config.connect_timeout,
            backoff=BACKOFF,
        )
        self.link.operates = False  # an event becomes an operation where it is handled, in its lane
        peer.links.append(self.link)
        #: Whether the gateway speaks the extensions: an answer to Register means that events come here from now on.
        self.extended = False
        self._peer = peer
        self._put = put
        self._bus = bus
        self._conn_id = ""
        self._leaving = False
        self._left: asyncio.Event | None = None
        self._suspicious = True

    @property
    def tried(self) -> bool:
        """Whether the first attempt is over, well or not."""
        return self.link.state is State.UP or self.link.error is not None

    async def _register(self, connection: Connection) -> None:
        if self._leaving:
            raise ConnectionClosed("this worker is stopping")
        connection.protocol.dialect = dialect = await self._peer.find_dialect()
        connection.send_nowait(hello(self._peer.config, self._peer.config.events, dialect))
        answer = registered(await connection.receive())
        self.extended = bool(answer.features & EXTENSIONS)
        if self.extended:
            self._peer.foreign = False
        self._conn_id = answer.conn_id
        self._suspicious = True

    def _receive(self, link: Link, packet: Packet) -> Awaitable[None] | None:
        command, body = packet
        if command is _UNREGISTER:
            self._lost(link, None)
        elif body is None:
            self._warn("a %s whose body is no protobuf was dropped", command.name)
        elif command is _TRANSFER or command is _OPEN or command is _CLOSE:
            if self._suspicious:
                self._look_at(body)
            return self._put(self._event(command, body))
        return None

    def _event(self, command: Command, body: Any) -> Opened | Message | Closed:
        if command is _TRANSFER:
            return Message(
                uniq_id=body.uniq_id,
                customer_id=body.customer_id,
                session=body.session,
                topics=tuple(body.topics),
                data=body.data,
                binary=body.binary,
                bus=self._bus,
            )
        return closed(body) if command is _CLOSE else opened(body)

    def _look_at(self, body: Any) -> None:
        """Once per connection: nothing can be sent to a client whose id does not say that it is this gateway's."""
        self._suspicious = False
        if self._peer.prefixes and body.uniq_id[:12] not in self._peer.prefixes:
            self._warn("its uniqIds begin with %s, not with its address: set prefix, or nothing reaches its clients", body.uniq_id[:12])

    def _warn(self, text: str, *arguments: Any) -> None:
        logger.warning(f"Link %s: {text}", self.link.name, *arguments)

    def _lost(self, link: Link, error: BaseException | None) -> None:
        if self._left is not None:
            self._left.set()

    async def leave(self, replaced: bool) -> None:
        """Unregister, and read on for as long as events may still come. ``replaced``: another connection has just been registered in its place."""
        self._leaving = True
        if self.link.state is not State.UP:
            return
        if replaced and not self.extended:
            await anyio.sleep(ROTATION_SECONDS)
        self._left = asyncio.Event()
        with contextlib.suppress(LinkDown, Busy, ConnectionClosed, ConnectionLost), anyio.move_on_after(self._peer.config.send_receive_timeout):
            self.link.send_nowait(Packet(_UNREGISTER, pb.UnRegisterReq(conn_id=self._conn_id)))
            await self._left.wait()
        await anyio.sleep(GRACE_SECONDS)


# Commands -------------------------------------------------------------------------------------------------------------------------


class Question:
    """A request that is answered."""

    __slots__ = ("packet", "reply")

    def __init__(self, packet: Packet, reply: asyncio.Future[Any]) -> None:
        self.packet = packet
        self.reply = reply


class Commands(Netsvr):
    """The codec of one connection for commands. ``asked`` are the questions that were sent on it and have no answer yet."""

    __slots__ = ("_limit", "asked")

    def __init__(self, heartbeat: bytes, limit: int) -> None:
        """``limit`` is the size of the largest frame that the gateway takes."""
        super().__init__("business", heartbeat=heartbeat)
        self.asked: deque[Question] = deque()
        self._limit = limit

    def send(self, message: Packet | bytes | Question) -> bytes:
        if type(message) is Question:
            if message.reply.done():  # given up before its turn came
                return b""
            try:
                data = self.send(message.packet)
            except LocalProtocolError as exc:
                message.reply.set_exception(exc)
                return b""
            self.asked.append(message)
            return data
        data = super().send(message)  # type: ignore[arg-type]
        if len(data) - 4 > self._limit:
            raise LocalProtocolError(f"a frame of {len(data) - 4} bytes is more than the {self._limit} that a gateway takes")
        return data


class TaskSocket:
    """Carries commands to one gateway. Dialled when ``start`` is called, or with the first command.

    While the gateway is away, calls wait until ``send_receive_timeout`` seconds after it went; later ones raise LinkDown at once. With the
    overflow policy "error" they always do, with "drop_oldest" one-way commands are queued. A call that had to wait gets as much time again.
    """

    def __init__(self, peer: Peer, spawn: Callable[[Callable[[], Awaitable[None]]], None], number: int = 0) -> None:
        """``spawn`` runs an async function for as long as the process has work."""
        config = peer.config
        self._peer = peer
        self._spawn = spawn
        self._timeout = config.send_receive_timeout
        self._idle = config.max_idle_time
        self._loop = asyncio.get_running_loop()
        self._asked: deque[Question] = deque()
        self._up = asyncio.Event()
        self._trust = asyncio.Lock()
        self._started = False
        self._heard = self._down_since = 0.0
        #: Whether the gateway speaks the extensions; known while the link is up.
        self.extended = False
        self.link = Link(
            f"netsvr://{peer.task_addr}",
            name=f"gateway {peer.task_addr} commands{f' {number + 1}' if number else ''}",
            protocol=self._codec,
            on_message=self._receive,
            on_up=self._on_up,
            on_down=self._on_down,
            handshake=self._greet,
            heartbeat=_heartbeat(peer, peer.task_heartbeat),
            connect_timeout=config.connect_timeout,
            backoff=BACKOFF,
            queue=config.queue,
            overflow=config.overflow,
        )
        self.link.operates = False  # an answer belongs to the operation that has asked
        peer.links.append(self.link)

    # Calls -----------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Dial, and keep the connection. Raises ConnectionClosed when the process has no more work."""
        if not self._started:
            self._down_since = self._loop.time()
            try:
                self._spawn(self.link.run)
            except RuntimeError:  # the tasks of a worker that stops are over
                raise ConnectionClosed(f"link {self.link.name} cannot begin: this worker has stopped") from None
            self._started = True

    async def send(self, packet: Packet) -> None:
        """Send a command that is not answered. Raises LinkDown, Busy, ConnectionLost, ConnectionClosed or LocalProtocolError."""
        if not self._up.is_set() or self._loop.time() - self._heard > self._idle:
            await self._ready(queues=self._peer.config.overflow == "drop_oldest")
        await self._hand_over(packet)

    async def ask(self, packet: Packet) -> Any:
        """Send a request and return the message of its answer. Raises what ``send`` raises, TimeoutError and RemoteProtocolError."""
        await self._ready(queues=False)
        return await self._exchange(packet, self._timeout)

    async def ready(self) -> None:
        """Return when the gateway can be talked to, and ``extended`` is known. Raises LinkDown or ConnectionClosed."""
        await self._ready(queues=False)

    async def _hand_over(self, message: Packet | Question) -> None:
        try:
            self.link.send_nowait(message)
        except Busy:
            if self._peer.config.overflow != "wait":
                raise
            await self.link.send(message, self._timeout)

    async def _exchange(self, packet: Packet, seconds: float) -> Any:
        question = Question(packet, self._loop.create_future())
        try:
            async with asyncio.timeout(seconds):
                await self._hand_over(question)
                return await question.reply
        except TimeoutError:
            # The answer may still come, and would be taken for that of the next question.
            text = f"no answer to {packet.command.name} within {seconds:g} s"
            self._drop(ConnectionLost(text))
            raise TimeoutError(f"gateway {self._peer.task_addr}: {text}") from None

    async def _ready(self, queues: bool) -> None:
        self.start()
        if not self._up.is_set():
            if queues:
                return
            await self._wait_up()
        if self._loop.time() - self._heard > self._idle:
            await self._try()

    async def _wait_up(self) -> None:
        if self.link.state in (State.CLOSING, State.CLOSED):
            raise ConnectionClosed(f"link {self.link.name} is closed")
        left = self._down_since + self._timeout - self._loop.time()
        if left > 0:
            with anyio.move_on_after(left):
                while self.link.error is None and not self._up.is_set():  # not tried yet, and nobody tells when a first attempt fails
                    await anyio.sleep(0.01)
                if self._peer.config.overflow != "error":
                    await self._up.wait()
        if not self._up.is_set():
            raise LinkDown(f"gateway {self._peer.task_addr} is down: {self.link.error or self.link.state}")

    async def _try(self) -> None:
        """Nothing was heard for long: see whether the gateway still answers. One asks for all; half of the time is left to connect anew."""
        async with self._trust:
            if self._up.is_set() and self._loop.time() - self._heard > self._idle:
                begun = self._loop.time()
                with contextlib.suppress(TimeoutError, ConnectionLost):
                    await self._exchange(Packet(Command.UNIQ_ID_COUNT), self._timeout / 2)
                if not self._up.is_set():
                    self._down_since = begun
        if not self._up.is_set():
            await self._wait_up()

    # The link --------------------------------------------------------------------------------------------------------------------

    def _codec(self) -> Commands:
        codec = Commands(self._peer.task_heartbeat, self._peer.config.max_size)
        self._asked = codec.asked
        return codec

    async def _greet(self, connection: Connection) -> None:
        connection.protocol.dialect = dialect = await self._peer.find_dialect()
        self.extended = await self._peer.speaks_extensions()
        # A gateway that hangs is still connected to by its kernel: only an answer shows that it is there.
        connection.send_nowait(hello(self._peer.config, 0, dialect) if self.extended else Packet(Command.UNIQ_ID_COUNT))
        try:
            answer = await connection.receive()
        except ConnectionLost as exc:
            hint = "secret is set, but it may be no gateway of laraman's" if self._peer.config.secret else "it may not be its port for commands"
            raise ConnectionLost(f"{exc} ({hint})") from exc
        if self.extended:
            registered(answer)
        else:
            self._peer.foreign = True

    def _on_up(self, link: Link) -> None:
        self._peer.is_back(link)
        self._heard = self._loop.time()
        self._up.set()

    def _on_down(self, link: Link, error: BaseException | None) -> None:
        if self._up.is_set():
            self._up.clear()
            self._down_since = self._loop.time()
        for question in self._asked:
            if not question.reply.done():
                question.reply.set_exception(ConnectionLost(f"gateway {self._peer.task_addr}: {error or 'closed'}"))
        self._asked.clear()

    def _drop(self, error: ConnectionLost) -> None:
        """Nothing more goes over this connection. One that is only being made has done nothing wrong."""
        if self._up.is_set():
            self._up.clear()
            self._down_since = self._loop.time()
            self.link.drop(error)

    def _receive(self, link: Link, packet: Packet) -> None:
        self._heard = self._loop.time()
        command, message = packet
        asked = self._asked
        if not asked or asked[0].packet.command is not command:
            self._drop(ConnectionLost(f"the gateway answered {command.name}, which was not the question"))
            return
        reply = asked.popleft().reply
        if reply.done():
            return  # nobody waits any more
        if message is None:
            reply.set_exception(RemoteProtocolError(f"gateway {self._peer.task_addr}: the answer to {command.name} is no protobuf"))
        else:
            reply.set_result(message)
