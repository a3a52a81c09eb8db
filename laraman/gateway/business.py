"""The gateway's worker and task ports: registration, events out, commands in, replies in the order of the requests (spec sections 5, 6 and 15)."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import TYPE_CHECKING, Any

from laraman.gateway.dispatch import Event, Queue
from laraman.gateway.wheel import Watched
from laraman.net.connection import name_text
from laraman.protocols.netsvr import (
    EVENT_CLOSE,
    EVENT_MESSAGE,
    EVENT_OPEN,
    EXTENSIONS,
    REGISTER_TEXTS,
    Command,
    Dialect,
    Netsvr,
    Packet,
    RegisterCode,
    addr_to_prefix,
)
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from laraman.config.gateway import GatewayConfig
    from laraman.errors import ConnectionClosed, ConnectionLost
    from laraman.gateway.client import Client
    from laraman.gateway.commands import Commands
    from laraman.gateway.dispatch import Dispatcher
    from laraman.gateway.metrics import Metrics
    from laraman.gateway.wheel import Wheel

logger = logging.getLogger("uvicorn.error")

#: Messages to browsers after which the loop turns: one read may hold thousands of broadcasts, and what is written leaves with the turn.
MAX_DELIVERIES = 5000
ALL_EVENTS = EVENT_OPEN | EVENT_CLOSE | EVENT_MESSAGE
_COMMANDS = {EVENT_OPEN: Command.CONN_OPEN, EVENT_CLOSE: Command.CONN_CLOSE, EVENT_MESSAGE: Command.TRANSFER}


class Session(Watched):
    """One connection of a business process. ``port`` is "worker", "task" or "both".

    ``registered``: it is given events, those of the mask ``events``; ``conn_id`` stays when it is not any more. ``clients`` counts those whose
    worker connection it is, ``queue`` has the events that it is too slow for. ``extended``: it speaks laraman's extensions.
    """

    __slots__ = ("authorized", "clients", "conn_id", "events", "extended", "port", "queue", "registered", "warned")

    handler: Business
    protocol: Netsvr

    def __init__(self, protocol: Netsvr, handler: Business, worker: Any, port: str, *, authorized: bool, write_timeout: float) -> None:
        super().__init__(protocol, handler, worker, write_timeout=write_timeout)
        self.port = port
        self.authorized = authorized
        self.registered = self.extended = self.warned = False
        self.events = 0
        self.conn_id = ""
        self.clients = 0
        self.queue = Queue()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flush()
        self.go_on()

    def go_on(self) -> None:
        """Carry out more commands, if the replies are read."""
        if not self.writing_paused:
            self.resume()

    def forward(self, client: Client, bit: int, message: Message) -> None:
        """An event, behind those that wait."""
        if self.writing_paused or self.queue.events:
            self.queue.put(Event(client, bit, message, 0.0))
        else:
            self._send_event(bit, message)

    def flush(self, *, all_of_it: bool = False) -> None:
        """Send what waits: as much as the peer reads, or all of it."""
        queue = self.queue
        while queue.events and (all_of_it or not self.writing_paused):
            event = queue.take()
            self._send_event(event.bit, event.message)
        queue.relax()

    def _send_event(self, bit: int, message: Any) -> None:
        if not self.extended or bit == EVENT_OPEN:
            message = self._known(bit, message)
        frame = self.protocol.send(Packet(_COMMANDS[bit], message))
        self.write(frame)
        metrics = self.handler.metrics
        metrics.forwarded += 1
        metrics.forwarded_bytes += len(frame)

    def _known(self, bit: int, message: Any) -> Any:
        """The event as this end knows it."""
        if bit == EVENT_OPEN and self.protocol.dialect is not Dialect.D8:
            return pb.ConnOpenLegacy(
                uniq_id=message.uniq_id,
                raw_query=message.raw_query,
                sub_protocols=message.sub_protocols,
                x_forwarded_for=message.x_forwarded_for,
                x_real_ip=message.x_real_ip,
                remote_addr=message.remote_addr,
            )
        if not self.extended and bit != EVENT_CLOSE:
            message.ClearField("binary" if bit == EVENT_MESSAGE else "sub_protocols")
        return message

    def reply(self, command: Command, message: Message) -> None:
        """One that does not read its replies is not read."""
        self.write(self.protocol.send(Packet(command, message)))
        if self.writing_paused:
            self.pause()

    def write(self, frame: bytes) -> None:
        self.bytes_out += len(frame)
        self.messages_out += 1
        self.transport.write(frame)

    def _close(self, error: ConnectionClosed | ConnectionLost, code: int) -> None:
        """Whatever closes it: it gets no events any more, although the end may take its time."""
        super()._close(error, code)
        self.handler.retire(self)

    def row(self) -> dict[str, Any]:
        return {**super().row(), "queue": len(self.queue.events)}


class Business:
    """Handles the connections of business processes."""

    def __init__(self, config: GatewayConfig, commands: Commands, dispatcher: Dispatcher, metrics: Metrics, wheel: Wheel) -> None:
        self.metrics = metrics
        self._config = config
        self._commands = commands
        self._dispatcher = dispatcher
        self._wheel = wheel
        self._secret = config.secret.encode()
        self._yield_at = MAX_DELIVERIES
        self._single = not config.task_addr
        single = Dialect.D5 if self._single else Dialect.D8
        self._dialect = single if config.dialect == "auto" else Dialect(config.dialect)

    def session(self, worker: Any, scheme: str) -> Session:
        """A connection at the bind of this scheme."""
        config = self._config
        task = scheme == "netsvr-task"
        port = "task" if task else "both" if self._single else "worker"
        heartbeat = (config.task_heartbeat_message if task else config.worker_heartbeat_message).encode()
        protocol = Netsvr("gateway", dialect=self._dialect, port=port, heartbeat=heartbeat, max_size=config.max_size)
        return Session(protocol, self, worker, port, authorized=not self._secret, write_timeout=config.send_deadline)

    # What a connection does -------------------------------------------------------------------------------------------------------

    def on_connect(self, session: Session) -> None:
        session.heard(self._wheel.now)
        self._wheel.set(session, self._config.read_deadline if session.authorized else self._config.handshake_timeout)

    def on_message(self, session: Session, packet: Packet) -> None:
        command, message = packet
        if command is Command.REGISTER:
            self._register(session, message)
        elif not session.authorized:
            self._refuse(session, f"{command.name} before the shared secret")
        elif command is Command.UNREGISTER:
            self._unregister(session, message)
        else:
            reply = self._commands.handle(command, message, session.extended)
            if reply is not None:
                session.reply(command, reply)
            elif message is None:
                self._warn(session, f"the body of {command.name} cannot be decoded")
            elif self.metrics.sent >= self._yield_at:
                self._yield_at = self.metrics.sent + MAX_DELIVERIES
                session.pause()
                asyncio.get_running_loop().call_soon(session.go_on)

    def on_close(self, session: Session) -> None:
        self._wheel.cancel(session)
        self.retire(session)

    def on_deadline(self, session: Session, now: float) -> None:
        if not session.authorized and session.error is None:
            self._refuse(session, f"no shared secret within {self._config.handshake_timeout:g} seconds")
            return
        limit = self._config.read_deadline
        silence = session.silence(now)
        if silence < limit:
            self._wheel.set(session, min(limit / 4, limit - silence))
        elif session.error is None:
            logger.warning("%s: silent for %g seconds, the connection is closed", session, limit)
            session.close(1001)

    # Registration -----------------------------------------------------------------------------------------------------------------

    def _register(self, session: Session, message: Any) -> None:
        if session.port == "task" and not (message is not None and message.features & EXTENSIONS):
            self._refuse(session, "REGISTER on the task port")
        elif message is None:
            self._answer(session, RegisterCode.UNMARSHAL_ERROR)
        elif self._secret and not hmac.compare_digest(message.secret.encode(), self._secret):
            self._answer(session, RegisterCode.INVALID_EVENT)
            self._refuse(session, "wrong shared secret")
        elif session.port != "worker" and message.features & EXTENSIONS and not message.events & ALL_EVENTS:
            session.authorized = session.extended = True
            self._answer(session, RegisterCode.SUCCESS)
        else:
            session.authorized = True
            self._register_events(session, message)

    def _register_events(self, session: Session, message: pb.RegisterReq) -> None:
        if not message.events & ALL_EVENTS:
            self._answer(session, RegisterCode.INVALID_EVENT)
        elif session.conn_id:
            self._answer(session, RegisterCode.DUPLICATE_REGISTER)
        else:
            session.extended = bool(message.features & EXTENSIONS)
            session.events = message.events & ALL_EVENTS
            session.conn_id = _conn_id(session)
            session.registered = True
            self._answer(session, RegisterCode.SUCCESS)  # before the first event
            self._dispatcher.add(session)

    def _answer(self, session: Session, code: RegisterCode) -> None:
        success = code is RegisterCode.SUCCESS
        conn_id = session.conn_id if success else ""
        features = EXTENSIONS if success and session.extended else 0
        session.reply(Command.REGISTER, pb.RegisterResp(code=code, message=REGISTER_TEXTS[code], conn_id=conn_id, features=features))

    def _unregister(self, session: Session, message: Any) -> None:
        """What waits for it goes out before the answer. The connId of another connection is answered, and nothing else."""
        if message is None:
            self._warn(session, "the body of UNREGISTER cannot be decoded")
            return
        if message.conn_id and message.conn_id == session.conn_id and session.registered:
            session.flush(all_of_it=True)
            self.retire(session)
        session.reply(Command.UNREGISTER, pb.UnRegisterResp())

    def retire(self, session: Session) -> None:
        """No more events for it."""
        if session.registered:
            session.registered = False
            self._dispatcher.remove(session)

    # Faults -----------------------------------------------------------------------------------------------------------------------

    def _refuse(self, session: Session, reason: str) -> None:
        self._warn(session, f"{reason}, the connection is closed")
        session.close(1008)

    def _warn(self, session: Session, text: str) -> None:
        """Once per connection."""
        if not session.warned:
            session.warned = True
            logger.warning("%s: %s", session, text)


def _conn_id(session: Session) -> str:
    """Worker listener, business process and time (spec section 11.2), where they have IPv4 addresses."""
    ends = "".join(_hex(name_text(name)) for name in (session.local, session.peer))
    return f"{ends}{int(time.time()) & 0xFFFFFFFF:08x}"


def _hex(address: str) -> str:
    try:
        return addr_to_prefix(address)
    except ValueError:
        return "0" * 12
