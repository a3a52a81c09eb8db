"""Audit events (PEP 578): what Python says about a change before it happens, so that the line is known, and the change can be stopped.

A hook cannot be removed again, and hears every event of the process. There is one for the life of the process, and what is not in
``_handlers`` costs one look-up; while nobody listens that is empty.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from laraman.errors import Pollution
from laraman.sandbox.guard.watches import changed, describe_variable, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

logger = logging.getLogger("uvicorn.error")

#: Modules that set tracing functions on behalf of whoever debugs or measures the program.
_TRACERS = ("bdb", "pdb", "pydevd", "_pydevd", "debugpy", "coverage")


class Listener(Protocol):
    """Hears about changes that are about to happen, in the thread that makes them. What it raises of type Pollution stops the change."""

    def changing(self, name: str, title: str, detail: str, frame: FrameType | None) -> None: ...

    def starting(self, thread: threading.Thread, frame: FrameType | None) -> None: ...


#: The last one is told.
_listeners: list[Listener] = []
_handlers: dict[str, Callable[[Listener, Any, FrameType | None], None]] = {}
_installed = False


def listen(listener: Listener) -> None:
    """From now on tell ``listener``, and nobody else until it is forgotten."""
    global _installed
    _listeners.append(listener)
    _handlers.update(_HANDLERS)
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)
        os.register_at_fork(after_in_child=deafen)  # what a child of the application does is its own
    if sys.version_info < (3, 12):
        _announce_threads()


def forget(listener: Listener) -> None:
    """Tell it no more, but those that listened before."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        deafen()


def deafen() -> None:
    """Tell nobody any more."""
    _handlers.clear()
    _listeners.clear()
    if getattr(threading, "_start_new_thread", None) is _start_new_thread:
        threading._start_new_thread = _start_unannounced  # type: ignore[attr-defined]


def _hook(event: str, arguments: Any) -> None:
    if event in _handlers:
        _tell(event, arguments, sys._getframe(1))


def _tell(event: str, arguments: Any, frame: FrameType | None) -> None:
    """Nothing but Pollution comes out: an error here would be one of whoever does what is announced."""
    try:
        if _listeners:
            _HANDLERS[event](_listeners[-1], arguments, frame)
    except Pollution:
        raise
    except Exception:
        logger.exception("The guard failed at %s", event)


# Events ---------------------------------------------------------------------------------------------------------------------------


def _putenv(listener: Listener, arguments: tuple[bytes, bytes], frame: FrameType | None) -> None:
    name, after = map(os.fsdecode, arguments)
    _variable(listener, name, after, frame)


def _unsetenv(listener: Listener, arguments: tuple[bytes], frame: FrameType | None) -> None:
    _variable(listener, os.fsdecode(arguments[0]), None, frame)


def _variable(listener: Listener, name: str, after: str | None, frame: FrameType | None) -> None:
    before = os.environ.get(name)
    if before != after:
        listener.changing("environment", "the environment", describe_variable(name, before, after), frame)


def _chdir(listener: Listener, arguments: tuple[Any], frame: FrameType | None) -> None:
    target = arguments[0]
    try:
        before = os.getcwd()
        after = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.path.realpath(os.fsdecode(target))
    except OSError:
        before, after = "", shown(target)
    if before != after:
        listener.changing("cwd", "the working directory", f"{shown(before)} -> {shown(after)}", frame)


def _settrace(listener: Listener, arguments: tuple[()], frame: FrameType | None) -> None:
    _tracing(listener, "trace", sys.gettrace(), frame)


def _setprofile(listener: Listener, arguments: tuple[()], frame: FrameType | None) -> None:
    _tracing(listener, "profile", sys.getprofile(), frame)


def _tracing(listener: Listener, what: str, before: Any, frame: FrameType | None) -> None:
    """The event does not say which function it is, or whether one is taken away; that is taken for granted where there is one."""
    module = "" if frame is None else str(frame.f_globals.get("__name__"))
    if before is None and module.partition(".")[0] not in _TRACERS:
        listener.changing("tracing", "the tracing hooks", f"{what}: None -> a function", frame)


def _setrlimit(listener: Listener, arguments: tuple[int, tuple[int, int]], frame: FrameType | None) -> None:
    _limit(listener, arguments[0], arguments[1], frame)


def _prlimit(listener: Listener, arguments: tuple[int, int, tuple[int, int] | None], frame: FrameType | None) -> None:
    if arguments[0] in (0, os.getpid()) and arguments[2] is not None:
        _limit(listener, arguments[1], arguments[2], frame)


def _limit(listener: Listener, number: int, after: tuple[int, int], frame: FrameType | None) -> None:
    import resource

    before = resource.getrlimit(number)
    if before != tuple(after):
        name = next((name for name in dir(resource) if name.startswith("RLIMIT_") and getattr(resource, name) == number), str(number))
        listener.changing("limits", "the resource limits", changed(name, before, tuple(after)), frame)


def _start_thread(listener: Listener, arguments: tuple[Any, ...], frame: FrameType | None) -> None:
    thread = getattr(arguments[0], "__self__", None)  # the function is Thread._bootstrap
    if isinstance(thread, threading.Thread):
        listener.starting(thread, frame)


def _announce_threads() -> None:
    """Before 3.12 the start of a thread is no audit event. Who has put something in its place meanwhile is left alone."""
    if threading._start_new_thread is _start_unannounced:  # type: ignore[attr-defined]
        threading._start_new_thread = _start_new_thread  # type: ignore[attr-defined]


_start_unannounced: Any = getattr(threading, "_start_new_thread", None)


def _start_new_thread(function: Any, *arguments: Any) -> Any:
    _tell("_thread.start_new_thread", (function,), sys._getframe(1))
    return _start_unannounced(function, *arguments)


_HANDLERS: dict[str, Callable[[Listener, Any, Any], None]] = {
    "os.putenv": _putenv,
    "os.unsetenv": _unsetenv,
    "os.chdir": _chdir,  # os.fchdir too
    "sys.settrace": _settrace,
    "sys.setprofile": _setprofile,
    "resource.setrlimit": _setrlimit,
    "resource.prlimit": _prlimit,
    "_thread.start_new_thread": _start_thread,
    "_thread.start_joinable_thread": _start_thread,  # from 3.13
}
