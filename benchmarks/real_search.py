"""`auto` against random search with asynchronous successive halving on real trainings, at the same wall-clock.

    python benchmarks/real_search.py SPEC --set data.source=FOLDER --seeds 5 --trials 30 --runs FILE

Of each seed, `auto` runs its trials first, in this process and without recording; then random + ASHA gets exactly
as many seconds. Data and banks are prepared before, and cost neither anything. Nothing else should run meanwhile.
A seed that FILE holds already is not run again.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# A script's own folder comes first on the path, where `search.py` would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from binsweep.models.trial_data import TrialData  # noqa: E402
from binsweep.search.execution.controller import Controller  # noqa: E402
from binsweep.search.execution.local_runner import run_local  # noqa: E402
from binsweep.search.execution.photo_trial import PhotoTrainer  # noqa: E402
from binsweep.search.execution.resources import TrialResources  # noqa: E402
from binsweep.search.spec.parser import load_spec  # noqa: E402
from binsweep.search.spec.sweep_spec import SweepSpec  # noqa: E402
from binsweep.search.strategy.factory import open_strategy  # noqa: E402
from binsweep.search.workflows.preflight import check_before_start  # noqa: E402
from binsweep.search.workflows.prepare import prepare  # noqa: E402
from binsweep.search.workflows.strategy_options import strategy_options  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds that are missing and print the table of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--home", type=Path, default=Path(".binsweep"), help="whose banks are used")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--runs", type=Path, required=True, help="JSON lines, one a sweep")
    options = parser.parse_args(arguments)
    rows = (
        [json.loads(line) for line in options.runs.read_text().splitlines()] if options.runs.exists() else []
    )
    missing = sorted(set(range(options.seeds)) - {row["seed"] for row in rows})
    data: TrialData | None = None
    for seed in missing:
        given = [*options.assignments, f"search.seed={seed}"]
        auto = _arm(options.spec, given, "auto", "auto", trials=options.trials)
        if data is None:
            check_before_start(auto)
            data = prepare(auto, options.home).data
        first = {"seed": seed, "arm": "auto", **_run(auto, data)}
        rival = _arm(options.spec, given, "random", "asha", minutes=first["seconds"] / 60)
        found = [first, {"seed": seed, "arm": "random + asha", **_run(rival, data)}]
        rows += found
        with options.runs.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    _print(rows)


def _arm(
    spec: Path,
    given: list[str],
    sampler: str,
    stopping: str,
    trials: int | None = None,
    minutes: float | None = None,
) -> SweepSpec:
    """The spec with this strategy, and the number of trials or the time of this arm in place of its own."""
    search = [f"search.sampler={sampler}", f"search.stopping={stopping}"]
    limits = [
        f"budget.{name}={json.dumps(limit)}" for name, limit in (("trials", trials), ("minutes", minutes))
    ]
    return load_spec(spec, [*given, *search, *limits])


def _run(spec: SweepSpec, data: TrialData) -> dict[str, Any]:
    """One sweep's best value, how long it took, and what it did."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        strategy = open_strategy(folder / "study.db", "s", strategy_options(spec))
        controller = Controller(
            spec, strategy, folder, lambda settings: TrialResources({"CPU": float(torch.get_num_threads())})
        )
        began = time.monotonic()
        run_local(controller, PhotoTrainer(data))
        seconds = time.monotonic() - began
        controller.close()
        best = controller.leaderboard()[0]
        return {
            "best": best.value,
            "seconds": seconds,
            "trials": len(controller.trials),
            "epochs": controller.epochs,
            "params": best.params,
            "ended_by": controller.ended_by,
        }


def _print(rows: list[dict[str, Any]]) -> None:
    print("| arm | sweeps | mean best | standard deviation | each | seconds | trials | epochs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        best = [row["best"] for row in mine]
        spread = statistics.stdev(best) if len(best) > 1 else 0.0
        each = ", ".join(f"{value:.4f}" for value in best)
        means = [statistics.fmean(row[key] for row in mine) for key in ("seconds", "trials", "epochs")]
        cells = " | ".join(f"{mean:.0f}" for mean in means)
        print(f"| {arm} | {len(best)} | {statistics.fmean(best):.4f} | {spread:.4f} | {each} | {cells} |")


if __name__ == "__main__":
    main()
