"""How long the quick start takes, and how much memory it needs at its peak.

    python benchmarks/quickstart.py [SPEC]

Runs `binsweep sweep SPEC --promote` in an empty home and adds up the memory of all its processes every half
second: PSS (each shared page counted once) where the system tells it, else USS.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PERIOD = 0.5
GIB = 2**30


def memory(processes: list[psutil.Process]) -> float:
    """Bytes held by `processes`, those that ended meanwhile left out."""
    total = 0.0
    for process in processes:
        try:
            info = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(info, "pss", info.uss)
    return total


def main() -> int:
    spec = sys.argv[1] if len(sys.argv) > 1 else "sweeps/quickstart.yaml"
    with tempfile.TemporaryDirectory() as home:
        start, peak = time.monotonic(), 0.0
        process = subprocess.Popen(
            [Path(sys.executable).with_name("binsweep"), "sweep", spec, "--promote"],
            env={**os.environ, "BINSWEEP_HOME": home},
        )
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, memory([tree, *tree.children(recursive=True)]))
            except psutil.NoSuchProcess:
                break
            time.sleep(PERIOD)
        code = process.wait()
    print(f"\n{spec}: exit {code}, {time.monotonic() - start:.0f} s, at most {peak / GIB:.2f} GiB")
    return code


if __name__ == "__main__":
    sys.exit(main())
