"""The CPU cores and the memory that this process may use, which in a container are less than the machine's.

Python, PyTorch and psutil report the machine's resources, and Ray reads the outermost control group only. Here all
control groups count, from the process's own to the outermost visible one, of cgroup v1 and v2. The source of this file
is part of the served model: at its top it imports only the standard library.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SYSTEM_ROOT = Path("/")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: the most that this process may use, and how much of it is free."""

    total: int
    free: int


def cores(system: Path = SYSTEM_ROOT) -> int:
    """The CPU cores that this process may use at once, at least 1.

    The smaller of its CPU affinity and its CPU quota; a part of a core counts as one. `system` is the folder that
    contains /proc and /sys.
    """
    return max(1, min([_affinity_cores(), *(math.ceil(quota) for quota in _cpu_quotas(system))]))


def memory(system: Path = SYSTEM_ROOT) -> Memory:
    """The memory that this process may use, and its free part, which includes the page cache."""
    import psutil  # the served model does not need it

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in _cgroups("memory", system):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _read_kernel_file(group / name)
            if limit.isdigit():
                total = min(total, int(limit))
                free = min(free, int(limit) - _used_memory(group))
    return Memory(total, max(0, free))


def limit_threads() -> None:
    """Limit libraries that start a thread for each core of the machine to `cores()` threads.

    To be called before NumPy and PyTorch are imported; subprocesses inherit the limit. The user's setting has
    priority.
    """
    if cores() < _affinity_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def _affinity_cores() -> int:
    """The cores of the CPU affinity, which includes the cpusets of control groups."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quotas(system: Path) -> Iterator[float]:
    """The CPU quota of each control group, in cores."""
    for group in _cgroups("cpu", system):
        # cgroup v2 has cpu.max, v1 the other two files; "max" and -1 mean no limit.
        first, second = (
            _read_kernel_file(group / "cpu.cfs_quota_us"),
            _read_kernel_file(group / "cpu.cfs_period_us"),
        )
        quota, _, period = (_read_kernel_file(group / "cpu.max") or f"{first} {second}").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _used_memory(group: Path) -> int:
    """Bytes of memory that a control group uses, without its droppable page cache."""
    used = _read_kernel_file(group / "memory.current") or _read_kernel_file(group / "memory.usage_in_bytes")
    words = [line.split() for line in _read_kernel_file(group / "memory.stat").splitlines()]
    # In version 1, the values with the prefix include the inner groups and come after the group's own.
    stat = {name.removeprefix("total_"): int(amount) for name, amount in words}
    page_cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    return max(0, int(used or 0) - page_cache)


def _cgroups(controller: str, system: Path) -> Iterator[Path]:
    """The folders of this process's control groups of a controller, from the innermost outwards."""
    mounts = [line.split(" - ") for line in _read_kernel_file(system / "proc/self/mountinfo").splitlines()]
    for line in _read_kernel_file(system / "proc/self/cgroup").splitlines():
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
            # In a container the mount may start below the path, or at a folder outside of it.
            inside = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
            folder = top / inside
            yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(top)))


def _read_kernel_file(file: Path) -> str:
    """The content of a file of the kernel; empty if it does not exist or cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
