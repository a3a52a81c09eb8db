"""What ended a process, in words: exit codes, signals, the kernel's out-of-memory killer, and the stack it left in its black box."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laraman.process.supervisor import RECYCLE

if TYPE_CHECKING:
    from laraman.process.supervisor import Process

#: How much of a black box is read, in bytes: a stack of every thread, with room to spare.
MAX_STACK = 64 * 1024

#: Signals by which somebody else ends a process. SIGIO: the kernel has ended it because whoever waited for its task is gone (``laraman.tasks``).
BLAMELESS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGIO})
#: What a process has told the kernel to do.
_MEANINGS: dict[int, str] = {signal.SIGIO: " (its task was given up)", signal.SIGALRM: " (its time was over)"}

_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
#: The outermost frames of every child: what the master was doing when it forked.
_MASTERS_FRAMES = re.compile(r'^  File ".+children\.py", line \d+ in live\n(?:  File .+\n?)*', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: by ``code``, or by ``signal``; both None when somebody else collected its status."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}" + (" (out of memory?)" if self.oom else _MEANINGS.get(self.signal, ""))
        return "exit status unknown" if self.code is None else f"exit code {self.code}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def collect(pid: int) -> Exit | None:
    """Reap the child ``pid`` without waiting; None while it runs.

    Never "any child": a listener's own subprocesses are not ours to reap.
    """
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return Exit()
    if not reaped:
        return None
    code = os.waitstatus_to_exitcode(status)
    return Exit(code=code) if code >= 0 else Exit(signal=-code)


def oom_kills(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """How many processes of our cgroup (v2 or v1) the kernel has killed for want of memory so far; 0 where nothing says."""
    for line in _read(membership).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            candidates = [cgroups / path.lstrip("/") / "memory.events", cgroups / "memory.events"]
        elif controllers == "memory":
            root = cgroups / "memory"
            candidates = [root / path.lstrip("/") / "memory.oom_control", root / "memory.oom_control"]
        else:
            continue
        for candidate in candidates:
            if match := re.search(r"^oom_kill (\d+)$", _read(candidate), re.MULTILINE):
                return int(match[1])
    return 0


def read_black_box(descriptor: int) -> str:
    """The stack that faulthandler wrote into a child's black box, down to where the child began; empty when it wrote none."""
    try:
        text = os.pread(descriptor, MAX_STACK, 0).decode(errors="replace")
    except OSError:
        return ""
    return _MASTERS_FRAMES.sub("", text).strip()


def top_frame(stack: str) -> str:
    """Where the main thread was, as ``file:line in function``; faulthandler writes the main thread last, innermost frame first."""
    threads = re.split(r"^(?:Current thread|Thread|Stack) ", stack, flags=re.MULTILINE)
    match = _FRAME.search(threads[-1])
    return f"{match['file']}:{match['line']} in {match['function']}" if match else ""


def in_words(process: Process, ending: Exit, stack: str) -> str:
    """Why it ended, for people."""
    if process.hung:
        top = top_frame(stack)
        return f"hung: {process.error}{f', at {top}' if top else ''}"
    if process.stop_reason == RECYCLE and ending.code == 0:
        return f"replaced: {process.retiring}"
    return f"{ending}: {process.error}" if process.error else str(ending)


def rss(pid: int) -> int | None:
    """Resident memory of a process in bytes; None where /proc does not tell."""
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None


def thread_count() -> int:
    """Threads of this process, those that Python does not know included."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
