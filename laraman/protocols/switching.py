"""HTTP/1.1 requests behind whose answer a connection speaks something else (RFC 9110 sections 7.8 and 9.3.6): a tunnel, a websocket.

The client's side: bytes in, answer out.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING

import h11

from laraman.errors import ConfigError, RemoteProtocolError
from laraman.protocols.deflate import agreed_deflate
from laraman.protocols.websocket import WebSocket, accept_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from laraman.protocols.deflate import Deflate

#: Bytes that the head of an answer may have.
MAX_HEAD = 32768

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: The value of a header field, which h11 would show when it is none.
_VALUE = re.compile(r"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?")
#: What a websocket handshake says itself.
_OWN = frozenset(("upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"))
_OFFER = "permessage-deflate; client_max_window_bits"


class Switch:
    """One such request, in ``request``, and what is answered to it."""

    def __init__(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> None:
        """Raises ConfigError for what may not stand in a request, without the values of ``headers``: there may be a password in one."""
        headers = list(headers)
        for name, value in headers:
            if not (value.isascii() and _VALUE.fullmatch(value)):
                raise ConfigError(f"the value of the header field {name!r} is none that HTTP allows")
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        try:
            request = h11.Request(method=method, target=target, headers=headers)
            self.request = bytes((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
            raise ConfigError(f"a header field or a target that HTTP does not allow: {exc}") from None

    def receive_data(self, data: bytes) -> Answer | None:
        """The answer, when its head is complete. Raises RemoteProtocolError for what is none."""
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Response) or (isinstance(event, h11.InformationalResponse) and event.status_code == 101):
                    return Answer(event)
                if not isinstance(event, h11.InformationalResponse):
                    return None
        except h11.RemoteProtocolError as exc:
            raise RemoteProtocolError(f"what was answered is not HTTP/1.1: {exc}") from None

    @property
    def rest(self) -> bytes:
        """What came behind the answer."""
        return bytes(self._http.trailing_data[0])


class Answer:
    """The head of an answer. The names of ``headers`` are lower-case, the values of repeated ones joined."""

    def __init__(self, response: h11.Response | h11.InformationalResponse) -> None:
        self.status = response.status_code
        self.reason = bytes(response.reason).decode("latin-1")
        self.headers: dict[str, str] = {}
        for name, value in response.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def __str__(self) -> str:
        where = f", to {self.headers['location']}" if 300 <= self.status < 400 and "location" in self.headers else ""
        return f"{self.status} {self.reason}".rstrip() + where


class Handshake:
    """The client's opening handshake of a websocket (RFC 6455 section 4.1); then ``websocket`` is what it has opened, and ``rest`` came for it.

    ``host`` is the Host field, unless ``headers`` have one; compression is offered. ``subprotocols`` are offered in this order, and
    ``subprotocol`` is what the server has chosen, or "". ``max_size`` bounds a message of the server in bytes. Raises ConfigError.
    """

    def __init__(
        self, host: str, target: str, max_size: int, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> None:
        if wrong := [name for name in headers or () if name.lower() in _OWN]:
            raise ConfigError(f"the header field {wrong[0]} is the handshake's own")
        if isinstance(subprotocols, str) or len(set(subprotocols)) < len(subprotocols) or not all(map(_TOKEN.fullmatch, subprotocols)):
            raise ConfigError(f"subprotocols are a list of different words of HTTP, not {subprotocols!r}")
        key = base64.b64encode(os.urandom(16))
        fields = {
            **{"Host": host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
            **{"Sec-WebSocket-Key": key.decode(), "Sec-WebSocket-Extensions": _OFFER},
        }
        if subprotocols:
            fields["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
        for name, value in (headers or {}).items():
            fields["Host" if name.lower() == "host" else name] = value
        self._switch = Switch("GET", target, fields.items())
        self._expected = accept_value(key).decode()
        self._subprotocols = tuple(subprotocols)
        self._max_size = max_size
        self.request = self._switch.request
        self.subprotocol = ""
        self.websocket: WebSocket | None = None

    def receive_data(self, data: bytes) -> bool:
        """Whether the websocket is open. Raises ConnectionRefusedError with the status when the server does not want to, RemoteProtocolError."""
        answer = self._switch.receive_data(data)
        if answer is None:
            return False
        if answer.status != 101:
            raise ConnectionRefusedError(f"the server does not open a websocket, but answers {answer}")
        self.websocket = WebSocket(self._max_size, self._check(answer.headers), client=True)
        return True

    @property
    def rest(self) -> bytes:
        return self._switch.rest

    def _check(self, headers: Mapping[str, str]) -> Deflate | None:
        if headers.get("upgrade", "").lower() != "websocket":
            raise RemoteProtocolError("the server does not switch to websocket")
        if "upgrade" not in (word.strip().lower() for word in headers.get("connection", "").split(",")):
            raise RemoteProtocolError("the server's Connection field does not say upgrade")
        if headers.get("sec-websocket-accept", "") != self._expected:
            raise RemoteProtocolError("the server's Sec-WebSocket-Accept is not the one for our key")
        chosen = headers.get("sec-websocket-protocol")
        if chosen is not None and chosen not in self._subprotocols:
            raise RemoteProtocolError(f"the server has chosen the subprotocol {chosen!r}, which was not offered")
        self.subprotocol = chosen or ""
        extensions = headers.get("sec-websocket-extensions")
        return None if extensions is None else agreed_deflate(extensions)
