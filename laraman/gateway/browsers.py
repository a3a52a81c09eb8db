"""The gateway's side to browsers: who is let in, what comes from them, what goes to them, and how long they may be silent or slow.

A client leaves the registry, and the business side hears so, when it closes, is closed, or is gone, whichever comes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from laraman.gateway.client import ENDING, HANDSHAKE, OPEN, Client
from laraman.protocols.deflate import Deflate
from laraman.protocols.http1 import HeadParser
from laraman.protocols.netsvr import EVENT_CLOSE, EVENT_MESSAGE, EVENT_OPEN
from laraman.protocols.netsvr import netsvr_pb2 as pb
from laraman.protocols.upgrade import Accept, Answer, Upgrade, WebSocketServer
from laraman.protocols.websocket import Close, data_frame

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from laraman.config.gateway import GatewayConfig
    from laraman.gateway.dispatch import Dispatcher
    from laraman.gateway.limits import Limits
    from laraman.gateway.metrics import Metrics
    from laraman.gateway.registry import Entry, Registry
    from laraman.gateway.wheel import Wheel

logger = logging.getLogger("uvicorn.error")

#: Seconds that a client gets to answer a close, and again as long as it reads what was sent before.
CLOSE_WAIT = 2.0
#: Seconds that a request may take when the gateway stops.
LAST_REQUEST = 0.2
#: Connections that have not sent their request yet.
MAX_HANDSHAKES = 16_384
#: Descriptors that are kept from browsers: for workers, tasks, and what the process has open anyway.
RESERVED = 128
#: Messages to one client that wait for the end of the turn.
MAX_OUT = 256
#: Payloads of more bytes are compressed (spec section 9.4).
COMPRESS_ABOVE = 256
#: Close codes for faults of the peer.
_FAULTS = frozenset((1002, 1007, 1009))
HELLO = b"Hello laraman"
TRY_AGAIN = Close(1013, "open rate limited, try again later")


class Browsers:
    """Handles the connections of browsers, and is the commands' way to them (``laraman.gateway.commands.Outlet``)."""

    def __init__(
        self,
        config: GatewayConfig,
        registry: Registry,
        dispatcher: Dispatcher,
        metrics: Metrics,
        limits: Limits,
        wheel: Wheel,
        loop: asyncio.AbstractEventLoop,
        prefix: str,
    ) -> None:
        """``prefix`` is what every uniqId begins with (spec section 11.1)."""
        self._config = config
        self._registry = registry
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._limits = limits
        self._wheel = wheel
        self._loop = loop
        self._prefix = prefix
        self._counter = int.from_bytes(os.urandom(4), "big")
        self._heads = HeadParser()
        self._deflate = Deflate(own_takeover=False) if config.deflate else None
        self._heartbeat = config.client_heartbeat_message.encode()
        self._binary = config.send_type == "binary"
        self._origins = frozenset(origin.lower() for origin in config.origins)
        # A client's messages are "spacing" seconds apart at the permitted rate, and may be so many seconds ahead of that.
        self._spacing = 1 / config.rate if config.rate else 0.0
        self._ahead = config.burst * self._spacing
        self._period = min(config.ping_interval or config.idle_timeout, config.idle_timeout) / 4
        self._handshakes = 0
        self.room = max(1, open_limit() - RESERVED)  #: connections of all kinds above which there is none for another browser
        self._warned = False
        self._throttled: list[Client] = []
        self._written: list[Client] = []
        self._leaving: list[Client] = []
        self._stopping = False

    def client(self, worker: Any) -> Client:
        return Client(WebSocketServer(self._config.max_size, self._heads), self, worker)

    # Coming -----------------------------------------------------------------------------------------------------------------------

    def on_connect(self, client: Client) -> None:
        self._handshakes += 1
        if self._handshakes > MAX_HANDSHAKES or len(client.worker.connections) > self.room:
            self._turn_away(client)
        client.transport.set_write_buffer_limits(high=min(65536, self._config.buffer))
        self._wheel.set(client, self._config.handshake_timeout)

    def _turn_away(self, client: Client) -> None:
        client.abort()
        self._metrics.opens_refused += 1
        if not self._warned:
            self._warned = True
            logger.warning("Gateway: no room for more browsers: %d connections, %d handshakes", len(client.worker.connections), self._handshakes)

    def on_message(self, client: Client, message: Upgrade | str | bytes | Close) -> None:
        if isinstance(message, str):
            self._received(client, message.encode(), False)
        elif isinstance(message, bytes):
            self._received(client, message, True)
        elif isinstance(message, Close):
            self._closed(client, message)
        else:
            self._decide(client, message)

    def _decide(self, client: Client, upgrade: Upgrade) -> None:
        """The order of the checks is that of spec section 9.1."""
        answer: Answer | None
        if self._stopping:
            answer = Answer(503)
        elif not upgrade.websocket:
            answer = Answer(200, HELLO)
        elif upgrade.path != self._config.path:
            answer = Answer(404)
        elif not self._is_allowed(upgrade.headers):
            logger.info("%s: a page of %r is not let in", client, upgrade.headers["origin"])
            answer = Answer(403)
        else:
            answer = upgrade.refusal
        if answer is not None:
            client.send_nowait(answer)
            client.close(1008)
        else:
            self._accept(client, upgrade)

    def _is_allowed(self, headers: dict[str, str]) -> bool:
        """Pages of the same host, whatever their port, and of the origins that are listed. What is no browser has no Origin."""
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return True
        try:
            host = urlsplit(origin).hostname
            return host is not None and host == urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            return False

    def _accept(self, client: Client, upgrade: Upgrade) -> None:
        offered = upgrade.subprotocols
        client.send_nowait(Accept(offered[0] if offered else "", self._config.deflate))
        self._handshakes -= 1
        client.phase = OPEN
        client.heard(self._wheel.now)
        full = len(self._registry.entries) >= self._config.max_clients or self._dispatcher.overloaded
        if full or not self._limits.on_open.take(self._loop.time()):
            self._metrics.opens_refused += 1
            self._end(client, TRY_AGAIN)
            return
        client.ready = not client.writing_paused
        client.entry = self._registry.open(self._uniq_id(), client)
        self._metrics.opens += 1
        self._wheel.set(client, self._period)
        self._dispatcher.dispatch(client, EVENT_OPEN, self._conn_open(client, client.entry.uniq_id, upgrade))

    def _uniq_id(self) -> str:
        self._counter = (self._counter + 1) & 0xFFFFFFFF
        return f"{self._prefix}{int(time.time()) & 0xFFFFFFFF:08x}{self._counter:08x}"

    def _conn_open(self, client: Client, uniq_id: str, upgrade: Upgrade) -> pb.ConnOpen:
        headers = upgrade.headers
        return pb.ConnOpen(
            uniq_id=uniq_id,
            raw_query=upgrade.query,
            x_forwarded_for=headers.get("x-forwarded-for", ""),
            x_real_ip=headers.get("x-real-ip", ""),
            remote_addr=client.peer[0] if client.peer else "",
            sub_protocols=upgrade.subprotocols,
        )

    # Sending to the business side -------------------------------------------------------------------------------------------------

    def _received(self, client: Client, data: bytes, binary: bool) -> None:
        entry = client.entry
        if entry is None or client.phase is not OPEN:
            return
        if data == self._heartbeat:
            self._metrics.heartbeats += 1
        elif not self._limits.on_message.take(self._wheel.now):
            self._metrics.messages_refused += 1
        else:
            topics = entry.topics or ()
            message = pb.Transfer(
                uniq_id=entry.uniq_id, customer_id=entry.customer_id, session=entry.session, topics=topics, data=data, binary=binary
            )
            self._dispatcher.dispatch(client, EVENT_MESSAGE, message)
        self._count(client, 1)

    def on_asides(self, client: Client) -> None:
        """Frames that are no messages cost as much as those that are."""
        frames, pings = client.protocol.take_asides()
        self._metrics.heartbeats += pings
        self._count(client, frames)

    def _count(self, client: Client, frames: int) -> None:
        """Hold a client that sends faster than it may."""
        if self._spacing:
            now = self._wheel.now
            allowed_at = client.allowed_at = max(client.allowed_at, now) + frames * self._spacing
            if allowed_at - now > self._ahead and not client.throttled:
                client.throttle()
                self._throttled.append(client)

    def tick(self, now: float) -> None:
        """Read on from those that may send again."""
        if self._throttled:
            throttled, self._throttled = self._throttled, []
            for client in throttled:
                if client.allowed_at - now > self._ahead:
                    self._throttled.append(client)
                else:
                    client.unthrottle()

    # Sending to browsers ----------------------------------------------------------------------------------------------------------

    def deliver(self, entries: Iterable[Entry], data: bytes, binary: bool | None) -> None:
        """One message to each. It is encoded once, and compressed once where somebody wants it so."""
        binary = self._is_binary(data, binary)
        frame = data_frame(data, binary=binary)
        if self._deflate is not None and len(data) > COMPRESS_ABOVE:
            self._deliver_large(entries, data, binary, frame)
            return
        written = self._written
        count = 0
        for entry in entries:
            client: Client = entry.client
            if not client.ready:
                self._deliver_slowly(client, frame)
                continue
            count += 1
            if client.out is None:
                if not written:
                    self._loop.call_soon(self._write_out)
                client.out = [frame]
                written.append(client)
            else:
                client.out.append(frame)
                if len(client.out) >= MAX_OUT:
                    client.write_out()
        self._metrics.sent += count
        self._metrics.sent_bytes += count * len(frame)

    def _write_out(self) -> None:
        """At the end of the turn."""
        written, self._written = self._written, []
        for client in written:
            client.write_out()

    def _deliver_large(self, entries: Iterable[Entry], data: bytes, binary: bool, frame: bytes) -> None:
        deflated = b""
        for entry in entries:
            client: Client = entry.client
            if client.protocol.deflated and not deflated:
                deflated = data_frame(data, binary=binary, deflate=self._deflate)
            self._deliver_one(client, deflated if client.protocol.deflated else frame)

    def _deliver_one(self, client: Client, frame: bytes) -> None:
        if not client.ready:
            self._deliver_slowly(client, frame)
            return
        self._metrics.sent += 1
        self._metrics.sent_bytes += len(frame)
        if client.out is None:
            if not self._written:
                self._loop.call_soon(self._write_out)
            client.out = []
            self._written.append(client)
        client.out.append(frame)
        if len(client.out) >= MAX_OUT:
            client.write_out()

    def _deliver_slowly(self, client: Client, frame: bytes) -> None:
        """To a client that does not read as fast as it is sent to, or that is leaving."""
        if client.phase is not OPEN:
            return
        limit = self._config.buffer
        if self._config.slow_reader == "drop_oldest" and len(frame) <= limit:
            for dropped in client.drop_oldest(len(frame), limit):
                self._not_sent(dropped)
        if client.write_later(frame, limit):
            self._metrics.sent += 1
            self._metrics.sent_bytes += len(frame)
            return
        self._not_sent(frame)
        if self._config.slow_reader == "close":
            logger.warning("%s: more than %d bytes behind, the connection is closed", client, limit)
            for dropped in client.drop_oldest(limit, 0):
                self._not_sent(dropped)
            self._end(client, Close(1013, "too slow, try again later"))

    def _not_sent(self, frame: bytes) -> None:
        self._metrics.not_sent += 1
        self._metrics.not_sent_bytes += len(frame)

    def kick(self, entries: Iterable[Entry], data: bytes, reason: str) -> None:
        """``data``, if there is any, as the last message, then a close with 1008 and the reason."""
        binary = self._is_binary(data, None)
        for entry in entries:
            client: Client = entry.client
            if client.phase is OPEN:
                client.flush()
                if data:
                    frame = data_frame(data, binary=binary)
                    client.write(frame)
                    self._metrics.sent += 1
                    self._metrics.sent_bytes += len(frame)
                self._end(client, Close(1008, reason))

    def _is_binary(self, data: bytes, binary: bool | None) -> bool:
        """A text message has to be UTF-8, or the browser breaks the connection off: what is not goes as binary."""
        if self._binary if binary is None else binary:
            return True
        if data.isascii():
            return False
        try:
            data.decode()
        except UnicodeDecodeError:
            return True
        return False

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._loop.call_later(seconds, call)

    # Going ------------------------------------------------------------------------------------------------------------------------

    def _end(self, client: Client, close: Close) -> None:
        """Close from our side. The registry changes a moment later: the caller may be walking through it."""
        client.phase = ENDING
        client.ready = False
        if not client.protocol.close_sent:  # its own close may wait, answered, behind messages that are held
            client.flush()
            client.write(client.protocol.send(close))
        client.reads()
        self._wheel.set(client, CLOSE_WAIT)
        if not self._leaving:
            self._loop.call_soon(self._sweep)
        self._leaving.append(client)

    def _sweep(self) -> None:
        leaving, self._leaving = self._leaving, []
        for client in leaving:
            self._leave(client)
            client.throttled = client.blocked = False
            client.resume()  # its answer to the close may wait

    def _closed(self, client: Client, close: Close) -> None:
        """The client has closed, or broken a rule, or answered our close. The close frame is on its way."""
        if client.phase is ENDING:
            client.close()
            return
        client.phase = ENDING
        client.ready = False
        client.out = None
        self._leave(client)
        if close.code not in _FAULTS:
            client.close()
            return
        logger.warning("%s: closed with %d %r", client, close.code, close.reason)
        # Send no more, but read: a close with unread input would be a reset, which discards what was sent last.
        self._wheel.set(client, CLOSE_WAIT)
        if not client.transport.is_closing():
            client.transport.write_eof()

    def _leave(self, client: Client) -> None:
        """Out of the registry; the business side hears of it after everything that came before."""
        entry = client.entry
        if entry is None:
            return
        client.entry = None
        self._registry.close(entry.uniq_id)
        self._metrics.closes += 1
        topics = entry.topics or ()
        message = pb.ConnClose(uniq_id=entry.uniq_id, customer_id=entry.customer_id, session=entry.session, topics=topics)
        self._dispatcher.dispatch(client, EVENT_CLOSE, message)
        self._dispatcher.forget(client)

    def on_close(self, client: Client) -> None:
        self._wheel.cancel(client)
        client.ready = False
        client.out = None
        if client.phase is HANDSHAKE:
            self._handshakes -= 1
        client.phase = ENDING
        self._leave(client)

    def on_deadline(self, client: Client, now: float) -> None:
        if client.phase is HANDSHAKE:
            client.abort()
        elif client.phase is ENDING:
            self._await_end(client, now)
        elif (silence := client.silence(now)) >= self._config.idle_timeout:
            self._end(client, Close(1001, "heartbeat timeout"))
        else:
            if self._config.ping_interval and silence >= self._config.ping_interval and client.ready:
                client.transport.write(client.protocol.ping())
            self._wheel.set(client, self._period)

    def _await_end(self, client: Client, now: float) -> None:
        """It may take its time to read what was sent before the close, if it reads."""
        if client.reads():
            self._wheel.set(client, CLOSE_WAIT)
        else:
            client.abort()

    def stop(self, clients: Iterable[Client]) -> None:
        """Send everybody away; whose request is on its way gets a 503."""
        self._stopping = True
        for client in clients:
            if client.phase is OPEN:
                self._end(client, Close(1012, "service restart"))
            elif client.phase is HANDSHAKE:
                self._wheel.set(client, LAST_REQUEST)


def open_limit() -> int:
    """How many files the process may have open, after as many were asked for as it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
