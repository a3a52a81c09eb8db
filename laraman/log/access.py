"""Access lines of one's own: ``--access-log-format json``, ``combined`` or ``"%(method)s %(path)s %(duration).6f"``.

uvicorn's line is written when the head of a response is sent; these are written at its end, when its size and duration are known. Either way the
arguments of the record are uvicorn's five, because filters index them.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from json import JSONEncoder
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The message of an access record, and what it is filled with.
MESSAGE = '%s - "%s %s HTTP/%s" %d'
Arguments = tuple[str, str, str, str, int]


def arguments(scope: Mapping[str, Any], status: int) -> Arguments:
    """uvicorn's arguments of an access record: client_addr, method, full_path, http_version, status_code."""
    client = scope["client"]
    query = scope["query_string"]
    path = quote(scope["path"])
    return (
        f"{client[0]}:{client[1]}" if client else "",
        scope.get("method", "WebSocket"),
        f"{path}?{query.decode('ascii', 'backslashreplace')}" if query else path,
        scope["http_version"],
        status,
    )


class Line(str):
    """A message that is complete: formatting it with the arguments of its record, which are for filters, changes nothing."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __mod__(self, arguments: object) -> str:
        return self[:]


# Fields ---------------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ended:
    """A request whose response has ended, or a websocket's session. ``duration`` is in seconds; the bytes are those of the bodies."""

    scope: Mapping[str, Any]
    arguments: Arguments
    duration: float
    request_bytes: int
    response_bytes: int
    request_id: str
    worker: int
    close_code: int | None = None

    def header(self, name: bytes) -> str | None:
        """The first field of this name."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value.decode("latin-1"))
        return None


@lru_cache(1)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _time(ended: Ended) -> str:
    now = time.time()
    return f"{_utc(int(now))}.{int(now % 1 * 1000):03d}Z"


_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


@lru_cache(1)
def _local(second: int) -> str:
    """As the Common Log Format has it, in English whatever the locale is."""
    local = time.localtime(second)
    return f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S %z', local)}"


#: Each field and how it is read; None is something that this request does not have.
FIELDS: dict[str, Callable[[Ended], Any]] = {
    "time": _time,
    "local_time": lambda ended: _local(int(time.time())),
    "client": lambda ended: ended.scope["client"] and ended.scope["client"][0],
    "client_port": lambda ended: ended.scope["client"] and ended.scope["client"][1],
    "method": lambda ended: ended.scope.get("method", "GET"),
    "path": lambda ended: ended.scope["path"],
    "query": lambda ended: ended.scope["query_string"].decode("latin-1"),
    "full_path": lambda ended: ended.arguments[2],
    "http_version": lambda ended: ended.scope["http_version"],
    "scheme": lambda ended: ended.scope["scheme"],
    "status": lambda ended: ended.arguments[4],
    "duration": lambda ended: round(ended.duration, 6),
    "request_bytes": lambda ended: ended.request_bytes,
    "response_bytes": lambda ended: ended.response_bytes,
    "user_agent": lambda ended: ended.header(b"user-agent"),
    "referer": lambda ended: ended.header(b"referer"),
    "request_id": lambda ended: ended.request_id,
    "worker": lambda ended: ended.worker,
    "pid": lambda ended: os.getpid(),
    "close_code": lambda ended: ended.close_code,
}
#: Of two that say the same an object has one.
_NOT_IN_JSON = ("local_time", "full_path")

#: Apache's "combined", which all tools know.
_COMBINED = (
    '%(client)s - - [%(local_time)s] "%(method)s %(full_path)s HTTP/%(http_version)s" %(status)d %(response_bytes)d "%(referer)s" "%(user_agent)s"'
)

#: With a value in every field that may have none, and without.
_SCOPE: dict[str, Any] = {"method": "GET", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http", "client": None}
_SAMPLES = tuple(
    Ended({**_SCOPE, "client": client}, ("", "GET", "/", "1.1", 200), 0.0, 0, 0, "", 0, code)
    for client, code in ((None, None), (("127.0.0.1", 1), None), (None, 1000))
)


class AccessFormat:
    """Makes the line of an ended request. Raises ValueError when the format is wrong."""

    def __init__(self, text: str) -> None:
        self._text = "" if text == "json" else _COMBINED if text == "combined" else text
        names = [name for name in FIELDS if name not in _NOT_IN_JSON] if text == "json" else _names(self._text)
        self._fields = [(name, FIELDS[name]) for name in names]
        #: Whether requests need an identifier.
        self.identifies = "request_id" in names
        for sample in _SAMPLES:
            self._try(sample)

    def _try(self, sample: Ended) -> None:
        try:
            self.line(sample)
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{self._text!r} cannot be filled in: {exc} (what a request does not have is '-')") from None

    def line(self, ended: Ended) -> Line:
        """Nothing that a client sends adds a line to it, or ends a quotation in it."""
        values = {name: read(ended) for name, read in self._fields}
        if self._text:
            return Line(self._text % {name: _escaped(value) for name, value in values.items()})
        if values["close_code"] is None:
            del values["close_code"]
        return Line(_encode(values))


#: Only ASCII: what else there is in a value is escaped, so the line is one line wherever it goes.
_encode = JSONEncoder(separators=(",", ":"), default=str).encode


def _names(text: str) -> list[str]:
    """The fields that the format asks for. Raises ValueError for one that there is none of."""
    from laraman.config.options import did_you_mean

    found = (match[1] for match in re.finditer(r"%(?:%|\(([^)]*)\))", text))  # %% is no field, whatever follows
    names = list(dict.fromkeys(name for name in found if name is not None))
    for name in names:
        if name not in FIELDS:
            raise ValueError(f"there is no field {name!r}{did_you_mean(name, FIELDS)}")
    if not names:
        raise ValueError(f"{text!r} is neither json nor combined nor a format with fields like %(path)s{did_you_mean(text, ('json', 'combined'))}")
    return names


def _escaped(value: Any) -> Any:
    if value is None:
        return "-"
    if not isinstance(value, str) or (value.isprintable() and '"' not in value and "\\" not in value):
        return value
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in value)
