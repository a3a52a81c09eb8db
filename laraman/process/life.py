"""The life of a Worker, in whatever process it runs.

    BOOTING     listener modules, handler, on_load -> WorkerStarting -> on_start -> accepting -> WorkerStarted
    SERVING     until it is asked to stop
    DRAINING    WorkerStopping -> nothing more is accepted -> on_drain -> tasks and links end -> on_stop
    STOPPED

A boot that fails goes through DRAINING too, as far as it had come, so what was told that it starts is told that it stops. Every hook is called
once. All phases of DRAINING share one deadline, which later orders can only bring nearer; what remains when it comes is cancelled.

Who asks, and hears how it went, differs: the master (``laraman.process.child``), or a program that serves by itself (``laraman.asgi.server``).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import anyio

from laraman.errors import BootError, ConfigError
from laraman.events import WorkerStarted, WorkerStarting, WorkerStopping, aemit
from laraman.net.link import current_worker
from laraman.process.accepting import Accepting
from laraman.process.naming import resolve
from laraman.process.tasks import Tasks
from laraman.process.worker import import_listeners
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Set

    from anyio.abc import TaskGroup

    from laraman.process.worker import Worker

logger = logging.getLogger("uvicorn.error")

#: Seconds that ``on_stop`` gets even when the deadline has come, and that the end of the tasks gets then, and at most: a link that flushes
#: may go on meanwhile. Together they are less than what the master adds to the deadline before it kills.
LAST_SECONDS, TASKS_LEAST, TASKS_MOST = 1.0, 0.6, 3.0
#: Seconds in which those who are told of WorkerStarted may keep the worker from being ready.
STARTED_SECONDS = 10.0
#: Seconds in which what clients have sent before the stop is still read, on connections that say nothing about themselves.
QUIET = 0.2
#: Schemes of addresses whose handler may be a function.
_HANDLED_BY_FUNCTIONS = frozenset({"request"})


class Life:
    """One life of a worker, in a context of its own. The Worker is what application code sees; what only concerns the life itself is here.

    ``boot``, then ``asked`` is waited for, then ``end``; what a kind of life does at its turning points is in the methods that do nothing here.
    """

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        #: From when it listens.
        self.accepting: Accepting | None = None
        #: Set when it is to stop.
        self.asked = asyncio.Event()
        self._worker = worker
        self._loop = loop
        self._context = copy_context()
        self._context.run(current_worker.set, worker)
        self._handler: Any = None
        self._group: TaskGroup | None = None
        self._starting_told = self._started = False
        self._deadline: float | None = None  # of the stop, in the loop's time
        self._limit: asyncio.Timeout | None = None  # of the phase that runs
        self._ending: asyncio.Task[None] | None = None
        self._least = 0.0  # seconds that this phase gets in any case
        worker.loop = loop
        worker._life = self
        worker.sandbox = Sandbox(worker, self._context)
        self._tasks = self._task(self._hold_tasks())

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work, context=self._context.copy())

    # Turning points --------------------------------------------------------------------------------------------------------------

    def on_prepare(self) -> None:
        """The application has started, and nothing watches the process yet."""

    def on_ready(self) -> None:
        """It accepts connections, and everybody has been told."""

    def on_stopping(self) -> None:
        """It was asked to stop, and nothing has ended yet."""

    def on_sigterm(self) -> None:
        """In the signal handler, between any two instructions of the main thread."""

    def retire(self, reason: str) -> None:
        """Somebody in it wants another one in its place."""

    # Boot ------------------------------------------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Until it is ready, or a stop comes first. Raises what keeps it from starting."""
        boot, asked = self._task(self._boot()), self._task(self.asked.wait())
        try:
            await asyncio.wait({boot, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            if not boot.done():
                boot.cancel()
                await asyncio.wait({boot}, timeout=LAST_SECONDS)
        if boot.done() and not boot.cancelled() and (error := boot.exception()) is not None:
            raise error

    async def _boot(self) -> None:
        worker = self._worker
        try:
            if worker.loaded is None:
                import_listeners(worker.config)
                self._handler = load_handler(worker.handler, {bind.address.scheme for bind in worker.binds})
                await self._call("on_load", worker)
            else:
                self._handler = worker.loaded
            self._starting_told = worker.running = True
            await aemit(WorkerStarting(worker=worker))
            await self._call("on_start", worker)
            self._started = True
            self.on_prepare()
            await worker.sandbox.prepare()
        except SystemExit as exc:
            raise BootError(f"worker {worker.name}: sys.exit({exc.code!r}) was called while it started") from exc
        self.accepting = Accepting(worker, self._handler, self._loop)
        await self.accepting.start()
        # Before it is said, because a predecessor is told to stop then: whoever must be in its place by then gets there in a listener.
        await self._bounded("WorkerStarted", aemit(WorkerStarted(worker=worker)), self._loop.time() + STARTED_SECONDS)
        self.on_ready()

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

    def tell_reload(self) -> None:
        """A reload was ordered; this process may be replaced in it."""
        if self._started and not self._worker.stopping and hasattr(self._handler, "on_reload"):
            self._worker.tasks.start_soon(self._on_reload, name=f"{self._worker.name}: on_reload")

    async def _on_reload(self) -> None:
        try:
            await self._call("on_reload", self._worker)
        except Exception:
            logger.exception("Worker %s: on_reload raised", self._worker.name)

    # Stop ------------------------------------------------------------------------------------------------------------------------

    def grace(self) -> float | None:
        """Seconds a stop may take when nobody has said otherwise."""
        worker = self._worker
        timeout: float | None = worker.config.timeout_graceful_shutdown if worker.stop_timeout is None else worker.stop_timeout
        return timeout

    def ask_stop(self, reason: str, seconds: float | None) -> None:
        """Stop, within ``seconds`` from now. A later order can only shorten what an earlier one gave."""
        worker = self._worker
        deadline = None if seconds is None else self._loop.time() + seconds
        if not worker.stopping:
            worker.stopping = True
            worker.stop_reason = reason
            self._deadline = deadline
            self.asked.set()
        elif deadline is not None and (self._deadline is None or deadline < self._deadline):
            self._deadline = deadline
            self._hurry()

    async def end(self) -> None:
        """Stop, as it was asked to, once. Whoever cancels this does not cancel the end."""
        if self._ending is None:
            self._ending = self._task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        worker = self._worker
        begun = self._loop.time()
        self.on_stopping()
        for resident in tuple(worker.residents):
            resident.wind_up()
        if self._starting_told:
            half = None if self._deadline is None else begun + (self._deadline - begun) / 2
            await self._bounded("WorkerStopping", aemit(WorkerStopping(worker=worker)), half)
        if self.accepting is not None:
            await self._bounded("accepting what waits", self.accepting.stop(), self._deadline)
        if self._started:
            await self._bounded("on_drain", self._drain(), self._deadline)
        for connection in tuple(worker.connections):
            connection.cancel()
        await self._end_tasks()
        if self._started:
            await self._bounded("on_stop", self._call("on_stop", worker), self._deadline, LAST_SECONDS)
        worker.sandbox.close()

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

    async def _end_tasks(self) -> None:
        if self._group is not None:
            self._group.cancel_scope.cancel()
        left = TASKS_MOST if self._deadline is None else self._deadline - self._loop.time()
        done, _ = await asyncio.wait({self._tasks}, timeout=min(max(left, TASKS_LEAST), TASKS_MOST))
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


def load_handler(handler: Any, schemes: Set[str] = frozenset()) -> Any:
    """The handler that a declaration names. Raises ConfigError when an import string leads nowhere; what the module itself raises comes out.

    A class or function makes the handler, but where the addresses' ``schemes`` are among those that functions can handle, it is the function.
    """
    if isinstance(handler, str):
        handler = resolve(handler, "handler")
    if inspect.isroutine(handler) and schemes & _HANDLED_BY_FUNCTIONS:
        return handler
    if not (inspect.isclass(handler) or inspect.isroutine(handler)):
        return handler
    with suppress(ValueError):  # compiled, without a signature
        try:
            inspect.signature(handler).bind()
        except TypeError as exc:
            raise ConfigError(f"handler {handler.__module__}:{handler.__qualname__} is called without arguments: {exc}") from None
    return handler()
