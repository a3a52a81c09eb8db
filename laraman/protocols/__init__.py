"""Bytes to messages and back: no socket, no asyncio, no clock.

A protocol has four methods; a user's own needs the first and the third only:

    receive_data(data) -> list of messages    every message now complete; the rest is kept. RemoteProtocolError ends the connection
    receive_eof() -> None                     RemoteProtocolError when a message is unfinished
    send(message) -> bytes                    LocalProtocolError when it may not be sent
    data_to_send() -> bytes                   what the protocol itself owes the peer (a pong, a close echo)

A protocol that bounds the work of one call has an attribute ``more`` besides: while it is true, ``receive_data(b"")`` goes on with what is here.

"More bytes are needed" is never an exception: ``receive_data`` just returns fewer messages.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from typing import Protocol as TypingProtocol

from laraman.config.options import did_you_mean
from laraman.errors import ConfigError
from laraman.protocols.framing import Datagram, Frame, Raw, Text
from laraman.protocols.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Protocol(TypingProtocol):
    """What a connection needs of its codec."""

    def receive_data(self, data: bytes) -> Sequence[Any]: ...

    def receive_eof(self) -> None: ...

    def send(self, message: Any) -> bytes: ...


#: The protocols an address can name, by URL scheme.
PROTOCOLS: dict[str, Callable[..., Protocol]] = {"tcp": Raw, "udp": Datagram, "text": Text, "frame": Frame, "request": Request}


def protocol_named(scheme: str, max_message: int | None = None) -> Callable[[], Protocol]:
    """The factory of the protocol that an address's scheme names, with messages of ``max_message`` bytes at most. Raises ConfigError."""
    try:
        factory = PROTOCOLS[scheme]
        return factory if max_message is None or factory in (Raw, Datagram) else partial(factory, max_message)
    except KeyError:
        known = sorted(PROTOCOLS)
        raise ConfigError(f"no protocol is called {scheme!r}{did_you_mean(scheme, known) or '; known are ' + ', '.join(known)}") from None
