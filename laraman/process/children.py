"""The master's end of one child: the fork, the channel, the black box. What the child *is* stands in its `Process` record."""

from __future__ import annotations

import base64
import ctypes
import errno
import faulthandler
import logging
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from setproctitle import setproctitle

from laraman import log
from laraman.errors import ConfigError, ProtocolError
from laraman.process import privileges
from laraman.process.exits import read_black_box
from laraman.process.handover import unnamed_file
from laraman.process.supervisor import Process, State
from laraman.protocols.ipc import Ipc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from laraman.config import Config
    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

logger = logging.getLogger("uvicorn.error")

#: Bytes waiting for a child that does not read, above which only what must arrive is still queued.
HIGH_WATER = 64 * 1024

#: Seconds a template has to fork. The master waits for it, and does nothing else meanwhile.
FORK_SECONDS = 2.0

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

#: What a terminal or an operator sends to the whole process group; the master answers for its children.
_MASTERS_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU)


class Child:
    """One child's channel and black box. ``on_envelope(child, envelope)`` is called for all it says."""

    __slots__ = ("_forked", "_ipc", "_on_envelope", "_outbox", "_selector", "black_box", "channel", "process")

    def __init__(
        self,
        process: Process,
        channel: socket.socket,
        black_box: int,
        selector: selectors.BaseSelector,
        on_envelope: Callable[[Child, Envelope], None],
    ) -> None:
        self.process = process
        self.channel = channel
        self.black_box = black_box
        self._selector = selector
        self._on_envelope = on_envelope
        self._ipc = Ipc()
        self._outbox = bytearray()
        self._forked: Envelope | None = None
        channel.setblocking(False)
        selector.register(channel, selectors.EVENT_READ, self.on_event)

    def send(self, envelope: Envelope, *, must: bool = True) -> bool:
        """Queue an envelope; what need not arrive is refused (False) while the child does not read."""
        if not self.connected or (not must and len(self._outbox) > HIGH_WATER):
            return False
        self._outbox += self._ipc.send(envelope)
        self._flush()
        return True

    def on_event(self, mask: int) -> None:
        """The selector says that the channel can be read or written."""
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ:
            self.receive()

    def receive(self) -> bool:
        """Take in what has arrived, once; False when there was nothing. An end or nonsense closes the channel."""
        if not self.connected:
            return False
        try:
            data = self.channel.recv(256 * 1024)
            envelopes = self._ipc.receive_data(data)
        except BlockingIOError:
            return False
        except (OSError, ProtocolError) as exc:
            logger.debug("Channel of %s: %s", self.process, exc)
            data, envelopes = b"", []
        if not data:
            self._disconnect()
        for envelope in envelopes:
            if envelope["op"] == "forked":
                self._forked = envelope
            else:
                self._on_envelope(self, envelope)
        return bool(data)

    def drain(self) -> None:
        """Take in everything that a child that has exited still said."""
        while self.receive():
            pass

    def _flush(self) -> None:
        if not self.connected:
            return
        try:
            while self._outbox:
                del self._outbox[: self.channel.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # reading will see the end, after what the child still said
        writing = selectors.EVENT_WRITE if self._outbox else 0
        self._selector.modify(self.channel, selectors.EVENT_READ | writing, self.on_event)

    def fork(self, slot: int, generation: int, descriptors: list[int]) -> int:
        """Let this child, a template, fork a process that gets copies of ``descriptors``; its pid. Raises OSError, TimeoutError when it is hung."""
        self._flush()
        if self._outbox or not self.connected:
            raise OSError(errno.EPIPE, "its template does not listen")
        self._forked = None
        data = self._ipc.send({"op": "fork", "slot": slot, "generation": generation})
        self._outbox += data[socket.send_fds(self.channel, [data], descriptors) :]
        deadline = time.monotonic() + FORK_SECONDS
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while self._forked is None:
            self._flush()
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "its template does not answer")
            if not self.receive() and not self.connected:
                raise OSError(errno.EPIPE, "its template has ended")
        pid, error = self._forked.get("pid"), self._forked.get("error")
        if not isinstance(pid, int):
            raise OSError(errno.ECHILD, f"its template says {error}")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises ChildProcessError when it is no child of ours
        return pid

    @property
    def connected(self) -> bool:
        return self.channel.fileno() >= 0

    def _disconnect(self) -> None:
        self._selector.unregister(self.channel)
        self.channel.close()

    def stack(self) -> str:
        """What the child wrote into its black box."""
        return read_black_box(self.black_box)

    def close(self) -> None:
        if self.connected:
            self._disconnect()
        if self.black_box >= 0:
            os.close(self.black_box)
            self.black_box = -1

    def forget(self) -> None:
        """Close a sibling's ends in a freshly forked child, which must not touch the master's selector: an epoll set is shared by the fork."""
        self.channel.close()
        os.close(self.black_box)

    # A child outlives the image of the master that forked it ---------------------------------------------------------------------

    def to_row(self) -> dict[str, Any]:
        """What the next image of the master needs to know of this child."""
        row = asdict(self.process)
        row["state"] = self.process.state.name
        pending = {name: base64.b64encode(data).decode() for name, data in (("inbox", self._ipc.unread), ("outbox", bytes(self._outbox)))}
        return {"process": row, "channel": self.channel.fileno(), "black_box": self.black_box, **pending}

    @classmethod
    def from_row(cls, row: dict[str, Any], selector: selectors.BaseSelector, on_envelope: Callable[[Child, Envelope], None]) -> Child:
        process = Process(**{**row["process"], "state": State[row["process"]["state"]]})
        channel = socket.socket(fileno=row["channel"]) if row["channel"] >= 0 else _ended()
        child = cls(process, channel, row["black_box"], selector, on_envelope)
        child._ipc.receive_data(base64.b64decode(row["inbox"]))
        child._outbox += base64.b64decode(row["outbox"])
        child._flush()
        return child


def spawn(
    worker: Worker,
    slot: int,
    generation: int,
    *,
    config: Config,
    now: float,
    selector: selectors.BaseSelector,
    on_envelope: Callable[[Child, Envelope], None],
    leave: Callable[[], None],
) -> Child:
    """Fork a child that runs ``worker`` in ``slot``. ``leave()`` closes, in the child, what belongs to the master alone. Raises OSError."""
    ours, theirs = socket.socketpair()
    black_box = unnamed_file()
    _flush()
    # Blocked, because a signal between the fork and the child's own handlers would be told to the master's wake-up descriptor.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            ours.close()
            live(worker, slot, generation, theirs, config, black_box, before, leave)
    except OSError:
        ours.close()
        os.close(black_box)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return Child(Process(worker.name, slot, generation, pid, now, last_beat=now), ours, black_box, selector, on_envelope)


def spawn_from(
    template: Child,
    worker: Worker,
    slot: int,
    generation: int,
    *,
    now: float,
    selector: selectors.BaseSelector,
    on_envelope: Callable[[Child, Envelope], None],
    strays: set[int],
) -> Child:
    """Like `spawn`, but the fork is the template's, and the child becomes ours. Raises OSError, TimeoutError when the template is hung.

    Into ``strays`` come the pids of all else that has become a child of ours meanwhile: what was left of a fork that failed, and what in that
    moment lost its parent somewhere below us. Nobody but us can reap them.
    """
    ours, theirs = socket.socketpair()
    black_box = unnamed_file()
    binds = [bind.socket.fileno() for bind in worker.binds if bind.socket is not None]
    before, pid = _own_children(), 0
    try:
        with _adopting():
            pid = template.fork(slot, generation, [theirs.fileno(), black_box, *binds])
    except OSError:
        ours.close()
        os.close(black_box)
        raise
    finally:
        theirs.close()
        strays |= _own_children() - before - {pid}
    return Child(Process(worker.name, slot, generation, pid, now, last_beat=now), ours, black_box, selector, on_envelope)


def _own_children() -> set[int]:
    """Children of this thread, zombies included; none where the kernel does not list them."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
            return {int(pid) for pid in file.read().split()}
    except OSError:
        return set()


@contextmanager
def _adopting() -> Iterator[None]:
    """While the block runs, descendants whose parent ends become children of this process. Raises OSError where that cannot be.

    Not for longer: what an application leaves running behind itself is not ours to wait for.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def live(
    worker: Worker, slot: int, generation: int, channel: socket.socket, config: Config, black_box: int, mask: set[int], leave: Callable[[], None]
) -> NoReturn:
    """The child's whole life. Never returns into the master's code."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _MASTERS_SIGNALS:
            signal.signal(number, _leave_it_to_the_master)  # not SIG_IGN, which the application's own subprocesses would inherit
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        leave()
        faulthandler.enable(file=black_box)
        faulthandler.register(signal.SIGUSR2, file=black_box, all_threads=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        log.after_fork(config)
        if config.reload:
            from laraman.process import bytecode

            bytecode.of_settled_sources_only()
        config = worker.configured(config)
        privileges.drop(config)
        code = worker.run(slot, generation, channel, config)
    except ConfigError as exc:
        code = exc.exit_code
        channel.sendall(Ipc().send({"op": "failed", "error": str(exc), "exit": code}))
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        logger.critical("Worker %s:%d [%d] failed", worker.name, slot, os.getpid(), exc_info=True)
    finally:
        _flush()
        logging.shutdown()
        os._exit(code & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # full, closed, none at all
            stream.flush()


def introduce(worker: Worker, at_the_masters_death: signal.Signals = signal.SIGTERM) -> None:
    """Become this worker to the outside. What was the master's in this process has been left behind before."""
    signal.signal(signal.SIGTERM, worker.handle_exit)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_the_masters_death, 0, 0, 0)
    setproctitle(worker.title)


def _ended() -> socket.socket:
    """A channel that is at its end."""
    channel, other = socket.socketpair()
    other.close()
    return channel


def _leave_it_to_the_master(signum: int, frame: FrameType | None) -> None:
    """A signal to the group reaches the master too, and it tells us what to do."""
