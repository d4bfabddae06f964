"""Sweeps side by side: what each had found after equally many trials, epochs, seconds, or money."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from binsweep.data.errors import UserError
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.spec.space import describe

SHARES = (0.25, 0.5, 1.0)  # of what all sweeps have spent, at which they are compared
CONFIDENCE = 0.95
# What may differ between sweeps that are repetitions of one another.
NOT_OF_THE_KIND = ("name", "notify")


@dataclass(frozen=True)
class BestSoFar:
    """Each best value of a sweep, and again the last one at its end; `amounts` is what had been spent by then, by its
    name (trials begun, epochs, seconds, and a cost)."""

    values: Sequence[float]
    amounts: Mapping[str, Sequence[float]]

    def at(self, axis: str, amount: float) -> float | None:
        """The best value when so much had been spent; None before the first one."""
        place = bisect_right(self.amounts[axis], amount)
        return self.values[place - 1] if place else None

    def total(self, axis: str) -> float:
        """What was spent until the last report."""
        return self.amounts[axis][-1] if self.values else 0.0


def best_so_far(history: SweepHistory, cost: str) -> BestSoFar:
    """The course of a sweep. Trials that failed or exceeded a limit count as spent, not as found.

    `cost` is money (by the spec's prices), gpu_hours or cpu_hours.
    """
    reports = sorted(
        (at, trial.number, epoch, trial) for trial in history.trials for epoch, at in trial.times.items()
    )
    begun = sorted(trial.intervals[0].start for trial in history.trials if trial.intervals)
    values: list[float] = []
    amounts: dict[str, list[float]] = {axis: [] for axis in ("trials", "epochs", "seconds", cost)}
    best: float | None = None
    for epochs, (at, _, epoch, trial) in enumerate(reports, 1):
        value = trial.curve[epoch]
        is_better = _counts(trial) and math.isfinite(value) and history.spec.objective.is_better(value, best)
        if is_better:
            best = value
        if best is None or not (is_better or epochs == len(reports)):
            continue
        spent = (
            bisect_left(begun, at),
            epochs,
            history.active_seconds_until(at),
            history.cost_until(at)[cost],
        )
        for axis, amount in zip(amounts, spent, strict=True):
            amounts[axis].append(float(amount))
        values.append(best)
    return BestSoFar(values, amounts)


def _counts(trial: TrialHistory) -> bool:
    return trial.state != "failed" and trial.feasible


@dataclass(frozen=True)
class Mean:
    """The mean of n sweeps, and its 95 % interval by Student's t, None for one sweep."""

    value: float
    interval: tuple[float, float] | None
    n: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one value or several, and its interval (Student 1908)."""
    from scipy.stats import t  # takes half a second to import

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Mean(mean, None, len(values))
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = error * float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Mean(mean, (mean - half, mean + half), len(values))


def difference_of(first: Sequence[float], second: Sequence[float]) -> Mean:
    """The mean of `second` less that of `first`, and its interval by Welch's t (Welch 1947), None if either is one."""
    from scipy.stats import t

    difference = math.fsum(second) / len(second) - math.fsum(first) / len(first)
    n = min(len(first), len(second))
    if n < 2:
        return Mean(difference, None, n)
    squares = [statistics.variance(values) / len(values) for values in (first, second)]
    if not (total := sum(squares)):
        return Mean(difference, (difference, difference), n)
    freedom = total**2 / sum(
        square**2 / (len(values) - 1) for square, values in zip(squares, (first, second), strict=True)
    )
    half = math.sqrt(total) * float(t.ppf((1 + CONFIDENCE) / 2, freedom))
    return Mean(difference, (difference - half, difference + half), n)


@dataclass(frozen=True)
class Group:
    """Sweeps whose specs differ in the seed alone: repetitions of one search."""

    sweeps: Sequence[SweepHistory]
    courses: Sequence[BestSoFar]

    @property
    def name(self) -> str:
        return ", ".join(sweep.id for sweep in self.sweeps)

    def values_at(self, axis: str, amount: float) -> list[float] | None:
        """The best value of each of its sweeps; None while one of them has none."""
        values = [course.at(axis, amount) for course in self.courses]
        return (
            None
            if any(value is None for value in values)
            else [value for value in values if value is not None]
        )


@dataclass(frozen=True)
class Point:
    """The groups after an equal amount: their values, and what each is better than the first by (positive: better)."""

    axis: str
    amount: float
    means: Sequence[Mean | None]
    gains: Sequence[Mean | None]


@dataclass(frozen=True)
class Parameter:
    """A searched value: what the best trial of each sweep has, and where it was searched, by group."""

    name: str
    best: Sequence[Sequence[Any]]
    searched: Sequence[str]

    @property
    def has_moved(self) -> bool:
        """Whether two groups' best trials have no value in common; of numbers, whether their ranges are apart."""
        return any(_are_apart(one, other) for one, other in itertools.combinations(self.best, 2))


def _are_apart(one: Sequence[Any], other: Sequence[Any]) -> bool:
    if all(isinstance(value, int | float) for value in (*one, *other)):
        return bool(max(one) < min(other) or max(other) < min(one))
    return not {str(value) for value in one} & {str(value) for value in other}


@dataclass(frozen=True)
class Comparison:
    """Groups of sweeps of the same metric."""

    groups: Sequence[Group]
    cost: str
    fingerprints: Sequence[str]  # of the data of each sweep

    @property
    def metric(self) -> str:
        """The metric that all of them optimise."""
        return self.groups[0].sweeps[0].spec.metric

    @property
    def sign(self) -> float:
        """1 if larger is better, else -1."""
        return self.groups[0].sweeps[0].spec.objective.sign

    @property
    def axes(self) -> tuple[str, ...]:
        """What sweeps spend."""
        return ("trials", "epochs", "seconds", self.cost)

    @cached_property
    def points(self) -> list[Point]:
        """The groups at SHARES of what the shortest sweep has spent, on each axis."""
        found = []
        for axis in self.axes:
            least = min(course.total(axis) for group in self.groups for course in group.courses)
            for share in SHARES:
                amount = (
                    least * share if axis in ("seconds", self.cost) else max(1.0, math.floor(least * share))
                )
                found.append(self._point(axis, amount))
        return found

    def _point(self, axis: str, amount: float) -> Point:
        values = [group.values_at(axis, amount) for group in self.groups]
        first = values[0]
        gains: list[Mean | None] = [None]
        for later in values[1:]:
            if first is None or later is None:
                gains.append(None)
            else:
                gains.append(difference_of([self.sign * v for v in first], [self.sign * v for v in later]))
        return Point(axis, amount, [None if one is None else mean_of(one) for one in values], gains)

    @property
    def parameters(self) -> list[Parameter]:
        """Every value that any of them searched; those that have moved first."""
        names = dict.fromkeys(
            name for group in self.groups for sweep in group.sweeps for name in sweep.spec.space
        )
        found = [
            Parameter(
                name,
                [[_best_value(sweep, name) for sweep in group.sweeps] for group in self.groups],
                [_searched(group.sweeps[0], name) for group in self.groups],
            )
            for name in names
        ]
        return sorted(found, key=lambda parameter: not parameter.has_moved)

    @property
    def differences(self) -> list[tuple[str, list[str]]]:
        """What else their specs say differently: each key, and its value in each group."""
        flat = [_flat(group.sweeps[0].spec.raw) for group in self.groups]
        keys = [
            key for key in dict.fromkeys(key for one in flat for key in one) if not key.startswith("space.")
        ]
        return [
            (key, [json.dumps(one.get(key)) for one in flat])
            for key in keys
            if len({json.dumps(one.get(key)) for one in flat}) > 1
        ]

    @property
    def warnings(self) -> list[str]:
        """What makes the values less comparable."""
        found = []
        if len(set(self.fingerprints)) > 1:
            found.append("they were trained on different data: a difference may come from that alone")
        open_ones = [
            sweep.id for group in self.groups for sweep in group.sweeps if sweep.status != "finished"
        ]
        if open_ones:
            found.append(f"not finished: {', '.join(open_ones)}")
        if all(len(group.sweeps) < 2 for group in self.groups):
            found.append(
                "one sweep of each kind: repeat them with other seeds (search.seed) to tell luck from skill"
            )
        return found


def compare(histories: Sequence[SweepHistory], fingerprints: Sequence[str]) -> Comparison:
    """Group sweeps into repetitions and compare them. Raises UserError if their values cannot be compared."""
    goals = {(one.spec.goal, one.spec.metric): one.id for one in histories}
    if len(goals) > 1:
        told = "; ".join(f"{sweep} {goal}s {metric}" for (goal, metric), sweep in goals.items())
        raise UserError(f"these sweeps have different objectives: {told}", "compare sweeps of one metric")
    empty = [one.id for one in histories if not one.leaders]
    if empty:
        raise UserError(f"no trial of {', '.join(empty)} has a result", "compare sweeps with results")
    costs = [one.cost for one in histories]
    priced = all("money" in cost for cost in costs)
    cost = "money" if priced else "gpu_hours" if any(one["gpu_hours"] for one in costs) else "cpu_hours"
    kinds: dict[str, list[SweepHistory]] = {}
    for history in histories:
        kinds.setdefault(_kind(history), []).append(history)
    groups = [Group(sweeps, [best_so_far(sweep, cost) for sweep in sweeps]) for sweeps in kinds.values()]
    return Comparison(groups, cost, fingerprints)


def _kind(history: SweepHistory) -> str:
    """What is equal in repetitions: the spec without its seed."""
    raw = {key: value for key, value in history.spec.raw.items() if key not in NOT_OF_THE_KIND}
    search = {key: value for key, value in raw.get("search", {}).items() if key != "seed"}
    return json.dumps({**raw, "search": search}, sort_keys=True, default=str)


def _best_value(sweep: SweepHistory, name: str) -> Any:
    return sweep.leaders[0].params.get(name)


def _searched(sweep: SweepHistory, name: str) -> str:
    dimension = sweep.spec.space.get(name)
    return "not searched" if dimension is None else describe(dimension)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested sections as one, by dotted keys; without what repetitions may have of their own."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, one in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if inner not in (*NOT_OF_THE_KIND, "search.seed"):
            found |= _flat(one, inner)
    return found
