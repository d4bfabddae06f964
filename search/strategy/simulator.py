"""A simulated sweep: drives any Strategy with several workers and a virtual clock over known learning curves.

The strategy is the one used in production, not a copy. Learning curves come from a `Task`: a formula (`SyntheticTask`)
or a surrogate fitted to real learning curves.
"""

import heapq
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from binsweep.search.spec.objective import Goal, Objective
from binsweep.search.spec.space import Choice, Dimension, Range, SearchSpace
from binsweep.search.strategy.base import Decision, Outcome, Strategy


class Task(Protocol):
    """Something to tune: its search space, its longest training, and the learning curve of every configuration."""

    space: SearchSpace
    max_epochs: int
    goal: Goal

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        """The value after every epoch, and the seconds from the start; `max_epochs` of each."""


@dataclass(frozen=True)
class Step:
    """The incumbent after one more epoch of any trial."""

    epochs: int  # trained so far by all workers
    seconds: float  # by the virtual clock
    best: float
    number: int  # the trial that holds the best


def simulate(
    strategy: Strategy, task: Task, workers: int, epochs: int | None = None, seconds: float | None = None
) -> list[Step]:
    """Run trials on `workers` until `epochs` are trained in total or `seconds` of the virtual clock are over, and end
    those that are still running. Only with `seconds` the strategy learns how long epochs take and how much time is
    left; a trial that it shortens has the values of the whole training.

    Epochs finish in the order of the virtual clock; on ties in the order in which they began, so that a simulation is
    exactly repeatable.
    """
    sign = Objective(task.goal).sign
    steps: list[Step] = []
    curves: dict[int, tuple[Sequence[float], Sequence[float], int]] = {}
    events: list[tuple[float, int, int, int]] = []  # the time an epoch ends, a tie-breaker, trial, epoch
    begun, free = 0, workers
    now, best, holder = 0.0, -math.inf, -1

    def begin(number: int, epoch: int) -> None:
        nonlocal begun
        heapq.heappush(events, (now + _epoch_seconds(curves[number][1], epoch), begun, number, epoch))
        begun += 1

    def fill_workers() -> None:
        nonlocal free
        if seconds is not None:
            strategy.note_time_left(seconds - now, seconds)
        while free and (suggestion := strategy.suggest()) is not None:
            free -= 1
            length = suggestion.last_epoch or int(suggestion.params.get("epochs", task.max_epochs))
            if suggestion.number not in curves or suggestion.last_epoch:
                curves[suggestion.number] = (*task.curve(suggestion.params), length)
            begin(suggestion.number, suggestion.epochs_done + 1)

    fill_workers()
    end = math.inf if seconds is None else seconds
    while events and events[0][0] <= end and (epochs is None or len(steps) < epochs):
        now, _, number, epoch = heapq.heappop(events)
        values, _, length = curves[number]
        value = float(values[epoch - 1])
        if sign * value > best:
            best, holder = sign * value, number
        steps.append(Step(len(steps) + 1, now, sign * best, holder))
        if seconds is not None:
            strategy.note_time_left(seconds - now, seconds)
            strategy.note_seconds(number, _epoch_seconds(curves[number][1], epoch))
        decision = strategy.observe(number, epoch, value).decision
        if decision is Decision.CONTINUE and epoch < length:
            begin(number, epoch + 1)
            continue
        if decision is not Decision.PAUSE:
            strategy.finish(number, Outcome("completed" if decision is Decision.CONTINUE else "stopped"))
        free += 1
        fill_workers()
    for number in curves:  # running or paused; ended trials are left as they are
        strategy.finish(number, Outcome("stopped", "the budget is spent"))
    return steps


def _epoch_seconds(seconds: Sequence[float], epoch: int) -> float:
    """What an epoch took, by the seconds at the ends of all epochs."""
    return seconds[epoch - 1] - (seconds[epoch - 2] if epoch > 1 else 0.0)


class SyntheticTask:
    """A synthetic family of learning curves, for tests and experiments without data.

    A curve rises to a ceiling that decreases with the distance from a hidden optimum, at a speed that depends on the
    learning rate, with a little noise. Two of the dimensions hardly matter, and the wide backbone costs more. `seed`
    determines everything.

    With `cost_ratio`, an epoch of the dearest configuration (wide backbone, smallest batches) takes that many times as
    long as one of the cheapest (narrow, largest batches); the logarithm of the cost is linear in between.
    """

    goal: Goal = "maximize"

    def __init__(self, seed: int, max_epochs: int = 27, cost_ratio: float | None = None) -> None:
        self.max_epochs, self._cost_ratio = max_epochs, cost_ratio
        dimensions: dict[str, Dimension] = {
            "lr": Range(1e-4, 1e-1, log=True),
            "batch_size": Range(16, 512, log=True),
            "weight_decay": Range(1e-5, 1e-1, log=True),
            "dropout": Range(0.0, 0.9),
            "backbone": Choice(("narrow", "wide", "deep")),
        }
        self.space = SearchSpace(dimensions)
        rng = np.random.default_rng(seed)
        self._optimum = rng.uniform(0.15, 0.85, 4)
        self._weight = rng.permutation([1.0, 0.6, 0.1, 0.1])
        self._lift = dict(zip(("narrow", "wide", "deep"), rng.uniform(-0.08, 0.0, 3), strict=True))
        self._seed = seed

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        names = ("lr", "batch_size", "weight_decay", "dropout")
        x = np.array([_unit(self.space[name], params[name]) for name in names])
        gap = float(np.sum(self._weight * (x - self._optimum) ** 2))
        ceiling = 0.9 + self._lift[params["backbone"]] - 0.5 * gap / (0.1 + gap)
        speed = 0.05 + 0.6 * x[0]
        epochs = np.arange(1, self.max_epochs + 1)
        noise = np.random.default_rng(zlib.crc32(repr((self._seed, sorted(params.items()))).encode()))
        values = ceiling * (1 - np.exp(-speed * epochs)) + noise.normal(0, 0.003, self.max_epochs)
        cost = {"narrow": 1.0, "wide": 3.0, "deep": 2.0}[params["backbone"]]
        if self._cost_ratio is not None:
            cost = self._cost_ratio ** ((cost - 1) / 4 + (1 - x[1]) / 2)
        return values.tolist(), (cost * epochs).tolist()


def _unit(dimension: Dimension, value: float) -> float:
    """A value's position in its range, from 0 to 1."""
    assert isinstance(dimension, Range)
    low, high = float(dimension.low), float(dimension.high)
    if dimension.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)
