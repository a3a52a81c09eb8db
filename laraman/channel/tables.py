"""Tables that all processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laraman.channel.names import check_key, check_name, check_seconds
from laraman.errors import LocalProtocolError
from laraman.net.encoding import decode, encode

if TYPE_CHECKING:
    from laraman.channel.interface import Channel

#: What a backend keeps: an int as it is (64 bits, signed), so that it can count; anything else encoded.
Value = int | bytes


class Table:
    """``laraman.table("hits")``: keys with values, the same for all processes. Each call is atomic; ``ttl`` is in seconds, None for ever.

    Keys are str of 1 to 1000 bytes, values what ``publish`` takes, but None. Each raises LinkDown when the backend is away.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self.name = check_name(name, "table")

    async def get(self, key: str, default: Any = None) -> Any:
        value = await (await self._channel._ready())._get(self.name, self._key(key))
        return default if value is None else value if type(value) is int else decode(value)  # type: ignore[arg-type]

    async def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        kept = self._kept(key, value)
        if kept is None:
            raise LocalProtocolError(f"table {self.name}, key {key!r}: None is a key that is not there; delete it")
        await (await self._channel._ready())._set(self.name, self._key(key), kept, _checked(ttl))

    async def increment(self, key: str, by: int = 1, ttl: float | None = None) -> int:
        """The sum. A key that is not there counts as 0, and only then ``ttl`` begins: a counter per minute ends after its minute.

        Raises LocalProtocolError when there is something else than an int, or the sum has more than 64 bits.
        """
        if type(self._kept(key, by)) is not int:
            raise LocalProtocolError(f"table {self.name}, key {key!r}: {by!r} is no int of 64 bits")
        return await (await self._channel._ready())._increment(self.name, self._key(key), by, _checked(ttl))

    async def compare_and_set(self, key: str, old: Any, new: Any, ttl: float | None = None) -> bool:
        """Set ``new`` if there is ``old``, and say whether. As either, None is a key that is not there. Dicts are the same when their order is."""
        kept = self._kept(key, old), self._kept(key, new)
        return await (await self._channel._ready())._compare_and_set(self.name, self._key(key), *kept, _checked(ttl))

    async def delete(self, key: str) -> bool:
        """Whether it was there."""
        return await (await self._channel._ready())._delete(self.name, self._key(key))

    async def keys(self) -> list[str]:
        return await (await self._channel._ready())._keys(self.name)

    def _key(self, key: str) -> str:
        return check_key(key, f"table {self.name}")

    def _kept(self, key: str, value: Any) -> Value | None:
        if value is None:
            return None
        counts = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        return int(value) if counts else encode(value, f"table {self.name}, key {key!r}: value")


def _checked(ttl: float | None) -> float | None:
    return None if ttl is None else check_seconds(ttl, "ttl")
