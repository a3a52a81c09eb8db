"""``laraman.Server``: serve from within a program, in its event loop or one of its own, with the names of ``uvicorn.Server``.

There is no master here, but the life of the worker is the same (``laraman.process.life``), and so is what it runs (``laraman.asgi.service``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio

from laraman import log
from laraman.asgi.service import Http
from laraman.asgi.settings import STARTUP_FAILURE, open_for_program
from laraman.errors import ConfigError, LaramanError
from laraman.net.bind import Bind
from laraman.process import handle_exit, recycle
from laraman.process.garbage import Garbage
from laraman.process.life import Life
from laraman.process.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import FrameType

    from laraman.asgi.lifespan import Lifespan
    from laraman.asgi.settings import Config

logger = logging.getLogger("uvicorn.error")

HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds between two calls of ``on_tick``.
TICK = 0.1
#: The handlers of signals that servers have found when they took them, in the order in which they did.
_found: list[dict[signal.Signals, Any]] = []


class ServerState:
    """What the server does right now, for whoever looks at it; empty before it serves."""

    def __init__(self) -> None:
        self._http: Http | None = None

    @property
    def total_requests(self) -> int:
        return self._http.worker.requests if self._http is not None else 0

    @property
    def connections(self) -> set[Any]:
        return self._http.worker.connections if self._http is not None else set()

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """Those that run the application for a request."""
        return {exchange.task for exchange in self._http.running if exchange.task is not None} if self._http is not None else set()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        lines = self._http.default_headers.split(b"\r\n")[:-1] if self._http is not None else []
        return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


class _Life(Life):
    """The life of a worker whose master is a Server."""

    def __init__(self, worker: Worker, server: Server) -> None:
        super().__init__(worker, asyncio.get_running_loop())
        self._server = server
        self._retiring = False
        #: Only where the process is the server's alone: a program's own objects are the program's affair.
        self.garbage: Garbage | None = None

    def on_prepare(self) -> None:
        if self._server.owns_process:
            self.garbage = Garbage()

    def on_ready(self) -> None:
        if self.garbage is not None:
            self.garbage.settle()

    def retire(self, reason: str) -> None:
        if not self._retiring:
            self._retiring = True
            self._server.retire(reason)


class Server:
    """Serves what ``config`` says: ``await serve()`` in a running loop, or ``run()``, which makes one, in any thread.

    In the main thread SIGINT and SIGTERM end it while it serves; when it has ended, their handlers are what they were, and what was caught is raised
    again. Its methods may be overridden as those of ``uvicorn.Server``.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.server_state = ServerState()
        self.started = False
        self.last_notified = 0.0
        self.servers: list[Any] = []
        self.lifespan: Lifespan | None = None
        self._captured_signals: list[int] = []
        self._should_exit = self._force_exit = False
        #: Whether the process is there for this server: its loop is, and it runs in the main thread.
        self.owns_process = False
        #: See ``Worker.leases``: where processes that somebody else has forked agree what only one of them does.
        self.leases: int | None = None
        self._worker = Worker("http")
        self._life: _Life | None = None
        self._binds: list[Bind] = []
        self._watch: recycle.Watch | None = None

    # Orders ----------------------------------------------------------------------------------------------------------------------

    @property
    def should_exit(self) -> bool:
        """Set it, in any thread, to stop the server."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        self._obey()

    @property
    def force_exit(self) -> bool:
        """Set it together with ``should_exit`` to wait for no request. The application's lifespan still gets a moment to end."""
        return self._force_exit

    @force_exit.setter
    def force_exit(self, value: bool) -> None:
        self._force_exit = value
        self._obey()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM. The second SIGINT is an impatient one."""
        self._captured_signals.append(sig)
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        else:
            self.should_exit = True
        handle_exit.tell(self, sig, frame)

    def retire(self, reason: str) -> None:
        """The worker should be replaced, which only somebody outside could do."""
        logger.warning("This process should be replaced: %s", reason)

    def _obey(self) -> None:
        """Perhaps in a signal handler, or another thread."""
        if self._should_exit and self._life is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, which is what was wanted
                self._worker.loop.call_soon_threadsafe(self._ask_stop)

    def _ask_stop(self) -> None:
        if self._life is not None:
            self._life.ask_stop("stop", 0.0 if self._force_exit else self._life.grace())

    # Serving ---------------------------------------------------------------------------------------------------------------------

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve in an event loop of its own until it is told to stop."""
        self.owns_process = threading.current_thread() is threading.main_thread()
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is told to stop, on ``sockets``, if they are given, else where the configuration says. Exits with 3 when it cannot start."""
        with self.capture_signals():
            await self._serve(sockets)

    async def _serve(self, sockets: list[socket.socket] | None) -> None:
        if not self.config.loaded:
            self.config.load()
        log.say_process("Started server")
        try:
            await self.startup(sockets=sockets)
            if not self.should_exit:
                await self.main_loop()
        finally:
            with anyio.CancelScope(shield=True):  # whoever cancels this wants it to end, and an end has its order
                if self.started:
                    await self.shutdown(sockets=sockets)
                await self._end(sockets)
        log.say_process("Finished server")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and accept connections. Exits with 3 when that fails."""
        try:
            life = self._begin(sockets)
            await life.boot()
        except Exception as exc:
            logger.error("%s", exc, exc_info=None if isinstance(exc, LaramanError) else exc)
            await self._end(sockets)
            sys.exit(STARTUP_FAILURE)
        if life.asked.is_set():
            return
        self.servers = [] if life.accepting is None else life.accepting.servers
        self.lifespan = self._worker.loaded.lifespan
        self._watch = recycle.Watch(self._worker, self._worker.loop.time())
        if sockets is None:
            self.config.log_running(self._binds)
        self.started = True

    def _begin(self, sockets: list[socket.socket] | None) -> _Life:
        """Everything that comes before the boot. Raises ConfigError and BootError."""
        config = self.config
        worker = self._worker = Worker("http")
        worker.slot = 0
        worker.leases = self.leases
        worker.config = config.frozen()
        if worker.config.user or worker.config.group:
            raise ConfigError("a process that serves by itself cannot become another user: laraman start and laraman.run can, with a master")
        # How many requests it serves is looked at by `on_tick`, with a number that is known.
        worker.config = replace(worker.config, limit_max_requests=None)
        if config.guard is None and not self.owns_process:
            worker.config = replace(worker.config, guard="off")  # what the rest of the program does would be taken for what requests do
        for name in worker.config.listeners:
            import_module(name)
        if config.ssl is not None:
            worker.config = replace(worker.config, ssl_context_factory=config.first_context())
        worker.loaded = http = Http()
        http.on_load(worker, config.loaded_app)
        self.server_state._http = http
        self._open(sockets)
        self._life = _Life(worker, self)
        self._obey()
        return self._life

    def _open(self, sockets: list[socket.socket] | None) -> None:
        """Listen. Sockets that were given are listened on by copies, because a Bind closes its own when nothing more is accepted."""
        config = self.config
        scheme = "https" if config.is_ssl else "http"
        self._binds = self._worker.binds = config.binds() if sockets is None else []
        for bind in self._binds:
            open_for_program(bind)
        for sock in sockets or ():
            bind = Bind(f"{scheme}+fd://{sock.fileno()}", config.backlog)
            bind.open(os.dup(sock.fileno()))
            self._binds.append(bind)

    async def main_loop(self) -> None:
        """Until ``on_tick`` says that it is enough. That is asked at once when a stop is ordered."""
        assert self._life is not None
        counter = 0
        while not await self.on_tick(counter) and not self._life.asked.is_set():
            counter = (counter + 1) % 864000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._life.asked.wait()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop. Called ten times a second with the number of the call."""
        config = self.config
        if counter % 10 == 0 and config.callback_notify is not None and time.time() - self.last_notified > config.timeout_notify:
            self.last_notified = time.time()
            await config.callback_notify()
        limit = self.limit_max_requests
        if limit is not None and self.server_state.total_requests >= limit:
            logger.info("Maximum request limit of %d exceeded. Terminating process.", limit)
            return True
        if counter % 10 == 0 and self._life is not None and self._life.garbage is not None:
            self._life.garbage.look(self._worker.requests, self._worker.in_flight, self._worker.loop.time())
        if counter % 10 == 0 and self._watch is not None and (reason := self._watch.look(self._worker.loop.time())):
            logger.info("Terminating process: %s.", reason)
            return True
        return self.should_exit

    @cached_property
    def limit_max_requests(self) -> int | None:
        """The number of requests after which it stops."""
        config = self.config
        return None if config.limit_max_requests is None else config.limit_max_requests + random.randint(0, config.limit_max_requests_jitter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish within the configured time, then end the application. ``sockets`` are closed."""
        await self._end(sockets)

    async def _end(self, sockets: list[socket.socket] | None) -> None:
        """Once, however far it had come."""
        if self._life is not None:
            for bind in self._binds:
                bind.turn_away()
            self._ask_stop()
            await self._life.end()
            if self._life.garbage is not None:
                self._life.garbage.undo()
            self._life = None
        for opened in (*self._binds, *(sockets or ())):
            opened.close()
        for bind in self._binds:
            bind.unlink()
        self._binds = []

    # Signals ---------------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Around the serving: SIGINT and SIGTERM are ``handle_exit``'s, in the main thread; only that may have handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # The end of a terminal ends a process, but it can do so in order.
        hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else []
        before: dict[signal.Signals, Any] = {handled: signal.signal(handled, self.handle_exit) for handled in (*HANDLED_SIGNALS, *hangup)}
        _found.append(before)
        try:
            yield
        finally:
            self._give_back(before)
        # The end was in order; now what was asked for may have its usual effect, so that the exit status says what ended the process.
        captured, self._captured_signals = self._captured_signals, []
        for number in reversed(captured):
            signal.raise_signal(number)

    def _give_back(self, before: dict[signal.Signals, Any]) -> None:
        """The handlers, to the process, or to the server that has found ours and is still there: whichever ends first, none is left behind."""
        at = next(at for at, found in enumerate(_found) if found is before)
        del _found[at]
        for handled, handler in before.items():
            later = next((found for found in _found[at:] if found.get(handled) == self.handle_exit), None)
            if later is None:
                signal.signal(handled, handler)
            else:
                later[handled] = handler
