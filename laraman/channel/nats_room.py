"""The stream of a queue in NATS, which is to hold no more jobs than so many, and its consumer, which is to give each of them to somebody.

It is not the stream's max_msgs that limits them. A nats-server that was killed has messages again that were deleted shortly before (2.9.10: in its
last two seconds; later ones in rarer cases), and makes the stream fit max_msgs by deleting the oldest, which are those that are being worked on. Its
consumer may remember that they were acknowledged, and give them to nobody; and its ack floor may be beyond jobs that are being worked on, so nothing
is deleted by that. The stream is the truth: when it has more jobs than the consumer knows of, there is a new consumer, which gives out all of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, BadRequestError, NoStreamResponseError, NotFoundError

from laraman.errors import Busy

if TYPE_CHECKING:
    from nats.js.client import JetStreamContext

#: Of all queues: one consumer, which has each job once.
CONSUMER = "laraman"
#: Seconds between two looks for jobs that it has forgotten.
LOOK_SECONDS = 5.0
#: Questions for jobs that may stand in it at a time.
MAX_PULLS = 8192
#: How many may share the room that is left before it is looked at again.
_SHARES = 8
#: How NATS says that there is a message of that subject, or that there is no room because of what others have set.
_REFUSED = 10077
#: How NATS says that a stream of that name is there, made otherwise.
_OTHERWISE = 10058


class Room:
    """The stream of one queue, and its consumer, as far as this process knows."""

    def __init__(self, queue: str, name: str, subject: str, limit: int) -> None:
        self._queue = queue
        self._name = name
        self._subject = subject
        self._limit = limit
        self._left = 0
        #: When the next look is due, in the loop's time; how many the consumer had given out at the last one.
        self._look_at = 0.0
        self._given = -1
        #: The visibility that it has; negative when it may not be there.
        self._visibility = -1.0

    def forget(self) -> None:
        """It may not be there any more."""
        self._visibility = -1.0

    async def prepare(self, stream: JetStreamContext, visibility: float) -> None:
        """Let there be a consumer with this visibility or a longer one, which knows of all jobs."""
        await self._make(stream, visibility)
        try:
            await self._look(stream)
        except NotFoundError:
            self.forget()

    async def _make(self, stream: JetStreamContext, visibility: float) -> None:
        if self._visibility >= visibility:
            return
        config = StreamConfig(
            name=self._name,
            subjects=[self._subject],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
            max_msgs_per_subject=1,
            discard_new_per_subject=True,
        )
        try:
            await stream.add_stream(config)
        except BadRequestError as exc:
            if exc.err_code != _OTHERWISE:
                raise
            await stream.update_stream(config)
        kept = await self._make_consumer(stream, visibility) if visibility else 0.0
        self._visibility = max(kept, visibility)

    async def _make_consumer(self, stream: JetStreamContext, visibility: float) -> float:
        try:
            kept = (await stream.consumer_info(self._name, CONSUMER)).config.ack_wait or 0.0
        except NotFoundError:
            kept = 0.0
        if kept < visibility:
            options = {"max_ack_pending": -1, "max_waiting": MAX_PULLS, "ack_policy": AckPolicy.EXPLICIT}
            await stream.add_consumer(self._name, ConsumerConfig(durable_name=CONSUMER, ack_wait=visibility, **options))  # type: ignore[arg-type]
        return max(kept, visibility)

    async def put(self, stream: JetStreamContext, subject: str, payload: bytes) -> str:
        """The id of the job, or of the one of that subject which is there. Raises Busy."""
        await self._make(stream, 0.0)
        try:
            return await self._put(stream, subject, payload)
        except NoStreamResponseError:
            self.forget()  # it was deleted, or is not there yet again
            raise

    async def _put(self, stream: JetStreamContext, subject: str, payload: bytes) -> str:
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
                return str((await stream.get_last_msg(self._name, subject)).seq)
            except NotFoundError:
                if not has_room:
                    raise Busy(f"queue {self._queue} is full: {self._limit} jobs") from None
                # acknowledged in between

    async def _take(self, stream: JetStreamContext) -> bool:
        """Whether there is room for one more. Others put too: far from the limit a share of what is left is taken at a time, near to it one."""
        while self._left < 1:
            try:
                state = (await stream.stream_info(self._name)).state
            except NotFoundError as exc:
                raise NoStreamResponseError from exc
            free = self._limit - state.messages
            if free <= 0:
                return False
            self._left = max(1, free // _SHARES)
        self._left -= 1
        return True

    async def _look(self, stream: JetStreamContext) -> None:
        """Now and then, whether there are more jobs than the consumer waits for words of, although it has given out all.

        As long as it gives any there is time for that: those that somebody works on would be given to others too. It is asked before the stream is:
        what is settled in between makes the jobs fewer, and what is put has a number that it has not come to.
        """
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        consumer = await stream.consumer_info(self._name, CONSUMER)
        assert consumer.delivered is not None
        given, self._given = self._given, consumer.delivered.consumer_seq
        if given == self._given:
            state = (await stream.stream_info(self._name)).state
            if state.last_seq <= consumer.delivered.stream_seq and state.messages > (consumer.num_ack_pending or 0):
                await stream.delete_consumer(self._name, CONSUMER)
                await stream.add_consumer(self._name, consumer.config)
