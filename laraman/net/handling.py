"""The calls of a connection's handler: each is an operation with a context of its own, and what must be awaited runs in a task."""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from laraman import events
from laraman.net.sending import Sending
from laraman.sandbox.operation import CONNECTION, MESSAGE, NOTICE, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from contextvars import Context

    from laraman.sandbox.guard import Guard

#: Why reading is paused: messages wait, the protocol has more to do, the peer does not read what the protocol owes it, a handler said ``pause()``.
PENDING, MORE, OWED, PAUSED = 1, 2, 4, 8

#: An Operation that is made in place costs less than half of one that a call of ``__init__`` makes.
_new = Operation.__new__

#: Hooks that are called whatever runs.
_ANYTIME = frozenset(("on_buffer_full", "on_drained"))

#: The loop has only weak references to tasks.
_beside: set[asyncio.Task[None]] = set()


class Handling(Sending):
    """Calls the methods that ``handler`` has, one after another. While one of them must be awaited, ``running`` is its task."""

    __slots__ = ("_base", "_guard", "_lost", "_operates_for", "_reading_paused", "_wrapper", "_wrapper_version", "handler", "running", "worker")

    #: What a message is as an operation, and the beginning and the end of a connection.
    message_kind = MESSAGE
    hook_kind = CONNECTION

    def __init__(self, protocol: Any, handler: Any, worker: Any, write_timeout: float) -> None:
        super().__init__(protocol, write_timeout)
        self.handler = handler
        self.worker = worker
        self.running: asyncio.Task[None] | None = None
        self._reading_paused = 0  # the reasons
        self._lost = False  # the transport is gone: what has been received before is handled to its end
        self.operates_for = worker

    @property
    def operates_for(self) -> Any:
        return self._operates_for

    @operates_for.setter
    def operates_for(self, worker: Any) -> None:
        self._operates_for = worker
        self._wrapper: Callable[..., Coroutine[Any, Any, Any]] | None = None  # the sandbox's, for messages
        self._wrapper_version = -1
        self._base: Context | None = None  # what contexts of messages are copies of, where nothing else is to be done around them
        self._guard: Guard | None = None

    def _look_around(self) -> None:
        """What is to be done around a message has changed."""
        sandbox = self.operates_for.sandbox
        self._wrapper_version = events.version
        self._wrapper = sandbox.wrapper(self.message_kind)
        self._base = sandbox.plain if self._wrapper is None else None
        self._guard = sandbox.guard

    def _handle(self, hook: str, *arguments: Any) -> None:
        """Call a handler. One that must be awaited gets a task, and what comes meanwhile waits behind it; but ``_ANYTIME`` are beside all that."""
        function = getattr(self.handler, hook, None)
        if function is None:
            return
        worker = self.operates_for
        operation = context = wrapper = None
        if worker is not None:
            operation = Operation(NOTICE if hook in _ANYTIME else self.hook_kind, hook)
            context = worker.sandbox.context(operation)
            wrapper = worker.sandbox.wrapper(operation.kind)
        try:
            if context is None:
                result = function(self, *arguments)
            elif wrapper is None:
                result = context.run(function, self, *arguments)
            else:
                result = wrapper(operation, function, self, *arguments)
        except Exception as exc:
            result = None
            self._failed(hook, exc)
        if result is not None and isawaitable(result):
            self._await(hook, operation, context, result)
        elif operation is not None:
            worker.sandbox.ended(operation)

    def _handle_messages(self, messages: Sequence[Any]) -> None:
        """Call ``on_message`` for each, or keep those that have to wait.

        ``Receiving.data_received`` does the same in place for the one message that most reads bring, while there is nothing else to do.
        """
        kind, worker = self.message_kind, self.operates_for
        for message in messages:
            if self.error is not None and not self._lost:
                return  # a handler closed the connection: what stood behind it is not wanted
            if self.running is not None or (self._reading_paused & PAUSED and not self._lost):
                self._keep(message)
                continue
            function = getattr(self.handler, "on_message", None)
            if function is None:
                if self.handler is None:  # it waits for receive()
                    self._keep(message)
                continue
            if worker is None:
                self._handle("on_message", message)
                continue
            sandbox = worker.sandbox
            if self._wrapper_version != events.version:
                self._look_around()
            operation = _new(Operation)
            operation.kind = kind
            operation.subject = message
            operation.instances = None
            operation.ended = False
            context = sandbox.context(operation)
            try:
                result = context.run(function, self, message) if self._wrapper is None else self._wrapper(operation, function, self, message)
            except Exception as exc:
                result = None
                self._failed("on_message", exc)
            if result is not None and (type(result) is CoroutineType or isawaitable(result)):
                self._await("on_message", operation, context, result)
            else:
                sandbox.ended(operation)

    def _await(self, hook: str, operation: Operation | None, context: Context | None, result: Awaitable[Any]) -> None:
        loop = asyncio.get_running_loop()
        if hook in _ANYTIME:
            task = loop.create_task(self._run_beside(hook, operation, result), context=context)
            _beside.add(task)
            task.add_done_callback(_beside.discard)
            return
        if self.worker is not None:
            self.worker.in_flight += 1
        if loop.get_task_factory() is None:  # the loop would make the same task, after a detour that costs a fifth of it
            self.running = asyncio.Task(self._run(hook, operation, result), loop=loop, name=hook, context=context)
        else:
            self.running = loop.create_task(self._run(hook, operation, result), name=hook, context=context)

    async def _run(self, hook: str, operation: Operation | None, waiting: Awaitable[Any]) -> None:
        failure: BaseException | None = None
        try:
            await waiting
        except Exception as exc:
            failure = exc
        except BaseException as exc:
            task = asyncio.current_task()
            if not isinstance(exc, asyncio.CancelledError) or (task is not None and task.cancelling()):
                self._drop_pending()  # and nothing more begins
                raise
            failure = exc  # not we were cancelled, but something that it waited for
        finally:
            self.running = None
            if self.worker is not None:
                self.worker.in_flight -= 1
            if operation is not None:
                self.operates_for.sandbox.ended(operation)
            if failure is not None:
                self._failed(hook, failure)
                failure = None  # its traceback has this frame: a ring
            self._go_on_handling()

    async def _run_beside(self, hook: str, operation: Operation | None, waiting: Awaitable[Any]) -> None:
        try:
            await waiting
        except Exception as exc:
            self._failed(hook, exc)
        finally:
            if operation is not None:
                self.operates_for.sandbox.ended(operation)

    def _keep(self, message: Any) -> None:
        """Something runs, or the application has paused: it waits."""
        raise NotImplementedError

    def _failed(self, hook: str, exc: BaseException) -> None:
        """A handler has raised."""
        raise NotImplementedError

    def _drop_pending(self) -> None:
        """The task was cancelled: what waits behind it is not handled."""
        raise NotImplementedError

    def _go_on_handling(self) -> None:
        """What ran is over."""
        raise NotImplementedError
