"""Tasks: functions that other processes are asked to run. What is declared here needs no event loop, because the master imports it too."""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.tasks.stream import Stream

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

#: Seconds that a task may take; more is no limit: a kernel's alarm has to hold it.
LONGEST = 1e9

#: Tells the caller of the task that runs how far it is; None outside of one.
teller: ContextVar[Callable[[Any], None] | None] = ContextVar("laraman_task_teller", default=None)


class Task(Generic[P, R]):
    """A function that task workers run, plain or ``async``, or a generator. ``function`` is itself, to be called here.

    ``name`` is the import string by which it travels, ``timeout`` how many seconds it may take where the caller does not say. Called with arguments
    it makes a `Call`, which is for ``laraman.concurrently``.
    """

    def __init__(self, function: Callable[P, R], timeout: float | None = None) -> None:
        self.name = name_of(function)
        self.function = function
        self.timeout = timeout
        #: What calling it makes.
        self.coroutine = inspect.iscoroutinefunction(function)
        self.generator = inspect.isgeneratorfunction(function)
        self.async_generator = inspect.isasyncgenfunction(function)
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call:
        return Call(self, args, kwargs)

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Stream:
        """Run it, and iterate over what it yields and tells of its progress; ``Stream.result`` is what it has returned then."""
        from laraman.tasks.stream import Stream

        return Stream(self(*args, **kwargs))


@dataclass(frozen=True, slots=True)
class Call:
    """A task with its arguments."""

    task: Task[Any, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@overload
def task(function: Callable[P, R]) -> Task[P, R]: ...


@overload
def task(function: None = None, *, timeout: float | None = None) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Any = None, *, timeout: float | None = None) -> Any:
    """Declare a function as a task.

        @laraman.task
        def thumbnail(path, width): ...

        await laraman.submit(thumbnail, "cat.png", 200)

    It is found by its name in its module, so a lambda, or a function that is defined in another one, cannot be a task. ``timeout`` is the number
    of seconds that it may take, waiting for a free worker included, where a caller does not say. Raises ConfigError.
    """
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"a task's timeout is a number of seconds, not {timeout!r}")
    if function is None:
        return lambda function: Task(function, timeout)
    return Task(function, timeout)


def as_task(found: Any) -> Task[Any, Any]:
    """Raises ConfigError for what is no task."""
    if isinstance(found, Task):
        return found
    name = name_of(found) if callable(found) else repr(found)
    raise ConfigError(f"{name} is no task: declare it with @laraman.task")


def name_of(function: Any) -> str:
    """The import string of a function. Raises ConfigError where none leads to it."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or not module or not name:
        raise ConfigError(f"{function!r} is no function of a module, so no other process can find it")
    if "<lambda>" in name or "<locals>" in name:
        kind = "a lambda" if name.endswith("<lambda>") else "defined in a function"
        raise ConfigError(f"{module}:{name} is {kind}, so no other process can find it: define it with a name, in a module")
    return f"{module}:{name}"


def progress(value: Any) -> None:
    """In a task: tell its caller how far it is, who iterates over ``f.stream(...)``. What the caller has not read yet is replaced by what is newer.

    Outside of a task worker nobody hears it. Raises LocalProtocolError for a value that cannot be encoded.
    """
    tell = teller.get()
    if tell is not None:
        tell(value)
