"""The handler of the "http" worker: loads the application, runs its lifespan, makes connections, starts exchanges, drains."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from contextvars import Context
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from laraman import events, log
from laraman.asgi import forwarded
from laraman.asgi.app import load_app
from laraman.asgi.exchange import Exchange
from laraman.asgi.extensions import OFFERED, PATH_SEND, ZERO_COPY_SEND
from laraman.asgi.frameworks import import_frameworks
from laraman.asgi.http import HttpConnection
from laraman.asgi.lifespan import Lifespan
from laraman.asgi.logged import AccessLog, LoggedConnection
from laraman.asgi.tracing import traced
from laraman.log.access import MESSAGE, arguments
from laraman.net.door import Door
from laraman.net.tls import Tls
from laraman.protocols.http1 import HeadParser
from laraman.sandbox.operation import REQUEST, current
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.asgi.app import ASGIApp, Message, Receive, Scope, Send
    from laraman.asgi.websocket import WebSocketConnection
    from laraman.config import Config
    from laraman.net.bind import Bind
    from laraman.process.worker import Worker
    from laraman.sandbox.operation import Operation

access_logger = logging.getLogger("uvicorn.access")
error_logger = logging.getLogger("uvicorn.error")

#: Seconds between two looks at the connections' deadlines while draining.
DRAIN_TICK = 0.05
#: Parts of the stop's time after which streams are told that their client is gone, and after which what still runs is cancelled.
SOFT, HARD = 0.5, 0.8


class Http:
    """One per worker process. ``now`` is a clock that costs nothing to read: the loop's time of the next tick, so that a deadline is never early."""

    def __init__(self) -> None:
        self.running: set[Exchange | WebSocketConnection] = set()
        self.default_headers = b""
        self.now = 0.0
        self.draining = False
        self.held: list[Exchange] = []
        self.writing: set[HttpConnection] = set()  # whose client has not taken yet what was sent
        self._doors: list[Door] = []
        self._next_look = 0.0
        #: Runs the application with what has to be done around an operation; None while that is nothing.
        self.wrapper: Callable[..., Awaitable[Any]] | None = None
        self._events_version = -1
        self._ticking: asyncio.TimerHandle | None = None

    # The worker's hooks ----------------------------------------------------------------------------------------------------------

    def on_load(self, worker: Worker, app: ASGIApp | None = None) -> None:
        """Import the application, unless it is there already. Raises BootError."""
        self.worker = worker
        self.config: Config = worker.config
        self.app: ASGIApp = traced(load_app(self.config) if app is None else app)

    def on_bare(self, worker: Worker) -> None:
        """In a template that outlives the application's code."""
        import_frameworks(worker.config.app, worker.config.app_dir or os.curdir)

    async def on_start(self, worker: Worker) -> None:
        """Run the lifespan's startup. Raises BootError, and ConfigError when the files of TLS cannot be used."""
        config = self.config
        self.loop = asyncio.get_running_loop()
        self.tls = Tls(config) if config.ssl_certfile or config.ssl_context_factory is not None else None
        self.proxies = forwarded.TrustedHosts(config.forwarded_allow_ips)
        if worker.slot <= 0 and (mistaken := [name for name in self.proxies.literals if "/" in name]):
            error_logger.warning("--forwarded-allow-ips: %s is no network, so nobody is in it", ", ".join(mistaken))
        self._believes = config.proxy_headers or config.forwarded
        self._read_forwarded = forwarded.reader(self.proxies, forwarded=config.forwarded)
        self.lifespan = Lifespan(self.app, config.lifespan, timeout=config.timeout_worker_boot)
        await self.lifespan.startup()
        self.state = self.lifespan.state
        #: What runs for a request: the application, or that with the guard before the end of its response.
        self.application: Callable[..., Awaitable[Any]] = self._strict if config.guard == "strict" else self.app
        self.serial = config.isolation == "serial"
        self.connections = cast("set[HttpConnection | WebSocketConnection]", worker.connections)
        self.sandbox = worker.sandbox = Sandbox(worker, Context() if config.reset_contextvars else self.lifespan.context)
        self.heads = HeadParser(max_line=config.limit_request_line, max_fields=config.limit_request_fields, engine=config.http)
        self.head_limit = config.h11_max_incomplete_event_size or config.limit_request_head
        self.keep_alive = config.timeout_keep_alive
        self.header_timeout = config.timeout_request_header or math.inf
        self.body_timeout = config.timeout_request_body or math.inf
        self.write_timeout = config.timeout_write or math.inf
        self.limited = config.limit_concurrency is not None
        self.body_limit: float = config.limit_request_body or math.inf
        logs = log.access_enabled()
        self.access_log = logs and not config.access_log_format
        #: Writes the lines of requests when they have ended, in another format than uvicorn's.
        self.access = AccessLog(config.access_log_format, worker) if logs and config.access_log_format else None
        #: Each scope gets a copy, for 0.1 us: what a middleware does to it is then nobody else's.
        self.extensions: dict[str, Any] = {name: {} for name in OFFERED[config.asgi_extensions]}
        self._root_path = config.root_path
        self._root_path_bytes = config.root_path.encode()
        # Without a task factory the loop would make the same task, after a detour that costs a fifth of it.
        self._plain_tasks = self.loop.get_task_factory() is None
        self._patience = min(self.keep_alive or math.inf, self.header_timeout, self.body_timeout, 60.0)
        pings = (config.ws_ping_interval or math.inf, config.ws_ping_timeout or math.inf)
        timeouts = (self.keep_alive or math.inf, self.header_timeout, self.body_timeout, self.write_timeout, *pings)
        self._interval = min(1.0, max(0.05, min(timeouts) / 4))
        self._tick()

    def connection(self, worker: Worker, bind: Bind) -> HttpConnection:
        return HttpConnection(self) if self.access is None else LoggedConnection(self)

    def door(self, worker: Worker, bind: Bind, factory: Callable[[], HttpConnection]) -> Door | None:
        """What connections of this address come in by, when they begin with TLS or a PROXY header."""
        expected = self.proxies if self.config.proxy_protocol else None
        tls = self.tls if bind.address.scheme == "https" or bind.address.tls else None
        if tls is None and expected is None:
            return None
        self._doors.append(Door(worker, factory, tls=tls, trusted=expected, timeout=self.header_timeout))
        return self._doors[-1]

    def trusts(self, client: tuple[str, int] | None) -> bool:
        """Whether fields of proxies are believed on a connection from this address."""
        return self._believes and (None if client is None else client[0]) in self.proxies

    async def on_drain(self, worker: Worker, deadline: float | None) -> None:
        """Let what is running finish: first by itself, then with a disconnect for streams, then by cancellation, always before ``deadline``."""
        error_logger.info("Shutting down")
        start = self.loop.time()
        soft = hard = math.inf
        if deadline is not None:
            soft, hard = (start + part * (deadline - start) for part in (SOFT, HARD))
        self.draining = True
        self._interval = DRAIN_TICK
        self.now = start + DRAIN_TICK
        for connection in list(worker.connections):
            connection.shutdown()
        if self.config.reload:  # whoever develops does not wait for streams, and their clients find the successor
            for exchange in self.running:
                if isinstance(exchange, Exchange) and exchange.started:
                    exchange.disconnect()
        said = False
        while worker.connections or self.running:
            now = self.loop.time()
            self._look_at_deadlines(now)
            if self.running and not said and now >= start + 2 * DRAIN_TICK:
                said = True
                what = "connections to close" if worker.connections else "background tasks to complete"
                error_logger.info(f"Waiting for {what}. (CTRL+C to force quit)")
            if now >= soft:
                soft = math.inf
                for exchange in self.running:
                    exchange.disconnect()
            if now >= hard:
                await self._cancel_rest(worker)
                return
            await asyncio.sleep(DRAIN_TICK)

    async def _cancel_rest(self, worker: Worker) -> None:
        if self.running:
            error_logger.error("Cancel %d running task(s), timeout graceful shutdown exceeded", len(self.running))
        for exchange in list(self.running):
            exchange.cancel()
        for connection in list(worker.connections):
            connection.cancel()
        tasks = [exchange.task for exchange in self.running if exchange.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=0.5)
        flushed = self.loop.time() + 0.3
        while worker.connections and self.loop.time() < flushed:
            await asyncio.sleep(DRAIN_TICK)
        for connection in list(worker.connections):
            connection.transport.abort()

    async def on_stop(self, worker: Worker) -> None:
        """Run the lifespan's shutdown."""
        if self._ticking is not None:
            self._ticking.cancel()
        await self.lifespan.shutdown()

    # Time ------------------------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticking = self.loop.call_later(self._interval, self._tick)  # first, so that nothing below can stop the clock
        self._refresh_default_headers()
        if self.tls is not None:
            self.tls.look()
        self._look_at_deadlines(self.loop.time())

    def _look_at_deadlines(self, now: float) -> None:
        self.now = now + self._interval
        if now >= self._next_look or self.draining:
            self._look_at_all(now)
        for connection in tuple(self.writing):
            connection.tick(now)

    def _look_at_all(self, now: float) -> None:
        """Tick those whose deadline has come. The next look is when the next one comes, or the earliest that may be set from now on."""
        due = []
        soonest = now + self._patience
        for connection in self.connections:
            if connection.deadline <= now:
                due.append(connection)
            elif connection.deadline < soonest:
                soonest = connection.deadline
        self._next_look = soonest
        for connection in due:
            connection.tick(now)
            if connection.deadline < self._next_look:
                self._next_look = connection.deadline

    def look_soon(self) -> None:
        """A connection has come that wants every tick."""
        self._next_look = 0.0

    def _refresh_default_headers(self) -> None:
        config = self.config
        lines = [b"date: " + formatdate(time.time(), usegmt=True).encode()] if config.date_header else []
        own = [(name.strip().lower(), value.strip()) for name, _, value in (header.partition(":") for header in config.header)]
        if config.server_header and not any(name == "server" for name, _ in own):
            lines.append(b"server: laraman")
        lines += (f"{name}: {value}".encode("latin-1") for name, value in own)
        self.default_headers = b"".join(line + b"\r\n" for line in lines)

    # Exchanges -------------------------------------------------------------------------------------------------------------------

    def is_full(self) -> bool:
        """uvicorn's rule for ``--limit-concurrency``: connections or running requests have reached it. A handshake is no connection yet."""
        limit = self.config.limit_concurrency
        if limit is None:
            return False
        arriving = sum(len(door.arrivals) for door in self._doors)
        return len(self.worker.connections) - arriving >= limit or len(self.running) >= limit

    def start(self, exchange: Exchange | WebSocketConnection, operation: Operation) -> None:
        """Run the application for this exchange, in a task and a context of its own."""
        if self._events_version != events.version:
            self._events_version = events.version
            self.wrapper = self.sandbox.wrapper(REQUEST)
        self.running.add(exchange)
        self.worker.in_flight += 1
        if self._plain_tasks:
            exchange.task = asyncio.Task(exchange.run(), loop=self.loop, name="request", context=self.sandbox.context(operation))
        else:
            exchange.task = self.loop.create_task(exchange.run(), name="request", context=self.sandbox.context(operation))

    def ended(self, exchange: Exchange | WebSocketConnection, operation: Operation) -> None:
        self.running.discard(exchange)
        self.worker.in_flight -= 1
        exchange.task = None
        self.sandbox.ended(operation)

    async def _strict(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """The application, whose response does not end before the guard has looked at what it has done."""

        async def checked(message: Message) -> None:
            operation = current()
            if _ends(message) and operation is not None:
                assert self.sandbox.guard is not None
                self.sandbox.guard.check(operation)
            await send(message)

        return await cast("Any", self.app)(scope, receive, checked)

    def flush_heads_soon(self) -> None:
        """The heads in ``held`` wait for their first body message until the end of this turn of the loop, so that most responses are one write."""
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        held, self.held = self.held, []
        for exchange in held:
            if exchange.head is not None:
                exchange.flush_head()

    # Scopes ----------------------------------------------------------------------------------------------------------------------

    def scope(self, connection: HttpConnection) -> Scope:
        """The ASGI HTTP scope of the head that was just parsed."""
        heads = self.heads
        root_path = self._root_path
        raw_path = heads.raw_path
        path = heads.path if b"%" in raw_path else raw_path.decode("ascii")
        if root_path:
            path = root_path + path
            raw_path = self._root_path_bytes + raw_path
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": heads.version,
            "server": connection.server,
            "client": connection.client,
            "scheme": connection.scheme,
            "method": heads.method,
            "root_path": root_path,
            "path": path,
            "raw_path": raw_path,
            "query_string": heads.query,
            "headers": heads.headers,
            "state": self.state.copy(),
        }
        if self.extensions:
            scope["extensions"] = self.extensions.copy()
        if heads.forwarded and connection.believed:
            self._read_forwarded(scope)
        if connection.tls is not None:
            scope.setdefault("extensions", {})["tls"] = connection.tls.copy()
        return scope

    def websocket_scope(self, connection: HttpConnection) -> Scope:
        """The ASGI websocket scope of the head that was just parsed."""
        scope = self.scope(connection)
        del scope["method"]
        offered = b",".join(value for name, value in self.heads.headers if name == b"sec-websocket-protocol").decode("latin-1")
        scope["type"] = "websocket"
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
        scope["scheme"] = scope["scheme"].replace("http", "ws")
        scope["subprotocols"] = [protocol for part in offered.split(",") if (protocol := part.strip())]
        scope["extensions"] = {"websocket.http.response": {}}
        if connection.tls is not None:
            scope["extensions"]["tls"] = connection.tls.copy()
        return scope

    # Answers and lines -----------------------------------------------------------------------------------------------------------

    def error_body(self, status: int) -> bytes:
        if status == 400:
            return b"Invalid HTTP request received."
        return HTTPStatus(status).phrase.encode()

    def log_access(self, scope: Scope, status: int) -> None:
        """The access line, with uvicorn's arguments in uvicorn's order: filters index them."""
        access_logger.info(MESSAGE, *arguments(scope, status))


def _ends(message: Message) -> bool:
    """Whether the message ends the body of a response."""
    kind = message["type"]
    return kind == PATH_SEND or (kind in ("http.response.body", ZERO_COPY_SEND) and not message.get("more_body", False))
