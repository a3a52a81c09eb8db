"""Logging: the standard library's, under uvicorn's logger names, so that filters and configurations written for uvicorn keep working.

uvicorn          has the handler, on stderr
uvicorn.error    everything but requests
uvicorn.access   one line per request, to stdout; message '%s - "%s %s HTTP/%s" %d' with the arguments
                 (client_addr, method, full_path, http_version, status_code)
uvicorn.asgi     what goes between server and application, at level trace

The master configures it once; its workers, being forks, have what it has, unless threads belong to it: those they start for themselves.
"""

from __future__ import annotations

import logging
import os
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TextIO

from laraman.errors import ConfigError
from laraman.log import configs
from laraman.log.formatters import BOLD, CYAN, TRACE, AccessFormatter, ColourizedFormatter, DefaultFormatter, coloured

if TYPE_CHECKING:
    from io import TextIOWrapper

    from laraman.config import Config

__all__ = ["LOGGING_CONFIG", "LOG_LEVELS", "TRACE", "AccessFormatter", "ColourizedFormatter", "DefaultFormatter", "configure", "reopen"]

LOG_LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}

#: What counts where nobody says otherwise, in uvicorn's form. A program may change it, before the server is configured, or hand on a changed copy.
LOGGING_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "default": {"()": "laraman.log.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s", "use_colors": None},
        "access": {"()": "laraman.log.AccessFormatter", "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'},
    },
    "handlers": {
        "default": {"formatter": "default", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        "access": {"formatter": "access", "class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
    },
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}
_BUILT_IN = deepcopy(LOGGING_CONFIG)

_root = logging.getLogger("uvicorn")
_error = logging.getLogger("uvicorn.error")
_access = logging.getLogger("uvicorn.access")
_asgi = logging.getLogger("uvicorn.asgi")


# Configuration --------------------------------------------------------------------------------------------------------------------


class _File(logging.FileHandler):
    """Appends to a file that only its owner can read: an access log holds what people sent."""

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)


#: The handlers that came with the configuration, and whose they are. The application's are none of them.
_installed: list[tuple[logging.Logger, logging.Handler]] = []
#: Idents of the threads that the configuration's own classes have started; a queue's, say, which writes what others put into it.
_threads: set[int] = set()


def configure(config: Config) -> None:
    """Set logging up. Calling it again replaces what it installed before and nothing else, unless the new configuration says so.

    Raises ConfigError when the configuration cannot be used or the log file cannot be opened; then the built-in configuration counts.
    """
    ColourizedFormatter.stays = not (config.daemon or config.log_file)
    source = config.log_config
    if source == "" and LOGGING_CONFIG != _BUILT_IN:
        source = LOGGING_CONFIG
    if source == "":
        _configure_built_in(config)
    elif source is not None:
        _configure_from(source, config)
    if config.log_level is not None:
        for logger in (_error, _access, _asgi):
            logger.setLevel(LOG_LEVELS[config.log_level])
    if not config.access_log:
        _access.handlers.clear()
        _access.propagate = False


def after_fork(config: Config) -> None:
    """In a child: configure anew what stands on threads, of which a fork copies none. It disables nobody else: what was preloaded has loggers too."""
    if not _threads:
        return
    disabled = {logger: logger.disabled for logger in _loggers()}
    try:
        configure(config)
    except ConfigError as exc:  # the file is no longer what it was, and the server is better off with other lines than without this process
        _root.disabled = _error.disabled = False
        _error.error("%s", exc)
    else:
        for logger, before in disabled.items():
            logger.disabled = before


def check(config: Config) -> None:
    """Raises ConfigError when the file of the configuration cannot be read or understood."""
    if isinstance(config.log_config, str) and config.log_config:
        configs.read(config.log_config)


def _configure_built_in(config: Config) -> None:
    """The same as LOGGING_CONFIG, without taking away what others have installed, and into the log file if there is one."""
    handlers = [(_root, _handler(config, DefaultFormatter, "default", sys.stderr))]
    if config.access_log:
        handlers.append((_access, _handler(config, AccessFormatter, "access", sys.stdout)))
    _uninstall()
    _installed[:] = handlers
    for logger, handler in _installed:
        logger.addHandler(handler)
    _root.propagate = _access.propagate = False
    for logger in (_root, _error, _access):
        logger.setLevel(logging.INFO)


def _configure_from(source: Any, config: Config) -> None:
    _uninstall()
    before, running = _handlers(), set(sys._current_frames())
    try:
        configs.apply(source, config.use_colors, os.path.abspath(config.app_dir or os.curdir))
    except ConfigError:
        _configure_built_in(config)
        raise
    _installed[:] = [pair for pair in _handlers() if pair not in before]
    _threads.update(set(sys._current_frames()) - running)


def _handlers() -> list[tuple[logging.Logger, logging.Handler]]:
    return [(logger, handler) for logger in _loggers() for handler in logger.handlers]


def _loggers() -> list[logging.Logger]:
    return [logging.root, *(logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger))]


def _uninstall() -> None:
    """Leave the loggers as if they had never been configured here."""
    for logger, handler in _installed:
        logger.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()
    if _installed:
        for logger in (_root, _error, _access, _asgi):
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    _installed.clear()
    _threads.clear()


def _handler(config: Config, formatter: type[ColourizedFormatter], name: str, stream: TextIO) -> logging.Handler:
    handler: logging.Handler
    if config.log_file:
        try:
            handler = _File(config.log_file)
        except OSError as exc:
            raise ConfigError(f"cannot open the log file {config.log_file}: {exc.strerror}") from None
    else:
        handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(_BUILT_IN["formatters"][name]["fmt"], use_colors=config.use_colors))
    return handler


def reopen() -> None:
    """Open the log files anew, after somebody has moved them away (SIGUSR1, logrotate). One that cannot be opened goes on in its old file."""
    for handler in {handler for _, handler in _installed if isinstance(handler, logging.FileHandler) and handler.mode != "w"}:
        try:
            opened = handler._open()
        except OSError as exc:
            _error.error("Cannot reopen the log file %s: %s; lines go to the old one until a reload", handler.baseFilename, exc.strerror)
            continue
        old = handler.setStream(opened)
        if old is not None:
            old.close()


def access_enabled() -> bool:
    """Whether an access line would go anywhere: one that would not need not be made."""
    return _access.isEnabledFor(logging.INFO) and _access.hasHandlers()


# Lines that launchers wait for ----------------------------------------------------------------------------------------------------


def say_running(config: Config, where: str) -> None:
    """That connections are accepted there; programs that start a server read the address out of this line."""
    text = config.log_brand.capitalize() + " running on %s (Press CTRL+C to quit)"
    _error.info(text, where, extra={"color_message": text.replace("%s", coloured("%s", BOLD))})


def say_process(what: str, rest: str = "") -> None:
    """What has become of this process: "Started server process [pid]"."""
    text = what + " process [%d]" + rest
    _error.info(text, os.getpid(), extra={"color_message": text.replace("%d", coloured("%d", CYAN))})
