"""Tables that all processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laraman.channel.interface import Channel

#: What a backend keeps: an int as it is (64 bits, signed), so that it can count; anything else encoded.
Value = int | bytes


class Table:
    """``laraman.table("hits")``: keys with values, the same for all processes. Each call is atomic; ``ttl`` is in seconds, None for ever.

    Keys are str of 1 to 1000 bytes, values what ``publish`` takes. Each raises LinkDown when the backend is away.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self.name = name

    async def get(self, key: str, default: Any = None) -> Any:
        raise NotImplementedError

    async def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        raise NotImplementedError

    async def increment(self, key: str, by: int = 1, ttl: float | None = None) -> int:
        """The sum. A key that is not there counts as 0, and only then ``ttl`` begins: a counter per minute ends after its minute.

        Raises LocalProtocolError when there is something else than an int.
        """
        raise NotImplementedError

    async def compare_and_set(self, key: str, old: Any, new: Any, ttl: float | None = None) -> bool:
        """Set ``new`` if there is ``old``, and say whether. As either, None is a key that is not there. Dicts are the same when their order is."""
        raise NotImplementedError

    async def delete(self, key: str) -> bool:
        """Whether it was there."""
        raise NotImplementedError

    async def keys(self) -> list[str]:
        raise NotImplementedError
