"""What a process has besides the application's objects: descriptors, tasks, threads, living objects, and what there is once for all.

What there is once for all (directory, locale, filters of warnings, ...) is what the guard watches, under ``process.`` and its word for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import random
import re
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from laraman.check.outline import Node, module_of, type_name
from laraman.sandbox.guard.watches import WATCHES
from laraman.sandbox.operation import CURRENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from laraman.check.outline import Outlines
    from laraman.sandbox.guard import Watch

#: Threads that pools start when there is much to do and keep for later.
_POOLS = re.compile(r"AnyIO worker thread|asyncio_\d+")
_NUMBERS = re.compile(r"[-_ ]?\d+")


def nodes(outlines: Outlines) -> dict[str, Node]:
    return {name: read(outlines) for name, read in READERS.items()}


def _counted(what: str, found: Mapping[str, list[int]], rule: str = "counted") -> Node:
    """Things by their name; ``found`` has the numbers by which those of one name are told apart."""
    every = [number for numbers in found.values() for number in numbers]
    node = Node("mapping", what, size=len(every), rule=rule, members=frozenset(every))
    node.children = {
        f"[{name!r}]": Node("size", what, size=len(numbers), rule=rule, members=frozenset(numbers)) for name, numbers in sorted(found.items())
    }
    return node


def _descriptors(outlines: Outlines) -> Node:
    """Open files, sockets and other descriptors, by what they are."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(directory):
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:  # the one that lists the directory; and where descriptors are not links, what is open is a number only
            if directory == "/proc/self/fd":
                continue
            target = "descriptor"
        found[re.sub(r":\[\d+\]$", "", target)].append(int(name))
    return _counted("open", found)


def _tasks(outlines: Outlines) -> Node:
    """Tasks that are not done, by their coroutine's name, and the operations that have started them."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _counted("task", {})
    found: defaultdict[str, list[int]] = defaultdict(list)
    started: defaultdict[str, set[str]] = defaultdict(set)
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        module = frame.f_globals.get("__name__", "") if frame is not None else ""
        name = f"{module}.{getattr(coroutine, '__qualname__', type(coroutine).__name__)}"
        found[name].append(id(task))
        operation = _starter(task)
        if operation:
            started[name].add(operation)
    node = _counted("task", found)
    for name, operations in started.items():
        node.children[f"[{name!r}]"].text = f"started by {', '.join(sorted(operations))}"
    return node


def _starter(task: asyncio.Task[Any]) -> str:
    """The operation in whose context a task was made; the interpreter tells its context only from 3.12 on, the collector always."""
    for held in gc.get_referents(task):
        if type(held) is contextvars.Context:
            operation = held.get(CURRENT)
            if operation is not None:
                return operation.name
    return ""


def _threads(outlines: Outlines) -> Node:
    """Threads by what they run, or by their name without its number."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for thread in threading.enumerate():
        if _POOLS.fullmatch(thread.name) or thread is threading.main_thread():
            continue
        target: Any = getattr(thread, "_target", None)
        module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
        found[f"{module}.{name}" if outlines.own(module) else _NUMBERS.sub("", thread.name)].append(id(thread))
    return _counted("thread", found)


def _objects(outlines: Outlines) -> Node:
    """Living objects of the application's types: what is held where no name leads to."""
    living = gc.get_objects()
    kinds = dict(zip(map(id, map(type, living)), map(type, living), strict=True))
    names = {address: type_name(kind) for address, kind in kinds.items() if outlines.own(module_of(kind))}
    found: defaultdict[str, list[int]] = defaultdict(list)
    if names:
        for obj in living:
            name = names.get(id(type(obj)))
            if name is not None:
                found[name].append(id(obj))
    return _counted("object", found, "held")


def _modules(outlines: Outlines) -> Node:
    return Node("size", "module", size=len(sys.modules), rule="counted")


def stir() -> None:
    """Moves ``random`` on by one number, so that a state that is seen twice is one that somebody has put there."""
    random.random()


def _random(outlines: Outlines) -> Node:
    return Node("value", "random state", hash(random.getstate()), rule="seeded", text="a state")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a watch has read."""

    value: Any
    watch: Watch

    def texts(self, after: Reading) -> tuple[str, str]:
        """What was and what is; of several differences all are in the second. Both are empty for what another watch says."""
        text = self.watch.describe(self.value, after.value)
        before, arrow, now = text.partition(" -> ")
        return (before, now) if arrow and " -> " not in now else ("", text)


def _once_for_all(watch: Watch, outlines: Outlines) -> Node:
    return Node("value", "process", Reading(watch.read(), watch), rule="lasting")


#: What is read for a snapshot, by path.
READERS: dict[str, Callable[[Outlines], Node]] = {
    "descriptors": _descriptors,
    "tasks": _tasks,
    "threads": _threads,
    "objects": _objects,
    "sys.modules": _modules,
    "random.getstate()": _random,
    **{f"process.{watch.name}": partial(_once_for_all, watch) for watch in WATCHES},
}


def put_back(path: str, before: Mapping[str, Node]) -> None:
    """Put what the process has once for all back to what it was, so that the change can be seen to happen again."""
    if path.startswith("process.") and path in before:
        reading: Reading = before[path].token
        if reading.watch.read() != reading.value:
            reading.watch.restore(reading.value)
