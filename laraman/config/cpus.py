"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def cpu_count(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs this process may use: its scheduler affinity, or the CPU quota of its cgroup (v1 or v2), rounded up, when that is less.

    A container sees all CPUs of its machine in ``os.cpu_count()``; its quota is only in the cgroup files.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([usable, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The quotas, in CPUs, that hold for this process: each cgroup from its own up to the root may set one."""
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            roots = [cgroups, cgroups / "unified"]  # v2, alone or beside v1
        elif "cpu" in controllers.split(","):
            roots = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        # In a container the path may be the host's, which is not mounted here; its own cgroup is then the root.
        below = [part for part in path.split("/") if part not in ("", ".", "..")]
        for root in roots:
            for depth in range(len(below), -1, -1):
                yield from _quota(root.joinpath(*below[:depth]))


def _quota(cgroup: Path) -> Iterator[float]:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(cgroup / "cpu.cfs_quota_us"), _read(cgroup / "cpu.cfs_period_us")
    try:
        if int(quota) > 0 and int(period) > 0:  # "max" and -1 mean no quota
            yield int(quota) / int(period)
    except ValueError:
        return


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
