"""The byte framings of custom workers and links, and the length-prefix codec that they and ipc share."""

from __future__ import annotations

from laraman.errors import LocalProtocolError, RemoteProtocolError

#: Largest message, in bytes, that a peer may send when nothing else is said (Workerman's maxPackageSize).
MAX_MESSAGE_SIZE = 10 * 1024 * 1024


class Raw:
    """``tcp://``: no framing. What one read brings is one message, so messages merge and split as TCP pleases."""

    __slots__ = ()

    def receive_data(self, data: bytes) -> list[bytes]:
        return [bytes(data)] if data else []

    def receive_eof(self) -> None:
        """A byte stream may end anywhere."""

    def send(self, message: bytes) -> bytes:
        return message


class Datagram:
    """The protocol of ``udp://``: a datagram is a message, an empty one too."""

    __slots__ = ()

    def receive_data(self, data: bytes) -> list[bytes]:
        return [data]

    def receive_eof(self) -> None:
        """It was whole."""

    def send(self, message: bytes) -> bytes:
        return message


class Text:
    """``text://``: lines of UTF-8 ended by LF; a CR before it is dropped (Workerman's Text protocol). ``max_size`` bounds a line, in bytes."""

    __slots__ = ("_buffer", "_max_size", "_searched")

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        self._searched = 0

    def receive_data(self, data: bytes) -> list[str]:
        buffer = self._buffer
        if not buffer:
            line, feed, rest = data.partition(b"\n")
            if feed and not rest and line[-1:] != b"\r" and len(line) <= self._max_size:  # mostly a read is one line
                try:
                    return [line.decode()]
                except UnicodeDecodeError:  # which is told below
                    pass
        buffer += data
        # Search only what is new, or a long line fed in small pieces costs quadratic time.
        end = buffer.rfind(b"\n", self._searched)
        self._searched = len(buffer)
        if end < 0:
            if self._searched > self._max_size:
                raise RemoteProtocolError(f"line longer than {self._max_size} bytes", close_code=1009)
            return []
        return self._take(bytes(buffer[:end]).split(b"\n"))

    def _take(self, lines: list[bytes]) -> list[str]:
        messages: list[str] = []
        taken = 0
        for line in lines:
            try:
                messages.append(self._decode(line))
            except RemoteProtocolError:
                if not messages:
                    raise
                self._searched = taken  # the lines before it were right; the next call finds the fault again
                break
            taken += len(line) + 1
        del self._buffer[:taken]
        self._searched -= taken
        return messages

    def _decode(self, line: bytes) -> str:
        if len(line) > self._max_size:
            raise RemoteProtocolError(f"line longer than {self._max_size} bytes", close_code=1009)
        try:
            return (line[:-1] if line[-1:] == b"\r" else line).decode()
        except UnicodeDecodeError as exc:
            raise RemoteProtocolError(f"line is not UTF-8: {exc}", close_code=1007) from None

    def receive_eof(self) -> None:
        if self._buffer:
            raise RemoteProtocolError("connection ended inside a line")

    def send(self, message: str) -> bytes:
        if "\n" in message or message[-1:] == "\r":
            raise LocalProtocolError("a text message may not contain a line feed or end in a carriage return")
        try:
            line = message.encode()
        except UnicodeEncodeError as exc:
            raise LocalProtocolError(f"a text message must be encodable: {exc}") from None
        if len(line) > self._max_size:
            raise LocalProtocolError(f"message of {len(line)} bytes is longer than a line may be")
        return line + b"\n"


class LengthPrefixed:
    """Messages behind a big-endian unsigned length.

    ``size`` is the width of the length in bytes; with ``inclusive`` the length counts itself as well, as Workerman's Frame does;
    netsvr, EasySwoole's unix process and ipc count the body only. ``max_size`` bounds the body, in bytes.
    """

    __slots__ = ("_buffer", "_extra", "_max_size", "_size")

    def __init__(self, size: int = 4, *, inclusive: bool = False, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._size = size
        self._extra = size if inclusive else 0
        self._max_size = max_size
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        size, extra = self._size, self._extra
        length = len(data) - size
        if not buffer and int.from_bytes(data[:size], "big") == length + extra and 0 <= length <= self._max_size:
            return [bytes(data[size:])]  # mostly a read is one frame
        # Mostly a read ends where a frame does: then nothing is copied into the buffer.
        source: bytes | bytearray = data
        if buffer:
            buffer += data
            source = buffer
        messages: list[bytes] = []
        start = 0
        available = len(source)
        while available - start >= size:
            length = int.from_bytes(source[start : start + size], "big") - extra
            if not 0 <= length <= self._max_size:
                if messages:
                    break  # they were right; the next call finds the fault again
                raise RemoteProtocolError(f"frame length {length} is outside 0..{self._max_size}", close_code=1009)
            end = start + size + length
            if end > available:
                break
            messages.append(bytes(source[start + size : end]))
            start = end
        if source is buffer:
            del buffer[:start]
        elif start < available:
            buffer += source[start:]
        return messages

    @property
    def unread(self) -> bytes:
        """What has arrived of the next message."""
        return bytes(self._buffer)

    @property
    def waiting(self) -> int:
        """How many bytes that is."""
        return len(self._buffer)

    def receive_eof(self) -> None:
        if self._buffer:
            raise RemoteProtocolError("connection ended inside a frame")

    def send(self, message: bytes) -> bytes:
        length = len(message)
        if length > self._max_size or (length + self._extra) >> (8 * self._size):
            raise LocalProtocolError(f"message of {length} bytes is larger than this framing allows")
        return (length + self._extra).to_bytes(self._size, "big") + message


class Frame(LengthPrefixed):
    """``frame://``: a 4-byte big-endian length that includes itself, then the body (Workerman's Frame protocol)."""

    __slots__ = ()

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        super().__init__(4, inclusive=True, max_size=max_size)
