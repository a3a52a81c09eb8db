"""The formatters, with uvicorn's names, arguments and lines: configurations and subclasses written for those work with these."""

from __future__ import annotations

import http
import logging
import sys
from typing import Any, Literal
from urllib.parse import quote

from laraman.log.access import Line

TRACE = 5  # uvicorn's level below DEBUG
logging.addLevelName(TRACE, "TRACE")

_LEVEL_COLOURS = {TRACE: "34", logging.DEBUG: "36", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "91"}
_STATUS_COLOURS = {1: "97", 2: "32", 3: "33", 4: "31", 5: "91"}
_STATUSES = {status.value: f"{status.value} {status.phrase}" for status in http.HTTPStatus}
BOLD, CYAN = "1", "36"


def coloured(text: str, *codes: str) -> str:
    """The text in the colours of these codes (ECMA-48 SGR), as it is without any."""
    return f"\033[{';'.join(codes)}m{text}\033[0m" if codes else text


class ColourizedFormatter(logging.Formatter):
    """Adds ``%(levelprefix)s``: the level and a colon, padded; with colours a record's ``color_message`` stands for its message.

    What is added is gone from the record afterwards: other handlers see it as it was made.
    """

    #: Whether what is a terminal now will still be one when lines are written.
    stays = True

    def __init__(
        self, fmt: str | None = None, datefmt: str | None = None, style: Literal["%", "{", "$"] = "%", use_colors: bool | None = None
    ) -> None:
        super().__init__(fmt, datefmt, style)
        self.use_colors = self.should_use_colors() if use_colors is None else use_colors

    def should_use_colors(self) -> bool:
        """Whether there are colours where nobody has said so: on a terminal."""
        return self.stays and sys.stdout is not None and sys.stdout.isatty()

    def color_level_name(self, level_name: str, level_no: int) -> str:
        return coloured(level_name, *_codes(_LEVEL_COLOURS.get(level_no)))

    def formatMessage(self, record: logging.LogRecord) -> str:
        added = self.fields(record)
        record.__dict__.update(added)
        try:
            return super().formatMessage(record)
        finally:
            for name in added:
                del record.__dict__[name]

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a format may name beyond the standard library's."""
        level = record.levelname
        padding = " " * (8 - len(level))
        if self.use_colors:
            level = self.color_level_name(level, record.levelno)
            if "color_message" in record.__dict__:
                text = record.__dict__["color_message"]
                record.message = text % record.args if record.args else text
        return {"levelprefix": f"{level}:{padding}"}


class DefaultFormatter(ColourizedFormatter):
    """For the log of errors, which goes to stderr."""

    def should_use_colors(self) -> bool:
        return self.stays and sys.stderr is not None and sys.stderr.isatty()


class AccessFormatter(ColourizedFormatter):
    """Adds ``%(client_addr)s``, ``%(request_line)s`` and ``%(status_code)s``, taken from the arguments of an access record.

    A line that ``--access-log-format`` has made is complete: it stays as it is.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        return record.message if isinstance(record.msg, Line) else super().formatMessage(record)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        arguments: Any = record.args
        client_addr, method, full_path, http_version, status = arguments
        request_line = _one_line(f"{method} {full_path} HTTP/{http_version}")
        if self.use_colors:
            request_line = coloured(request_line, BOLD)
        added = super().fields(record)
        added["client_addr"] = _one_line(str(client_addr))
        added["request_line"] = request_line
        added["status_code"] = self.get_status_code(int(status))
        return added

    def get_status_code(self, status_code: int) -> str:
        """The number and its phrase."""
        text = _STATUSES.get(status_code) or str(status_code)
        return coloured(text, *_codes(_STATUS_COLOURS.get(status_code // 100))) if self.use_colors else text


def _codes(colour: str | None) -> tuple[str, ...]:
    return () if colour is None else (colour,)


def _one_line(text: str) -> str:
    """Whoever sends the request must not be able to write lines of their own, or to move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else quote(character, errors="backslashreplace") for character in text)
