"""Timers: functions, plain or ``async``, that are called without arguments when they are due.

    @laraman.every(60, jitter=5)
    async def refresh(): ...

    @laraman.cron("0 3 * * *", tz="Europe/Berlin", singleton=True)
    async def clean_up(): ...

    timer = laraman.after(10, greet)        # timer.cancel()

Where one runs: ``laraman.net.resident``. Each call is an operation of the worker, of the kind "tick", with ``TickReceived`` and ``TickTerminated``
around it; what it raises is logged, and the timer goes on. A plain function runs in the event loop, which it must not block.

When one is due is a grid that nothing shifts: neither how long a call takes nor what runs late. What ``every`` counts from depends on how often it
runs: in each worker, from when the timer starts there, so the first call comes a whole period later; once per server, the machine's monotonic
clock; once per cluster, the wall clock. ``cron`` is the wall clock in its time zone (``laraman.net.schedule``).

Calls of one timer never overlap. When more than one moment has passed, because a call took so long, or nobody was there, the last of them is made up
for at once and the others are counted as missed. A clock that is set back makes a timer wait until it has caught up, unless it is
more than three hours: then it was wrong before, and the timer begins anew from there.

What runs once (``singleton``) is called at most once for each moment, and exactly once as long as somebody lives to do it:

- The moment is noted before its call begins, and counts as begun then. A process that dies in the middle of a call does not get it repeated.
- Reload, recycling: the predecessor finishes the call that runs, begins no other and lets go; the successor, which has been waiting since it
  started, takes over then, and makes up for what came due in between. The call has the time that a stop has, and is cancelled after that.
- A worker that is killed, a master that is restarted or killed: the next process of slot 0 takes over, likewise.
- ``laraman stop`` forgets what was noted, so a later start makes up for nothing. After a crash of the machine ``cron`` is made up for, ``every``
  begins anew, because its clock does.
- In a cluster what was noted stays in the store: what came due while no server ran is made up for once. A server that dies holds the lease for
  another ten seconds. While the store is away, nobody runs: the holder has stopped, its running call cancelled, before its lease ends.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from laraman.errors import ConfigError
from laraman.net.resident import Declared
from laraman.net.schedule import Cron, Every, monotonic_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from laraman.net.resident import Resident

    Singleton = bool | Literal["server", "cluster"]

F = TypeVar("F", bound="Callable[[], Any]")

#: The shortest period, in seconds.
SHORTEST = 0.001


class Timer(Declared):
    """A timer that has been declared. ``when`` is a number of seconds or a `Cron`; ``once``: it is called only once."""

    what = "timer"

    def __init__(
        self,
        function: Callable[[], Any],
        when: float | Cron,
        *,
        registrar: str,
        name: str | None = None,
        singleton: Singleton = False,
        worker: str | None = None,
        jitter: float = 0.0,
        once: bool = False,
    ) -> None:
        scope = "server" if singleton is True else singleton or "worker"
        super().__init__(function, name, scope, worker, registrar)
        if not isinstance(when, Cron):
            if not SHORTEST <= when < math.inf:
                raise ConfigError(f"timer {self.name}: {when!r} is not a number of seconds from {SHORTEST:g} on")
            if not 0 <= jitter < when:
                raise ConfigError(f"timer {self.name}: a jitter of {jitter!r} s is not less than the period")
        elif not 0 <= jitter < math.inf:
            raise ConfigError(f"timer {self.name}: a jitter of {jitter!r} s")
        self.when = when
        self.jitter = jitter
        self.once = once
        self.declare()

    def __str__(self) -> str:
        when = f"cron {self.when.line}" if isinstance(self.when, Cron) else f"{'after' if self.once else 'every'} {self.when:g} s"
        return f"{when}, once per {self.scope}" if self.scope != "worker" else when

    def schedule(self) -> Every | Cron:
        """Its grid, for a process that begins now."""
        if isinstance(self.when, Cron):
            return self.when
        origin = monotonic_now() if self.scope == "worker" else 0
        return Every(self.when, origin, wall=self.scope == "cluster")

    def resident(self, worker: Any) -> Resident:
        from laraman.net.ticking import Ticking

        return Ticking(self, worker)


@overload
def every(
    seconds: float, f: None = None, *, jitter: float = 0.0, singleton: Singleton = False, name: str | None = None, worker: str | None = None
) -> Callable[[F], F]: ...


@overload
def every(
    seconds: float,
    f: Callable[[], Any],
    *,
    jitter: float = 0.0,
    singleton: Singleton = False,
    name: str | None = None,
    worker: str | None = None,
) -> Timer: ...


def every(
    seconds: float,
    f: Callable[[], Any] | None = None,
    *,
    jitter: float = 0.0,
    singleton: Singleton = False,
    name: str | None = None,
    worker: str | None = None,
) -> Any:
    """Call ``f`` every so many seconds, each time up to ``jitter`` seconds later at random; without ``f``, a decorator.

    ``singleton``: not in every process, but once per "server" (or True), or per "cluster"; it is known by ``name`` then, by default the module's and
    the function's. ``worker`` is the name of the Workers in which it runs when this is called at import. Raises ConfigError.
    """
    options: dict[str, Any] = {"jitter": jitter, "singleton": singleton, "name": name, "worker": worker, "registrar": _caller()}
    return _decorator(seconds, options) if f is None else Timer(f, seconds, **options)


def after(seconds: float, f: Callable[[], Any], *, name: str | None = None, worker: str | None = None) -> Timer:
    """Call ``f`` once, so many seconds from now, or from when a worker's process has started when this is called at import. Raises ConfigError."""
    return Timer(f, seconds, once=True, name=name, worker=worker, registrar=_caller())


@overload
def cron(
    line: str,
    f: None = None,
    *,
    tz: str | tzinfo | None = None,
    jitter: float = 0.0,
    singleton: Singleton = False,
    name: str | None = None,
    worker: str | None = None,
) -> Callable[[F], F]: ...


@overload
def cron(
    line: str,
    f: Callable[[], Any],
    *,
    tz: str | tzinfo | None = None,
    jitter: float = 0.0,
    singleton: Singleton = False,
    name: str | None = None,
    worker: str | None = None,
) -> Timer: ...


def cron(
    line: str,
    f: Callable[[], Any] | None = None,
    *,
    tz: str | tzinfo | None = None,
    jitter: float = 0.0,
    singleton: Singleton = False,
    name: str | None = None,
    worker: str | None = None,
) -> Any:
    """The same at the times of a line of crontab(5): minute, hour, day of month, month, day of week (or six fields, with the second first).

    ``tz`` is a name like "Europe/Berlin", by default the time zone of the machine. Raises ConfigError with the line and what is wrong in it.
    """
    options: dict[str, Any] = {"jitter": jitter, "singleton": singleton, "name": name, "worker": worker, "registrar": _caller()}
    when = Cron(line, tz)
    return _decorator(when, options) if f is None else Timer(f, when, **options)


def _decorator(when: float | Cron, options: dict[str, Any]) -> Callable[[F], F]:
    def declare(function: F) -> F:
        Timer(function, when, **options)
        return function

    return declare


def _caller() -> str:
    """The module that declares: it will do so again when it is imported afresh."""
    return str(sys._getframe(2).f_globals.get("__name__"))
