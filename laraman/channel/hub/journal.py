"""The journal of the queues: files in one directory, which only grow, so that a hub that is killed loses nothing it has acknowledged.

What ``write`` has returned from is with the kernel, and so safe from the end of this process, not from that of the machine. A file that is large is
followed by a new one. The oldest goes when none of the jobs that were put in it is left; when a few keep it for long, they are written again.
A file's end may be torn, where a hub was killed in the middle of a write: what is not whole was never acknowledged.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from laraman.channel.hub.records import is_put, records_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from laraman.channel.hub.records import Record

logger = logging.getLogger("uvicorn.error")

#: Bytes of a file after which the next begins.
SEGMENT = 16 * 1024 * 1024
#: Files up to which it does not matter what is in them.
FEW = 4
_SUFFIX = ".queues"


class Journal:
    """The files of ``directory``, which is made when something is written. ``size`` is theirs, in bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sizes: dict[int, int] = {}
        self._live: dict[int, int] = {}  # jobs that were put there
        self._last = 0
        self._file = -1

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def outgrown(self, live: int) -> int:
        """The number of the oldest file, when the files are too large for jobs of ``live`` bytes, or too many for their size; else 0."""
        size, files = self.size, len(self._sizes)
        if files > FEW and (size > 3 * live + SEGMENT or files > FEW + 2 * size // SEGMENT):
            return next(iter(self._sizes))
        return 0

    # Reading ---------------------------------------------------------------------------------------------------------------------

    def replay(self) -> list[tuple[int, Record]]:
        """The jobs that are not done, in the order of their numbers, each with its file's number."""
        jobs: dict[int, tuple[int, Record]] = {}
        for segment in self._segments():
            for record in self._read(segment):
                if record.put:
                    jobs[record.number] = segment, record
                else:
                    jobs.pop(record.number, None)
        for segment, _ in jobs.values():
            self._live[segment] += 1
        self.tidy()
        return [jobs[number] for number in sorted(jobs)]

    def _segments(self) -> list[int]:
        try:
            names = [path.stem for path in self.directory.iterdir() if path.suffix == _SUFFIX]
        except FileNotFoundError:
            return []
        except OSError as exc:
            logger.error("Hub: the journal in %s cannot be read: %s", self.directory, exc.strerror)
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def _read(self, segment: int) -> Iterable[Record]:
        self._last = max(self._last, segment)
        try:
            data = self._path(segment).read_bytes()
        except OSError as exc:
            logger.error("Hub: %s cannot be read, its jobs are left out: %s", self._path(segment), exc.strerror)
            return []
        found = list(records_in(data))
        end = found[-1][0] if found else 0
        if end < len(data):
            logger.warning("Hub: the last %d bytes of %s are no whole record and are left out", len(data) - end, self._path(segment))
        self._sizes[segment] = len(data)
        self._live[segment] = 0
        return [record for _, record in found]

    def _path(self, segment: int) -> Path:
        return self.directory / f"{segment:010}{_SUFFIX}"

    # Writing ---------------------------------------------------------------------------------------------------------------------

    def write(self, records: list[bytes]) -> int:
        """Append the records. Returns the number of the file. Raises OSError: then none of them is there."""
        if self._file < 0 or self._sizes[self._last] >= SEGMENT:
            self._begin()
        self._append(b"".join(records))
        self._live[self._last] += sum(map(is_put, records))
        return self._last

    def _begin(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._path(self._last + 1), flags, 0o600)
        self._end()
        self._last += 1
        self._file = file
        self._sizes[self._last] = self._live[self._last] = 0

    def _append(self, data: bytes) -> None:
        """All of it or nothing. Where not even that can be had, the file is left as it is: what is torn is seen when it is read."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            try:
                os.ftruncate(self._file, self._sizes[self._last])
            except OSError:
                self._end()
            raise
        self._sizes[self._last] += len(data)

    def release(self, segments: Iterable[int]) -> None:
        """The files of jobs that are done, or have been written again."""
        for segment in segments:
            self._live[segment] -= 1
        self.tidy()

    def tidy(self) -> None:
        """Remove the oldest files that nobody needs. Only those: what is done is said in later ones."""
        for segment in tuple(self._sizes):
            if self._live[segment] or (segment == self._last and self._file >= 0):
                return
            with suppress(FileNotFoundError):
                self._path(segment).unlink()
            del self._sizes[segment], self._live[segment]

    def _end(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Where no job is left, no file is."""
        self._end()
        self.tidy()
