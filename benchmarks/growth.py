"""How a sweep's cost grows with its trials and its bins, and what one more trial at once takes in memory.

    python benchmarks/growth.py [--bins 500,5000,50000] [--trials 10,100,1000] [--json OUT]

Head-only trials of one epoch on rendered bins of 64 x 64 pixels, by the product's own `prepare` and `run_sweep`,
with Ray and a real MLflow server: first each number of bins with the fewest trials, then each number of trials with
the fewest bins. Rendering is not counted, everything else is. "Outside training" is the time between the first
trial's start and the last one's end, for each trial, less its share of the epochs' own seconds. Memory is what a
process has for itself: resident, less what it shares, above all the mapped banks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import psutil

from binsweep.data.resource_limits import cores
from binsweep.data.synthetic.dataset import render_source
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.preflight import check_before_start
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.sweep import run_sweep
from binsweep.tracking.mlflow_server.embedded import tracking_server

SIZE = 64
COLUMNS = ("bins", "trials", "prepare_seconds", "sweep_seconds", "outside_training", "trial_mb", "driver_mb")


class Memory(threading.Thread):
    """The most that each worker of a trial, and this process, had for itself; in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.workers: dict[int, int] = {}
        self.driver = 0
        self._over = threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.5):
            self.driver = max(self.driver, self._private(own))
            for child in own.children(recursive=True):
                try:
                    if (child.cmdline() or [""])[0].startswith("ray::ImplicitFunc"):
                        self.workers[child.pid] = max(self.workers.get(child.pid, 0), self._private(child))
                except psutil.NoSuchProcess:
                    continue

    @staticmethod
    def _private(process: psutil.Process) -> int:
        info = process.memory_info()
        return int(info.rss - info.shared)

    def close(self) -> None:
        self._over.set()
        self.join()


def measure(bins: int, trials: int, home: Path, uri: str) -> dict[str, Any]:
    """One row of the table."""
    source = f"synthetic://?images={bins}&size={SIZE}&classes=0-5"
    render_source(source, home)
    spec = parse_spec(
        {
            "name": f"growth-{bins}-{trials}",
            "data": {"source": source, "image_size": SIZE},
            "model": {"batch_size": 128, "epochs": 1},
            "space": {"lr": {"low": 3e-4, "high": 3e-3, "log": True}},
            "search": {"sampler": "random", "stopping": "none"},
            "budget": {"trials": trials},
            "resources": {"cpus_per_trial": 1},
        }
    )
    check_before_start(spec)
    start = time.perf_counter()
    prepared = prepare(spec, home)
    ready = time.perf_counter()
    memory = Memory()
    memory.start()
    result = run_sweep(prepared, "ray", uri)
    done = time.perf_counter()
    memory.close()
    if result.failed or result.unsent or len(result.leaderboard) != trials:
        raise RuntimeError(f"{len(result.failed)} trials failed, {result.unsent} records were not sent")
    board = result.leaderboard
    wall = max(trial.ended or 0.0 for trial in board) - min(trial.started for trial in board)
    training = sum(trial.metrics["seconds"] for trial in board) / cores()
    return {
        "bins": bins,
        "trials": trials,
        "prepare_seconds": ready - start,
        "sweep_seconds": done - ready,
        "outside_training": (wall - training) / trials,
        "trial_mb": max(memory.workers.values()) / 2**20,
        "driver_mb": memory.driver / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("bins", "500,5000,50000"), ("trials", "10,100,1000")):
        parser.add_argument(f"--{name}", default=default, type=lambda text: sorted(map(int, text.split(","))))
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name, tracking_server(Path(name) / "server") as uri:
        sizes = [(bins, chosen.trials[0]) for bins in chosen.bins]
        for bins, trials in [*sizes, *((chosen.bins[0], trials) for trials in chosen.trials[1:])]:
            rows.append(measure(bins, trials, Path(name) / "home", uri))
    print(" | ".join(COLUMNS))
    for row in rows:
        print(" | ".join(f"{row[key]:,.2f}" if "outside" in key else f"{row[key]:,.0f}" for key in COLUMNS))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
