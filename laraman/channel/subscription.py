"""Subscriptions: the messages of a pattern, in a bounded queue. Topics and patterns, and which match."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from laraman.channel.encoding import decode
from laraman.errors import LocalProtocolError

if TYPE_CHECKING:
    from laraman.channel.interface import Channel

#: Bytes of a topic, a pattern, or the name of a queue, a table, a lock.
MAX_NAME = 255
_WORD = r"[^\s.*>\x00-\x1f\x7f]+"
_TOPIC = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_PATTERN = re.compile(rf"(?:(?:{_WORD}|\*)(?:\.(?:{_WORD}|\*))*(?:\.>)?|>)")


def check_name(name: str, what: str = "topic") -> str:
    """``name`` if it is words joined by "."; else LocalProtocolError."""
    if not isinstance(name, str) or not _TOPIC.fullmatch(name) or len(name.encode()) > MAX_NAME:
        raise LocalProtocolError(f"{what} {name!r} is not words joined by '.', of {MAX_NAME} bytes at most and without spaces, '*' and '>'")
    return name


def check_pattern(pattern: str) -> str:
    """``pattern`` if its words are words, "*" or, at the end, ">"; else LocalProtocolError."""
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern) or len(pattern.encode()) > MAX_NAME:
        raise LocalProtocolError(f"pattern {pattern!r} is not words joined by '.', of {MAX_NAME} bytes at most; '*' is a word, '>' the rest")
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether ``topic`` is one of the pattern's: "*" is any one word, ">" one or more at the end, as in NATS."""
    words, said = pattern.split("."), topic.split(".")
    if words[-1] == ">":
        return len(said) >= len(words) and all(map(_same, words[:-1], said))
    return len(said) == len(words) and all(map(_same, words, said))


def _same(word: str, said: str) -> bool:
    return word in ("*", said)


class Message:
    """What was published: ``topic``, and ``data`` as it was given. ``payload`` is it in bytes, for what others than we publish."""

    __slots__ = ("_data", "payload", "topic")

    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic = topic
        self.payload = payload

    def __repr__(self) -> str:
        return f"<Message {self.topic} {len(self.payload)} bytes>"

    @property
    def data(self) -> Any:
        """Raises RemoteProtocolError when it is no msgpack."""
        try:
            return self._data
        except AttributeError:
            self._data: Any = decode(self.payload)
            return self._data


class Subscription:
    """The messages of the topics that match ``pattern``, from when it is entered. Made by ``channel.subscribe``.

    ``dropped`` counts the messages for which there was no room, ``gaps`` how often the backend was away, so that messages may have been missed.
    The iteration ends when the subscription or the channel is closed.
    """

    def __init__(self, channel: Channel, pattern: str, limit: int, overflow: str) -> None:
        self.pattern = pattern
        self.dropped = 0
        self.gaps = 0

    async def __aenter__(self) -> Subscription:
        raise NotImplementedError

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        raise NotImplementedError

    async def close(self) -> None:
        """No more messages; what waits is dropped. Idempotent."""
        raise NotImplementedError
