"""Who is at the other end of a unix socket, as the kernel knows it."""

from __future__ import annotations

import pwd
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: ``struct ucred`` of unix(7): pid, uid, gid.
_UCRED = struct.Struct("iII")


class Credentials(NamedTuple):
    """Of the process that connected, from when it did. ``pid`` is its number at that time; ``uid`` and ``gid`` are the effective ones."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}"


def known() -> bool:
    """Whether this system tells: Linux does."""
    return hasattr(socket, "SO_PEERCRED")


def credentials(sock: Any) -> Credentials | None:
    """Of the peer of a connected unix socket; None where there is none to ask for, or the system does not tell."""
    if sock is None or sock.family != socket.AF_UNIX or not known():
        return None
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def user_ids(users: Iterable[str | int]) -> frozenset[int]:
    """The numbers of users that are named, or numbered already. Raises ConfigError for a name that this system does not have."""
    return frozenset(map(_user_id, users))


def _user_id(user: str | int) -> int:
    if isinstance(user, int) or user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"allow_users: there is no user {user!r}") from None
