"""Queues of work, as their consumers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laraman.channel.encoding import decode

if TYPE_CHECKING:
    from laraman.channel.interface import Channel


class Job:
    """One job of a queue, which this process has for ``visibility`` seconds: then, or when it ends, somebody else gets it unless it is acknowledged.

    ``attempt`` is 1 when it is given for the first time. ``handle`` is the backend's: what it acknowledges it by.
    """

    __slots__ = ("_channel", "_data", "attempt", "handle", "id", "payload", "queue", "visibility")

    def __init__(self, channel: Channel, queue: str, id: str, payload: bytes, attempt: int, visibility: float, handle: Any = None) -> None:
        self._channel = channel
        self.queue = queue
        self.id = id
        self.payload = payload
        self.attempt = attempt
        self.visibility = visibility
        self.handle = handle

    def __repr__(self) -> str:
        return f"<Job {self.queue} {self.id} attempt {self.attempt}>"

    @property
    def data(self) -> Any:
        """What was put. Raises RemoteProtocolError when it is no msgpack."""
        try:
            return self._data
        except AttributeError:
            self._data: Any = decode(self.payload)
            return self._data

    async def ack(self) -> None:
        """It is done: nobody gets it again. Once. Raises LinkDown when the backend could not be told; then it will be given again."""
        raise NotImplementedError

    async def nack(self, delay: float = 0.0) -> None:
        """Give it to somebody again, in ``delay`` seconds."""
        raise NotImplementedError

    async def extend(self) -> None:
        """It is still being worked on: the ``visibility`` seconds begin anew."""
        raise NotImplementedError


class Work:
    """A consumer of a queue. Made by ``channel.work``; leaving it gives back what is not acknowledged."""

    def __init__(self, channel: Channel, queue: str, visibility: float, prefetch: int) -> None:
        self.queue = queue
        self.visibility = visibility
        self.prefetch = prefetch

    def given(self, job: Job) -> None:
        """The backend has one for it."""
        raise NotImplementedError

    async def __aenter__(self) -> Work:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        raise NotImplementedError

    def __aiter__(self) -> Work:
        return self

    async def __anext__(self) -> Job:
        raise NotImplementedError
