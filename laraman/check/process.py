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
from collections import Counter
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


def _counted(what: str, counts: Mapping[str, int], rule: str = "counted") -> Node:
    node = Node("mapping", what, size=sum(counts.values()), rule=rule)
    node.children = {f"[{name!r}]": Node("size", what, size=count, rule=rule) for name, count in sorted(counts.items())}
    return node


def _descriptors(outlines: Outlines) -> Node:
    """Open files, sockets and other descriptors, by what they are."""
    counts: Counter[str] = Counter()
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(directory):
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:  # the one that lists the directory; and where descriptors are not links, what is open is a number only
            if directory == "/proc/self/fd":
                continue
            target = "descriptor"
        counts[re.sub(r":\[\d+\]$", "", target)] += 1
    return _counted("open", counts)


def _tasks(outlines: Outlines) -> Node:
    """Tasks that are not done, by their coroutine's name, and the operations that have started them."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _counted("task", {})
    counts: Counter[str] = Counter()
    started: dict[str, set[str]] = {}
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        module = frame.f_globals.get("__name__", "") if frame is not None else ""
        name = f"{module}.{getattr(coroutine, '__qualname__', type(coroutine).__name__)}"
        counts[name] += 1
        operation = _starter(task)
        if operation:
            started.setdefault(name, set()).add(operation)
    node = _counted("task", counts)
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
    counts: Counter[str] = Counter()
    for thread in threading.enumerate():
        if _POOLS.fullmatch(thread.name) or thread is threading.main_thread():
            continue
        target: Any = getattr(thread, "_target", None)
        module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
        counts[f"{module}.{name}" if outlines.own(module) else _NUMBERS.sub("", thread.name)] += 1
    return _counted("thread", counts)


def _objects(outlines: Outlines) -> Node:
    """Living objects of the application's types: what is held where no name leads to."""
    kinds = list(map(type, gc.get_objects()))
    by_address = dict(zip(map(id, kinds), kinds, strict=True))
    counts = Counter(map(id, kinds))
    return _counted("object", {type_name(kind): counts[address] for address, kind in by_address.items() if outlines.own(module_of(kind))}, "held")


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
