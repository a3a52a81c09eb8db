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
from typing import TYPE_CHECKING, Any

from laraman import events
from laraman.events import aemit, listeners
from laraman.sandbox.locals import Local
from laraman.sandbox.operation import CURRENT, TASK, Kind, Operation

if TYPE_CHECKING:
    import decimal
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from laraman.sandbox.guard import Guard
    from laraman.sandbox.reset import Resets

logger = logging.getLogger("uvicorn.error")

#: Seconds in which the instances of an operation have to be closed.
CLOSE_SECONDS = 5.0

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
        #: Names of the kinds of operations whose events somebody listens to.
        self._heard: set[str] = set()
        self._base = copy_context() if base is None else base.copy()
        self._decimal = self._warm_decimal()
        config = getattr(worker, "config", None)
        self._turn = asyncio.Lock() if getattr(config, "isolation", "") == "serial" else None
        #: A fresh context for an operation.
        self.context: Callable[[Operation], Context] = self._plain_context if self._decimal is None else self._with_decimal

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

    # Contexts --------------------------------------------------------------------------------------------------------------------

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
        """
        operation = Operation(kind, subject or f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}")
        worker = self.worker
        if worker is not None:
            worker.in_flight += 1
        try:
            wrapper = self.wrapper(kind) or _call
            context = self.context(operation)
            return await asyncio.get_running_loop().create_task(wrapper(operation, function, *args), name=operation.name, context=context)
        finally:
            if worker is not None:
                worker.in_flight -= 1
            self.ended(operation)

    def wrapper(self, kind: Kind) -> Callable[..., Coroutine[Any, Any, Any]] | None:
        """``wrapper(operation, function, *args)`` runs a function with all that has to be done around it; None while that is nothing.

        Ask again when ``events.version`` has changed. Whoever calls the function says ``ended(operation)`` afterwards in both cases.
        """
        heard = any(event is not None and listeners(event) for event in (kind.received, kind.handled, kind.terminated))
        (self._heard.add if heard else self._heard.discard)(kind.name)
        resets = self.resets is not None and (self.resets.each or self.resets.idle)
        watched = self.guard is not None and self.guard.every
        if self._turn is not None and kind.waits:
            return self._operate_in_turn
        return self._operate if heard or resets or watched or Local.count else None

    @property
    def serial(self) -> bool:
        """Operations have a turn."""
        return self._turn is not None

    def ended(self, operation: Operation) -> None:
        """Nothing of the operation runs any more but what it has started and left behind."""
        operation.ended = True
        guard = self.guard
        if guard is not None:
            since = guard.since
            since.append(operation.trace)
            if len(since) >= guard.due:
                guard.reached()

    def _in_flight(self) -> int:
        """Operations that are running. ``active`` has them all where every one of them is entered."""
        in_flight: int = self.worker.in_flight
        return self.active if self.guard is not None and self.guard.every else in_flight

    async def _operate_in_turn(self, operation: Operation, function: Callable[..., Any], *args: Any) -> Any:
        assert self._turn is not None
        async with self._turn:
            return await self._operate(operation, function, *args)

    async def out_of_turn(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Under serial isolation: await ``function()`` while others have their turn, and come back when it is ours again.

        The operation is not in flight meanwhile, so what is shared is restored.
        """
        assert self._turn is not None
        try:
            if (waiting := self._withdraw()) is not None:
                await waiting
        finally:
            self._turn.release()
        try:
            return await function()
        finally:
            await self._come_back(self._turn)

    async def _come_back(self, turn: asyncio.Lock) -> None:
        """Whoever cancels this meanwhile: the operation has its turn for what it does at its end."""
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                await turn.acquire()
                break
            except asyncio.CancelledError as exc:
                cancelled = exc
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
            if result is not None and isawaitable(result):
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
                await aemit(kind.terminated(worker=self.worker, outcome=outcome, **{kind.subject: operation.subject}))
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

    def _withdraw(self) -> Awaitable[None] | None:
        """The operation is in flight no more: what is shared is restored if it was the last. To be awaited if something is returned."""
        self.active -= 1
        resets = self.resets
        return resets.when_idle() if not self.active and resets is not None and resets.idle else None

    def _close_instances(self, operation: Operation) -> Awaitable[None] | None:
        """Close them, the last first, up to the first that has to be awaited: then what is returned closes that one and the rest."""
        assert operation.instances is not None
        rest = reversed(tuple(operation.instances.items()))
        for local, entry in rest:
            try:
                closing = local.closing(entry)
            except Exception as exc:
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
            except Exception as exc:
                closing = None
                self._not_closed(operation, local, exc)
        if interrupted is not None:
            raise interrupted

    def _not_closed(self, operation: Operation, local: Local[Any], exc: Exception) -> None:
        logger.error("%s of %s could not be closed", local.name, operation.name, exc_info=exc)
        self._give_up(f"{local.name} could not be closed")

    def _give_up(self, reason: str) -> None:
        """This process may hold what belongs to an operation that is over: another one takes its place."""
        if self.worker is not None:
            self.worker.retire(reason)


async def _call(operation: Operation, function: Callable[..., Any], *args: Any) -> Any:
    result = function(*args)
    return await result if isawaitable(result) else result


def _is_imported(name: str) -> bool:
    """Whether this process has the module that an import string names; the words that are no import strings name the process itself."""
    module, colon, _ = name.partition(":")
    return not colon or module in sys.modules
