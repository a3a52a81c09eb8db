"""Another user and group for a worker's process, for good and before it imports anything of the application.

The master stays what it is: it opens ports below 1024, and ends processes of whatever user.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.config import Config

_PR_SET_DUMPABLE = 4


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is to be. ``groups`` are all that it is in, ``gid`` among them; ``name`` and ``home`` are empty for a number without an entry."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""
    home: str = ""

    def __str__(self) -> str:
        return f"user {self.name or self.uid} with group {self.gid}"

    @property
    def assumed(self) -> bool:
        """Whether this process is that already, with no group more."""
        if sys.platform == "linux":
            ids = {*os.getresuid()}, {*os.getresgid()}
        else:
            ids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}
        return ids == ({self.uid}, {self.gid}) and {*os.getgroups()} <= {*self.groups}


def wanted(config: Config) -> Identity | None:
    """Who the processes that have this configuration are to be; None where nothing is said. Raises ConfigError."""
    if not (config.user or config.group):
        return None
    entry = _entry(config.user) if config.user else None
    if config.group:
        gid = int(config.group) if config.group.isdecimal() else grp.getgrnam(config.group).gr_gid
    elif entry is not None:
        gid = entry.pw_gid
    else:
        raise ConfigError(f"user {config.user} has no entry that would tell its group: name one with --group")
    uid = entry.pw_uid if entry is not None else int(config.user or os.geteuid())
    if entry is None:
        return Identity(uid, gid, (gid,))
    return Identity(uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)), entry.pw_name, entry.pw_dir)


def _entry(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        return None


def check(config: Config) -> None:
    """Raises ConfigError when processes with this configuration could not become who they are to be."""
    identity = wanted(config)
    if identity is not None and os.geteuid() != 0 and not identity.assumed:
        raise ConfigError(f"only root can start workers as {identity}")


def drop(config: Config) -> None:
    """Become who the configuration says. Raises ConfigError when that fails, or could be undone; this process must end then."""
    identity = wanted(config)
    if identity is None or identity.assumed:
        return
    try:
        os.setgroups(identity.groups)
        os.setgid(identity.gid)
        os.setuid(identity.uid)
    except OSError as exc:
        raise ConfigError(f"cannot become {identity}: {exc.strerror}") from None
    if not identity.assumed or (identity.uid and _can_return()):
        raise ConfigError(f"cannot become {identity}: this process could go back")
    if identity.name:  # as systemd sets them: a library's cache is not to be root's
        os.environ.update(HOME=identity.home, USER=identity.name, LOGNAME=identity.name)
    if sys.platform == "linux":  # after such a change a process may not look at itself in /proc otherwise, nor leave a core
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _can_return() -> bool:
    with suppress(OSError):
        os.setuid(0)
        return True
    return False
