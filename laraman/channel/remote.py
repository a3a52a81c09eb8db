"""Calls as messages, for backends that only pass messages on: who asks, who is asked, and that one of them may go away.

    to a process    [where the answer is to go, number, method, payload]      and, when nobody waits for the answer any more: [where, number]
    the answer      [number, answer]      or, for backends that choose the process themselves, before it: [number, None, who it is]
"""

from __future__ import annotations

import asyncio
import functools
import logging
import reprlib
from typing import TYPE_CHECKING, Any

import msgpack

from laraman.channel.methods import raised
from laraman.errors import LinkDown, LocalProtocolError, RemoteProtocolError
from laraman.net.encoding import decode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[bytes, "Call"], Awaitable[Any]]

logger = logging.getLogger("uvicorn.error")

#: Seconds between two looks at whether those who were called are still there.
LOOK_SECONDS = 1.0
_UNKNOWN = "whether the call was carried out is not known"


class Call:
    """One that waits for its answer. ``asked``: the question may have been sent. ``whom``: where who answers is spoken to, once it is known."""

    def __init__(self, member: str, number: int) -> None:
        self.member = member
        self.number = number
        self.asked = False
        self.whom = ""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def fail(self, text: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(LinkDown(text))
            self.answer.exception()  # nobody may wait for it by now


class Remote:
    """The calls of one process and those to it. ``say(where, data)`` sends; ``gone(places)`` tells which of them nobody is at any more."""

    def __init__(
        self,
        here: str,
        say: Callable[[str, bytes], Any],
        gone: Callable[[set[str]], Awaitable[set[str]]],
        called: Callable[[str, bytes, Callable[[bytes], Any]], Callable[[], Any] | None],
    ) -> None:
        #: Where answers come in.
        self.here = here
        self._say = say
        self._gone = gone
        self._called = called
        self._number = 0
        self._waiting: dict[int, Call] = {}
        self._answering: dict[tuple[str, int], Callable[[], Any]] = {}
        self._looking: asyncio.Task[None] | None = None

    # Who asks --------------------------------------------------------------------------------------------------------------------

    async def call(self, member: str, method: str, payload: bytes, timeout: float, send: Send) -> bytes:
        """The answer. ``send`` gives the question to a process, and says before that it was ``asked``. Raises what that raises, TimeoutError when
        there is no answer in time, LinkDown when nobody could be asked in time or who was asked has gone.
        """
        self._number += 1
        number = self._number
        call = self._waiting[number] = Call(member, number)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="those who were called")
        try:
            async with asyncio.timeout(timeout):
                await send(msgpack.packb([self.here, number, method, payload]), call)
                return await call.answer
        except BaseException as exc:
            if call.whom:
                self._say(call.whom, msgpack.packb([self.here, number]))
            if isinstance(exc, TimeoutError) and not call.asked:
                raise LinkDown(f"{member} could not be asked in {timeout:g} s") from None
            if isinstance(exc, TimeoutError):
                raise TimeoutError(f"{method} of {member} did not answer in {timeout:g} s") from None
            raise
        finally:
            del self._waiting[number]

    def answered(self, data: bytes) -> None:
        """Something has come in ``here``."""
        match decode(data):
            case [int(number), bytes(answer)]:
                call = self._waiting.get(number)
                if call is not None and not call.answer.done():
                    call.answer.set_result(answer)
            case [int(number), None, str(whom)]:
                if number in self._waiting:
                    self._waiting[number].whom = whom
            case other:
                raise RemoteProtocolError(f"{reprlib.repr(other)} is no answer to a call")

    def lost(self, text: str) -> None:
        """Answers may have been lost."""
        for call in tuple(self._waiting.values()):
            if call.asked:
                call.fail(f"{call.member} {text}: {_UNKNOWN}")

    def nobody(self, number: int) -> None:
        """There was nobody to take this question."""
        if number in self._waiting:
            self._waiting[number].fail(f"there is no process {self._waiting[number].member} that has methods")

    async def _look(self) -> None:
        """As long as calls wait."""
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
            places = {call.whom for call in self._waiting.values() if call.whom}
            try:
                gone = await self._gone(places) if places else set()
            except LinkDown as exc:
                logger.debug("whether those who were called are there is not known: %s", exc)
                continue
            for call in tuple(self._waiting.values()):
                if call.whom in gone:
                    call.fail(f"{call.member} ended before it answered: {_UNKNOWN}")

    # Who is asked ----------------------------------------------------------------------------------------------------------------

    def asked(self, data: bytes, whom: str = "") -> None:
        """A question has come in, or that its answer is not wanted. Who asks is told where we are, ``whom``, unless it has its answer at once."""
        match decode(data):
            case [str(where), int(number), str(method), bytes(payload)]:
                key = where, number
                cancel = self._called(method, payload, functools.partial(self._reply, key))
                if cancel is not None:
                    self._answering[key] = cancel
                    if whom:
                        self._say(where, msgpack.packb([number, None, whom]))
            case [str(where), int(number)]:
                cancel = self._answering.pop((where, number), None)
                if cancel is not None:
                    cancel()
            case other:
                raise RemoteProtocolError(f"{reprlib.repr(other)} is no call")

    def _reply(self, key: tuple[str, int], answer: bytes) -> None:
        self._answering.pop(key, None)
        where, number = key
        try:
            self._say(where, msgpack.packb([number, answer]))
        except LocalProtocolError as exc:  # it is too large for the backend
            self._say(where, msgpack.packb([number, raised(exc)]))

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
