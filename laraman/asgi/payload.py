"""What a websocket's ASGI messages carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laraman.asgi.app import Message


def size_of(message: Message) -> int:
    """Of a received message, in characters or bytes."""
    return len(message.get("text") or message.get("bytes") or b"")


def payload_of(message: Message) -> str | bytes:
    """What is to be sent. Raises RuntimeError where there is nothing that can be."""
    data = message.get("bytes")
    if data is None:
        data = message.get("text")
        if isinstance(data, str):
            return data
    elif isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise RuntimeError("A 'websocket.send' needs bytes in 'bytes' or a str in 'text'.")
