"""The limits of a container count, in every form that its engine sets them."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.limited import limited

from binsweep.data.resource_limits import cores, memory

MIB = 2**20
V2 = "31 24 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory"
)
LIMITS_V1 = {
    "cpu,cpuacct/{place}/cpu.cfs_quota_us": "150000",
    "cpu,cpuacct/{place}/cpu.cfs_period_us": "100000",
    "memory/{place}/memory.limit_in_bytes": str(512 * MIB),
    "memory/{place}/memory.usage_in_bytes": str(300 * MIB),
    "memory/{place}/memory.stat": f"inactive_file 1\ntotal_inactive_file {60 * MIB}\ntotal_active_file {40 * MIB}",
}
LIMITS_V2 = {
    "{place}/cpu.max": "150000 100000",
    "{place}/memory.max": str(512 * MIB),
    "{place}/memory.current": str(300 * MIB),
    "{place}/memory.stat": f"anon 5\ninactive_file {60 * MIB}\nactive_file {40 * MIB}",
}
NOTHING_V2 = {"{place}/cpu.max": "max 100000", "{place}/memory.max": "max", "{place}/memory.high": "max"}
NOTHING_V1 = {
    "cpu,cpuacct/{place}/cpu.cfs_quota_us": "-1",
    "cpu,cpuacct/{place}/cpu.cfs_period_us": "100000",
    "memory/{place}/memory.limit_in_bytes": "9223372036854771712",
}


def tree(system: Path, mounts: str, groups: str, *files: tuple[dict[str, str], str]) -> Path:
    """The control group files of a machine's /proc and /sys, with the limits of each group."""
    (system / "proc/self").mkdir(parents=True)
    (system / "proc/self/mountinfo").write_text(f"23 1 254:0 / / rw - ext4 /dev/vda rw\n{mounts}\n")
    (system / "proc/self/cgroup").write_text(groups)
    for limits, place in files:
        for name, text in limits.items():
            file = system / "sys/fs/cgroup" / name.format(place=place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
    return system


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)


ONE_AND_A_HALF = {
    "version 2, in a container": (V2, "0::/\n", (LIMITS_V2, ".")),
    "version 2, on the host": (V2, "0::/system.slice/a.service\n", (LIMITS_V2, "system.slice/a.service")),
    "version 2, the group around": (V2, "0::/job/step/task\n", (LIMITS_V2, "job"), (NOTHING_V2, "job/step")),
    "version 1, in a container": (V1.format(root="/"), "4:cpuacct,cpu:/\n3:memory:/\n", (LIMITS_V1, ".")),
    "version 1, seen from the host": (
        V1.format(root="/docker/4b1d"),
        "4:cpuacct,cpu:/docker/4b1d\n3:memory:/docker/4b1d\n2:cpuset:/\n1:name=systemd:/docker/4b1d\n",
        (LIMITS_V1, "."),
    ),
    "version 1, the group around": (
        V1.format(root="/"),
        "4:cpu,cpuacct:/kubepods/pod1/c2\n3:memory:/kubepods/pod1/c2\n",
        (LIMITS_V1, "kubepods/pod1"),
        (NOTHING_V1, "kubepods/pod1/c2"),
    ),
    "both versions": (
        V1.format(root="/") + "\n" + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        "4:cpu,cpuacct:/a\n3:memory:/a\n0::/user.slice\n",
        (LIMITS_V1, "a"),
    ),
    "a path that leads out of the container": (V2, "0::/../other\n", (LIMITS_V2, ".")),
}


@pytest.mark.parametrize("case", ONE_AND_A_HALF)
def test_quota_and_memory_of_every_kind_of_group_count(case: str, tmp_path: Path) -> None:
    mounts, groups, *files = ONE_AND_A_HALF[case]
    system = tree(tmp_path, mounts, groups, *files)
    assert cores(system) == 2, "a part of a core counts as one"
    have = memory(system)
    assert have.total == 512 * MIB
    assert have.free == 312 * MIB, "what the group uses is gone, but for its page cache"


@pytest.mark.parametrize(
    ("mounts", "groups", "files"),
    [
        (V2, "0::/a\n", [(NOTHING_V2, "a")]),
        (V1.format(root="/"), "4:cpu,cpuacct:/a\n3:memory:/a\n", [(NOTHING_V1, "a")]),
        (V2, "0::/\n", []),
        ("", "", []),
    ],
)
def test_without_a_limit_the_machine_counts(
    mounts: str, groups: str, files: list[tuple[dict[str, str], str]], tmp_path: Path
) -> None:
    import psutil

    system = tree(tmp_path, mounts, groups, *files)
    assert cores(system) == 8 and memory(system).total == psutil.virtual_memory().total
    assert cores(tmp_path / "no such place") == 8


def test_the_smallest_limit_of_all_groups_counts_and_a_tenth_of_a_core_is_one(tmp_path: Path) -> None:
    small = {"{place}/cpu.max": "10000 100000", "{place}/memory.high": str(100 * MIB)}
    system = tree(tmp_path, V2, "0::/a/b\n", (LIMITS_V2, "a/b"), (small, "a"))
    assert cores(system) == 1 and memory(system).total == 100 * MIB
    more = tree(tmp_path / "more", V2, "0::/a\n", ({"{place}/cpu.max": "6400000 100000"}, "a"))
    assert cores(more) == 8, "a quota gives no core that this process may not run on"


SAY = """
from binsweep.data.resource_limits import cores, limit_threads, memory
limit_threads()
import torch
print(cores(), torch.get_num_threads(), memory().total, 0 < memory().free < memory().total)
"""


@pytest.mark.integration
def test_a_real_control_group_is_seen_by_us_and_by_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with limited(0.5, 1024 * MIB) as within:
        done = subprocess.run(
            [*within, sys.executable, "-c", SAY], capture_output=True, text=True, timeout=120
        )
    assert done.stdout.split() == ["1", "1", str(1024 * MIB), "True"], done.stderr
