"""What a fork does not carry over, by name: threads, sockets, event loops that the import of an application has left behind."""

from __future__ import annotations

import os
import socket
import sys
import threading
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from laraman.process.exits import thread_count

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many attributes, items and elements a name may be away from its module.
DEPTH = 3
#: Values looked at in the search for a name, at most.
MAX_VALUES = 200_000

_HOLDERS = (types.GetSetDescriptorType, types.MemberDescriptorType)


class Watch:
    """Made before the import, asked after it."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._natives = thread_count() - len(self._threads)
        self._sockets = _open_sockets()

    def found(self) -> list[str]:
        """Each thing that is there now and was not, in words."""
        loops = _open_loops()
        return [*self._new_threads(), *_loops(loops), *self._new_sockets(loops)]

    def _new_threads(self) -> Iterator[str]:
        running = threading.enumerate()
        frames = sys._current_frames()
        for thread in running:
            if thread not in self._threads:
                where = _where(frames.get(thread.ident or 0))
                yield f"the thread {thread.name!r}{where} does not run in the workers: a fork copies no threads"
        if (natives := thread_count() - len(running) - self._natives) > 0:
            yield f"{natives} thread(s) that Python did not start do not run in the workers: a fork copies no threads"

    def _new_sockets(self, loops: list[Any]) -> Iterator[str]:
        new = {descriptor: inode for descriptor, inode in _open_sockets().items() if self._sockets.get(descriptor) != inode}
        for loop in loops:  # wakes itself with a pair of its own
            for own in (getattr(loop, "_ssock", None), getattr(loop, "_csock", None)):
                if own is not None:
                    new.pop(own.fileno(), None)
        if not new:
            return
        number = socket.socket.fileno
        names = _names(lambda value: issubclass(type(value), socket.socket) and number(value) in new, number)
        for descriptor in new:
            what = f"the socket{_address(descriptor)}{_called(names.get(descriptor))}"
            yield f"{what} is one and the same in all workers: they disturb each other on it"


def _loops(loops: list[Any]) -> Iterator[str]:
    names = _names(lambda value: any(value is loop for loop in loops), id) if loops else {}
    for loop in loops:
        yield f"the event loop {type(loop).__qualname__}{_called(names.get(id(loop)))} does not run in the workers: each has its own"


def _open_loops() -> list[Any]:
    """Event loops of this process that are not closed."""
    import asyncio
    import gc

    # By its type: to ask the object itself would run the code of proxies, which may not be ready for it.
    return [found for found in gc.get_objects() if issubclass(type(found), asyncio.AbstractEventLoop) and _is_open(found)]


def _is_open(loop: Any) -> bool:
    try:
        return not loop.is_closed()
    except Exception:  # somebody's own kind, which cannot say
        return False


def _open_sockets() -> dict[int, str]:
    """Inode by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own
            continue
        if target.startswith("socket:"):
            found[int(name)] = target
    return found


def _address(descriptor: int) -> str:
    # OSError: a thread that is left has just closed it, or it is of a kind without addresses.
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        try:
            return f" connected to {_text(copy.getpeername())}"
        except OSError:
            return f" at {_text(copy.getsockname())}"
    return ""


def _text(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) or "its pair"


def _called(name: str | None) -> str:
    return f" ({name})" if name else ""


def _where(frame: Any) -> str:
    """Where the thread's own code begins: its outermost frame that is not the library's."""
    place = ""
    while frame is not None:
        if frame.f_code.co_filename != threading.__file__:
            place = f" ({frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname})"
        frame = frame.f_back
    return place


def _names(wanted: Any, key: Any) -> dict[int, str]:
    """The names of what is ``wanted``, as ``module.attribute...``, by ``key``: the shortest way from any module, not deeper than DEPTH."""
    found: dict[int, str] = {}
    seen: set[int] = set()
    level = [
        (f"{name}.{attribute}", value)
        for name, module in list(sys.modules.items())
        if not name.startswith(("laraman.", "asyncio", "uvloop", "_")) and name != "__main__"
        for attribute, value in _attributes(module)
    ]
    for _ in range(DEPTH):
        following = []
        for name, value in level:
            if id(value) in seen or len(seen) > MAX_VALUES:
                continue
            seen.add(id(value))
            if wanted(value):
                found.setdefault(key(value), name)
            else:
                following += _parts(name, value)
        level = following
    return found


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """What is in a container or on an instance; nothing of the value's own code is called."""
    kind = type(value)
    if kind is dict:
        return [(f"{name}[{key!r}]", item) for key, item in list(value.items()) if type(key) in (str, int)]
    if kind in (list, tuple):
        return [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if issubclass(kind, type) or kind.__module__ == "builtins":
        return []
    return [(f"{name}.{key}", item) for key, item in _attributes(value)]


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """What the interpreter itself keeps for the instance or module; a ``__dict__`` that is code of its class is left alone."""
    for kind in type(value).__mro__:
        if "__dict__" in vars(kind):
            holder = vars(kind)["__dict__"]
            return list(holder.__get__(value).items()) if isinstance(holder, _HOLDERS) else []
    return []
