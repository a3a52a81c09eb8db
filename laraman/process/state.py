"""The state directory of an instance: its pid file, whose lock says that it lives, its control socket and, as a daemon, its log.

``--state-dir``, else ``./.laraman/<name>``. Where that cannot be had (a read-only directory, somebody else's, a path too long for a unix
socket) it is ``$XDG_RUNTIME_DIR/laraman-<hash>/<name>`` or ``<temporary directory>/laraman-<uid>/<hash>/<name>``. The client looks in
the same places. Directories are 0700 and ours, files 0600.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from laraman.errors import BootError

logger = logging.getLogger("uvicorn.error")

PID_FILE = "laraman.pid"
CONTROL_SOCKET = "control.sock"
LOG_FILE = "laraman.log"
LEASES = "laraman.leases"

#: The longest path of a control socket, in bytes: sun_path has 108 on Linux and 104 elsewhere, less the terminator and some air.
MAX_SOCKET_PATH = 100
#: The longest name that a path gives: room for it is in every directory that instances share, unless that is far down itself.
MAX_PATH_NAME = 30
#: Seconds to wait for the lock: a client that looks whether we live holds it for a moment.
LOCK_WAIT = 0.5


@dataclass(slots=True)
class StateDirectory:
    """An open state directory. ``lock`` is the pid file's descriptor; the lock goes with it."""

    path: Path
    lock: int

    @property
    def control_path(self) -> Path:
        return self.path / CONTROL_SOCKET

    @property
    def log_path(self) -> Path:
        return self.path / LOG_FILE

    def write_pid(self) -> None:
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, f"{os.getpid()}\n".encode(), 0)

    def open_leases(self) -> int:
        """A descriptor of the directory where processes of the server agree who does what only one may do (``laraman.net.lease``).

        They may have other users than we: what the state directory keeps from others is open to whoever has this descriptor.
        """
        path = self.path / LEASES
        with suppress(FileExistsError):
            path.mkdir()
        path.chmod(0o777)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self) -> None:
        """Remove what says that we live, then unlock. The log stays; what was noted in leases is forgotten."""
        leases = self.path / LEASES
        for path in (*(leases.iterdir() if leases.is_dir() else ()), leases):
            with suppress(OSError):  # it is open to all of the server's processes: what else they have put there stays
                path.rmdir() if path == leases else path.unlink()
        for name in (CONTROL_SOCKET, PID_FILE):
            (self.path / name).unlink(missing_ok=True)
        os.close(self.lock)
        with suppress(OSError):  # a log is in it, or the user's own directory
            self.path.rmdir()


@dataclass(frozen=True, slots=True)
class Instance:
    """A running server: its name (the last part of its state directory), pid and control socket."""

    name: str
    pid: int
    control: Path


def instance_name(name: str, port: int, uds: str = "", fd: int | None = None) -> str:
    """The directory's name: ``--name``, else the port, else a slug of the unix socket's path; of a long one the end, and a hash of it all."""
    if name:
        return name
    if fd is not None:
        return f"fd{fd}"
    if not uds:
        return str(port)
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", uds).strip("-.") or "uds"
    if len(slug) <= MAX_PATH_NAME:
        return slug
    mark = hashlib.sha256(os.fsencode(uds)).hexdigest()[:8]
    return f"{slug[len(mark) + 1 - MAX_PATH_NAME :].lstrip('-.')}-{mark}"


def _roots(state_dir: str) -> list[Path]:
    """Where instances without a ``--state-dir`` of their own are, in order of preference. Each holds directories named after instances."""
    here = Path(state_dir).absolute() if state_dir else Path.cwd()
    mark = hashlib.sha256(os.fsencode(here)).hexdigest()[:12]
    fallbacks = [Path(tempfile.gettempdir()) / f"laraman-{os.geteuid()}" / mark]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        fallbacks.insert(0, Path(runtime) / f"laraman-{mark}")
    return fallbacks if state_dir else [here / ".laraman", *fallbacks]


def candidates(state_dir: str, name: str) -> list[Path]:
    """The directories that an instance may use, best first."""
    paths = [root / name for root in _roots(state_dir)]
    return [Path(state_dir).absolute(), *paths] if state_dir else paths


def open_state(state_dir: str, name: str) -> StateDirectory | None:
    """Create, lock and mark the first directory that can be had; warns and returns None when there is none.

    Raises BootError when another server has it.
    """
    for path in candidates(state_dir, name):
        if len(os.fsencode(path / CONTROL_SOCKET)) > MAX_SOCKET_PATH:
            logger.debug("State directory %s: its path is too long for a socket", path)
            continue
        try:
            _make(path)
            state = StateDirectory(path, _lock(path / PID_FILE))
            state.write_pid()
        except OSError as exc:
            logger.debug("State directory %s cannot be used: %s", path, exc)
            continue
        return state
    logger.warning("No state directory can be created; status, reload, restart and stop will not find this server")
    return None


def _make(path: Path) -> None:
    missing = []
    for directory in (path, *path.parents):
        if directory.exists():
            break
        missing.append(directory)
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
    for directory in (path, path.parent):
        if directory == path or directory.name.startswith((".laraman", "laraman-")) or directory.parent.name.startswith("laraman-"):
            _check_ours(directory)
    if path.parent.name == ".laraman":
        ignore = path.parent / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")


def _check_ours(directory: Path) -> None:
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{directory} is not a directory of ours")
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(directory, 0o700)


def _lock(path: Path) -> int:
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(descriptor, path):  # else its last owner removed it while we waited
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                pid = _read_pid(path)
                os.close(descriptor)
                raise BootError(f"already running with pid {pid} ({path})") from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.02)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text().strip() or 0)
    except (OSError, ValueError):
        return 0


def find_instances(state_dir: str = "", name: str = "") -> list[Instance]:
    """The servers that live in the places where one of this working directory, or of ``state_dir``, would be.

    ``name`` is a ``--name``, a port, or what `instance_name` makes of a unix socket; empty for all.
    """
    paths = [Path(state_dir).absolute()] if state_dir else []
    for root in _roots(state_dir):
        with suppress(OSError):
            paths += sorted(path for path in root.iterdir() if not name or path.name == name)
    found = []
    for path in paths:
        pid = alive(path)
        if pid:
            found.append(Instance(path.name, pid, path / CONTROL_SOCKET))
    return found


def alive(path: Path) -> int:
    """The pid of the server that holds this state directory; 0 when nobody does."""
    try:
        descriptor = os.open(path / PID_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(path / PID_FILE)
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return 0
