"""``sandbox.local``: something of which each operation has its own."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from laraman import events
from laraman.sandbox.operation import CURRENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Local(Generic[T]):
    """What ``local`` returns: call it for the instance of the operation that is running.

    It lives in the operation's context, so it is safe while operations overlap, and it is there in tasks and threads that the operation
    starts. When the operation is over, after its ``...Terminated`` event, instances are closed, the last first: by ``aclose()``, else ``close()``,
    if there is one; that of a generator function by running it to its end.
    """

    __slots__ = ("_factory", "_is_generator", "name")

    #: How many there are: as long as there is none, nobody looks for instances.
    count: ClassVar[int] = 0

    def __init__(self, factory: Callable[[], Any]) -> None:
        if inspect.iscoroutinefunction(factory) or inspect.isasyncgenfunction(factory):
            raise TypeError(f"{factory!r} is async, and an instance is made by a plain call; its aclose() may be async")
        self.name = f"{getattr(factory, '__module__', '?')}.{getattr(factory, '__qualname__', repr(factory))}"
        self._factory: Callable[[], Any] = contextlib.contextmanager(factory) if inspect.isgeneratorfunction(factory) else factory
        self._is_generator = inspect.isgeneratorfunction(factory)
        Local.count += 1
        events.changed()

    def __repr__(self) -> str:
        return f"<Local {self.name}>"

    def __call__(self) -> T:
        """The running operation's own instance, made by its first call. Raises RuntimeError outside of operations, and when it is over."""
        operation = CURRENT.get(None)
        if operation is None or operation.ended:
            raise RuntimeError(f"{self.name} is of an operation, and {'none is running here' if operation is None else f'{operation.name} is over'}")
        instances = operation.instances
        if instances is None:
            instances = operation.instances = {}
        elif (found := instances.get(self)) is not None:
            return found[0]  # type: ignore[no-any-return]
        made = self._factory()
        entry = (made.__enter__(), made) if self._is_generator else (made, made)
        kept = instances.setdefault(self, entry)
        if kept is not entry:  # another thread of this operation was faster
            _discard(entry, self._is_generator)
        return kept[0]  # type: ignore[no-any-return]

    def closing(self, entry: tuple[Any, Any]) -> Any:
        """Close an instance; what is returned may have to be awaited."""
        instance, owner = entry
        if self._is_generator:
            return owner.__exit__(None, None, None) and None
        close = getattr(instance, "aclose", None) or getattr(instance, "close", None)
        return close() if callable(close) else None


def local(factory: Callable[[], T] | Callable[[], Iterator[T]]) -> Local[T]:
    """Something of which each operation has its own: ``cart = sandbox.local(Cart)``, and ``cart()`` where it is used.

    ``factory`` is called without arguments, or is a generator function that yields the instance once; then this is a decorator.
    Raises TypeError when it is ``async``.
    """
    return Local(factory)


def _discard(entry: tuple[Any, Any], is_generator: bool) -> None:
    """Of a race in which nobody has seen it yet. An asynchronous ``aclose`` cannot be awaited here: what was just made holds nothing."""
    if is_generator:
        entry[1].__exit__(None, None, None)
    elif callable(close := getattr(entry[0], "close", None)) and not inspect.iscoroutinefunction(close):
        close()
