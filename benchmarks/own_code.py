"""What a sweep of own code costs: a report, against calling the function in a loop, and the time between trials.

    python benchmarks/own_code.py [--reports N] [--trials N] [--json OUT]

A report: one trial of N epochs that compute nothing, with and without a checkpoint of 100 KB, in a loop, by the local
runner and on Ray, in turn. The code notes the clock at each report, so that no start counts. Trials: N of them, which
sleep 1 s each, two at a time on Ray, against the ideal of N / 2 seconds; the time from the first start to the last end,
and that of the whole command. A real MLflow server runs before any clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from binsweep.search.execution.code_trial import read_code_history
from binsweep.search.spec.parser import load_spec
from binsweep.search.workflows.preflight import Runner, check_before_start
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.sweep import SweepResult, run_sweep
from binsweep.tracking.mlflow_server.embedded import tracking_server

REPORTS = """
import time

def train(trial):
    content = b"x" * 100_000
    save = (lambda folder: (folder / "state").write_bytes(content)) if trial.params["save"] else None
    for epoch in trial.epochs():
        trial.report({"val_score": epoch, "clock": time.perf_counter()}, save=save)
"""
SLEEPS = """
import time

def train(trial):
    time.sleep(1.0)
    return trial.params["x"]
"""


class LoopTrial:
    """The trial of a plain loop: it keeps what is reported, and its checkpoint."""

    def __init__(self, epochs: int, save: bool, folder: Path) -> None:
        self.params, self._epochs, self._folder = {"save": save}, epochs, folder
        self.clocks: list[float] = []

    def epochs(self) -> range:
        return range(1, self._epochs + 1)

    def report(self, metrics: dict[str, float], save: Any = None) -> bool:
        self.clocks.append(metrics["clock"])
        if save is not None:
            save(self._folder)
        return True


def sweep(folder: Path, uri: str, runner: Runner, code: str, **sections: Any) -> tuple[SweepResult, float]:
    """Run a sweep of this code; returns its result and the seconds that it took, with Ray's start."""
    (folder / "train.py").write_text(code)
    raw = {"name": "own-code", "trainer": "train.py:train", "search": {"stopping": "none"}, **sections}
    raw["objective"] = {"metric": "val_score", "goal": "maximize"}
    (folder / "sweep.yaml").write_text(json.dumps(raw))  # JSON is YAML
    spec = load_spec(folder / "sweep.yaml")
    check_before_start(spec, runner=runner)
    begun = time.perf_counter()
    result = run_sweep(prepare(spec, folder / "home"), runner, uri)
    return result, time.perf_counter() - begun


def report_milliseconds(clocks: list[float]) -> float:
    """The median of the time between two reports, in milliseconds."""
    return 1000 * statistics.median(later - earlier for earlier, later in itertools.pairwise(clocks))


def in_loop(folder: Path, save: bool, reports: int) -> float:
    namespace: dict[str, Any] = {}
    exec(REPORTS, namespace)
    trial = LoopTrial(reports, save, folder)
    namespace["train"](trial)
    return report_milliseconds(trial.clocks)


def in_sweep(folder: Path, uri: str, runner: Runner, save: bool, reports: int) -> float:
    sections: dict[str, Any] = {"space": {"save": [save]}, "fidelity": {"epochs": reports}}
    result, _ = sweep(folder, uri, runner, REPORTS, **sections, budget={"trials": 1})
    history = read_code_history(result.folder / "trial-0000")
    return report_milliseconds([metrics["clock"] for metrics in history])


def many_trials(folder: Path, uri: str, trials: int) -> tuple[float, float]:
    """Seconds of so many trials of 1 s, two at a time: from the first start to the last end, and of the whole sweep."""
    sections: dict[str, Any] = {"space": {"x": {"low": 0.0, "high": 1.0}}, "budget": {"trials": trials}}
    result, whole = sweep(folder, uri, "ray", SLEEPS, **sections, resources={"max_concurrent_trials": 2})
    records = [json.loads(file.read_text()) for file in result.folder.glob("trial-*/record.json")]
    assert len(records) == trials
    return max(r["ended"] for r in records) - min(r["started"] for r in records), whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=int, default=300)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="own-code-") as temporary:
        folder = Path(temporary)
        with tracking_server(folder / "home") as uri:
            for save in (False, True):
                with_save = ", with a checkpoint" if save else ""
                loop = in_loop(folder, save, chosen.reports)
                for runner in ("local", "ray"):
                    sweeps = in_sweep(folder, uri, runner, save, chosen.reports)  # type: ignore[arg-type]
                    found[f"{runner}{with_save}"] = sweeps - loop
                    print(
                        f"a report{with_save}: {loop:.2f} ms in a loop, {sweeps:.2f} ms in a sweep ({runner}), "
                        f"{sweeps - loop:.2f} ms more"
                    )
            if chosen.trials:
                seconds, whole = many_trials(folder, uri, chosen.trials)
                ideal = chosen.trials / 2
                found["trials"] = seconds / ideal
                print(
                    f"{chosen.trials} trials of 1 s, two at a time: {seconds:.1f} s from the first start to the last "
                    f"end, {seconds / ideal:.2f} times the ideal; {whole:.1f} s with the start and end of the sweep"
                )
    if chosen.json:
        chosen.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
