"""Judge search strategies on simulated sweeps: mean normalised regret with intervals, and mean ranks.

    python benchmarks/search.py --surrogate DIR --instances FILE --strategies random,tpe --seeds 20

Normalised regret of an incumbent v: (best - v) / (best - median), where best is the best value that any
compared method found on that instance (or one of 3,000 random configurations did) and median is those
configurations' median, each at its best epoch. A budget of 1 is one full training's epochs. Without
--surrogate, the built-in synthetic curves are used and instances are their seeds.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

# A script's own folder comes first on the path, where this file would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.baselines import STRATEGIES  # noqa: E402
from search.simulator import Step, SyntheticTask, Task, simulate  # noqa: E402
from search.space import to_distribution  # noqa: E402

RANDOM_CONFIGURATIONS = 3_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison that the arguments ask for; the table goes to stdout, progress to stderr."""
    options = _parser().parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    budgets = [float(budget) for budget in options.budgets.split(",")]
    names, workers = options.strategies.split(","), [int(w) for w in options.workers.split(",")]
    rows: list[dict[str, Any]] = []
    traces: list[dict[str, Any]] = []
    for instance, task in _tasks(options):
        runs = {
            (name, w, seed): simulate(
                STRATEGIES[name](task, seed), task, w, math.ceil(max(budgets) * task.max_epochs)
            )
            for name in names
            for w in workers
            for seed in range(options.first_seed, options.first_seed + options.seeds)
        }
        rows += _regrets(instance, task, runs, budgets)
        traces += [_trace(instance, key, steps) for key, steps in runs.items()]
        print(f"{instance}: done", file=sys.stderr, flush=True)
    print_table(rows, names, workers, budgets)
    if options.json:
        options.json.write_text(json.dumps(rows))
        options.json.with_suffix(".traces.json").write_text(json.dumps(traces))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surrogate", type=Path, help="directory of the surrogate; none: synthetic curves")
    parser.add_argument("--instances", type=Path, help="file with one instance a line; none: all")
    parser.add_argument("--strategies", default="random,tpe,random+asha,tpe+asha", help=", ".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=20, help="how many repetitions")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budgets", default="5,10,20,50", help="in full trainings")
    parser.add_argument("--workers", default="1", help="for example 1,8")
    parser.add_argument("--json", type=Path, help="where the results go; traces are written beside it")
    parser.add_argument("--value", default="val_accuracy")
    parser.add_argument("--goal", default="maximize", choices=["maximize", "minimize"])
    parser.add_argument("--cost", default="time")
    parser.add_argument("--fidelity", default="epoch")
    parser.add_argument("--instance-column", default="OpenML_task_id")
    return parser


def _tasks(options: argparse.Namespace) -> list[tuple[str, Task]]:
    listed = options.instances.read_text().split() if options.instances else []
    if options.surrogate is None:
        return [(name, SyntheticTask(int(name))) for name in listed or ["0", "1", "2"]]
    from benchmarks.surrogate import Columns, Surrogate, SurrogateTask  # onnxruntime is optional

    columns = Columns(options.value, options.goal, options.cost, options.fidelity, options.instance_column)
    surrogate = Surrogate(options.surrogate, columns)
    return [(name, SurrogateTask(surrogate, name)) for name in listed or surrogate.instances]


def _regrets(
    instance: str, task: Task, runs: dict[tuple[str, int, int], list[Step]], budgets: list[float]
) -> list[dict[str, Any]]:
    sign = 1.0 if task.goal == "maximize" else -1.0
    reference = sign * _random_best(task)
    best = max(reference.max(), *(sign * steps[-1].best for steps in runs.values()))
    scale = max(best - float(np.median(reference)), 1e-12)  # where all are alike, nothing is to be regretted
    rows = []
    for (name, w, seed), steps in runs.items():
        for budget in budgets:
            spent = min(math.ceil(budget * task.max_epochs), len(steps))
            regret = (best - sign * steps[spent - 1].best) / scale
            row = {"strategy": name, "workers": w, "budget": budget, "instance": instance}
            rows.append({**row, "seed": seed, "regret": regret})
    return rows


def _random_best(task: Task) -> np.ndarray:
    """The best value over epochs of random configurations, the same for every comparison."""
    sampler = optuna.samplers.RandomSampler(seed=20_181_013)
    study = optuna.create_study(sampler=sampler)
    space = {name: to_distribution(dimension) for name, dimension in task.space.items()}
    sign = 1.0 if task.goal == "maximize" else -1.0
    curves = (task.curve(study.ask(space).params)[0] for _ in range(RANDOM_CONFIGURATIONS))
    return np.array([sign * max(sign * value for value in curve) for curve in curves])


def _trace(instance: str, key: tuple[str, int, int], steps: list[Step]) -> dict[str, Any]:
    """The incumbent whenever it changed: [epochs spent, seconds, value, trial]."""
    changes = [
        s for before, s in zip([None, *steps], steps, strict=False) if before is None or s.best != before.best
    ]
    points = [[s.epochs, round(s.seconds, 3), s.best, s.number] for s in changes]
    return {"strategy": key[0], "workers": key[1], "seed": key[2], "instance": instance, "trace": points}


def print_table(
    rows: list[dict[str, Any]], names: list[str], workers: list[int], budgets: list[float]
) -> None:
    """Mean regret with a 95% interval over (instance, seed) pairs, and the mean rank among the strategies."""
    print("| strategy | workers | " + " | ".join(f"{budget:g}" for budget in budgets) + " | mean rank |")
    print("| --- | --- | " + "--- | " * (len(budgets) + 1))
    found = {(r["strategy"], r["workers"], r["budget"], r["instance"], r["seed"]): r["regret"] for r in rows}
    cases = sorted({(r["instance"], r["seed"]) for r in rows})
    for w in workers:
        regrets = np.array([[[found[n, w, b, *case] for case in cases] for b in budgets] for n in names])
        # Ties share their mean rank.
        less = (regrets[None] < regrets[:, None]).sum(axis=1)
        equal = (regrets[None] == regrets[:, None]).sum(axis=1)
        ranks = (less + (equal + 1) / 2).mean(axis=(1, 2))
        for name, of_name, rank in zip(names, regrets, ranks, strict=True):
            half = 1.96 * of_name.std(axis=1, ddof=min(1, len(cases) - 1)) / math.sqrt(len(cases))
            cells = [f"{mean:.3f} ± {h:.3f}" for mean, h in zip(of_name.mean(axis=1), half, strict=True)]
            print(f"| {name} | {w} | " + " | ".join(cells) + f" | {rank:.2f} |")


if __name__ == "__main__":
    main()
