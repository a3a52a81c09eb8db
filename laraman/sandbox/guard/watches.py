"""What the guard watches: settings of the whole process, which an operation that changes them changes for all others.

``read`` returns a value that stands for itself: it stays what it is when the setting changes, and equals any other reading of the same state.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Characters of a value that are shown.
SHOWN = 60
#: What the name of an environment variable, or its value, contains when the value is nobody's business.
SECRET = ("KEY", "SECRET", "TOKEN", "PASS", "PWD", "AUTH", "CREDENTIAL", "PRIVATE", "COOKIE", "SESSION", "SALT", "SIGNATURE", "BEARER")


@dataclass(frozen=True, slots=True)
class Watch:
    """One watched thing. ``name`` is its word in the configuration, ``title`` what messages call it.

    ``describe(before, after)`` says what differs; an empty text is for what another watch says. ``restore(value)`` puts a value back that
    was read before. What is ``fast`` is compared after every operation under restore and strict, what is ``told`` is announced by audit
    events and so compared when there was one, and the rest is looked at now and then.
    """

    name: str
    title: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    describe: Callable[[Any, Any], str]
    fast: bool = True
    told: bool = False


# Words ----------------------------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value for a message: one line, shortened; functions by their names."""
    qualname = getattr(value, "__qualname__", None)
    text = f"{getattr(value, '__module__', None) or '?'}.{qualname}" if isinstance(qualname, str) else repr(value)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def changed(what: str, before: object, after: object) -> str:
    return f"{what}: {shown(before)} -> {shown(after)}"


def describe_variable(name: str, before: str | None, after: str | None) -> str:
    """A change of an environment variable, without what may be a secret."""
    values = [value for value in (before, after) if value]
    hidden = any(word in text.upper() for text in (name, *values) for word in SECRET) or any("://" in value and "@" in value for value in values)
    if not hidden:
        return f"{shown_name(name)}: {'unset' if before is None else shown(before)} -> {'unset' if after is None else shown(after)}"
    if before is None or after is None:
        return f"{shown_name(name)}: {'set' if before is None else 'unset'} (value not shown)"
    return f"{shown_name(name)}: changed (value not shown)"


def shown_name(name: str) -> str:
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def _value(what: str, before: object, after: object) -> str:
    return changed(what, before, after)


def _fields(names: Sequence[str], before: Sequence[Any], after: Sequence[Any]) -> str:
    """Of values that are sequences of the same settings: those that differ."""
    return ", ".join(
        _items(name, old, new) if isinstance(old, list) else changed(name, old, new)
        for name, old, new in zip(names, before, after, strict=True)
        if old != new
    )


def _items(what: str, before: Sequence[Any], after: Sequence[Any]) -> str:
    """Of lists: what has come and what has gone."""
    parts = [f"added {shown(item)}" for item in after if item not in before]
    parts += [f"removed {shown(item)}" for item in before if item not in after]
    if not parts:
        return f"{what}: other order or number of the same"
    return f"{what}: {', '.join(parts[:3])}{f' and {len(parts) - 3} more' if len(parts) > 3 else ''}"


def _entries(describe: Callable[[str, Any, Any], str], before: Mapping[Any, Any], after: Mapping[Any, Any]) -> str:
    """Of mappings: the entries that differ."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    parts = [part for name in names if (part := describe(name, before.get(name), after.get(name)))]
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


# Environment, working directory, time zone, locale ---------------------------------------------------------------------------------


#: What os.environ keeps, encoded: to read it so costs a hundredth.
_ENVIRON: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]
_TZ = os.environ.encodekey("TZ")


def _restore_environment(value: Mapping[Any, Any]) -> None:
    for name in set(_ENVIRON) - set(value):
        del os.environ[os.fsdecode(name)]
    for name, text in value.items():
        if _ENVIRON.get(name) != text:
            os.environ[os.fsdecode(name)] = os.fsdecode(text)


def _describe_entry(name: Any, before: Any, after: Any) -> str:
    old, new = (None if value is None else os.fsdecode(value) for value in (before, after))
    return describe_variable(os.fsdecode(name), old, new)


def _read_cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _restore_cwd(value: str) -> None:
    if value:
        os.chdir(value)


def _read_timezone() -> tuple[tuple[str, str], int, Any]:
    return time.tzname, time.timezone, _ENVIRON.get(_TZ)


def _restore_timezone(value: tuple[tuple[str, str], int, Any]) -> None:
    if value[2] is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = os.fsdecode(value[2])
    time.tzset()


def _describe_timezone(before: tuple[tuple[str, str], int, Any], after: tuple[tuple[str, str], int, Any]) -> str:
    """Without what TZ says: that is the environment's, and has no effect before time.tzset()."""
    return "" if before[:2] == after[:2] else changed("time.tzname", before[0], after[0])


# Decimal, warnings ----------------------------------------------------------------------------------------------------------------

_DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _read_decimal() -> tuple[tuple[Any, ...], list[Any]] | None:
    """The context that new ones are made after, without its flags; None while nobody has imported decimal."""
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    fields = decimal.DefaultContext.__reduce__()[1]
    return fields[:6], fields[7]


def _restore_decimal(value: tuple[tuple[Any, ...], list[Any]] | None) -> None:
    decimal = sys.modules.get("decimal")
    if decimal is not None and value is not None:
        for name, field in zip(_DECIMAL, value[0], strict=True):
            setattr(decimal.DefaultContext, name, field)
        traps = decimal.DefaultContext.traps
        for trap in traps:
            traps[trap] = trap in value[1]


def _describe_decimal(before: tuple[tuple[Any, ...], list[Any]] | None, after: tuple[tuple[Any, ...], list[Any]] | None) -> str:
    if before is None or after is None:
        return ""  # it was imported
    return _fields((*_DECIMAL, "traps"), (*before[0], before[1]), (*after[0], after[1]))


def _read_warnings() -> tuple[list[Any], int]:
    """The filters, and how many modules were imported by then."""
    return list(warnings.filters), len(sys.modules)


def _restore_warnings(value: tuple[list[Any], int]) -> None:
    warnings.filters[:] = value[0]  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]  # what simplefilter() calls: drops what was decided by the old ones


def _describe_warnings(before: tuple[list[Any], int], after: tuple[list[Any], int]) -> str:
    """Libraries have filters of their own when they are imported, which may be late: for a text, a module or a category of theirs."""
    filters = after[0]
    if after[1] > before[1]:
        filters = [entry for entry in filters if entry in before[0] or not _is_particular(entry)]
    return "" if filters == before[0] else _items("filters", before[0], filters)


def _is_particular(entry: tuple[Any, ...]) -> bool:
    return entry[1] is not None or entry[3] is not None or entry[2].__module__ != "builtins"


# Logging --------------------------------------------------------------------------------------------------------------------------

_ROOT = ("level", "handlers", "filters", "logging.disable", "record factory", "logger class")


def _read_logging() -> tuple[Any, ...]:
    root = logging.getLogger()
    return root.level, list(root.handlers), list(root.filters), root.manager.disable, logging.getLogRecordFactory(), logging.getLoggerClass()


def _restore_logging(value: tuple[Any, ...]) -> None:
    root = logging.getLogger()
    level, root.handlers[:], root.filters[:], disable, factory, logger_class = value
    root.setLevel(level)
    logging.disable(disable)
    logging.setLogRecordFactory(factory)
    logging.setLoggerClass(logger_class)


_LOGGER = ("level", "handlers", "filters", "propagate", "disabled")
_PLAIN: tuple[Any, ...] = (logging.NOTSET, [], [], True, False)


def _read_loggers() -> dict[str, tuple[Any, ...]]:
    """Every logger. Libraries give theirs a NullHandler, which is left out."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, logger in list(logging.getLogger().manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            handlers = [handler for handler in logger.handlers if type(handler) is not logging.NullHandler]
            found[name] = logger.level, handlers, list(logger.filters), logger.propagate, logger.disabled
    return found


def _restore_loggers(value: Mapping[str, tuple[Any, ...]]) -> None:
    now = _read_loggers()
    for name in {**value, **now}:
        if value.get(name) != now.get(name) and not _is_new(value.get(name), now.get(name)):
            logger = logging.getLogger(name)
            level, logger.handlers[:], logger.filters[:], logger.propagate, logger.disabled = value.get(name, _PLAIN)
            logger.setLevel(level)


def _is_new(before: tuple[Any, ...] | None, after: tuple[Any, ...] | None) -> bool:
    """Whether a logger was only made, and given a level: a module that is imported late does so, and nobody has used the logger before."""
    return before is None and after is not None and after[1:] == _PLAIN[1:]


def _describe_logger(name: str, before: tuple[Any, ...] | None, after: tuple[Any, ...] | None) -> str:
    if _is_new(before, after):
        return ""
    return f"{shown_name(name)} {_fields(_LOGGER, before or _PLAIN, after or _PLAIN)}"


# The interpreter ------------------------------------------------------------------------------------------------------------------


def _read_path() -> list[str]:
    return list(sys.path)


def _restore_path(value: list[str]) -> None:
    sys.path[:] = value


_STREAMS = ("stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook")


def _read_streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook


def _restore_streams(value: tuple[Any, ...]) -> None:
    for name, entry in zip(_STREAMS, value[:6], strict=True):
        setattr(sys, name, entry)
    threading.excepthook = value[6]


def _read_tracing() -> tuple[Any, Any]:
    return sys.gettrace(), sys.getprofile()


def _restore_tracing(value: tuple[Any, Any]) -> None:
    sys.settrace(value[0])
    sys.setprofile(value[1])


def _read_garbage() -> tuple[bool, tuple[int, int, int]]:
    return gc.isenabled(), gc.get_threshold()


def _restore_garbage(value: tuple[bool, tuple[int, int, int]]) -> None:
    if value[0]:
        gc.enable()
    else:
        gc.disable()
    gc.set_threshold(*value[1])


# The process ----------------------------------------------------------------------------------------------------------------------


def _read_umask() -> int:
    """From /proc, because asking the kernel for it means to change it; where there is no /proc, it is changed for a moment."""
    try:
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
    try:
        head = os.read(status, 256)
    finally:
        os.close(status)
    return int(head.partition(b"Umask:")[2].split(None, 1)[0], 8)


def _describe_umask(before: int, after: int) -> str:
    return f"{before:#o} -> {after:#o}"


_SIGNALS = sorted(signal.valid_signals())


def _read_signals() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _restore_signals(value: list[Any]) -> None:
    for number, before, now in zip(_SIGNALS, value, _read_signals(), strict=True):
        if before != now and before is not None:  # None: it was not installed from Python, which cannot put it back
            with contextlib.suppress(OSError):
                signal.signal(number, before)


def _describe_signals(before: list[Any], after: list[Any]) -> str:
    return _fields([getattr(number, "name", str(number)) for number in _SIGNALS], before, after)


#: In the order in which they are put back: the time zone depends on the environment.
WATCHES = (
    Watch("environment", "the environment", _ENVIRON.copy, _restore_environment, partial(_entries, _describe_entry), fast=False, told=True),
    Watch("cwd", "the working directory", _read_cwd, _restore_cwd, lambda before, after: f"{shown(before)} -> {shown(after)}", fast=False, told=True),
    Watch("timezone", "the time zone", _read_timezone, _restore_timezone, _describe_timezone),
    Watch("locale", "the locale", partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL), partial(_value, "LC_ALL")),
    Watch("decimal", "decimal.DefaultContext", _read_decimal, _restore_decimal, _describe_decimal),
    Watch("warnings", "the filters of warnings", _read_warnings, _restore_warnings, _describe_warnings),
    Watch("logging", "logging for all", _read_logging, _restore_logging, partial(_fields, _ROOT)),
    Watch("path", "sys.path", _read_path, _restore_path, partial(_items, "entries")),
    Watch(
        "streams",
        "the standard streams and hooks",
        _read_streams,
        _restore_streams,
        partial(_fields, (*(f"sys.{name}" for name in _STREAMS), "threading.excepthook")),
    ),
    Watch("sockets", "the default timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout, partial(_value, "seconds")),
    Watch("recursion", "the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, partial(_value, "calls")),
    Watch("switching", "the switch interval of threads", sys.getswitchinterval, sys.setswitchinterval, partial(_value, "seconds")),
    Watch("garbage", "the garbage collector", _read_garbage, _restore_garbage, partial(_fields, ("enabled", "threshold"))),
    Watch("tracing", "the tracing hooks", _read_tracing, _restore_tracing, partial(_fields, ("trace", "profile")), fast=False, told=True),
    Watch("umask", "the umask", _read_umask, os.umask, _describe_umask, fast=False),
    Watch("signals", "the signal handlers", _read_signals, _restore_signals, _describe_signals, fast=False),
    Watch("loggers", "loggers", _read_loggers, _restore_loggers, partial(_entries, _describe_logger), fast=False),
)


def glance(
    locale_now: Callable[[], str] = partial(locale.setlocale, locale.LC_ALL),  # noqa: B008
    root: logging.Logger = logging.getLogger(),  # noqa: B008
    manager: logging.Manager = logging.getLogger().manager,  # noqa: B008
) -> tuple[Any, ...]:
    """Everything that is fast, at once and as cheaply as it can be had: equal as long as nothing has changed.

    Of decimal only what anybody changes; the rest of it is seen at the next look at everything.
    """
    decimal = sys.modules.get("decimal")
    default = None if decimal is None else decimal.DefaultContext
    return (
        time.tzname,
        time.timezone,
        locale_now(),
        None if default is None else (default.prec, default.rounding),
        [*warnings.filters],
        root.level,
        [*root.handlers],
        [*root.filters],
        manager.disable,
        logging.getLogRecordFactory(),
        logging.getLoggerClass(),
        [*sys.path],
        sys.stdin,
        sys.stdout,
        sys.stderr,
        sys.excepthook,
        sys.displayhook,
        sys.unraisablehook,
        threading.excepthook,
        socket.getdefaulttimeout(),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        gc.isenabled(),
        gc.get_threshold(),
    )
