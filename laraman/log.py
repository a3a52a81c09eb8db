"""Logging: the standard library's, under uvicorn's logger names, so that filters and configurations written for uvicorn keep working.

uvicorn.error    everything, to stderr (its handler sits on ``uvicorn``)
uvicorn.access   one line per request, to stdout; message '%s - "%s %s HTTP/%s" %d' with the arguments
                 (client_addr, method, full_path, http_version, status_code)
"""

from __future__ import annotations

import http
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import quote

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.config import Config

TRACE = 5  # uvicorn's level below DEBUG
logging.addLevelName(TRACE, "TRACE")

_LEVEL_COLOURS = {TRACE: "34", logging.DEBUG: "36", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "91"}
_STATUS_COLOURS = {1: "97", 2: "32", 3: "33", 4: "31", 5: "91"}

_root = logging.getLogger("uvicorn")
_error = logging.getLogger("uvicorn.error")
_access = logging.getLogger("uvicorn.access")


def _coloured(text: str, colour: str | None) -> str:
    return f"\033[{colour}m{text}\033[0m" if colour else text


class DefaultFormatter(logging.Formatter):
    """Adds ``%(levelprefix)s``: the level and a colon, padded; with colours a record's ``color_message`` stands for its message."""

    stream = "stderr"

    def __init__(
        self,
        fmt: str | None = "%(levelprefix)s %(message)s",
        datefmt: str | None = None,
        style: Literal["%", "{", "$"] = "%",
        use_colors: bool | None = None,
    ) -> None:
        super().__init__(fmt, datefmt, style)
        self.use_colors = getattr(sys, self.stream).isatty() if use_colors is None else use_colors

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = record.levelname
        padding = " " * (8 - len(level))
        if self.use_colors:
            level = _coloured(level, _LEVEL_COLOURS.get(record.levelno))
            if "color_message" in record.__dict__:
                text = record.__dict__["color_message"]
                record.message = text % record.args if record.args else text
        record.levelprefix = f"{level}:{padding}"
        return super().formatMessage(record)


class AccessFormatter(DefaultFormatter):
    """Adds ``%(client_addr)s``, ``%(request_line)s`` and ``%(status_code)s``, taken from the arguments of an access record."""

    stream = "stdout"

    def __init__(
        self,
        fmt: str | None = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
        datefmt: str | None = None,
        style: Literal["%", "{", "$"] = "%",
        use_colors: bool | None = None,
    ) -> None:
        super().__init__(fmt, datefmt, style, use_colors)

    def formatMessage(self, record: logging.LogRecord) -> str:
        arguments: Any = record.args
        client_addr, method, full_path, http_version, status = arguments
        request_line = _one_line(f"{method} {full_path} HTTP/{http_version}")
        code = _status(status)
        if self.use_colors:
            request_line = _coloured(request_line, "1")
            code = _coloured(code, _STATUS_COLOURS.get(status // 100))
        record.client_addr = _one_line(str(client_addr))
        record.request_line = request_line
        record.status_code = code
        return super().formatMessage(record)


def _status(code: int) -> str:
    try:
        return f"{code} {http.HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _one_line(text: str) -> str:
    """Whoever sends the request must not be able to write lines of their own, or to move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else quote(character, errors="backslashreplace") for character in text)


# Configuration --------------------------------------------------------------------------------------------------------------------


class _File(logging.StreamHandler[TextIO]):
    """Appends to a file that only its owner can read: an access log holds what people sent."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        super().__init__(self._open())

    def _open(self) -> TextIO:
        return open(self.path, "a", encoding="utf-8", errors="backslashreplace", opener=lambda path, flags: os.open(path, flags, 0o600))

    def reopen(self) -> None:
        """Go on in a new file under the old name; when that cannot be opened, in the old file."""
        try:
            opened = self._open()
        except OSError as exc:
            _error.error("Cannot reopen the log file %s: %s", self.path, exc.strerror)
            return
        old = self.setStream(opened)
        if old is not None:
            old.close()

    def close(self) -> None:
        super().close()
        self.stream.close()


_installed: list[tuple[logging.Logger, logging.Handler]] = []


def configure(config: Config) -> None:
    """Set the loggers up. Calling it again replaces what it installed before and nothing else.

    Raises ConfigError when the log file cannot be opened.
    """
    handlers = [(_root, _handler(config, DefaultFormatter))]
    if config.access_log:
        handlers.append((_access, _handler(config, AccessFormatter)))
    else:
        _access.handlers.clear()
    for logger, handler in _installed:
        logger.removeHandler(handler)
        if isinstance(handler, _File):
            handler.close()
    _installed[:] = handlers
    for logger, handler in _installed:
        logger.addHandler(handler)
    _root.propagate = _access.propagate = False
    _root.setLevel(logging.INFO)
    level = TRACE if config.log_level == "trace" else config.log_level.upper()
    _error.setLevel(level)
    _access.setLevel(level)


def _handler(config: Config, formatter: type[DefaultFormatter]) -> logging.Handler:
    handler: logging.Handler
    use_colors = config.use_colors
    if config.log_file or config.daemon:
        use_colors = bool(use_colors)  # what is a terminal now will be a file
    if config.log_file:
        try:
            handler = _File(config.log_file)
        except OSError as exc:
            raise ConfigError(f"cannot open the log file {config.log_file}: {exc.strerror}") from None
    else:
        handler = logging.StreamHandler(getattr(sys, formatter.stream))
    handler.setFormatter(formatter(use_colors=use_colors))
    return handler


def reopen() -> None:
    """Open the log file anew, after somebody has moved it away (SIGUSR1, logrotate)."""
    for _, handler in _installed:
        if isinstance(handler, _File):
            handler.reopen()


def access_enabled() -> bool:
    """Whether an access line would go anywhere: one that would not need not be made."""
    return _access.isEnabledFor(logging.INFO) and _access.hasHandlers()
