"""A websocket from its first byte on: the HTTP/1.1 request that opens it (RFC 6455 section 4.2), then frames. Bytes in, messages out.

The handler decides. The first message is an ``Upgrade``, the answer to it ``Accept`` or ``Answer``; then the messages of
``laraman.protocols.websocket`` go both ways. What cannot be read as a request is answered here, and ends the connection.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.deflate import negotiate_deflate
from laraman.protocols.http1 import HEAD_END, LOOSE_END, HeadParser, status_line
from laraman.protocols.websocket import WebSocket, accept_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laraman.protocols.http1 import Headers
    from laraman.protocols.websocket import Message

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Bytes that a request head may have, and that a client may send before it is accepted.
MAX_HEAD = 32768


# The handshake's rules --------------------------------------------------------------------------------------------------------------


def check_request(headers: Headers) -> tuple[bytes, str]:
    """The Sec-WebSocket-Accept for this request, and the extensions it offers. Method, HTTP version and Upgrade were checked before.

    Raises RemoteProtocolError: 426 for another version of the protocol, 400 for a key that is none.
    """
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value)
    if fields.get(b"sec-websocket-version") != [b"13"]:
        raise RemoteProtocolError("Only version 13 of WebSocket is spoken here.", status_hint=426)
    value = accept_value(b",".join(fields.get(b"sec-websocket-key", ())))
    return value, b",".join(fields.get(b"sec-websocket-extensions", ())).decode("latin-1")


def response_head(
    status: int, default_headers: bytes, *fields: Iterable[tuple[bytes, bytes]], first: Iterable[tuple[bytes, bytes]] = ()
) -> bytes:
    """A response head; ``first`` are fields that stand before the default ones.

    A default field gives way to one of the same name. Raises RuntimeError for what may not stand in a field.
    """
    parts: list[bytes] = []
    names = set()
    for name, value in (field for group in fields for field in group):
        if not TOKEN.fullmatch(name.decode("latin-1")):
            raise RuntimeError("Invalid HTTP header name.")
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise RuntimeError("Invalid HTTP header value.")
        names.add(name.lower())
        parts += (name, b": ", value, b"\r\n")
    defaults = [line for line in default_headers.splitlines(keepends=True) if line.partition(b":")[0].lower() not in names]
    return b"".join((status_line(status), *(b"%b: %b\r\n" % field for field in first), *defaults, *parts, b"\r\n"))


# Messages ---------------------------------------------------------------------------------------------------------------------------


class Accept(NamedTuple):
    """Open the websocket. ``subprotocol`` is one of those offered, or empty; with ``deflate`` compression is negotiated where it is offered.

    The compression is the ``shared`` one of ``negotiate_deflate``.
    """

    subprotocol: str = ""
    deflate: bool = False


class Answer(NamedTuple):
    """A response in place of the websocket; the connection is to be closed behind it."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Upgrade(NamedTuple):
    """A GET request. ``websocket`` is false when it has no Upgrade field: somebody looks whether the server is there.

    ``path`` is decoded, ``query`` as it was sent. The names of ``headers`` are lower-case, the values of repeated ones joined. ``refusal`` is
    what it must be answered where path and origin are right: None, if it can be accepted.
    """

    path: str
    query: str
    headers: dict[str, str]
    subprotocols: tuple[str, ...]
    websocket: bool
    refusal: Answer | None


# The protocol -----------------------------------------------------------------------------------------------------------------------


class WebSocketServer:
    """The protocol of one accepted connection.

    ``max_size`` bounds a message in bytes. ``heads`` may be shared by all connections of a thread. Raises RemoteProtocolError for what is no
    GET request, and then owes the client the response that says so.
    """

    __slots__ = ("_accept_value", "_buffer", "_heads", "_max_size", "_offers", "_owed", "_subprotocols", "_websocket", "deflated")

    def __init__(self, max_size: int, heads: HeadParser | None = None) -> None:
        self._max_size = max_size
        self._heads: HeadParser | None = heads or HeadParser()  # until the request is read
        self._buffer = b""  # what stands before the answer
        self._owed = b""
        self._accept_value = b""
        self._offers = ""
        self._subprotocols: tuple[str, ...] = ()
        self._websocket: WebSocket | None = None  # once it is open
        self.deflated = False  #: compression was negotiated

    @property
    def more(self) -> bool:
        websocket = self._websocket
        return websocket is not None and (websocket.more or self._buffer != b"")

    @property
    def close_sent(self) -> bool:
        """The websocket is closed from this side, be it in answer to a close: nothing more can be sent."""
        websocket = self._websocket
        return websocket is not None and websocket.close_sent

    @property
    def asides(self) -> int:
        """Frames since ``take_asides`` that ended no message."""
        websocket = self._websocket
        return 0 if websocket is None else websocket.asides

    def take_asides(self) -> tuple[int, int]:
        """How many frames ended no message, and how many of them were pings. The websocket is open."""
        websocket = self._websocket
        assert websocket is not None
        counts = websocket.asides, websocket.pings
        websocket.asides = websocket.pings = 0
        return counts

    def receive_data(self, data: bytes) -> Sequence[Upgrade | Message]:
        websocket = self._websocket
        if websocket is not None:
            if self._buffer:
                data, self._buffer = self._buffer + data, b""
            return websocket.receive_data(data)
        searched = max(0, len(self._buffer) - 3)
        self._buffer += data
        if self._heads is not None:
            return self._read_head(searched, self._heads)
        if len(self._buffer) > MAX_HEAD:
            raise RemoteProtocolError("more than a client may send before it is accepted")
        return ()

    def _read_head(self, searched: int, heads: HeadParser) -> Sequence[Upgrade]:
        end = self._buffer.find(HEAD_END, searched)
        try:
            if LOOSE_END.search(self._buffer, searched, len(self._buffer) if end < 0 else end):
                raise RemoteProtocolError("a line does not end with CRLF")
            if (len(self._buffer) if end < 0 else end) > MAX_HEAD:
                raise RemoteProtocolError("request head too large", status_hint=431)
            if end < 0:
                return ()
            head, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
            heads.parse(head)
            upgrade = self._upgrade(heads)
        except RemoteProtocolError as exc:
            self._owed = self.send(Answer(exc.status_hint))
            raise
        self._heads = None
        return (upgrade,)

    def _upgrade(self, heads: HeadParser) -> Upgrade:
        """Raises RemoteProtocolError for what is answered whatever path and origin are."""
        if heads.method != "GET":
            raise RemoteProtocolError(f"the method is {heads.method}", status_hint=405)
        if heads.content_length or heads.chunked:
            raise RemoteProtocolError("a GET request with a body")
        headers: dict[str, str] = {}
        for name, value in heads.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        offered = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
        self._subprotocols = tuple(name for name in offered if TOKEN.fullmatch(name))
        query = heads.query.decode("latin-1")
        return Upgrade(heads.path, query, headers, self._subprotocols, "upgrade" in headers, self._refusal(heads))

    def _refusal(self, heads: HeadParser) -> Answer | None:
        try:
            if heads.upgrade != b"websocket":
                raise RemoteProtocolError("The Connection and Upgrade fields do not ask for a websocket.")
            self._accept_value, self._offers = check_request(heads.headers)
        except RemoteProtocolError as exc:
            version = ((b"Sec-WebSocket-Version", b"13"),) if exc.status_hint == 426 else ()
            return Answer(exc.status_hint, str(exc).encode(), version)
        return None

    def receive_eof(self) -> None:
        """A client may leave at any moment: most do not say good-bye."""

    def send(self, message: Accept | Answer | Message) -> bytes:
        """Raises LocalProtocolError for what may not be sent now."""
        if self._websocket is not None:
            if isinstance(message, (Accept, Answer)):
                raise LocalProtocolError("the websocket is open")
            return self._websocket.send(message)
        if isinstance(message, Accept):
            return self._accept(message)
        if isinstance(message, Answer):
            allow = ((b"Allow", b"GET"),) if message.status == 405 else ()
            body = message.body or status_line(message.status)[9:].rstrip()
            framing = ((b"Content-Type", b"text/plain; charset=utf-8"), (b"Content-Length", b"%d" % len(body)), (b"Connection", b"close"))
            return response_head(message.status, b"", message.headers, allow, framing) + body
        raise LocalProtocolError("the websocket is not open yet")

    def _accept(self, message: Accept) -> bytes:
        if not self._accept_value:
            raise LocalProtocolError("there is no request that can be accepted")
        if message.subprotocol and message.subprotocol not in self._subprotocols:
            raise LocalProtocolError(f"the client has not offered the subprotocol {message.subprotocol!r}")
        agreed = negotiate_deflate(self._offers, shared=True) if message.deflate else None
        self._websocket = WebSocket(self._max_size, None if agreed is None else agreed[0])
        self.deflated = agreed is not None
        fields = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", self._accept_value)]
        if agreed is not None:
            fields.append((b"Sec-WebSocket-Extensions", agreed[1].encode()))
        if message.subprotocol:
            fields.append((b"Sec-WebSocket-Protocol", message.subprotocol.encode()))
        self._accept_value, self._offers, self._subprotocols = b"", "", ()
        return response_head(101, b"", fields)

    def opened(self) -> tuple[WebSocket, bytes]:
        """The websocket, which is open, and what has come for it already: for whoever goes on with that alone."""
        assert self._websocket is not None
        early, self._buffer = self._buffer, b""
        return self._websocket, early

    def ping(self) -> bytes:
        """A ping frame. The websocket is open."""
        assert self._websocket is not None
        return self._websocket.ping()

    def data_to_send(self) -> bytes:
        owed, self._owed = self._owed, b""
        return owed if self._websocket is None else self._websocket.data_to_send()
