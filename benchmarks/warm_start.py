"""What a search gains by earlier sweeps on other data, and what misleading ones cost it, on simulated sweeps.

    python benchmarks/warm_start.py --surrogate DIR --instances FILE --seeds 2 --runs FILE

Earlier sweeps are searches by `auto` of `--trainings` trainings. With a surrogate they are of `--sweeps` other
instances; without, of synthetic tasks whose optimum lies a little elsewhere. Variants of `auto`:

- none: without earlier sweeps
- points: their best configurations are tried first, and nothing else is taken
- prior: what `--warm-start` does for sweeps on other data
- reversed: the same, and every earlier value has the wrong sign

Mean normalised regret as in benchmarks/search.py. With `--runs FILE` an interrupted call goes on.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

# A script's own folder comes first on the path, where its files would hide packages of the same names.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.search import _reference, print_table  # noqa: E402

from binsweep.search.spec.objective import Objective  # noqa: E402
from binsweep.search.strategy.earlier_sweeps import (  # noqa: E402
    EarlierSweep,
    EarlierTrial,
    FirstGuesses,
    InitialPoint,
    best_configurations,
)
from binsweep.search.strategy.encoding import Encoder  # noqa: E402
from binsweep.search.strategy.factory import StrategyOptions, open_strategy  # noqa: E402
from binsweep.search.strategy.optuna_strategy import OptunaStrategy  # noqa: E402
from binsweep.search.strategy.simulator import SyntheticTask, Task, simulate  # noqa: E402
from binsweep.search.workflows.warm_start import MAX_POINTS  # noqa: E402

VARIANTS = ("none", "points", "prior", "reversed")
EARLIER_SEED = 1000  # of the earlier sweeps
SHIFT = 0.07  # standard deviation of the steps to a related synthetic task, relative to a range


class Moved:
    """A task whose optimum lies elsewhere than another's, by a random step in each range."""

    def __init__(self, task: Task, seed: int) -> None:
        self.space, self.max_epochs, self.goal, self._task = task.space, task.max_epochs, task.goal, task
        self._encoder = Encoder(task.space)
        ranges = self._encoder.continuous_mask(np.zeros((1, len(task.space))))[0][0]
        self._step = np.random.default_rng(seed).normal(0, SHIFT, int(ranges.sum()))

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        point = self._encoder.point(params)[None]
        is_continuous = np.array([not len(listed) for listed in self._encoder._listed])
        place = np.clip(point[:, is_continuous] + self._step, 0, 1)
        return self._task.curve(self._encoder.params(self._encoder.with_continuous(point, place)[0]))


class Reversed:
    """A task by whose values the worst configuration of another one is the best."""

    def __init__(self, task: Task) -> None:
        self.space, self.max_epochs, self.goal, self._task = task.space, task.max_epochs, task.goal, task

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        values, seconds = self._task.curve(params)
        return [-value for value in values], seconds


def opened(task: Task, seed: int) -> OptunaStrategy:
    return open_strategy(None, "s", StrategyOptions(task.space, task.goal, task.max_epochs, seed=seed))


def earlier_sweep(name: str, task: Task, trainings: int) -> EarlierSweep:
    """A sweep of a task, as a later one reads it."""
    strategy, sign = opened(task, EARLIER_SEED), Objective(task.goal).sign
    simulate(strategy, task, workers=1, epochs=trainings * task.max_epochs)
    trials = [
        EarlierTrial(r.params, [task.max_epochs], {epoch: sign * value for epoch, value in r.values.items()})
        for r in strategy.trials()
        if r.values
    ]
    return EarlierSweep(name, [task.max_epochs], sorted(trials, key=lambda trial: -trial.best)).thinned()


class Families:
    """The tasks, and the earlier sweeps of each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        listed = options.instances.read_text().split() if options.instances else []
        self._surrogate = None
        if options.surrogate is not None:
            from benchmarks.surrogate import Columns, Surrogate  # onnxruntime is optional

            columns = Columns("val_accuracy", "maximize", "time", "epoch", "OpenML_task_id")
            self._surrogate = Surrogate(options.surrogate, columns)
            listed = listed or self._surrogate.instances
        self.names = listed or [str(seed) for seed in range(8)]
        self.tasks = {name: self._task(name) for name in self.names}
        self._sweeps: dict[tuple[str, bool], EarlierSweep] = {}

    def _task(self, name: str) -> Task:
        if self._surrogate is None:
            return SyntheticTask(int(name))
        from benchmarks.surrogate import SurrogateTask

        return SurrogateTask(self._surrogate, name)

    def earlier(self, name: str, seed: int, is_reversed: bool) -> list[EarlierSweep]:
        """The earlier sweeps of a task; each is computed once."""
        others = [other for other in self.names if other != name]
        chosen = np.random.default_rng([seed, self.names.index(name)]).permutation(len(others))
        sources = [others[i] for i in chosen[: self._options.sweeps]] if self._surrogate else [f"near {name}"]
        for source in sources:
            if (source, is_reversed) not in self._sweeps:
                task = self.tasks.get(source) or Moved(self.tasks[name], int(name) + EARLIER_SEED)
                task = Reversed(task) if is_reversed else task
                self._sweeps[source, is_reversed] = earlier_sweep(source, task, self._options.trainings)
        return [self._sweeps[source, is_reversed] for source in sources]

    def guesses(self, name: str, seed: int, variant: str) -> FirstGuesses:
        """What the variant lets a search of this task know."""
        if variant == "none":
            return FirstGuesses()
        sweeps = self.earlier(name, seed, variant == "reversed")
        best = best_configurations(sweeps, Encoder(self.tasks[name].space), MAX_POINTS)
        points = [InitialPoint(params, sweep) for sweep, params in best]
        return FirstGuesses(points, earlier=() if variant == "points" else sweeps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison; the table goes to stdout, progress to stderr."""
    options = _parser().parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    families, variants = Families(options), options.variants.split(",")
    budgets = [float(budget) for budget in options.budgets.split(",")]
    lines = options.runs.read_text().splitlines() if options.runs and options.runs.exists() else []
    stored = {tuple(key): best for key, best in map(json.loads, lines)}
    for seed, name, variant in itertools.product(range(options.seeds), families.names, variants):
        if (variant, name, seed) in stored:
            continue
        task, strategy = families.tasks[name], opened(families.tasks[name], seed)
        strategy.warm_start(families.guesses(name, seed, variant))
        steps = simulate(strategy, task, workers=1, epochs=math.ceil(max(budgets) * task.max_epochs))
        stored[variant, name, seed] = [steps[math.ceil(b * task.max_epochs) - 1].best for b in budgets]
        if options.runs:
            with options.runs.open("a") as file:
                file.write(json.dumps([[variant, name, seed], stored[variant, name, seed]]) + "\n")
        print(f"seed {seed}, {name}: {variant}", file=sys.stderr, flush=True)
    print_table(_rows(families, stored, budgets), variants, [1], budgets)


def _rows(
    families: Families, stored: Mapping[Any, list[float]], budgets: list[float]
) -> list[dict[str, Any]]:
    rows = []
    for name, task in families.tasks.items():
        sign = Objective(task.goal).sign
        reference = sign * _reference(task)[0]
        runs = {key: sign * np.array(best) for key, best in stored.items() if key[1] == name}
        if not runs:
            continue
        best = max(reference.max(), *(values.max() for values in runs.values()))
        scale = max(best - float(np.median(reference)), 1e-12)
        for (variant, _, seed), values in runs.items():
            case = {"strategy": variant, "workers": 1, "instance": name, "seed": seed}
            rows += [
                {**case, "budget": b, "regret": (best - value) / scale}
                for b, value in zip(budgets, values, strict=True)
            ]
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surrogate", type=Path, help="directory of the surrogate; none: synthetic curves")
    parser.add_argument("--instances", type=Path, help="file with one instance a line; none: all")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--sweeps", type=int, default=2, help="earlier sweeps, with a surrogate")
    parser.add_argument("--trainings", type=int, default=15, help="of an earlier sweep")
    parser.add_argument("--seeds", type=int, default=3, help="how many repetitions")
    parser.add_argument("--budgets", default="1,2,3,5,10,20", help="in full trainings")
    parser.add_argument("--runs", type=Path, help="file that runs are kept in, and found by a later call")
    return parser


if __name__ == "__main__":
    main()
