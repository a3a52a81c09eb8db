"""What a task worker and its callers say to each other, on a connection that carries one task at a time.

A message is one byte that says what it is, and a payload that is not looked at here, in a frame of 4 bytes' length:

    RUN         caller   which function, its arguments, and how many seconds its result is waited for
    PART        worker   one of the values that a generator yields; none is lost
    PROGRESS    worker   how far it is; a later one takes the place of one that could not be sent yet
    DONE        worker   the result
    FAILED      worker   what was raised: type, message, traceback
    GONE        worker   nothing was begun since the last answer, nothing will be, and this connection ends

A caller that gives its task up closes the connection. Before the first frame it sends a line feed with one end of a pipe, and keeps the other end
for as long as the connection (`laraman.tasks.leash`).
"""

from __future__ import annotations

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.framing import MAX_MESSAGE_SIZE, LengthPrefixed

RUN, PART, PROGRESS, DONE, FAILED, GONE = range(1, 7)

_OPS = frozenset((RUN, PART, PROGRESS, DONE, FAILED, GONE))

_KNOWN = frozenset(bytes((op,)) for op in _OPS)

Message = tuple[int, bytes]


class Task:
    """The codec of either end."""

    __slots__ = ("_fault", "_frames")

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._frames = LengthPrefixed(max_size=max_size)
        self._fault: RemoteProtocolError | None = None

    def receive_data(self, data: bytes) -> list[Message]:
        if self._fault is not None:
            raise self._fault
        frames = self._frames.receive_data(data)
        if len(frames) == 1 and frames[0][:1] in _KNOWN:  # mostly
            return [(frames[0][0], frames[0][1:])]
        messages = [(frame[0] if frame else 0, frame[1:]) for frame in frames]
        for index, (op, _) in enumerate(messages):
            if op not in _OPS:
                self._fault = RemoteProtocolError(f"{op} is no message of a task")
                if not index:
                    raise self._fault
                return messages[:index]  # they were right; the next call raises
        return messages

    @property
    def waiting(self) -> int:
        """How many bytes have arrived of the next message."""
        return self._frames.waiting

    def receive_eof(self) -> None:
        if self._fault is not None:
            raise self._fault
        self._frames.receive_eof()

    def send(self, message: Message) -> bytes:
        op, payload = message
        if op not in _OPS:
            raise LocalProtocolError(f"{op} is no message of a task")
        return self._frames.send(bytes((op,)) + payload)
