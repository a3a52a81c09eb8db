"""The Guard: what an operation changed for all others, from what to what, and where.

    warn      one log line for each place; the new state is what the next ones are compared with
    restore   it is put back too
    strict    it is put back too, and the operation that is known to have done it fails; changes that are announced do not even happen

Exact is what audit events announce. What is found by comparing happened since the last look, so all operations that ran since are in question;
after such a find every operation is looked at for a while, and the next one is found with its name. While others are in flight a find waits:
one of them may have changed it for a moment only, as ``warnings.catch_warnings`` does. It is settled as soon as there is none, or when it has
stayed for a number of looks. A change while there was no operation is the application's own.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from laraman.errors import Pollution
from laraman.sandbox.guard import audit
from laraman.sandbox.guard.leftovers import Leftovers
from laraman.sandbox.guard.places import is_librarys, offender
from laraman.sandbox.guard.watches import WATCHES, glance
from laraman.sandbox.operation import CURRENT, name_of, place_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import FrameType

    from laraman.sandbox.guard.watches import Watch
    from laraman.sandbox.operation import Operation, Trace

logger = logging.getLogger("uvicorn.error")

#: Operations between two looks at what is cheap to compare (which is then a hundredth of a microsecond for each), and at everything. How long
#: there is a look after each one when something was found.
LOOK_EVERY, LOOK_AT_ALL_EVERY, CLOSELY = 256, 4096, 64
#: Seconds from the end of an operation to the look at an idle worker, and how many times as long a worker that is not idle is waited for.
IDLE, PATIENCE = 1.0, 5
#: Looks after which a change counts although other operations are in flight: is said, and is put back.
SAID, PUT_BACK = 5, 64
#: Operations that are remembered while a change waits.
SUSPECTS = 64
#: Places that are remembered, because each is reported once.
MAX_PLACES = 256
#: Operations that are named when it may have been any of them.
NAMED = 5

# Who is known to have made a change: an operation, which was reported; not an operation; anybody.
_TOLD, _OWN, _ANYBODY = "told", "own", "anybody"


class _Waiting(NamedTuple):
    """A change that may be undone by whoever made it: for how many looks it is there, and the operations that ended meanwhile."""

    looks: int = 0
    suspects: tuple[Trace, ...] = ()


class Guard:
    """Watches one worker process. ``since`` is filled by the Sandbox with what has ended; at ``due`` entries it calls ``reached``."""

    def __init__(self, mode: Literal["warn", "restore", "strict"]) -> None:
        self.mode = mode
        #: Whether ``look`` is to be called at the end of every operation.
        self.every = mode != "warn"
        self.watches: Mapping[str, Watch] = {watch.name: watch for watch in WATCHES}
        self.since: list[Trace] = []
        self.due = LOOK_EVERY
        self._in_flight: Callable[[], int] = int
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waited = 0
        self._closely = 0
        self._since_all = 0  # operations, since everything was looked at
        self._known: dict[str, Any] = {}
        self._glanced: tuple[Any, ...] = ()
        self._touched: dict[str, str] = {}  # what was announced, and who it was
        self._waiting: dict[str, _Waiting] = {}
        self._places: set[Any] = set()
        self._leftovers = Leftovers()
        self._thread = 0

    def start(self, loop: asyncio.AbstractEventLoop | None = None, in_flight: Callable[[], int] = int) -> None:
        """What is now is what everything is compared with. ``in_flight()`` says how many operations are running; without a loop there is no timer."""
        self._loop = loop
        self._in_flight = in_flight
        self._thread = threading.get_ident()
        for watch in WATCHES:
            self._known[watch.name] = watch.read()
        self._glanced = glance()
        audit.listen(self)
        if loop is not None:
            self._arm()  # once, for what the application does when it has just started

    def stop(self) -> None:
        """Watch no more: nothing of it is left in the process."""
        audit.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        self.due = sys.maxsize

    # When to look ----------------------------------------------------------------------------------------------------------------

    def reached(self) -> None:
        """``since`` has ``due`` entries: one, when there is no timer yet or the guard looks closely."""
        if self._timer is None and self._loop is not None:
            self._arm()
        self.due = LOOK_EVERY
        if self._closely or len(self.since) >= LOOK_EVERY:
            self._since_all += len(self.since)
            self._look(everything=self._since_all >= LOOK_AT_ALL_EVERY)

    def look_back(self) -> None:
        """Compare everything with what it was at the last look."""
        self._look(everything=True)

    def look(self, operation: Operation) -> None:
        """The operation is over, and not counted any more: compare what is fast, and what was announced."""
        if self._touched or glance() != self._glanced:
            self._find(self._in_question(), (operation.trace,), self._in_flight())

    def check(self, operation: Operation) -> None:
        """The same before its end, while it is counted. Raises Pollution under strict."""
        if self._touched or glance() != self._glanced:
            texts = self._find(self._in_question(), (operation.trace,), self._in_flight() - 1, asked=True)
            if texts:
                raise Pollution("; ".join(texts))

    def _look(self, *, everything: bool) -> None:
        traces = self.since[:]
        self.since.clear()
        self._closely = max(0, self._closely - len(traces))
        if everything:
            self._since_all = 0
            self._find(WATCHES, traces, self._in_flight())
            self._find_leftovers()
        elif self._touched or glance() != self._glanced:
            self._find(self._in_question(), traces, self._in_flight())
        if self._closely:
            self.due = 1

    def _in_question(self) -> list[Watch]:
        return [watch for watch in WATCHES if watch.fast or watch.name in self._touched]

    def _arm(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(IDLE, self._tick)

    def _tick(self) -> None:
        """Look, if there is a reason to. There is no timer while nothing ends, so a worker at rest is not woken."""
        if self.since and self._in_flight() and self._waited < PATIENCE:
            self._waited += 1
            self._arm()
            return
        self._waited = 0
        self._timer = None
        self.look_back()
        if self._leftovers.pending or self._waiting:
            self._arm()
        else:
            self.due = 1

    # What is announced -----------------------------------------------------------------------------------------------------------

    def changing(self, name: str, title: str, detail: str, frame: FrameType | None) -> None:
        """Somebody is about to change something, in this thread. Raises Pollution under strict, if it is an operation."""
        place = offender(frame)
        if place is None:
            return  # what is put back
        operation = CURRENT.get(None)
        if operation is None or operation.ended:
            # In another thread it may be an operation's work all the same: executors do not always hand the context on.
            self._touched[name] = _OWN if threading.get_ident() == self._thread else self._touched.get(name, _ANYBODY)
            return
        text = f"{operation.name} changed {title}, {detail}, at {place}"
        if self.mode == "strict":
            raise Pollution(_one_line(text))
        if self._touched.get(name) != _OWN:
            self._touched[name] = _TOLD
        self._say((name, place.file, place.line), f"{text}{'; it is put back' if self.mode == 'restore' and name in self.watches else ''}")

    def starting(self, thread: threading.Thread, frame: FrameType | None) -> None:
        """A thread is about to start."""
        operation = CURRENT.get(None)
        if operation is not None and not operation.ended and (place := offender(frame)) is not None:
            self._leftovers.started(thread, operation, place, by_library=is_librarys(frame))

    # What is found ---------------------------------------------------------------------------------------------------------------

    def _find(self, watches: Iterable[Watch], traces: Sequence[Trace], others: int, *, asked: bool = False) -> list[str]:
        """Compare, put back or adopt, report. Returns what was found under strict for whoever has ``asked`` and did it, and does not log that."""
        touched, self._touched = self._touched, {}
        texts = []
        for watch in watches:
            name = watch.name
            before, after = self._known[name], watch.read()
            waiting = self._waiting.pop(name, _Waiting())
            if before == after:
                continue
            who = touched.get(name, "")
            detail = watch.describe(before, after)
            suspects = (*waiting.suspects, *traces)
            is_own = who == _OWN or not suspects
            if others > 0 and not is_own and waiting.looks + 1 < self._patience(who):
                self._waiting[name] = _Waiting(waiting.looks + 1, suspects[:SUSPECTS])
                self._touched[name] = who or _ANYBODY  # so that the next look is at this, too
                continue
            if is_own or not detail:
                logger.debug("Guard: the application changed %s, %s", watch.title, detail)
                self._known[name] = after
                continue
            consequence = self._settle(watch, before, after)
            if who != _TOLD:
                key, text = _found(watch, detail, suspects, others, consequence)
                if asked and self.mode == "strict" and len(suspects) == 1 and others <= 0:
                    texts.append(text)
                elif self._say(key, text) and self.mode == "warn":
                    self._closely = CLOSELY
        self._glanced = glance()
        return texts

    def _patience(self, who: str) -> int:
        """The look at which a change counts that is there while operations are in flight. What was announced does not have to be said."""
        if self.mode != "warn":
            return PUT_BACK
        return 1 if who == _TOLD else SAID

    def _settle(self, watch: Watch, before: Any, after: Any) -> str:
        """Adopt the change or put it back; return what to say about it."""
        if self.mode == "warn":
            self._known[watch.name] = after
            return ""
        try:
            watch.restore(before)
        except Exception as exc:
            self._known[watch.name] = after
            return f"; it cannot be put back: {exc}"
        return "; it was put back"

    def _find_leftovers(self) -> None:
        for left in self._leftovers.find(self._loop):
            self._say(("left", left.place), f"{name_of(left.trace)} is over and has left behind {left.what} {left.place}")

    def _say(self, key: Any, text: str) -> bool:
        """Log it, if it is the first of this place, and say whether it was."""
        if key in self._places or len(self._places) >= MAX_PLACES:
            return False
        self._places.add(key)
        level = logging.ERROR if self.mode == "strict" else logging.WARNING
        if level >= logger.getEffectiveLevel():  # not asked in the usual way, because logging.disable() may be what was found
            _log(level, f"Guard: {_one_line(text)}")
            if len(self._places) == MAX_PLACES:
                _log(level, f"Guard: that was place number {MAX_PLACES}; no more are reported")
        return True


def _found(watch: Watch, detail: str, traces: Sequence[Trace], others: int, consequence: str) -> tuple[Any, str]:
    """The place of a change that comparing has found, as far as it is known, and the message."""
    names = dict.fromkeys(name_of(trace) for trace in traces)
    who = ", ".join(list(names)[:NAMED])
    if len(names) > NAMED:
        who += f" and {len(names) - NAMED} more"
    if others > 0:
        who += f" or one of {others} in flight"
    exact = len(names) == 1 and others <= 0
    place = place_of(traces[-1]) if exact else ""
    text = f"{'' if exact else 'one of '}{who} changed {watch.title}, {detail}{f' (endpoint {place})' if place else ''}{consequence}"
    return (watch.name, (place or who) if exact else detail), _one_line(text)


def _log(level: int, text: str) -> None:
    logger.handle(logger.makeRecord(logger.name, level, __file__, 0, text, (), None))


def _one_line(text: str) -> str:
    """Paths come from whoever sends requests."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
