"""A Worker's process that the master has forked: it lives (see ``laraman.process.life``) until the master says stop, or is gone.

The channel carries the master's orders, and back how the boot went, beats, and the wish for a successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
from itertools import islice
from typing import TYPE_CHECKING, Any

from laraman import log
from laraman.errors import BootError, Busy, ConfigError, ConnectionClosed, ConnectionLost, LaramanError
from laraman.net.connection import Connection
from laraman.process import handle_exit, recycle
from laraman.process.children import introduce
from laraman.process.commands import MAX_TIMERS
from laraman.process.daemon import reopen_output
from laraman.process.garbage import Garbage
from laraman.process.life import Life, load_handler
from laraman.protocols.ipc import Ipc

if TYPE_CHECKING:
    import socket

    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

logger = logging.getLogger("uvicorn.error")

#: Seconds an orphan may drain, and seconds after which the kernel ends it whatever it is doing: nobody else would.
ORPHAN_DRAIN, ORPHAN_LIFE = 0.5, 1.5
#: Seconds for each of the last things: the channel, what is left on the loop.
CLOSE_SECONDS = 0.1
#: Rows of one answer to ``connections``; more would not fit into an envelope.
MAX_ROWS = 40_000


def run(worker: Worker, channel: socket.socket) -> int:
    """Be this worker until it ends; return the exit code."""
    parent = os.getppid()
    introduce(worker)
    try:
        loop = new_event_loop(worker.config.loop)
    except Exception as exc:  # a factory is the application's code
        failed = failure(worker, exc)
        channel.sendall(Ipc().send(failed))
        return int(failed["exit"])
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(Run(worker, loop, parent).live(channel))
    finally:
        _close(loop)


def new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    """An event loop as ``--loop`` says: of the package of that name, of ``module:factory``, else of asyncio. "auto" is uvloop where it is installed.

    Raises ConfigError when there is none; what a factory raises comes out.
    """
    if ":" in kind:
        made = load_handler(kind)
        if not isinstance(made, asyncio.AbstractEventLoop):
            raise ConfigError(f"the loop factory {kind} makes no event loop, but {type(made).__name__}")
        return made
    name = "uvloop" if kind == "auto" else kind
    if name in ("uvloop", "zuvloop"):
        try:
            package = importlib.import_module(name)
        except ImportError:
            if kind != "auto":
                raise ConfigError(f"the loop is set to {kind}, which is not installed") from None
        else:
            loop: asyncio.AbstractEventLoop = package.new_event_loop()
            return loop
    return asyncio.new_event_loop()


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


class Run(Life):
    """The life of a worker that has a master, whose other end of the channel is in the process ``parent``."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop, parent: int) -> None:
        super().__init__(worker, loop)
        self._parent = parent
        self._channel: Connection | None = None
        self._watch: recycle.Watch | None = None  # from when it is ready, and so is the next
        self._garbage: Garbage | None = None
        self._retiring = ""  # why it wants a successor

    async def live(self, channel: socket.socket) -> int:
        """Boot, serve, stop. Returns the exit code."""
        log.say_process("Started server")
        _, self._channel = await self._loop.connect_accepted_socket(lambda: Connection(Ipc(), self, None, "out"), channel)
        beats = self._task(self._beat())
        code = 0
        try:
            await self.boot()
        except BaseException as exc:
            code = self._report(exc)
            self.ask_stop("failed", self.grace())
        await self.asked.wait()
        await self.end()
        beats.cancel()
        log.say_process("Finished server")
        await self._end_channel()
        return code

    def _report(self, error: BaseException) -> int:
        failed = failure(self._worker, error)
        self._say(failed)
        return int(failed["exit"])

    def on_prepare(self) -> None:
        self._garbage = Garbage()  # before the guard remembers how the collector is set

    def on_ready(self) -> None:
        assert self._garbage is not None
        self._garbage.settle()
        self._watch = recycle.Watch(self._worker, self._loop.time())
        self._say({"op": "ready"})
        if self._retiring:
            self._say({"op": "retire", "reason": self._retiring})

    def on_stopping(self) -> None:
        handle_exit.tell()

    # The channel to the master ---------------------------------------------------------------------------------------------------

    def on_message(self, connection: Connection, envelope: Envelope) -> None:
        """What the master says."""
        match envelope["op"]:
            case "stop":
                self.ask_stop(str(envelope.get("reason", "stop")), envelope.get("deadline"))
            case "connections":
                self._say({"op": "connections", "id": envelope.get("id"), "rows": self._rows()})
            case "reload":
                self.tell_reload()
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
        rows += [resident.row() for resident in self._worker.residents if resident.connected]
        return [*rows, *(connection.row() for connection in self._worker.connections)][:MAX_ROWS]

    async def _beat(self) -> None:
        """Show that the loop turns, and with what. The clock is real time: a machine that slept is not a worker that hung."""
        worker = self._worker
        interval = min(1.0, worker.config.timeout_worker_healthcheck / 4) or 1.0
        while True:
            counts = {"requests": worker.requests, "in_flight": worker.in_flight}
            timers = [*islice((resident.row() for resident in worker.residents if not resident.connected), MAX_TIMERS)]
            connections = {"connections_in": len(worker.connections), "connections_out": len(worker.links)}
            self._say({"op": "beat", **counts, **connections, **({"timers": timers} if timers else {})})
            if os.getppid() != self._parent:
                self._orphaned()
            if self._watch is not None and not self._retiring and (reason := self._watch.look(self._loop.time())):
                self.retire(reason)
            if self._watch is not None and self._garbage is not None:
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


def failure(worker: Worker, error: BaseException) -> Envelope:
    """What the master is told of a boot that failed; what is not our own error is logged with its traceback."""
    text = str(error)
    if not isinstance(error, LaramanError):
        text = f"{type(error).__name__}: {error}"
        logger.error("Worker %s failed to start", worker.name, exc_info=error)
    return {"op": "failed", "error": text, "exit": error.exit_code if isinstance(error, ConfigError) else BootError.exit_code}


def _arm_alarm() -> None:
    """Let the kernel end this process soon, whatever it does until then."""
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_LIFE)
