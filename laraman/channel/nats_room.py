"""Jobs on their way into a stream of NATS that is to hold no more than so many.

It is not the stream's max_msgs that limits them. A nats-server that was killed has messages again that were deleted shortly before (2.9.10: in its
last two seconds; later ones in rarer cases), and makes the stream fit max_msgs by deleting the oldest, which are those that are being worked on. What
has come back is given to nobody when the consumer remembers that it was acknowledged. It would keep its place, and its key, for ever: so what lies
below the consumer's ack floor, and is done in any case, is deleted when it is in the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from laraman.errors import Busy

if TYPE_CHECKING:
    from nats.js.client import JetStreamContext

#: Of all queues: one consumer, which has each job once.
CONSUMER = "laraman"
#: How many may share the room that is left before it is looked at again.
_SHARES = 8
#: How NATS says that there is a message of that subject, or that there is no room because of what others have set.
_REFUSED = 10077


class Room:
    """That of one queue, as far as this process knows."""

    def __init__(self, queue: str, name: str, limit: int) -> None:
        self._queue = queue
        self._name = name
        self._limit = limit
        self._left = 0

    async def put(self, stream: JetStreamContext, subject: str, payload: bytes) -> str:
        """The id of the job, or of the one of that subject which is there. Raises Busy."""
        while True:
            has_room = await self._take(stream)
            if has_room:
                try:
                    return str((await stream.publish(subject, payload)).seq)
                except APIError as exc:
                    if exc.err_code != _REFUSED:
                        raise
                    if "per subject" not in (exc.description or ""):
                        raise Busy(f"queue {self._queue} is full: {exc.description}") from None
            try:
                there = (await stream.get_last_msg(self._name, subject)).seq or 0
            except NotFoundError:
                if has_room:  # acknowledged in between
                    continue
                raise Busy(f"queue {self._queue} is full: {self._limit} jobs") from None
            if not await self._sweep(stream, there):
                return str(there)

    async def _take(self, stream: JetStreamContext) -> bool:
        """Whether there is room for one more. Others put too: far from the limit a share of what is left is taken at a time, near to it one."""
        while self._left < 1:
            try:
                state = (await stream.stream_info(self._name)).state
            except NotFoundError as exc:
                raise NoStreamResponseError from exc
            free = self._limit - state.messages
            if free > 0:
                self._left = max(1, free // _SHARES)
            elif not await self._sweep(stream, state.first_seq):
                return False
        self._left -= 1
        return True

    async def _sweep(self, stream: JetStreamContext, number: int) -> bool:
        """Delete what is done. Whether the message of this number was."""
        try:
            floor = (await stream.consumer_info(self._name, CONSUMER)).ack_floor
        except NotFoundError:
            return False
        if floor is None or floor.stream_seq < number:
            return False
        await stream.purge_stream(self._name, seq=floor.stream_seq + 1)
        return True
