"""permessage-deflate (RFC 7692): what two ends agree on, and the extension in which wsproto's frame layer inflates."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Opcode, RsvBits

from laraman.errors import RemoteProtocolError

if TYPE_CHECKING:
    from wsproto.frame_protocol import FrameDecoder, FrameProtocol

#: This side's window, and the one that a server asks of clients: 2**12 bytes each, with little memory for matches (uvicorn's choice).
WINDOW_BITS = 12
MEMORY_LEVEL = 5
_SYNC_TAIL = b"\x00\x00\xff\xff"


def negotiate_deflate(offers: str, *, shared: bool = False) -> tuple[Deflate, str] | None:
    """The first acceptable permessage-deflate among ``offers`` (Sec-WebSocket-Extensions), and the answer to it.

    RFC 7692 section 7.1. An offer that is malformed or asks for what zlib cannot do is passed over: compression is not worth a connection.
    ``shared``: neither side refers to earlier messages, so that one compressed frame serves many clients, and no window is kept for a client;
    an offer of a window that is smaller than WINDOW_BITS is passed over as well.
    """
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name.lower() == Deflate.name:
            deflate = _accept(parameters, shared)
            if deflate is not None:
                return deflate
    return None


def agreed_deflate(answer: str) -> Deflate:
    """The compression that a server has chosen (RFC 7692 section 7.1), when ``permessage-deflate; client_max_window_bits`` was offered.

    Raises RemoteProtocolError for any other answer, and for a window that zlib does not have.
    """
    name, *parameters = (part.strip() for part in answer.split(";"))
    chosen = _parameters(parameters)
    bits = ("client_max_window_bits", "server_max_window_bits")
    if name.lower() != Deflate.name or chosen is None or None in (chosen.get(side, 15) for side in bits):
        raise RemoteProtocolError(f"the server has chosen the extensions {answer!r}, which were not offered")
    own_bits = chosen.get("client_max_window_bits") or 15
    if own_bits == 8:
        raise RemoteProtocolError("the server asks for a window of 8 bits, which zlib does not have")
    return Deflate(
        chosen.get("server_max_window_bits") or 15,
        min(WINDOW_BITS, own_bits),
        peer_takeover="server_no_context_takeover" not in chosen,
        own_takeover="client_no_context_takeover" not in chosen,
    )


def _parameters(parameters: list[str]) -> dict[str, int | None] | None:
    """Those of permessage-deflate, with their bits where they have a value; None when they are malformed."""
    found: dict[str, int | None] = {}
    for parameter in parameters:
        name, separator, value = (part.strip() for part in parameter.partition("="))
        value = value.strip('"')
        has_bits = name in ("client_max_window_bits", "server_max_window_bits")
        known = has_bits or name in ("client_no_context_takeover", "server_no_context_takeover")
        if not known or name in found or (separator and value not in _BITS) or (separator and not has_bits):
            return None
        found[name] = _BITS.get(value)
    return found


def _accept(parameters: list[str], shared: bool) -> tuple[Deflate, str] | None:
    asked = _parameters(parameters)
    if asked is None:
        return None
    if "server_max_window_bits" in asked and asked["server_max_window_bits"] in (None, 8):
        return None  # it needs a value, and zlib has no window of 8 bits
    server_bits = min(WINDOW_BITS, asked.get("server_max_window_bits") or WINDOW_BITS)
    if shared:
        if server_bits < WINDOW_BITS:
            return None
        asked.update(server_no_context_takeover=None, client_no_context_takeover=None)
    answer = [Deflate.name, *(name for name in asked if name.endswith("takeover"))]
    answer.append(f"server_max_window_bits={server_bits}")
    client_bits = 15
    if "client_max_window_bits" in asked:
        client_bits = min(WINDOW_BITS, asked["client_max_window_bits"] or WINDOW_BITS)
        answer.append(f"client_max_window_bits={client_bits}")
    keeps = ("client_no_context_takeover" not in asked, "server_no_context_takeover" not in asked)
    return Deflate(client_bits, server_bits, peer_takeover=keeps[0], own_takeover=keeps[1]), "; ".join(answer)


_BITS = {str(bits): bits for bits in range(8, 16)}


class Deflate(Extension):
    """permessage-deflate for one connection. Both zlib streams come into being with the first compressed message.

    ``peer_bits`` and ``own_bits`` are the windows, in bits; a side without ``takeover`` does not refer to what was in earlier messages.
    """

    name = "permessage-deflate"

    def __init__(self, peer_bits: int = 15, own_bits: int = WINDOW_BITS, *, peer_takeover: bool = True, own_takeover: bool = True) -> None:
        self.room = 0  # bytes that the message may still grow by; set before each piece
        self._peer_bits = max(9, peer_bits)  # a larger window reads a smaller one's data, and zlib writes 9 when asked for 8
        self._own_bits = own_bits
        self._peer_takeover = peer_takeover
        self._own_takeover = own_takeover
        self._inflater: zlib._Decompress | None = None
        self._deflater: zlib._Compress | None = None
        self._message_compressed = False
        self._in_control = False

    # wsproto's side: what FrameDecoder asks

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def frame_inbound_header(self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int) -> RsvBits:
        """The reserved bits this frame may have: RSV1 on the first of a message."""
        self._in_control = opcode.iscontrol()
        if self._in_control or opcode is Opcode.CONTINUATION:
            return RsvBits(False, False, False)
        self._message_compressed = rsv.rsv1
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        return self.inflate(data) if self._message_compressed and not self._in_control else data

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        return self.inflate(b"", last=True) if fin and self._message_compressed and not self._in_control else None

    # ours

    def inflate(self, data: bytes, *, last: bool = False) -> bytes | CloseReason:
        """Inflate a piece of a message, or say why not: 1009 when the message becomes larger than ``room``, 1007 when this is not deflate.

        With ``last`` the tail that RFC 7692 section 7.2.2 puts back ends the message.
        """
        inflater = self._inflater
        if inflater is None:
            inflater = self._inflater = zlib.decompressobj(-self._peer_bits)
        inflated = b""
        if not inflater.eof:  # behind a final block zlib would just collect
            try:
                inflated = inflater.decompress(data + _SYNC_TAIL if last else data, self.room + 1)
            except zlib.error:
                return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        if len(inflated) > self.room:
            return CloseReason.MESSAGE_TOO_BIG
        if last and (inflater.eof or not self._peer_takeover):
            self._inflater = None
        return inflated

    def deflate(self, payload: bytes) -> bytes:
        """Compress one message (RFC 7692 section 7.2.1)."""
        deflater = self._deflater
        if deflater is None:
            deflater = self._deflater = zlib.compressobj(wbits=-self._own_bits, memLevel=MEMORY_LEVEL)
        deflated = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
        if not self._own_takeover:
            self._deflater = None
        return deflated[:-4]

    def rest(self) -> None:
        """Give back the memory of the sending side. What comes next just does not refer to what was before."""
        self._deflater = None
