"""Sockets that systemd, or whoever speaks its protocol, opened before it started us (sd_listen_fds(3)).

The variables stay in the environment: a master that executes itself anew has the same pid and finds them again, and nobody else has that pid.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The first descriptor; the others follow it.
FIRST = 3


def activated(env: Mapping[str, str] | None = None) -> list[tuple[int, str]]:
    """Descriptor and name of each socket that was passed to this process, in order; the name is empty where there is none."""
    env = os.environ if env is None else env
    if env.get("LISTEN_PID") != str(os.getpid()):
        return []  # meant for somebody else, of whom we inherited the environment
    try:
        count = int(env.get("LISTEN_FDS", ""))
    except ValueError:
        return []
    names = env.get("LISTEN_FDNAMES", "").split(":")
    return [(FIRST + index, names[index] if index < len(names) else "") for index in range(count)]
