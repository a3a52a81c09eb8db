"""The Sandbox: what is done around every operation of a worker.

Each operation runs in its own copy of the context that the application's startup left behind. A copy isolates, and it keeps what startup set
(tracing, configuration); an empty context would hide that, which is why servers that tried it took it back.

    enter    its turn, under serial isolation -> ...Received
    leave    always, in a finally: ...Terminated -> its locals are closed -> flush -> restore, when nothing else is in flight -> the guard

While nobody listens and nothing is registered, there is nothing to do around an operation but its context, and `wrapper` says so.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextvars import Context, copy_context
from dataclasses import replace
from inspect import isawaitable
from itertools import chain
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from laraman import events
from laraman.events import aemit, listeners
from laraman.sandbox.locals import Local
from laraman.sandbox.operation import CURRENT, TASK, Kind, Operation, current, trace_of
from laraman.sandbox.turns import Turns

if TYPE_CHECKING:
    import decimal
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from laraman.events import OperationTerminated
    from laraman.sandbox.guard import Guard
    from laraman.sandbox.reset import Resets

logger = logging.getLogger("uvicorn.error")

#: Seconds in which the instances of an operation have to be closed.
CLOSE_SECONDS = 5.0
#: Seconds in which those who listen to the end of an operation have to be done.
LISTEN_SECONDS = 5.0
#: Operations that end one after the other while others are in flight, until it is said that nothing can be restored.
OVERDUE = 1000

_set_current = CURRENT.set


class Sandbox:
    """Makes the surroundings of each operation of ``worker`` from ``base``, its context after startup (by default the current one).

    ``active`` counts the operations between enter and leave; operations around which nothing is to be done are not counted.
    """

    def __init__(self, worker: Any = None, base: Context | None = None) -> None:
        self.worker = worker
        self.active = 0
        self.resets: Resets | None = None
        self.guard: Guard | None = None
        #: Operations that have ended since what is shared was restored.
        self._not_restored = 0
        self._said_overdue = False
        #: Names of the kinds of operations whose events somebody listens to.
        self._heard: set[str] = set()
        self._base = copy_context() if base is None else base.copy()
        self._decimal = self._warm_decimal()
        config = getattr(worker, "config", None)
        self._turns = Turns() if getattr(config, "isolation", "") == "serial" else None
        #: Under serial isolation: operations whose function runs, those of them that have given their turn away, and those in another one's turn.
        self._sessions: set[Operation] = set()
        self._away: set[Operation] = set()
        self._nested: set[Operation] = set()
        #: A fresh context for an operation.
        self.context: Callable[[Operation], Context] = self._plain_context if self._decimal is None else self._with_decimal
        #: What such a context is a copy of where ``CURRENT`` is all that is set in it, else None.
        self.plain: Context | None = self._base if self._decimal is None else None

    async def prepare(self) -> None:
        """Do what `config` says is done at boot, when the application has started: warm, find what is reset, start the guard.

        Raises ConfigError and BootError.
        """
        config = self.worker.config
        guard: Guard | None = None
        if config.guard != "off":
            from laraman.sandbox.guard import Guard

            guard = Guard(config.guard)
        wanted = config.sandbox
        if self.worker.name != "http":  # not the application: it resets what it has imported anyway
            flush, restore = (tuple(name for name in names if _is_imported(name)) for names in (wanted.flush, wanted.restore))
            wanted = replace(wanted, warm=(), flush=flush, restore=restore)
        from laraman.sandbox.reset import Resets

        self.resets = await Resets.prepare(wanted, {} if guard is None else guard.watches)
        if guard is not None:
            guard.start(asyncio.get_running_loop(), self._in_flight)
            self.guard = guard
        events.changed()  # connections and links may have asked for their wrapper before

    def close(self) -> None:
        """The worker is over, its process perhaps not: take away what `prepare` has put into it."""
        if self.guard is not None:
            self.guard.stop()
        if self.resets is not None:
            self.resets.close()

    # Contexts --------------------------------------------------------------------------------------------------------------------

    def outside(self) -> Context:
        """A fresh context for what belongs to the worker and to no operation."""
        return self._base.copy()

    def _plain_context(self, operation: Operation) -> Context:
        context = self._base.copy()
        context.run(_set_current, operation)
        return context

    def _with_decimal(self, operation: Operation) -> Context:
        assert self._decimal is not None
        context = self._plain_context(operation)
        context.run(sys.modules["decimal"].setcontext, self._decimal.copy())
        return context

    def _warm_decimal(self) -> decimal.Context | None:
        """The decimal context that startup left in the base, if it did: copying a context is shallow, so every operation would share and change it.

        Where startup did not touch decimal nothing is needed: the module makes a new one from its default in each context that asks.
        """
        for variable, value in self._base.items():
            if variable.name == "decimal_context":
                shared: decimal.Context = value
                return shared.copy()
        return None

    # Operations ------------------------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., Any], *args: Any, kind: Kind = TASK, subject: Any = None) -> Any:
        """Run ``function(*args)``, plain or ``async``, as an operation: for work that no server hands out, like the records of a consumer's loop.

        It gets a task and a context of its own. Returns and raises what it does. ``subject`` is what its events carry, by default its name.
        Under serial isolation it waits for its turn, unless it is an operation that calls this in its own: that may wait for the result.
        """
        operation = Operation(kind, subject or f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}")
        worker = self.worker
        if worker is not None:
            worker.in_flight += 1
        try:
            wrapper = self.wrapper(kind) or _call
            if self._turns is not None and (caller := current()) is not None and (caller is self._turns.holder or caller in self._nested):
                self._nested.add(operation)
                wrapper = self._operate
            context = self.context(operation)
            return await asyncio.get_running_loop().create_task(wrapper(operation, function, *args), name=operation.name, context=context)
        finally:
            if worker is not None:
                worker.in_flight -= 1
            self._nested.discard(operation)
            self.ended(operation)

    def wrapper(self, kind: Kind) -> Callable[..., Coroutine[Any, Any, Any]] | None:
        """``wrapper(operation, function, *args)`` runs a function with all that has to be done around it; None while that is nothing.

        Ask again when ``events.version`` has changed. Whoever calls the function says ``ended(operation)`` afterwards in both cases.
        """
        heard = any(event is not None and listeners(event) for event in (kind.received, kind.handled, kind.terminated))
        (self._heard.add if heard else self._heard.discard)(kind.name)
        resets = self.resets is not None and (self.resets.each or self.resets.idle)
        watched = self.guard is not None and self.guard.every
        if self._turns is not None and kind.waits:
            return self._operate_in_turn
        return self._operate if heard or resets or watched or Local.count else None

    @property
    def serial(self) -> bool:
        """Operations have a turn."""
        return self._turns is not None

    def ended(self, operation: Operation) -> None:
        """Nothing of the operation runs any more but what it has started and left behind. ``Receiving.data_received`` does
        the same for a message."""
        operation.ended = True
        guard = self.guard
        if guard is not None:
            since = guard.since
            since.append(trace_of(operation))
            if len(since) >= guard.due:
                guard.reached()

    def _in_flight(self) -> int:
        """Operations that are running. ``active`` has them all where every one of them is entered."""
        in_flight: int = self.worker.in_flight
        return self.active if self.guard is not None and self.guard.every else in_flight

    async def _operate_in_turn(self, operation: Operation, function: Callable[..., Any], *args: Any) -> Any:
        assert self._turns is not None
        try:
            await self._turns.take(operation)
            self._sessions.add(operation)
            return await self._operate(operation, self._to_the_end, operation, function, *args)
        finally:
            self._turns.give(operation)

    async def _to_the_end(self, operation: Operation, function: Callable[..., Any], *args: Any) -> Any:
        """Another task of the operation may have given its turn away, and still wait: what is done at the end is done in turn, and by nobody else."""
        try:
            return await _call(operation, function, *args)
        finally:
            try:
                await self._come_back(operation)
            finally:
                self._sessions.discard(operation)

    async def out_of_turn(self, function: Callable[[], Awaitable[Any]], operation: Operation | None = None) -> Any:
        """Under serial isolation: await ``function()`` while others have their turn, and come back when it is ours again.

        ``operation`` is the current one by default. It is not in flight meanwhile, so what is shared is restored.
        """
        assert self._turns is not None
        operation = operation or current()
        if operation is None or operation not in self._sessions:  # it is over, or has no turn of its own
            return await function()
        try:
            if self._turns.holder is operation and operation not in self._away:
                self._away.add(operation)
                if (waiting := self._withdraw()) is not None:
                    await waiting
                self._turns.give(operation)
            return await function()
        finally:
            await self._come_back(operation)

    async def _come_back(self, operation: Operation) -> None:
        """Whoever cancels this meanwhile: the operation has its turn for what it does at its end."""
        assert self._turns is not None
        cancelled: asyncio.CancelledError | None = None
        while operation in self._sessions and self._turns.holder is not operation:
            try:
                await self._turns.take(operation)
            except asyncio.CancelledError as exc:
                cancelled = exc
        if operation in self._away:
            self._away.remove(operation)
            self.active += 1
        if cancelled is not None:
            raise cancelled

    async def _operate(self, operation: Operation, function: Callable[..., Any], *args: Any) -> Any:
        kind = operation.kind
        heard = kind.name in self._heard
        outcome = "ok"
        self.active += 1
        try:
            if heard and kind.received is not None:
                await aemit(kind.received(worker=self.worker, **{kind.subject: operation.subject}))
            result = function(*args)
            if type(result) is CoroutineType or isawaitable(result):  # what it is in nearly all cases is asked first, for a third of the cost
                result = await result
            if heard and kind.handled is not None:
                await aemit(kind.handled(worker=self.worker, **{kind.subject: operation.subject}))
            return result
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except BaseException:
            outcome = "error"
            raise
        finally:
            await self._leave(operation, outcome, heard)

    async def _leave(self, operation: Operation, outcome: str, heard: bool) -> None:
        """Whatever goes wrong in one part, or cancels it, the next ones are done.

        Their functions return something to be awaited only if they have to: a coroutine would cost more than its work.
        """
        kind = operation.kind
        resets = self.resets
        try:
            if heard and kind.terminated is not None:
                await self._tell(kind.terminated(worker=self.worker, outcome=outcome, **{kind.subject: operation.subject}))
        finally:
            try:
                if operation.instances is not None and (waiting := self._close_instances(operation)) is not None:
                    await waiting
            finally:
                try:
                    if resets is not None and resets.each and (waiting := resets.after(operation)) is not None:
                        await waiting
                finally:
                    if (waiting := self._withdraw()) is not None:
                        await waiting
                    if resets is not None and resets.failed:
                        self._give_up(resets.failed)
                    if self.guard is not None and self.guard.every:
                        self.guard.look(operation)

    async def _tell(self, event: OperationTerminated) -> None:
        """A listener that never comes to its end would keep the operation, and under serial isolation everybody's turn."""
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                await aemit(event)
        except TimeoutError:
            logger.error("Listeners for %s were not done after %g s", type(event).__name__, LISTEN_SECONDS)

    def _withdraw(self) -> Awaitable[None] | None:
        """The operation is in flight no more: what is shared is restored if it was the last. To be awaited if something is returned."""
        self.active -= 1
        resets = self.resets
        if resets is None or not resets.idle:
            return None
        if not self.active:
            self._not_restored = 0
            return resets.when_idle()
        self._not_restored += 1
        if self._not_restored == OVERDUE and not self._said_overdue:
            self._said_overdue = True
            logger.warning("sandbox.restore: nothing put back for %d operations, as others were always in flight: see --isolation serial", OVERDUE)
        return None

    def _close_instances(self, operation: Operation) -> Awaitable[None] | None:
        """Close them, the last first, up to the first that has to be awaited: then what is returned closes that one and the rest."""
        assert operation.instances is not None
        rest = _last_first(operation.instances)
        for local, entry in rest:
            try:
                closing = local.closing(entry)
            except BaseException as exc:  # SystemExit too: the rest is to be closed
                self._not_closed(operation, local, exc)
            else:
                if closing is not None and isawaitable(closing):
                    return self._close_rest(operation, local, closing, rest)
        return None

    async def _close_rest(self, operation: Operation, local: Local[Any], closing: Any, rest: Iterator[tuple[Local[Any], Any]]) -> None:
        interrupted: asyncio.CancelledError | None = None
        while True:
            try:
                if closing is not None and isawaitable(closing):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await closing
                if (following := next(rest, None)) is None:
                    break
                local, entry = following
                closing = None
                closing = local.closing(entry)
            except asyncio.CancelledError as exc:
                interrupted, closing = exc, None
            except GeneratorExit:  # the loop is gone
                raise
            except BaseException as exc:
                closing = None
                self._not_closed(operation, local, exc)
        if interrupted is not None:
            raise interrupted

    def _not_closed(self, operation: Operation, local: Local[Any], exc: BaseException) -> None:
        logger.error("%s of %s could not be closed", local.name, operation.name, exc_info=exc)
        self._give_up(f"{local.name} could not be closed")

    def _give_up(self, reason: str) -> None:
        """This process may hold what belongs to an operation that is over: another one takes its place."""
        if self.worker is not None:
            self.worker.retire(reason)


def _last_first(instances: dict[Local[Any], Any]) -> Iterator[tuple[Local[Any], Any]]:
    """All of them, and then those that were made while these were closed."""
    entries = list(instances.items())
    return chain(reversed(entries), _made_since(instances, len(entries)))


def _made_since(instances: dict[Local[Any], Any], given: int) -> Iterator[tuple[Local[Any], Any]]:
    while len(instances) > given:
        fresh = list(instances.items())[given:]
        given += len(fresh)
        yield from reversed(fresh)


async def _call(operation: Operation, function: Callable[..., Any], *args: Any) -> Any:
    result = function(*args)
    return await result if isawaitable(result) else result


def _is_imported(name: str) -> bool:
    """Whether this process has the module that an import string names; the words that are no import strings name the process itself."""
    module, colon, _ = name.partition(":")
    return not colon or module in sys.modules
