"""Sockets: what people call them, and what the kernel is asked to do for them."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any


def name_text(name: Any) -> str:
    """A socket name as people write it: ``127.0.0.1:8000``, ``[::1]:8000``, a path, or "" for an unnamed unix socket."""
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return os.fsdecode(name) if name else ""


def keep_alive(sock: Any, idle: int = 30, interval: int = 10, probes: int = 3) -> None:
    """Let the kernel find out, in about a minute, that a quiet peer's machine is gone (``idle`` and ``interval`` in seconds)."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": interval, "TCP_KEEPCNT": probes, "TCP_USER_TIMEOUT": (idle + interval * probes) * 1000}
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
