"""Leases: the right to be the only one who does something, and the memory of which moment of it was begun last.

    Lease         within this process, which is the whole server
    FileLease     among the processes of a server: a lock that the kernel takes from whoever dies
    StoreLease    among the servers of a cluster: an entry of a store that ends by itself unless it is renewed

Who holds a lease notes a moment before the work of that moment begins, so each is begun at most once, whatever happens in the middle of it.
What is noted is compared with what was seen last: of two who both take themselves for the holder, one cannot note anything.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import anyio

from laraman.errors import LinkDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.net.store import Store

logger = logging.getLogger("uvicorn.error")

#: Seconds in which a lease is given back.
GIVE_BACK_SECONDS = 1.0
#: Seconds between two attempts to note something while the store does not answer, or the file cannot be written.
RETRY = 0.3


class Lease:
    """The one of a process that is the whole server. ``title`` says in messages whose it is."""

    #: Seconds between two attempts to take it.
    poll: ClassVar[float] = 0.05
    _held: ClassVar[dict[str, Lease]] = {}
    _noted: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title

    async def while_held(self, work: Callable[[], Awaitable[bool]]) -> None:
        """Run ``work()`` while it is ours: wait for it, begin anew when it was lost, until ``work()`` returns True or this is cancelled."""
        try:
            finished = False
            while not finished:
                while not await self.take():
                    await anyio.sleep(self.poll)
                async with anyio.create_task_group() as group:
                    group.start_soon(self._end_when_lost, group.cancel_scope)
                    finished = await work()
                    group.cancel_scope.cancel()
                if not finished:
                    await anyio.sleep(self.poll)
        finally:
            with anyio.move_on_after(GIVE_BACK_SECONDS, shield=True):
                await self.give_back()

    async def _end_when_lost(self, scope: anyio.CancelScope) -> None:
        logger.warning("%s stops here: %s", self.title, await self.lost())
        scope.cancel()

    async def take(self) -> bool:
        """Try once to get it."""
        return self._held.setdefault(self.name, self) is self

    async def lost(self) -> str:
        """Return when it is ours no more, or will not be in a moment, and say why."""
        await anyio.sleep_forever()
        raise AssertionError

    async def noted(self) -> str:
        """What was noted last, by whoever held it; empty when nothing was."""
        return self._noted.get(self.name, "")

    async def note(self, text: str) -> bool:
        """Remember this. False when somebody else has noted something since: then it is not ours."""
        self._noted[self.name] = text
        return True

    async def give_back(self) -> None:
        """Let the next one have it; nothing when it is not ours."""
        if self._held.get(self.name) is self:
            del self._held[self.name]


class FileLease(Lease):
    """A file in the directory behind the descriptor ``directory``, locked by its holder, with what was noted in it.

    The lock belongs to the open file, so it ends with the process however that ends; a file that is left behind after that, or after a crash of
    the machine, only remembers. What is noted survives the end of every process; a failure of power may take what was noted just before.

    A file that somebody removes or replaces (what cleans up temporary directories does) is made anew by its holder. While it cannot be written,
    because the disk is full or the directory is gone, nobody begins anything; that is said once, and tried again.
    """

    #: Seconds between two looks whether the file is still there.
    look: ClassVar[float] = 1.0
    _open: ClassVar[WeakSet[FileLease]] = WeakSet()

    def __init__(self, name: str, title: str, directory: int) -> None:
        super().__init__(name, title)
        self._directory = directory
        self._file = -1
        self._broken = False

    async def take(self) -> bool:
        try:
            taken = self._take()
        except OSError as exc:
            self._tell(exc)
            return False
        self._broken = False
        return taken

    def _take(self) -> bool:
        """Whether it is ours, in a file that is there. Raises OSError."""
        if self._file >= 0 and os.fstat(self._file).st_nlink > 0:
            return True
        name = plain_name(self.name)
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file).st_nlink > 0  # else it was removed before it was locked
            if taken:
                with suppress(PermissionError):  # somebody else's, who has left it open to us
                    os.fchmod(file, 0o666)  # only the server's processes reach the directory, and they may have different users
        except BlockingIOError:
            taken = False
        except BaseException:
            os.close(file)
            raise
        if not taken:
            os.close(file)
            return False
        self._close()
        self._file = file
        self._open.add(self)
        return True

    def _keep(self) -> bool:
        """Have it still, in another file if that is gone, which nobody has used yet. Raises OSError."""
        return os.fstat(self._file).st_nlink > 0 or (self._take() and not self._read())

    def _read(self) -> str:
        return os.pread(self._file, 200, 0).decode(errors="replace").strip()

    def _tell(self, error: OSError) -> None:
        """Once, until it works again."""
        if not self._broken:
            self._broken = True
            logger.warning("%s waits for the file of its lease: %s", self.title, error.strerror)

    async def lost(self) -> str:
        while True:
            await anyio.sleep(self.look)
            try:
                if os.fstat(self._file).st_nlink == 0:
                    text = self._read()
                    if not self._keep():
                        return "somebody else has its lease"
                    os.pwrite(self._file, text.encode(), 0)
            except OSError as exc:  # nobody else can have it either
                self._tell(exc)

    async def noted(self) -> str:
        return self._read()

    async def note(self, text: str) -> bool:
        while True:
            try:
                if not self._keep():
                    return False
                os.pwrite(self._file, text.ljust(99).encode() + b"\n", 0)
            except OSError as exc:
                self._tell(exc)
                await anyio.sleep(RETRY)
            else:
                self._broken = False
                return True

    async def give_back(self) -> None:
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # a copy of the descriptor, in what was just forked, would hold it
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._open.discard(self)

    @classmethod
    def after_fork(cls) -> None:
        """In a child that the application forks: a copy here would hold the lock when the worker is dead."""
        for lease in tuple(cls._open):
            lease._close()


os.register_at_fork(after_in_child=FileLease.after_fork)


def plain_name(name: str) -> str:
    """Letters, digits and "._-" only; different for different names."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class StoreLease(Lease):
    """An entry in ``store`` with a token of ours, which ends after ``store.seconds`` unless it is renewed.

    The holder renews it after a third of that. While the store does not answer nobody can take it, and the holder stops when a fifth of its time
    is left, so that it has stopped, wherever it is, before the lease ends. Time is counted from when the store was asked, which is before it
    counts. That nobody can have it is said once, by the store.
    """

    poll = 1.0

    def __init__(self, name: str, title: str, store: Store) -> None:
        super().__init__(name, title)
        self.token = secrets.token_hex(8)
        #: What the store wants to remember about the entry and about what was noted: numbers of revisions.
        self.revision = 0
        self.note_revision = 0
        self.seen = ""
        self._store = store
        self._until = 0.0
        self._using = False

    async def take(self) -> bool:
        if not self._using:
            self._using = True
            self._store.users += 1
        asked = _now()
        try:
            taken = await self._store.take(self)
            if taken:
                self._until = asked + self._store.seconds * 0.8
                self.seen = await self._store.noted(self)
        except LinkDown as exc:
            self._store.outage.begins(exc)
            return False
        self._store.outage.ends()
        return taken

    async def lost(self) -> str:
        pause = self._store.seconds / 3
        while True:
            await anyio.sleep(max(0.0, min(pause, self._until - _now())))
            asked = _now()
            if asked >= self._until:
                return "its lease could not be renewed in time"
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._until - asked):
                    if not await self._store.renew(self):
                        return "somebody else has its lease"
            except (LinkDown, TimeoutError) as exc:
                self._store.outage.begins(exc)
                pause = RETRY
            else:
                self._store.outage.ends()
                self._until = asked + self._store.seconds * 0.8
                pause = self._store.seconds / 3

    async def noted(self) -> str:
        return self.seen

    async def note(self, text: str) -> bool:
        while True:  # until the lease is lost, which cancels this
            try:
                if await self._store.note(self, text):
                    self.seen = text
                    return True
                return False
            except LinkDown as exc:
                self._store.outage.begins(exc)
                await anyio.sleep(RETRY)

    async def give_back(self) -> None:
        if not self._using:
            return
        self._using = False
        try:
            with suppress(LinkDown):  # then it ends by itself
                await self._store.give_back(self)
        finally:
            self._store.users -= 1
            if not self._store.users:
                await self._store.close()


def _now() -> float:
    return asyncio.get_running_loop().time()
