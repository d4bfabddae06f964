"""The time of one suggestion in a study with many finished trials on SQLite, writes included.

    python benchmarks/search_cost.py --studies FOLDER --trials 1000,10000 --samplers random,tpe,auto

Trials of the built-in synthetic family, one at a time. A turn is the strategy's total time from suggesting a trial to
its pause or end: one `suggest`, and one `observe` per epoch, the last of which plans. Medians in milliseconds of
processor time, which other work on the machine hardly changes; for a suggestion also wall-clock time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna

# A script's own folder comes first on the path, where `search.py` would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from binsweep.search.strategy.base import Decision, Outcome  # noqa: E402
from binsweep.search.strategy.encoding import Encoder  # noqa: E402
from binsweep.search.strategy.factory import StrategyOptions, open_strategy  # noqa: E402
from binsweep.search.strategy.simulator import SyntheticTask  # noqa: E402
from binsweep.search.strategy.trial_pool import training_rungs  # noqa: E402

TURNS = 60


def main() -> None:
    """Print one row for each sampler and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", default="1000")
    parser.add_argument("--samplers", default="random,tpe,auto")
    parser.add_argument(
        "--studies", type=Path, required=True, help="folder for the studies, made once and kept"
    )
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        "| sampler | finished trials | opened in s | suggest | 95 % below | observe | turn | suggest, passed |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in map(int, options.trials.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            source = options.studies / f"{count}.db"
            if not source.exists():
                fill(source, count)
            for sampler in options.samplers.split(","):
                copy = Path(temporary) / f"{sampler}.db"
                copy.write_bytes(source.read_bytes())
                print(f"| {sampler} | {count} | {measured(copy, sampler)} |", flush=True)


def fill(path: Path, count: int) -> None:
    """A study of random trials: two thirds ended at the first rung, and two thirds of the rest at each further rung."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".tmp")
    partial_file.unlink(missing_ok=True)
    task, rng = SyntheticTask(0), np.random.default_rng(0)
    encoder, ends = Encoder(task.space), training_rungs([task.max_epochs])
    study = optuna.create_study(storage=f"sqlite:///{partial_file}", study_name="s", direction=task.goal)
    for point in encoder.random(rng, count):
        params = encoder.params(point)
        reached = ends[min(int(rng.geometric(2 / 3)), len(ends)) - 1]
        values = dict(enumerate(task.curve(params)[0][:reached], 1))
        full = reached == task.max_epochs
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if full else optuna.trial.TrialState.PRUNED,
                value=max(values.values()) if full else None,
                params=params,
                distributions=task.space.distributions,
                intermediate_values=values,
                user_attrs={"suggested_because": "filled", "ended_because": "filled"},
            )
        )
    partial_file.replace(path)


def measured(path: Path, sampler: str) -> str:
    """The cells of a row."""
    task = SyntheticTask(0)
    options = StrategyOptions(task.space, task.goal, task.max_epochs, sampler)  # type: ignore[arg-type]
    strategy, opening, _ = timed(lambda: open_strategy(path, "s", options))
    suggests, observes, turns, passed = [], [], [], []
    for _ in range(TURNS):
        suggestion, seconds, all_in_all = timed(strategy.suggest)
        passed.append(all_in_all)
        assert suggestion is not None
        suggests.append(seconds)
        turns.append(seconds)
        values = task.curve(suggestion.params)[0]
        for epoch in range(suggestion.epochs_done + 1, task.max_epochs + 1):
            report = (suggestion.number, epoch, values[epoch - 1])
            verdict, seconds, _ = timed(partial(strategy.observe, *report))
            observes.append(seconds)
            turns[-1] += seconds
            if verdict.decision is Decision.PAUSE:
                break
        else:
            strategy.finish(suggestion.number, Outcome("completed"))
    cells = [statistics.median(suggests), float(np.quantile(suggests, 0.95)), statistics.median(observes)]
    cells += [statistics.median(turns), statistics.median(passed)]
    return f"{opening:.1f} | " + " | ".join(f"{1000 * cell:.1f}" for cell in cells)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a call, its processor time and its wall-clock time, in seconds."""
    began = time.process_time(), time.perf_counter()
    found = call()
    return found, time.process_time() - began[0], time.perf_counter() - began[1]


if __name__ == "__main__":
    main()
