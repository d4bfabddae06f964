"""A command in a control group with limits, as a container's engine makes them; needs root."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PERIOD = 100_000


@contextlib.contextmanager
def limited(cpus: float, memory: int) -> Iterator[list[str]]:
    """What to set before a command so that it runs with so much CPU time and so many bytes, two groups down."""
    top, name = Path("/sys/fs/cgroup"), f"binsweep-test-{os.getpid()}"
    quota = str(int(cpus * PERIOD))
    if (top / "cgroup.controllers").exists():
        outer = {top / name: {"cpu.max": f"{quota} {PERIOD}", "memory.max": str(memory)}}
    else:
        times = {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": quota}
        outer = {
            top / "cpu" / name: times,
            top / "memory" / name: {"memory.limit_in_bytes": str(memory)},
        }
    inner = [group / "inner" for group in outer]
    made: list[Path] = []
    try:
        try:
            for group, files in outer.items():
                for folder in (group, group / "inner"):
                    folder.mkdir()
                    made.append(folder)
                for file, text in files.items():
                    (group / file).write_text(text)
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield ["sh", "-c", f'for g in {_words(inner)}; do echo $$ > "$g"/cgroup.procs; done; exec "$@"', "sh"]
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _words(paths: Sequence[Path]) -> str:
    return " ".join(f"'{path}'" for path in paths)
