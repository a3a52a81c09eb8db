"""Telling systemd, or whoever speaks its protocol, how the server is (sd_notify(3)): one datagram for each change, and a sign of life where it
wants one. Without its variables nothing happens."""

from __future__ import annotations

import logging
import os
import socket
import time
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("uvicorn.error")

#: Characters of a status that are told: it shares its datagram with what must arrive.
MAX_STATUS = 1000


class Notifier:
    """What the master last said. ``interval`` are the seconds between two signs of life, half of what systemd allows; infinite without a watchdog."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        env = os.environ if env is None else env
        name = env.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name if name.startswith("/") else ""
        self.interval = _watchdog(env) if self._address else inf
        self._said = ""
        self._next_sign = 0.0

    def tick(self, phase: str, rolling: bool, problem: str, now: float) -> None:
        """Say what has changed. ``phase`` and ``rolling`` are the master's, ``problem`` why the last roll failed, ``now`` is monotonic time."""
        if not self._address:
            return
        if phase == "stopping":
            self._say("stopping", "STOPPING=1", "STATUS=stopping")
        elif phase == "running" and rolling:
            self.reloading()
        elif phase == "running":
            status = f"the last reload failed: {problem}" if problem else "running"
            self._say(f"ready, {status}", "READY=1", f"MAINPID={os.getpid()}", f"STATUS={_line(status)}")
        if now >= self._next_sign and self.interval < inf:
            self._next_sign = now + self.interval
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Workers are replaced, or this process executes itself anew."""
        if self._address:
            self._say("reloading", "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def _say(self, what: str, *lines: str) -> None:
        if what != self._said and self._send(*lines):
            self._said = what

    def _send(self, *lines: str) -> bool:
        """Whether that is done: a manager that is there and has no room now is told again."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # the master waits for nobody
                sock.sendto("\n".join(lines).encode(errors="backslashreplace"), self._address)
        except BlockingIOError:
            return False
        except OSError as exc:
            logger.debug("Nobody listens at NOTIFY_SOCKET: %s", exc)
        return True


def _watchdog(env: Mapping[str, str]) -> float:
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return inf
    try:
        microseconds = int(env.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return inf
    return microseconds / 2_000_000 if microseconds > 0 else inf


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS]
