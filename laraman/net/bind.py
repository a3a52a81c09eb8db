"""Listening sockets: opened by the master before the fork, inherited by the workers, handed on when the master executes itself anew."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import re
import socket
import stat
import struct
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from laraman.errors import BootError
from laraman.net.address import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

_SO_ATTACH_FILTER = 26
#: A classic BPF program: load the byte of the TCP flags; with SYN in it drop the packet, else keep all of it.
_DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


class Bind:
    """One listening socket.

    ``key`` is the address as it was asked for, with TLS or without: a restart may change that. ``address`` is the one in use: after ``open`` it
    has the port that the kernel picked for port 0, and tells where a descriptor ``fd`` that was given to us listens. The socket is non-blocking
    and is closed on exec. ``mode`` are the permissions of a unix socket, in octal; when it is empty 0666, or those of the socket that it replaces.
    ``group`` is the group that it is to belong to, a name or a number; this process's own when it is empty.

    With ``reuse_port`` each slot has a socket of its own at the address, among which the kernel spreads connections and datagrams (SO_REUSEPORT,
    Linux): ``socket`` is that of slot 0, ``others`` are the rest. The master opens them, as it does with one that is shared: so what waits in a
    slot's queue waits for its next process when one ends, and no other program gets the address.
    """

    __slots__ = ("_unlink", "address", "backlog", "fd", "group", "key", "mode", "others", "reuse_port", "socket")

    def __init__(self, address: str | Address, backlog: int = 2048) -> None:
        """Raises ConfigError when the address cannot be parsed."""
        self.address = address if isinstance(address, Address) else parse_address(address)
        self.key = str(replace(self.address, scheme=self.address.scheme.replace("https", "http"), tls=False))
        self.fd = self.address.fd
        self.backlog = backlog
        self.mode = ""
        self.group = ""
        self.reuse_port = False
        self.socket: socket.socket | None = None
        self.others: dict[int, socket.socket] = {}
        self._unlink: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<Bind {self.address}{'' if self.socket else ' closed'}>"

    @property
    def where(self) -> str:
        """The address in use as people are told of it."""
        return f"unix socket {self.address.path}" if self.address.path else str(self.address)

    @property
    def place(self) -> tuple[str | int, ...] | None:
        """What only one can have; None when it was given to us, or the kernel picks it."""
        address = self.address
        if address.path:
            return (os.path.realpath(address.path),)
        return ("udp" if self.datagrams else "tcp", address.host, address.port) if self.fd is None and address.port else None

    @property
    def datagrams(self) -> bool:
        return self.address.scheme == "udp"

    @property
    def sockets(self) -> list[socket.socket]:
        return [*([] if self.socket is None else [self.socket]), *self.others.values()]

    def open(self, inherited: int | None = None) -> None:
        """Listen; on the ``inherited`` descriptor when there is one, which then belongs to this Bind. Raises BootError with one clear line."""
        if self.socket is not None:
            return
        descriptor = self.fd if inherited is None else inherited
        made = self._opened(descriptor, alone=True)
        if self.fd is not None:
            self.address = _told(made, self.address)
        elif self.address.path:
            with suppress(OSError):  # something else has been put in the place of an inherited one's name
                self._unlink = _identity(self.address.path)
        else:
            self.address = replace(self.address, port=made.getsockname()[1])
        self.socket = made

    def _opened(self, descriptor: int | None, *, alone: bool) -> socket.socket:
        try:
            return self._open(descriptor, alone=alone)
        except (OSError, ValueError, LookupError, OverflowError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise BootError(f"cannot listen on {self.address}: {reason}") from None

    def _open(self, descriptor: int | None, *, alone: bool) -> socket.socket:
        address = self.address
        kind = socket.SOCK_DGRAM if self.datagrams else socket.SOCK_STREAM
        if descriptor is not None:
            made = _checked(socket.socket(fileno=descriptor), kind)
            if self.reuse_port:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # a restart may switch it on
        elif address.path:
            made = _unix(address.path, self.mode, self.group)
        else:
            if self.reuse_port and alone and address.port:
                _inet(kind, address.host, address.port).close()  # whoever shares its ports would let us in beside it
            made = _inet(kind, address.host, address.port, share=self.reuse_port)
        try:
            os.set_inheritable(made.fileno(), False)
            made.setblocking(False)
            if kind == socket.SOCK_STREAM:
                made.listen(self.backlog)
        except OSError:
            made.close()
            raise
        return made

    # A socket for each slot ------------------------------------------------------------------------------------------------------

    def open_slot(self, slot: int, inherited: int | None = None) -> None:
        """With ``reuse_port``: listen for this slot, too. Raises BootError. Idempotent."""
        if self.reuse_port and slot and slot not in self.others:
            self.others[slot] = self._opened(inherited, alone=False)

    def end_slots(self, count: int) -> None:
        """Nothing more is to come for slots from ``count`` on. What their processes have still waits for them."""
        for slot in [slot for slot in self.others if slot >= count]:
            self.others.pop(slot).close()

    def keep_slot(self, slot: int) -> None:
        """In a process of this slot: leave the other slots' sockets."""
        if slot in self.others and self.socket is not None:
            self.socket.close()
            self.socket = self.others.pop(slot)
        self.end_slots(0)

    def descriptors(self) -> dict[str, int]:
        """What is open, by names that a later image of the master finds it by: see ``take_over``."""
        found = {f"{slot}@{self.key}": made.fileno() for slot, made in self.others.items()}
        return found if self.socket is None else {self.key: self.socket.fileno(), **found}

    def take_over(self, descriptors: dict[str, int], count: int) -> None:
        """Take what of ``descriptors`` is for this Bind and for slots below ``count`` out of it, and listen there. Raises BootError."""
        self.open(descriptors.pop(self.key, None))
        if self.reuse_port:
            for slot in range(1, count):
                self.open_slot(slot, descriptors.pop(f"{slot}@{self.key}", None))

    # The end ---------------------------------------------------------------------------------------------------------------------

    def turn_away(self) -> None:
        """Before the last copies are closed: let no new connection begin, on every copy at once. Linux only; elsewhere nothing happens.

        The kernel completes handshakes by itself: one that is completed between an acceptor's last look and its close would be reset. With
        this, that client's first packet is not heard, and its second, a second later, is refused, or finds the next server.
        A descriptor that was given to us is left alone: its owner goes on listening.
        """
        if self.fd is not None or self.address.path or self.datagrams or sys.platform != "linux":
            return
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
        for made in self.sockets:
            with suppress(OSError):  # a sandbox that has no filters
                made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program)))

    def close(self) -> None:
        """Close this process's copies. Idempotent; others' copies and a unix socket's name live on."""
        for made in self.sockets:
            made.close()
        self.socket = None
        self.others = {}

    def unlink(self) -> None:
        """Remove the unix socket's name, unless somebody has put another one there. For the end of the server. Idempotent."""
        with suppress(OSError):  # it is gone, or a file of somebody else's is there
            if self._unlink is not None and _identity(self.address.path) == self._unlink:
                os.unlink(self.address.path)
        self._unlink = None


def key_of(name: str) -> str:
    """The key of the Bind that has listed a descriptor as ``name`` (``Bind.descriptors``)."""
    return re.sub(r"^\d+@", "", name)


def _checked(made: socket.socket, kind: int) -> socket.socket:
    if made.type != kind:
        made.detach()  # whatever it is, it is not ours to close
        raise OSError(f"the inherited descriptor is not a {'stream' if kind == socket.SOCK_STREAM else 'datagram'} socket")
    return made


def _told(given: socket.socket, address: Address) -> Address:
    """Where a given socket listens, by what it is; a unix socket without a path has but its descriptor."""
    name = given.getsockname()
    if given.family in (socket.AF_INET, socket.AF_INET6):
        return replace(address, host=name[0], port=name[1], fd=None)
    return replace(address, path=name, fd=None) if isinstance(name, str) and name else address


def _inet(kind: int, host: str, port: int, *, share: bool = False) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    # A name with both families ("localhost") gets the first IPv4 address, which is what uvicorn's workers listen on.
    family, _, _, _, address = next((entry for entry in found if entry[0] == socket.AF_INET), found[0])
    made = socket.socket(family, kind)
    return _bound(made, lambda: _bind_inet(made, address, share))


def _bind_inet(made: socket.socket, address: tuple[object, ...], share: bool) -> None:
    if made.type == socket.SOCK_STREAM:  # with datagrams it would let two have the same address
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if made.family == socket.AF_INET6 and hasattr(socket, "IPPROTO_IPV6"):
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(address)


def _unix(path: str, wanted: str, group: str) -> socket.socket:
    mode = int(wanted or "666", 8)  # as uvicorn: a reverse proxy runs as another user; the directory's rights are what protects it
    if _identity(path) is not None:
        if _answers(path):
            raise OSError("another process listens there")
        if not wanted:
            mode = stat.S_IMODE(os.lstat(path).st_mode)
        os.unlink(path)  # left behind by a process that is gone
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # It gets its mode as it is made. Afterwards there is only the path to change it by, which whoever may write the directory can lead elsewhere.
    before = os.umask(0o777 & ~mode)
    try:
        with suppress(OSError):  # Linux: where the directory has an ACL for new files, which counts instead of the umask, no more than this either
            os.fchmod(made.fileno(), mode)
        _bound(made, lambda: made.bind(path))
    finally:
        os.umask(before)
    try:
        if group:
            os.chown(path, -1, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid, follow_symlinks=False)
    except BaseException:
        made.close()
        os.unlink(path)
        raise
    return made


def _bound(made: socket.socket, bind: Callable[[], None]) -> socket.socket:
    try:
        bind()
    except BaseException:
        made.close()
        raise
    return made


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the socket at ``path``; None when there is none. Raises OSError when something else is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is not a socket is in the way")
    return found.st_dev, found.st_ino


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
