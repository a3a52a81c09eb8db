"""The life of a Worker inside its child process.

    BOOTING     listener modules, handler, on_load -> WorkerStarting -> on_start -> accepting -> WorkerStarted -> "ready"
    SERVING     until it is told to stop: by the master, by SIGTERM, by the end of the channel
    DRAINING    WorkerStopping -> nothing more is accepted -> on_drain -> tasks and links end -> on_stop
    STOPPED     exit

A boot that fails goes through DRAINING too, as far as it had come, so what was told that it starts is told that it stops. Every hook is called
once. All phases of DRAINING share one deadline, which later orders can only bring nearer; what remains when it comes is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import anyio
from setproctitle import setproctitle

from laraman import log
from laraman.errors import BootError, Busy, ConfigError, ConnectionClosed, ConnectionLost, LaramanError
from laraman.events import WorkerStarted, WorkerStarting, WorkerStopping, aemit
from laraman.net.connection import Connection
from laraman.net.link import current_worker
from laraman.process import recycle
from laraman.process.daemon import reopen_output
from laraman.process.garbage import Garbage
from laraman.process.tasks import Tasks
from laraman.process.worker import import_listeners
from laraman.protocols import protocol_named
from laraman.protocols.ipc import Ipc
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from laraman.net.bind import Bind
    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

logger = logging.getLogger("uvicorn.error")

#: Seconds an orphan may drain, and seconds after which the kernel ends it whatever it is doing: nobody else would.
ORPHAN_DRAIN, ORPHAN_LIFE = 0.5, 1.5
#: Seconds that ``on_stop`` gets even when the deadline has come, and that the end of the tasks gets then, and at most: a link that flushes
#: may go on meanwhile. Together they are less than what the master adds to the deadline before it kills.
LAST_SECONDS, TASKS_LEAST, TASKS_MOST = 1.0, 0.6, 3.0
#: Seconds in which those who are told of WorkerStarted may keep the worker from being ready.
STARTED_SECONDS = 10.0
#: Seconds for each of the last things: the channel, what is left on the loop.
CLOSE_SECONDS = 0.1
#: Seconds in which what clients have sent before the stop is still read, on connections that say nothing about themselves.
QUIET = 0.2
#: Rows of one answer to ``connections``; more would not fit into an envelope.
MAX_ROWS = 40_000

_PR_SET_PDEATHSIG = 1


def run(worker: Worker, channel: socket.socket) -> int:
    """Be this worker until it ends; return the exit code."""
    parent = os.getppid()
    introduce(worker)
    loop = new_event_loop(worker.config.loop)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(Run(worker, loop, parent).live(channel))
    finally:
        _close(loop)


def new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    """An event loop: uvloop's for "uvloop", asyncio's for "asyncio", for "auto" the first of the two that is installed. Raises ConfigError."""
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise ConfigError("the loop is set to uvloop, which is not installed") from None
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def introduce(worker: Worker, at_the_masters_death: signal.Signals = signal.SIGTERM) -> None:
    """Become this worker to the outside. What was the master's in this process has been left behind before."""
    signal.signal(signal.SIGTERM, worker.handle_exit)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_the_masters_death, 0, 0, 0)
    setproctitle(worker.title)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left on the loop. Unlike ``asyncio.run``, wait for nothing without a limit: an executor's thread may never end."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_SECONDS))
    with contextlib.suppress(TimeoutError):
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), CLOSE_SECONDS))
    asyncio.set_event_loop(None)
    loop.close()


class Run:
    """One life of a worker. The Worker is what application code sees; what only concerns the life itself is here."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop, parent: int) -> None:
        self._worker = worker
        self._loop = loop
        self._parent = parent
        self._handler: Any = None
        self._servers: list[asyncio.Server] = []
        self._channel: Connection | None = None
        self._group: TaskGroup | None = None
        self._asked = asyncio.Event()
        self._starting_told = self._started = False
        self._watch: recycle.Watch | None = None  # from when it is ready, and so is the next
        self._garbage: Garbage | None = None
        self._retiring = ""  # why it wants a successor
        self._deadline: float | None = None  # of the stop, in the loop's time
        self._limit: asyncio.Timeout | None = None  # of the phase that runs
        self._least = 0.0  # seconds that this phase gets in any case

    async def live(self, channel: socket.socket) -> int:
        """Boot, serve, stop. Returns the exit code."""
        worker = self._worker
        worker.loop = self._loop
        worker._run = self
        current_worker.set(worker)
        worker.sandbox = Sandbox(worker)
        logger.info("Started server process [%d]", os.getpid())
        _, self._channel = await self._loop.connect_accepted_socket(lambda: Connection(Ipc(), self, None, "out"), channel)
        beats = self._loop.create_task(self._beat())
        tasks = self._loop.create_task(self._hold_tasks())
        code = await self._boot_or_stop()
        if code == 0:
            await self._asked.wait()
        else:
            self.ask_stop("failed", self.grace())
        await self._stop(tasks)
        beats.cancel()
        logger.info("Finished server process [%d]", os.getpid())
        await self._end_channel()
        return code

    # Boot ------------------------------------------------------------------------------------------------------------------------

    async def _boot_or_stop(self) -> int:
        """The exit code of the boot; 0 also when a stop came first."""
        boot, asked = self._loop.create_task(self._boot()), self._loop.create_task(self._asked.wait())
        await asyncio.wait({boot, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not boot.done():
            boot.cancel()
            await asyncio.wait({boot}, timeout=LAST_SECONDS)
        if not boot.done() or boot.cancelled():
            return 0
        error = boot.exception()
        return 0 if error is None else self._report(error)

    def _report(self, error: BaseException) -> int:
        failed = failure(self._worker, error)
        self._say(failed)
        return int(failed["exit"])

    async def _boot(self) -> None:
        worker = self._worker
        try:
            if worker.loaded is None:
                import_listeners(worker.config)
                self._handler = load_handler(worker.handler)
                await self._call("on_load", worker)
            else:
                self._handler = worker.loaded
            self._starting_told = True
            await aemit(WorkerStarting(worker=worker))
            await self._call("on_start", worker)
            self._started = True
            garbage = Garbage()  # before the guard remembers how the collector is set
            await worker.sandbox.prepare()
        except SystemExit as exc:
            raise BootError(f"worker {worker.name}: sys.exit({exc.code!r}) was called while it started") from exc
        for bind in worker.binds:
            self._servers.append(await self._listen(bind))
        # Before it is said, because a predecessor is told to stop then: whoever must be in its place by then gets there in a listener.
        await self._bounded("WorkerStarted", aemit(WorkerStarted(worker=worker)), self._loop.time() + STARTED_SECONDS)
        garbage.settle()
        self._garbage = garbage
        self._watch = recycle.Watch(worker, self._loop.time())
        self._say({"op": "ready"})
        if self._retiring:
            self._say({"op": "retire", "reason": self._retiring})

    async def _call(self, hook: str, *arguments: Any) -> None:
        function = getattr(self._handler, hook, None)
        if function is not None:
            result = function(*arguments)
            if inspect.isawaitable(result):
                await result

    async def _hold_tasks(self) -> None:
        """``worker.tasks`` is entered and left in a task of its own: a task in it that will not end cannot keep ``on_stop`` from being called."""
        async with anyio.create_task_group() as self._group:
            self._worker.tasks = Tasks(self._group)
            await anyio.sleep_forever()

    # Accepting -------------------------------------------------------------------------------------------------------------------

    def _factory(self, bind: Bind) -> Callable[[], asyncio.Protocol]:
        worker, handler = self._worker, self._handler
        make = getattr(handler, "connection", None)
        if make is not None:
            return lambda: make(worker, bind)
        protocol = protocol_named(bind.address.scheme)
        return lambda: Connection(protocol(), handler, worker, write_timeout=worker.config.timeout_write)

    async def _listen(self, bind: Bind) -> asyncio.Server:
        assert bind.socket is not None
        # A copy, because the server closes it and the backlog is served after that.
        sock = bind.socket.dup()
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX and not isinstance(self._loop, asyncio.BaseEventLoop):
            options: Any = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            return await self._loop.create_unix_server(self._factory(bind), sock=sock, backlog=bind.backlog, **options)
        return await self._loop.create_server(self._factory(bind), sock=sock, backlog=bind.backlog)

    async def _stop_accepting(self) -> None:
        """Close the listening sockets. When the whole server stops, first take what the kernel has already accepted in our name."""
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # asyncio drops what it has accepted but not yet given a transport when its server is closed: first let it only stop looking.
            for listening in (sock for server in self._servers for sock in server.sockets):
                self._loop.remove_reader(listening.fileno())
            await self._turns()
        for server in self._servers:
            server.close()
        await self._turns()
        for bind in self._worker.binds if self._servers else ():
            accepted = _accept_backlog(bind) if self._worker.stop_reason == "stop" else []
            bind.close()
            for sock in accepted:
                try:
                    await self._loop.connect_accepted_socket(self._factory(bind), sock)
                except OSError:  # its client has given up
                    sock.close()

    async def _turns(self) -> None:
        """As many turns of the loop as it takes until what it has accepted is among the worker's connections."""
        for _ in range(3):
            await asyncio.sleep(0)

    # The channel to the master ---------------------------------------------------------------------------------------------------

    def on_message(self, connection: Connection, envelope: Envelope) -> None:
        """What the master says."""
        match envelope["op"]:
            case "stop":
                self.ask_stop(str(envelope.get("reason", "stop")), envelope.get("deadline"))
            case "connections":
                self._say({"op": "connections", "id": envelope.get("id"), "rows": self._rows()})
            case "reopen":
                log.reopen()
                reopen_output()

    def on_close(self, connection: Connection) -> None:
        """The channel's end is the master's, unless the master has let go of a process that is stopping anyway."""
        if not self._worker.stopping or os.getppid() != self._parent:
            self._orphaned()

    def _say(self, envelope: Envelope) -> None:
        """A master that does not read misses beats; it is not waited for."""
        if self._channel is not None:
            with contextlib.suppress(Busy, ConnectionClosed, ConnectionLost):
                self._channel.send_nowait(envelope)

    def retire(self, reason: str) -> None:
        """Ask once. Before it is ready nobody serves whose successor there could be: then it is asked for afterwards."""
        if self._retiring:
            return
        self._retiring = reason
        if self._watch is not None:
            self._say({"op": "retire", "reason": reason})

    def _rows(self) -> list[dict[str, Any]]:
        rows = [link.row() for link in self._worker.links]
        return [*rows, *(connection.row() for connection in self._worker.connections)][:MAX_ROWS]

    async def _beat(self) -> None:
        """Show that the loop turns, and with what. The clock is real time: a machine that slept is not a worker that hung."""
        worker = self._worker
        interval = min(1.0, worker.config.timeout_worker_healthcheck / 4) or 1.0
        while True:
            counts = {"requests": worker.requests, "in_flight": worker.in_flight}
            self._say({"op": "beat", **counts, "connections_in": len(worker.connections), "connections_out": len(worker.links)})
            if os.getppid() != self._parent:
                self._orphaned()
            if self._watch is not None and not self._retiring and (reason := self._watch.look(self._loop.time())):
                self.retire(reason)
            if self._garbage is not None:
                self._garbage.look(worker.requests, worker.in_flight, self._loop.time())
            await asyncio.sleep(interval)

    async def _end_channel(self) -> None:
        """Let the last words arrive."""
        if self._channel is not None:
            self._channel.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._channel.wait_closed()

    # Orders to stop --------------------------------------------------------------------------------------------------------------

    def grace(self) -> float | None:
        """Seconds a stop may take when nobody has said otherwise."""
        worker = self._worker
        return worker.config.timeout_graceful_shutdown if worker.stop_timeout is None else worker.stop_timeout

    def ask_stop(self, reason: str, seconds: float | None) -> None:
        """Stop, within ``seconds`` from now. A later order can only shorten what an earlier one gave."""
        worker = self._worker
        deadline = None if seconds is None else self._loop.time() + seconds
        if not worker.stopping:
            worker.stopping = True
            worker.stop_reason = reason
            self._deadline = deadline
            self._asked.set()
        elif deadline is not None and (self._deadline is None or deadline < self._deadline):
            self._deadline = deadline
            self._hurry()

    def on_sigterm(self) -> None:
        """In the signal handler, between any two instructions of the main thread: hand over to the loop."""
        if os.getppid() != self._parent:
            _arm_alarm()  # here, because the loop may be blocked
        with contextlib.suppress(RuntimeError):  # the loop is closed, which is what was wanted
            self._loop.call_soon_threadsafe(self._terminated)

    def _terminated(self) -> None:
        if os.getppid() != self._parent:
            self._orphaned()
        else:
            self.ask_stop("stop", self.grace())

    def _orphaned(self) -> None:
        """The master is gone. Nobody restarts this process, and nobody would ever end it."""
        _arm_alarm()
        self.ask_stop("orphaned", ORPHAN_DRAIN)

    # The stop --------------------------------------------------------------------------------------------------------------------

    async def _stop(self, tasks: asyncio.Task[None]) -> None:
        worker = self._worker
        begun = self._loop.time()
        if self._starting_told:
            half = None if self._deadline is None else begun + (self._deadline - begun) / 2
            await self._bounded("WorkerStopping", aemit(WorkerStopping(worker=worker)), half)
        await self._bounded("accepting what waits", self._stop_accepting(), self._deadline)
        if self._started:
            await self._bounded("on_drain", self._drain(), self._deadline)
        for connection in tuple(worker.connections):
            connection.cancel()
        await self._end_tasks(tasks)
        if self._started:
            await self._bounded("on_stop", self._call("on_stop", worker), self._deadline, LAST_SECONDS)

    async def _bounded(self, name: str, phase: Awaitable[None], deadline: float | None, least: float = 0.0) -> None:
        """Run one phase of the stop until its end or ``deadline``, but ``least`` seconds at least. Whatever goes wrong in it, the stop goes on."""
        when = None if deadline is None else max(deadline, self._loop.time() + least)
        self._least = least
        try:
            async with asyncio.timeout_at(when) as self._limit:
                await phase
        except TimeoutError as exc:
            if self._limit is not None and self._limit.expired():
                logger.warning("Worker %s: %s took too long and was cut short", self._worker.name, name)
            else:
                logger.error("Worker %s: %s raised", self._worker.name, name, exc_info=exc)
        except Exception:
            logger.exception("Worker %s: %s raised", self._worker.name, name)
        finally:
            self._limit = None

    def _hurry(self) -> None:
        """The deadline was brought nearer while a phase runs."""
        limit = self._limit
        if limit is None or self._deadline is None or limit.expired():
            return
        when = max(self._deadline, self._loop.time() + self._least)
        before = limit.when()
        if before is None or when < before:
            limit.reschedule(when)

    async def _drain(self) -> None:
        if hasattr(self._handler, "on_drain"):
            await self._call("on_drain", self._worker, self._deadline)
        else:
            await drain_connections(self._worker)
        while self._worker.in_flight > 0:  # messages that came over links
            await asyncio.sleep(0.01)

    async def _end_tasks(self, tasks: asyncio.Task[None]) -> None:
        if self._group is not None:
            self._group.cancel_scope.cancel()
        left = TASKS_MOST if self._deadline is None else self._deadline - self._loop.time()
        done, _ = await asyncio.wait({tasks}, timeout=min(max(left, TASKS_LEAST), TASKS_MOST))
        if not done:
            logger.warning("Worker %s: its tasks have not ended after they were cancelled", self._worker.name)


async def drain_connections(worker: Worker) -> None:
    """Read what clients have already sent, then close each connection when nothing on it is being handled."""
    if worker.connections:
        await asyncio.sleep(QUIET)
    for connection in tuple(worker.connections):
        connection.shutdown()
    while worker.connections:
        await asyncio.sleep(0.01)


def failure(worker: Worker, error: BaseException) -> Envelope:
    """What the master is told of a boot that failed; what is not our own error is logged with its traceback."""
    text = str(error)
    if not isinstance(error, LaramanError):
        text = f"{type(error).__name__}: {error}"
        logger.error("Worker %s failed to start", worker.name, exc_info=error)
    return {"op": "failed", "error": text, "exit": error.exit_code if isinstance(error, ConfigError) else BootError.exit_code}


def load_handler(handler: Any) -> Any:
    """The handler that a declaration names. Raises ConfigError when an import string leads nowhere; what the module itself raises comes out."""
    if isinstance(handler, str):
        handler = _resolve(handler)
    return handler() if inspect.isclass(handler) or inspect.isroutine(handler) else handler


def _resolve(text: str) -> Any:
    name, _, attributes = text.partition(":")
    if not name or not attributes:
        raise ConfigError(f"handler {text!r} is not of the form module:attribute")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigError(f"handler {text!r}: there is no module {name!r}") from None
        raise
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise ConfigError(f"handler {text!r}: {found!r} has no attribute {attribute!r}") from None
    return found


def _accept_backlog(bind: Bind) -> list[socket.socket]:
    """Everything in the kernel's queue, but no more than fits into it: under load it fills as fast as it is emptied."""
    accepted: list[socket.socket] = []
    assert bind.socket is not None
    while len(accepted) < bind.backlog:
        try:
            sock, _ = bind.socket.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # nothing waits, or no descriptor is left
            break
        sock.setblocking(False)
        accepted.append(sock)
    return accepted


def _arm_alarm() -> None:
    """Let the kernel end this process soon, whatever it does until then."""
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_LIFE)
