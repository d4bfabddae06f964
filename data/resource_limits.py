"""What this process may use of its machine: CPU cores and memory, which in a container are fewer than the machine has.

Python, PyTorch and psutil count what the machine has, and Ray looks at the outermost control group alone. Here every
group counts, from the process's own to the outermost that can be seen, of cgroup v1 and v2. This file is part of the
served model as well: at its top it imports nothing but the standard library.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: how many this process may use at most, and how many of them nobody uses now."""

    total: int
    free: int


def cores(system: Path = SYSTEM) -> int:
    """The CPU cores that this process may use at once, at least 1.

    These are the cores that it may run on, or as many as its share of CPU time fills, whichever are fewer; a part of a
    core counts as one. `system` is the folder that holds /proc and /sys.
    """
    return max(1, min([_may_run_on(), *(math.ceil(quota) for quota in _quotas(system))]))


def memory(system: Path = SYSTEM) -> Memory:
    """The memory that this process may use, and what is free of it; page cache counts as free, as it can be dropped."""
    import psutil  # the served model has no use for it

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in _groups("memory", system):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _read(group / name)
            if limit.isdigit():
                total = min(total, int(limit))
                free = min(free, int(limit) - _taken(group))
    return Memory(total, max(0, free))


def limit_threads() -> None:
    """Let libraries that would start a thread for each core of the machine start no more than `cores()`.

    To be called before NumPy and PyTorch are imported; processes that are started from here inherit it. What the user
    has set stays.
    """
    if cores() < _may_run_on():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def _may_run_on() -> int:
    """A cpuset of a control group is in the affinity already, the kernel sees to that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(system: Path) -> Iterator[float]:
    """How many cores the CPU time that each control group allows would keep busy."""
    for group in _groups("cpu", system):
        # Of version 2 the one file, of version 1 the other two; "max" and -1 mean no limit.
        first, second = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        quota, _, period = (_read(group / "cpu.max") or f"{first} {second}").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _taken(group: Path) -> int:
    """Bytes of memory that a control group uses and could not give back by dropping pages of files."""
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    words = [line.split() for line in _read(group / "memory.stat").splitlines()]
    # Version 1 names what the groups inside use as well by a prefix, behind what it uses itself.
    stat = {name.removeprefix("total_"): int(amount) for name, amount in words}
    dropped = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    return max(0, int(used or 0) - dropped)


def _groups(controller: str, system: Path) -> Iterator[Path]:
    """The folders of this process's control groups that a controller has, its own first, then those around it."""
    mounts = [line.split(" - ") for line in _read(system / "proc/self/mountinfo").splitlines()]
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount, (kind, _, options) in ((left.split(), right.split(None, 2)) for left, right in mounts):
            if kind != ("cgroup" if controllers else "cgroup2"):
                continue
            if controllers and controller not in options.split(","):
                continue
            root, top = PurePosixPath(mount[3]), system / mount[4].lstrip("/")
            inside = PurePosixPath(own)
            # In a container the mount may begin further down than the path, or at a place that the path leaves.
            inside = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
            folder = top / inside
            yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(top)))


def _read(file: Path) -> str:
    """What a file of the kernel says; nothing where there is no such file, or where it may not be read."""
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
