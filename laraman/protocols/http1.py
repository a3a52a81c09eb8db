"""HTTP/1.1 heads and bodies (RFC 9112), bytes in and values out.

A head is handed over whole: the connection looks for its end, so limits hold while bytes arrive, time is linear in them, and the
bytes behind a head are never parsed before their turn. Therefore one ``HeadParser`` serves all connections of a worker, and an idle
connection owns no parser at all.

httptools (llhttp) checks the grammar of lines and fields; what it lets through and RFC 9112 does not is checked here: single spaces in the request
line, the version, exactly one valid Host, the forms of the target, blanks behind values, the framing of the body. h11 lets other things through
(bare line feeds, folded lines, control characters, a Content-Length said twice): those are refused before it sees them, so both engines accept the
same requests, but for methods of RTSP.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import h11
import httptools

from laraman.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

Headers = list[tuple[bytes, bytes]]

#: The end of a head, in the strict form. Anything else that looks like an end is found by LOOSE_END and refused by the parser.
HEAD_END = b"\r\n\r\n"
LOOSE_END = re.compile(rb"\n\r?\n")

# uri-host [ ":" port ], RFC 9110 section 7.2 and RFC 3986 section 3.2.2; empty is what a client sends for a target without authority.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-fvV:.~!$&'()*+,;=_-]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?\Z")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)(/[^?#]*)?(?:\?([^#]*))?\Z")
# What h11 takes and a neighbour on the way may read differently: bare LF or CR, a folded line, control characters, more than one Content-Length.
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LENGTHS = re.compile(rb"\ncontent-length:([^\r\n]*)", re.IGNORECASE)
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\Z")
_PLAIN_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\Z")

#: Methods httptools and this server agree are HTTP's; any other token takes the slower way through h11.
_METHODS = {
    name.encode(): name
    for name in (
        "GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND UNBIND ACL REPORT "
        "MKACTIVITY CHECKOUT MERGE NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK QUERY M-SEARCH SOURCE"
    ).split()
}
# Proxy-Connection means nothing here, but llhttp takes it for Connection: after one that says "close" its parser takes no further head.
_SPECIAL = frozenset((b"host", b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"))
#: What proxies say of the client. It changes nothing here; whoever believes it need not search for it in each request.
_FORWARDED = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"))
_NOTED = _SPECIAL | _FORWARDED
_LISTS = frozenset((b"connection", b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"))
_CACHED_HOSTS, _CACHED_HOST = 1024, 256


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK`` and CRLF. A status that has no registered phrase gets an empty one, which RFC 9112 section 4 allows."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


class HeadParser:
    """Parses one complete request head at a time and holds what it found until the next.

    ``max_line`` bounds the request line and ``max_fields`` the number of header fields; the connection bounds the head's bytes.
    """

    __slots__ = (
        "_feed",
        "_few_bytes",
        "_hosts",
        "_max_fields",
        "_max_line",
        "_parse",
        "_parser",
        "_special",
        "chunked",
        "content_length",
        "expects_continue",
        "forwarded",
        "headers",
        "keep_alive",
        "method",
        "on_header",
        "query",
        "raw_path",
        "target",
        "upgrade",
        "version",
    )

    method: str
    target: bytes
    raw_path: bytes  #: percent-encoded, without the query
    query: bytes
    version: str  #: "1.1" or "1.0"
    headers: Headers
    keep_alive: bool  #: RFC 9112 section 9.3
    content_length: int  #: bytes of body announced; 0 where none is
    chunked: bool
    expects_continue: bool
    forwarded: bool  #: whether there are fields of proxies: Forwarded, X-Forwarded-For, X-Forwarded-Proto
    upgrade: bytes  #: the Upgrade field, lower-case, when Connection names it; else empty

    def __init__(self, *, max_line: int = 8190, max_fields: int = 100, engine: str = "httptools") -> None:
        self._max_line = max_line
        self._max_fields = max_fields
        self._few_bytes = 4 * max_fields  # a field takes at least four bytes, so a shorter head needs no counting
        self._hosts: set[tuple[bytes, bytes]] = set()  # fields that were found valid
        self._special: list[tuple[bytes, bytes]] = []
        self._parse = self._parse_h11 if engine == "h11" else self._parse_httptools
        self.method, self.target = "", b""
        self.headers = []
        self.on_header: Callable[[bytes, bytes], None] = self._on_header
        self._renew()

    def _renew(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._feed = self._parser.feed_data

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self.target = url

    def _on_header(self, name: bytes, value: bytes) -> None:
        field = (name.lower(), value.rstrip(b" \t"))
        self.headers.append(field)
        if field[0] in _NOTED:
            if field[0] in _FORWARDED:
                self.forwarded = True
            else:
                self._special.append(field)

    def parse(self, head: bytes) -> None:
        """Parse ``head``, which ends with an empty line. Raises RemoteProtocolError with the status to answer."""
        if len(head) > self._few_bytes and head.count(b"\n") > self._max_fields + 2:
            raise RemoteProtocolError("too many header fields", status_hint=431)
        end_of_line = head.find(b"\r\n")
        if end_of_line > self._max_line:
            raise RemoteProtocolError("request line too long", status_hint=414)
        self.headers = []
        self._special = []
        self.forwarded = False
        self._parse(head)
        target = self.target
        if len(self.method) + len(target) + 10 != end_of_line:
            self._renew()
            raise RemoteProtocolError("invalid request line")
        if head.startswith(b" HTTP/1.1", end_of_line - 9):
            self.version = "1.1"
            special = self._special
            if len(special) == 1 and special[0] in self._hosts and target[0] == 47 and b"#" not in target:
                # Most requests: origin form, a host that was checked before, nothing said of body or connection.
                self.keep_alive = True
                self.content_length = 0
                self.chunked = self.expects_continue = False
                self.upgrade = b""
                self.raw_path, _, self.query = target.partition(b"?")
                return
        elif head.startswith(b" HTTP/1.0", end_of_line - 9):
            self.version = "1.0"
        else:
            self._renew()
            raise RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", status_hint=505)
        self._read_fields()
        self._read_target()

    def _parse_httptools(self, head: bytes) -> None:
        try:
            self._feed(head)
        except httptools.HttpParserUpgrade:
            # llhttp stops at an upgrade; whether there is a body is decided by the fields alone, so nothing is lost.
            method = self._parser.get_method()
            self._renew()
        except httptools.HttpParserInvalidMethodError:
            self._renew()
            self.headers = []
            self._special = []
            self._parse_h11(head)
            return
        except httptools.HttpParserError as exc:
            self._renew()
            raise RemoteProtocolError(str(exc)) from None
        else:
            method = self._parser.get_method()
        try:
            self.method = _METHODS[method]
        except KeyError:  # CONNECT, or a method of RTSP, which llhttp knows as well
            self._renew()
            raise RemoteProtocolError(f"{method!r} is not served here") from None

    def _parse_h11(self, head: bytes) -> None:
        lengths = _LENGTHS.findall(head)
        if _AMBIGUOUS.search(head) or len(lengths) > 1 or (lengths and b"," in lengths[0]):
            raise RemoteProtocolError("not in the strict form")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
        try:
            connection.receive_data(head)
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise RemoteProtocolError(str(exc), status_hint=exc.error_status_hint) from None
        if not isinstance(event, h11.Request):
            raise RemoteProtocolError("not a request head")
        self.method = event.method.decode("ascii")
        if self.method == "CONNECT":
            raise RemoteProtocolError("CONNECT is not served here")
        self.target = event.target
        for name, value in event.headers:
            self._on_header(name, value)

    def _read_fields(self) -> None:
        """What the fields say of host, body and connection."""
        self.keep_alive = self.version == "1.1"
        self.content_length = 0
        self.chunked = False
        self.expects_continue = False
        self.upgrade = b""
        # llhttp may now wait for a body, which never comes its way, or for the end of the connection, which is one of many.
        self._renew()
        fields: dict[bytes, bytes] = {}
        for name, value in self._special:
            if name not in fields:
                fields[name] = value
            elif name in _LISTS:
                fields[name] += b", " + value
            else:
                raise RemoteProtocolError(f"more than one {name.decode()} field")
        self._read_body_fields(fields)
        if b"host" in fields:
            self._check_host(fields[b"host"])
        elif self.version == "1.1":
            raise RemoteProtocolError("no Host field")
        if b"connection" in fields:
            self._read_connection(_tokens(fields[b"connection"]), fields)
        if self.version == "1.1" and fields.get(b"expect", b"").lower() == b"100-continue":
            self.expects_continue = True

    def _read_connection(self, options: list[bytes], fields: dict[bytes, bytes]) -> None:
        """RFC 9112 section 9.3: close wins, then the version, then keep-alive."""
        if b"close" in options:
            self.keep_alive = False
        elif b"keep-alive" in options:
            self.keep_alive = True
        if b"upgrade" in options and self.version == "1.1":
            self.upgrade = fields.get(b"upgrade", b"").lower()

    def _read_body_fields(self, fields: dict[bytes, bytes]) -> None:
        """RFC 9112 section 6.3. Whatever two implementations could read differently is refused: that is how requests are smuggled."""
        length = fields.get(b"content-length")
        coding = fields.get(b"transfer-encoding")
        if coding is not None:
            if length is not None:
                raise RemoteProtocolError("Content-Length beside Transfer-Encoding")
            if self.version == "1.0":
                raise RemoteProtocolError("Transfer-Encoding in an HTTP/1.0 request")
            if coding.lower() != b"chunked":
                raise RemoteProtocolError("a transfer coding other than chunked", status_hint=501)
            self.chunked = True
        elif length is not None:
            if not _DIGITS.match(length):
                raise RemoteProtocolError("Content-Length is not a number")
            self.content_length = int(length)

    def _check_host(self, host: bytes) -> None:
        if not _HOST.match(host):
            raise RemoteProtocolError("invalid Host field")
        if len(host) <= _CACHED_HOST:
            if len(self._hosts) >= _CACHED_HOSTS:
                self._hosts.clear()
            self._hosts.add((b"host", host))

    def _read_target(self) -> None:
        """RFC 9112 section 3.2: origin form, absolute form, and ``*`` for OPTIONS. The authority form belongs to CONNECT."""
        target = self.target
        if b"#" in target:
            raise RemoteProtocolError("fragment in the request target")
        if target[0] == 47:  # "/"
            self.raw_path, _, self.query = target.partition(b"?")
        elif target == b"*" and self.method == "OPTIONS":
            self.raw_path, self.query = target, b""
        else:
            self._read_absolute(target)

    def _read_absolute(self, target: bytes) -> None:
        match = _ABSOLUTE.match(target)
        if match is None:
            raise RemoteProtocolError("invalid request target")
        authority, path, query = match.groups()
        self._check_host(authority)
        self.raw_path, self.query = path or b"/", query or b""
        # RFC 9112 section 3.2.2: the target's authority replaces the Host that was received.
        self.headers = [(name, authority if name == b"host" else value) for name, value in self.headers]

    @property
    def path(self) -> str:
        """The path with percent-encoding removed, as ASGI wants it; what is not UTF-8 is replaced."""
        raw_path = self.raw_path
        if b"%" in raw_path:
            return unquote_to_bytes(raw_path).decode("utf-8", "replace")
        return raw_path.decode("ascii")


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t") for token in value.lower().split(b",")]


class ChunkedBody:
    """Takes a chunked body apart (RFC 9112 section 7.1). Extensions and trailers are checked and dropped."""

    __slots__ = ("_buffer", "_excess", "_in_trailers", "_left", "_max_overhead", "_overhead", "done")

    #: Bytes a chunk's size line may have.
    MAX_SIZE_LINE = 1024
    #: Bytes that size lines may have in all beyond what their chunks justify.
    MAX_EXCESS = 16384

    def __init__(self, max_trailers: int = 65536) -> None:
        self._buffer = b""
        self._left = 0  # bytes of the current chunk still to come, its CRLF included
        self._overhead = self._excess = 0
        self._max_overhead = max_trailers
        self._in_trailers = False
        self.done = False

    def receive_data(self, data: bytes) -> tuple[bytes, bytes]:
        """The body's bytes in ``data``, and once ``done`` the bytes behind it. Raises RemoteProtocolError."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        parts: list[bytes] = []
        position = 0
        while position < len(data) and not self.done:
            if not self._left and not self._in_trailers:
                position = self._read_whole_chunks(data, position, parts)
            advanced = self._read_chunk(data, position, parts) if self._left else self._read_line(data, position)
            if advanced == position:
                break
            position = advanced
        rest = data[position:]
        if not self.done:
            self._buffer, rest = rest, b""
        return parts[0] if len(parts) == 1 else b"".join(parts), rest

    def _read_whole_chunks(self, data: bytes, position: int, parts: list[bytes]) -> int:
        """The quick way through chunks that are here from end to end and have no extensions; stops before any other."""
        while (match := _PLAIN_CHUNK.match(data, position)) is not None:
            start = match.end()
            end = start + int(match[1], 16)
            if end == start or not data.startswith(b"\r\n", end):
                break
            parts.append(data[start:end])
            position = end + 2
        return position

    def _read_chunk(self, data: bytes, position: int, parts: list[bytes]) -> int:
        end = position + self._left
        if len(data) >= end:
            if data[end - 2 : end] != b"\r\n":
                raise RemoteProtocolError("chunk does not end where its size says")
            parts.append(data[position : end - 2])
            self._left = 0
            return end
        # Keep back what may be the CRLF, so that it is checked in one place.
        available = len(data) - position
        usable = min(available, self._left - 2)
        if usable:
            parts.append(data[position : position + usable])
            self._left -= usable
        return position + usable

    def _read_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position)
        if end < 0:
            if len(data) - position > self.MAX_SIZE_LINE or b"\n" in data[position:]:
                raise RemoteProtocolError("invalid chunk size line")
            return position
        line = data[position:end]
        if self._in_trailers:
            self._read_trailer(line)
        else:
            match = _CHUNK_SIZE.match(line) if len(line) <= self.MAX_SIZE_LINE else None
            if match is None:
                raise RemoteProtocolError("invalid chunk size line")
            size = int(match[1], 16)
            # Extensions are bytes that no limit of the body counts. A chunk's own framing is free, and so is something for its size.
            self._excess = max(0, self._excess + len(line) - 16 - 2 * size)
            if self._excess > self.MAX_EXCESS:
                raise RemoteProtocolError("chunk extensions too large")
            self._in_trailers = size == 0
            self._left = size + 2 if size else 0
        return end + 2

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._overhead += len(line) + 2
        if self._overhead > self._max_overhead:
            raise RemoteProtocolError("trailers too large", status_hint=431)
        if not _TRAILER.match(line):
            raise RemoteProtocolError("invalid trailer field")
