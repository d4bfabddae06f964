"""The fidelity levels of a sweep in its report: who has climbed how far, and how far a cheap level tells the end."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from binsweep.models.levels import level_ends
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.report.axis import Axis, axis_around
from binsweep.search.report.svg_charts import BLUE, GREY, ORANGE, Chart
from binsweep.search.strategy.trial_pool import pairs_in_order
from binsweep.search.terminal.format import format_metric


@dataclass(frozen=True)
class LevelSummary:
    """One level: what is trained in it, how many trials reached its end, its best value, and seconds of an epoch.

    Of the `pairs` of completed trials, `in_order` were in the order of their final values at the end of this level.
    """

    number: int
    name: str
    reached: int
    best: float | None
    seconds: float | None
    in_order: int
    pairs: int
    metric: str

    @property
    def best_text(self) -> str:
        """Its best value as the report shows it."""
        return format_metric(self.metric, self.best)


def ends_of(history: SweepHistory, trial: TrialHistory) -> list[int]:
    """The epochs after which a trial's sections end."""
    return level_ends(history.levels_of(trial))


def _levels(history: SweepHistory) -> tuple[Any, ...]:
    """The levels of the sweep's trainings, as far as they are the same for all."""
    return history.spec.sections({}, 0)


def _value_until(history: SweepHistory, trial: TrialHistory, epoch: int) -> float | None:
    """Its best value up to that epoch; None if it did not get there, or diverged."""
    values = [value for at, value in trial.curve.items() if at <= epoch and math.isfinite(value)]
    if trial.epochs_done < epoch or not values:
        return None
    return max(values, key=lambda value: history.spec.objective.sign * value)


def summaries(history: SweepHistory) -> list[LevelSummary]:
    """A row for each level; none for a sweep without fidelity levels."""
    levels, sign = _levels(history), history.spec.objective.sign
    n_levels = len(levels)
    if n_levels == 1:
        return []
    ends = {trial.number: ends_of(history, trial) for trial in history.trials}
    found = []
    for place, level in enumerate(levels):
        values, seconds, completed = [], [], []
        for trial in history.leaders:
            own = [0, *ends[trial.number]]
            first, last, whole = own[place], own[place + 1], own[-1]
            seconds += [spent for epoch, spent in trial.epoch_seconds.items() if first < epoch <= last]
            value, final = (_value_until(history, trial, epoch) for epoch in (last, whole))
            values += [] if value is None else [value]
            completed += [] if value is None or final is None else [(sign * value, sign * final)]
        in_order, pairs = pairs_in_order(completed) if place < n_levels - 1 else (0, 0)
        best = max(values, key=lambda value: sign * value, default=None)
        each = statistics.median(seconds) if seconds else None
        found.append(
            LevelSummary(place + 1, level.name, len(values), best, each, in_order, pairs, history.spec.metric)
        )
    return found


def chart(history: SweepHistory) -> str:
    """Each trial's best value at the end of every level that it reached; the best trial on top."""
    leaders = history.leaders
    levels = _levels(history)
    if not leaders or len(levels) == 1:
        return ""
    lines = {}
    for trial in leaders:
        reached = [_value_until(history, trial, end) for end in ends_of(history, trial)]
        lines[trial.number] = [(float(at), value) for at, value in enumerate(reached) if value is not None]
    every = [value for line in lines.values() for _, value in line]
    if not every:
        return ""
    words = tuple(f"{number}: {level.name}" for number, level in enumerate(levels, 1))
    metric = history.spec.metric
    y = axis_around(every, percent="accuracy" in metric)
    drawn = Chart(Axis(-0.5, len(words) - 0.5, words=words), y, ("fidelity level", metric), 760, 320)
    for trial in [*reversed(leaders), leaders[0]]:
        if not (line := lines[trial.number]):
            continue
        whole, top = len(line) == len(levels), trial is leaders[0]
        colour = BLUE if top else "#8fb0d3" if whole else GREY
        drawn.line(line, colour, trial.number, 2.5 if top else 1.2)
        for place, (x, value) in enumerate(line):
            ended = place == len(line) - 1 and not whole
            drawn.dot(x, value, ORANGE if ended else colour, trial.number, 3, cross=ended)
    return drawn.svg()
