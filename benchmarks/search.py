"""Judge search strategies on simulated sweeps: mean normalised regret with intervals, and mean ranks.

    python benchmarks/search.py --surrogate DIR --instances FILE --strategies random,tpe --seeds 20

Normalised regret of an incumbent v: (best - v) / (best - median), where best is the best value that any
compared method found on that instance (or one of 3,000 random configurations did) and median is those
configurations' median, each at its best epoch. A budget of 1 is one full training's epochs. Without
--surrogate, the built-in synthetic curves are used and instances are their seeds. With `--clock seconds`
a budget of 1 is the mean seconds of the full trainings of those configurations. Workers share a budget: with
eight of them, 50 mean trainings are over after 6.25 of them by the clock.
"""

import argparse
import functools
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

# A script's own folder comes first on the path, where this file would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.baselines import STRATEGIES  # noqa: E402

from binsweep.search.spec.objective import Objective  # noqa: E402
from binsweep.search.strategy.simulator import Step, SyntheticTask, Task, simulate  # noqa: E402

RANDOM_CONFIGURATIONS = 3_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison that the arguments ask for; the table goes to stdout, progress to stderr."""
    options = _parser().parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    budgets = [float(budget) for budget in options.budgets.split(",")]
    names, workers = options.strategies.split(","), [int(w) for w in options.workers.split(",")]
    tasks, stored = _tasks(options), _stored(options.runs)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    # Seed by seed, so that one that is cut short has covered every strategy and instance.
    for seed, (instance, task), name, w in itertools.product(seeds, tasks, names, workers):
        key = (name, w, instance, seed)
        if key in stored:
            continue
        limit: dict[str, Any] = {"epochs": math.ceil(max(budgets) * task.max_epochs)}
        if options.clock == "seconds":
            limit = {"seconds": max(budgets) * _reference(task)[1] / w}
        steps = simulate(STRATEGIES[name](task, seed), task, w, **limit)
        stored[key] = _trace(instance, name, w, seed, steps)
        if options.runs:
            with options.runs.open("a") as file:
                file.write(json.dumps(stored[key]) + "\n")
        print(f"seed {seed}, {instance}: {name} with {w}", file=sys.stderr, flush=True)
    keys = set(itertools.product(names, workers, (instance for instance, _ in tasks), seeds))
    wanted = [trace for key, trace in stored.items() if key in keys]
    rows = [
        row for instance, task in tasks for row in _regrets(instance, task, wanted, budgets, options.clock)
    ]
    print_table(rows, names, workers, budgets)
    if options.top:
        _print_times(options.top, tasks, wanted, names, workers, max(budgets))
    if options.json:
        options.json.write_text(json.dumps(rows))
        options.json.with_suffix(".traces.json").write_text(json.dumps(wanted))


def _stored(runs: Path | None) -> dict[tuple[str, int, str, int], dict[str, Any]]:
    """Traces of earlier calls by strategy, workers, instance and seed."""
    lines = runs.read_text().splitlines() if runs and runs.exists() else []
    traces = [json.loads(line) for line in lines]
    return {(t["strategy"], t["workers"], t["instance"], t["seed"]): t for t in traces}


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
    parser.add_argument("--clock", default="epochs", choices=["epochs", "seconds"], help="of the budgets")
    parser.add_argument("--workers", default="1", help="for example 1,8")
    parser.add_argument(
        "--cost-ratio", type=float, help="of the dearest to the cheapest synthetic configuration, such as 100"
    )
    parser.add_argument(
        "--top", type=float, help="a share, such as 0.05: also the time until one of the best configurations"
    )
    parser.add_argument(
        "--json", type=Path, help="where the results go; traces are written to a file next to it"
    )
    parser.add_argument(
        "--runs", type=Path, help="file that runs are kept in, and found again by a later call"
    )
    parser.add_argument("--value", default="val_accuracy")
    parser.add_argument("--goal", default="maximize", choices=["maximize", "minimize"])
    parser.add_argument("--cost", default="time")
    parser.add_argument("--fidelity", default="epoch")
    parser.add_argument("--instance-column", default="OpenML_task_id")
    return parser


def _tasks(options: argparse.Namespace) -> list[tuple[str, Task]]:
    listed = options.instances.read_text().split() if options.instances else []
    if options.surrogate is None:
        names = listed or ["0", "1", "2"]
        return [(name, SyntheticTask(int(name), cost_ratio=options.cost_ratio)) for name in names]
    from benchmarks.surrogate import Columns, Surrogate, SurrogateTask  # onnxruntime is optional

    columns = Columns(options.value, options.goal, options.cost, options.fidelity, options.instance_column)
    surrogate = Surrogate(options.surrogate, columns)
    return [(name, SurrogateTask(surrogate, name)) for name in listed or surrogate.instances]


def _regrets(
    instance: str, task: Task, traces: list[dict[str, Any]], budgets: list[float], clock: str
) -> list[dict[str, Any]]:
    sign = Objective(task.goal).sign
    values, mean_seconds = _reference(task)
    reference = sign * values
    mine = [trace for trace in traces if trace["instance"] == instance]
    best = max(reference.max(), *(sign * trace["trace"][-1][2] for trace in mine))
    scale = max(best - float(np.median(reference)), 1e-12)  # where all are alike, nothing is to be regretted
    rows = []
    for trace, budget in itertools.product(mine, budgets):
        seconds = budget * mean_seconds / trace["workers"]
        spent = seconds if clock == "seconds" else math.ceil(budget * task.max_epochs)
        column = 1 if clock == "seconds" else 0
        # Before the first epoch has ended, any configuration would do as well.
        known = [point[2] for point in trace["trace"] if point[column] <= spent]
        incumbent = known[-1] if known else float(np.median(values))
        row = {key: trace[key] for key in ("strategy", "workers", "instance", "seed")}
        rows.append({**row, "budget": budget, "regret": (best - sign * incumbent) / scale})
    return rows


@functools.cache
def _reference(task: Task) -> tuple[np.ndarray, float]:
    """The best value over epochs of random configurations, the same for every comparison, and their trainings' mean
    seconds."""
    sign = Objective(task.goal).sign
    curves = [task.curve(params) for params in _configurations(tuple(task.space.distributions.items()))]
    best = [sign * max(sign * value for value in values) for values, _ in curves]
    return np.array(best), float(np.mean([seconds[-1] for _, seconds in curves]))


@functools.cache
def _configurations(space: tuple[tuple[str, BaseDistribution], ...]) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=20_181_013))
    return [study.ask(dict(space)).params for _ in range(RANDOM_CONFIGURATIONS)]


def _trace(instance: str, name: str, workers: int, seed: int, steps: list[Step]) -> dict[str, Any]:
    """The incumbent whenever it changed: [epochs spent, seconds, value, trial]."""
    changes = [
        s for before, s in zip([None, *steps], steps, strict=False) if before is None or s.best != before.best
    ]
    points = [[s.epochs, round(s.seconds, 3), s.best, s.number] for s in changes]
    return {"strategy": name, "workers": workers, "seed": seed, "instance": instance, "trace": points}


def _print_times(
    top: float,
    tasks: list[tuple[str, Task]],
    traces: list[dict[str, Any]],
    names: list[str],
    workers: list[int],
    budget: float,
) -> None:
    """Until a trial was among the `top` share of random configurations: the median of mean trainings' seconds, and the
    geometric mean of the ratios to the first strategy over (instance, seed) pairs, with a 95% interval. A search that
    ended before counts with its whole budget."""
    spent: dict[tuple[str, int], dict[tuple[str, int], float]] = {}
    for trace in traces:
        task = dict(tasks)[trace["instance"]]
        sign, (values, mean_seconds) = Objective(task.goal).sign, _reference(task)
        enough = np.quantile(sign * values, 1 - top)
        reached = [seconds for _, seconds, value, _ in trace["trace"] if sign * value >= enough]
        time = reached[0] * trace["workers"] / mean_seconds if reached else math.inf
        spent.setdefault((trace["strategy"], trace["workers"]), {})[trace["instance"], trace["seed"]] = time
    print(f"\n| strategy | workers | runs | got there | trainings | ratio to {names[0]} |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, w in itertools.product(names, workers):
        mine, first = spent.get((name, w), {}), spent.get((names[0], w), {})
        shared = sorted(mine.keys() & first.keys())
        if not shared:
            continue
        times, others = np.array([[mine[case], first[case]] for case in shared]).T
        ratios = np.log(np.minimum(times, budget) / np.minimum(others, budget))
        mean, half = ratios.mean(), 1.96 * ratios.std(ddof=min(1, len(ratios) - 1)) / math.sqrt(len(ratios))
        interval = f"{math.exp(mean):.2f} ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f})"
        reached_it = f"{np.isfinite(times).mean():.0%}"
        print(f"| {name} | {w} | {len(shared)} | {reached_it} | {np.median(times):.2f} | {interval} |")


def print_table(
    rows: list[dict[str, Any]], names: list[str], workers: list[int], budgets: list[float]
) -> None:
    """Mean regret with a 95% interval over (instance, seed) pairs, and the mean rank among the strategies, over the
    pairs that all of them have."""
    print("| strategy | workers | runs | " + " | ".join(f"{b:g}" for b in budgets) + " | mean rank |")
    print("| --- | --- | --- | " + "--- | " * (len(budgets) + 1))
    found: dict[tuple[str, int], dict[tuple[str, int], dict[float, float]]] = {}
    for r in rows:
        of_case = found.setdefault((r["strategy"], r["workers"]), {}).setdefault(
            (r["instance"], r["seed"]), {}
        )
        of_case[r["budget"]] = r["regret"]
    for w in workers:
        here = [name for name in names if (name, w) in found]
        shared = sorted(set.intersection(*(set(found[name, w]) for name in here)))
        ranks = dict.fromkeys(here, "")
        if shared:
            regrets = np.array([[[found[n, w][c][b] for c in shared] for b in budgets] for n in here])
            # Ties share their mean rank.
            less = (regrets[None] < regrets[:, None]).sum(axis=1)
            equal = (regrets[None] == regrets[:, None]).sum(axis=1)
            means = (less + (equal + 1) / 2).mean(axis=(1, 2))
            ranks = {name: f"{rank:.2f}" for name, rank in zip(here, means, strict=True)}
        for name in here:
            cases = np.array([[regret[b] for b in budgets] for regret in found[name, w].values()])
            half = 1.96 * cases.std(axis=0, ddof=min(1, len(cases) - 1)) / math.sqrt(len(cases))
            cells = [f"{mean:.3f} ± {h:.3f}" for mean, h in zip(cases.mean(axis=0), half, strict=True)]
            print(f"| {name} | {w} | {len(cases)} | " + " | ".join(cells) + f" | {ranks[name]} |")


if __name__ == "__main__":
    main()
