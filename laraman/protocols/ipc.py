"""The envelope between laraman's own processes: control verbs, and what master and worker tell each other.

On the wire an envelope is one length-prefixed frame (4 bytes, body only) that holds a JSON object. Its ``op`` says what it is; ``id``, when present,
is echoed by the answer. JSON, because it is readable with common tools, bounded by the frame and cannot execute anything.
"""

from __future__ import annotations

import json
from typing import Any

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.framing import LengthPrefixed

Envelope = dict[str, Any]

#: A reply to ``connections`` of a full worker is the largest envelope: some 50,000 rows.
MAX_ENVELOPE_SIZE = 16 * 1024 * 1024


class Ipc:
    """Envelopes on a stream."""

    __slots__ = ("_fault", "_frames")

    def __init__(self, max_size: int = MAX_ENVELOPE_SIZE) -> None:
        self._frames = LengthPrefixed(max_size=max_size)
        self._fault: RemoteProtocolError | None = None

    def receive_data(self, data: bytes) -> list[Envelope]:
        self._raise_fault()
        envelopes: list[Envelope] = []
        try:
            for frame in self._frames.receive_data(data):
                envelopes.append(_decode(frame))
        except RemoteProtocolError as exc:
            self._fault = exc
            if not envelopes:
                raise
        return envelopes

    @property
    def unread(self) -> bytes:
        """What has arrived of the next envelope: a master that executes itself anew hands it on."""
        return self._frames.unread

    def receive_eof(self) -> None:
        self._raise_fault()
        self._frames.receive_eof()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def send(self, message: Envelope) -> bytes:
        if not isinstance(message.get("op"), str):
            raise LocalProtocolError("an envelope needs an op")
        try:
            return self._frames.send(json.dumps(message, separators=(",", ":")).encode())
        except (TypeError, ValueError, RecursionError) as exc:
            raise LocalProtocolError(f"an envelope must be JSON: {exc}") from None

    def data_to_send(self) -> bytes:
        return b""


def _decode(frame: bytes) -> Envelope:
    try:
        envelope = json.loads(frame)
    except ValueError as exc:  # UnicodeDecodeError is one
        raise RemoteProtocolError(f"envelope is not JSON: {exc}") from None
    except RecursionError:
        raise RemoteProtocolError("envelope is nested too deeply") from None
    if not isinstance(envelope, dict) or not isinstance(envelope.get("op"), str):
        raise RemoteProtocolError("envelope has no op")
    return envelope
