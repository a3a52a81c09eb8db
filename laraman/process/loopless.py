"""Workers without an event loop: their processes wait for the master's orders, beat, and do one thing besides."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from laraman import log
from laraman.process.children import introduce
from laraman.process.daemon import reopen_output
from laraman.process.worker import Worker
from laraman.protocols.ipc import Ipc

if TYPE_CHECKING:
    from types import FrameType

    from laraman.config import Config
    from laraman.protocols.ipc import Envelope

#: The most descriptors that come with one order: the channel, the black box, the listening sockets.
MAX_DESCRIPTORS = 64


class Loopless(Worker):
    """What such a worker does is in ``serve``, which calls ``attend`` until that says that it is to end. Nothing in it needs an end of its own."""

    def run(self, slot: int, generation: int, channel: socket.socket, config: Config) -> int:
        self.slot = slot
        self.generation = generation
        self.config = config
        self._master = os.getppid()
        self._channel = channel
        self._ipc = Ipc()
        self._descriptors: list[int] = []
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._beats = min(1.0, config.timeout_worker_healthcheck / 4) or 1.0
        self._next_beat = 0.0
        channel.setblocking(True)
        introduce(self, signal.SIGKILL)
        return self.serve()

    def serve(self) -> int:
        """Say ``ready``, and live; the exit code."""
        raise NotImplementedError

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        logging.shutdown()
        os._exit(0)

    def attend(self, seconds: float) -> bool:
        """Beat, and obey what the master says within ``seconds``, or until the next beat. True when this process is to end."""
        if os.getppid() != self._master:
            return True
        if (now := time.monotonic()) >= self._next_beat:
            self._next_beat = now + self._beats
            self.say({"op": "beat"})
        if not self._poll.poll(max(0.0, min(seconds, self._next_beat - now)) * 1000):
            return False
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 65536, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # its other end was closed with a beat unread in it
            return True
        self._descriptors += descriptors
        for envelope in self._ipc.receive_data(data):
            if envelope["op"] == "stop":
                return True
            self.obey(envelope)
        return not data

    def obey(self, envelope: Envelope) -> None:
        """Any order but to stop."""
        match envelope["op"]:
            case "reopen":
                log.reopen()
                reopen_output()
            case "connections":
                self.say({"op": "connections", "id": envelope["id"], "rows": []})

    def say(self, envelope: Envelope) -> None:
        with suppress(OSError):  # the master is gone; the channel's end, or the kernel, ends this process
            self._channel.sendall(self._ipc.send(envelope))
