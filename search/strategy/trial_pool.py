"""The state of every trial, for planners that pause and resume trials.

A trial is compared with others at a few rungs of its own training: its end, and its length divided by ETA once, twice
and three times. Rungs are fractions of its own length rather than absolute epochs, because that is where
learning-rate schedules of different lengths are comparable. Planners account for what an epoch costs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np

from binsweep.search.spec.objective import pareto_front
from binsweep.search.strategy.lengths import shortened
from binsweep.search.strategy.stopping_rule import Curve

ETA = 3
MIN_PAIRS, MIN_IN_ORDER = 6, 0.75  # of full trials, to believe a section about the end
MAX_COMPARED = 64  # the most recent full trials
N_RUNGS = 4  # the first is at a 27th of the training, so that one training's worth of epochs tries 27 trials

State = Literal["running", "paused", "over"]


def training_rungs(ends: Sequence[int]) -> list[int]:
    """The rungs of a training whose sections end at these epochs, ascending: the ends, and those within the last
    section. Where there are several sections, a cheap one stands for the first of these."""
    before = ends[-2] if len(ends) > 1 else 0
    length, n_rungs = ends[-1] - before, N_RUNGS if len(ends) == 1 else N_RUNGS - 1
    within = {before + max(1, round(length / ETA**power)) for power in range(n_rungs)} if length else set()
    return sorted({*ends, *within})


@dataclass
class PooledTrial:
    """One trial: its parameters, how far it is trained, and its best value so far at each rung (larger is better)."""

    params: dict[str, Any]
    ends: list[int]  # the epochs after which its sections end
    state: State = "running"
    epochs: int = 0
    best: float = -math.inf
    best_at_rung: dict[int, float] = field(default_factory=dict)
    broken: bool = False  # its value was not finite, or it exceeded a limit: a bad configuration
    skips_rungs: bool = False  # it trains to its end, unless it falls below the median
    cost: float | None = None  # if the Pareto front of value and cost is searched
    seconds: dict[int, float] = field(default_factory=dict)  # of an epoch, by section, if they were measured
    start: float | None = None  # seconds that its last start took, if it was measured

    def __post_init__(self) -> None:
        self.rungs = training_rungs(self.ends)

    @property
    def is_full(self) -> bool:
        """Whether it was trained to its end, without leaving out a section."""
        has_all = len(self.ends) == 1 or self.ends[-1] > self.ends[-2]
        return has_all and self.epochs >= self.rungs[-1] and not self.broken

    @property
    def last_rung(self) -> int:
        """The index of the last rung that it has reached, -1 for none."""
        return sum(rung <= self.epochs for rung in self.rungs) - 1

    def value_at(self, index: int) -> float:
        """Its best value up to the rung of that index, -inf if it has not reached it."""
        return self.best_at_rung.get(self.rungs[min(index, len(self.rungs) - 1)], -math.inf)

    def value_before_end(self) -> float | None:
        """Its best value up to the last rung before its end, a third of its training; None if it is not there."""
        return self.best_at_rung.get(self.rungs[-2]) if len(self.rungs) > 1 else None

    def curve_points(self) -> list[tuple[int, float]]:
        """(epoch, best value so far) at the last rung and halfway there; more rungs add little information."""
        reached = list(self.best_at_rung.items())
        return [reached[-1]] if len(reached) < 3 else [reached[len(reached) // 2], reached[-1]]

    def end_at(self, last_epoch: int, curve: Curve) -> None:
        """Train to another last epoch than planned: its rungs are those of a training of that length."""
        self.ends = shortened(self.ends, last_epoch)
        self.rungs = training_rungs(self.ends)
        self.best_at_rung = {
            rung: curve.best_until(rung) for rung in self.rungs if curve.values and rung <= self.epochs
        }

    def next_rung(self) -> int:
        """The epoch of its next rung, or its end if that is reached."""
        return next((rung for rung in self.rungs if rung > self.epochs), self.rungs[-1])


class TrialPool:
    """All trials by number, and the epochs trained in total."""

    def __init__(self) -> None:
        self.trials: list[PooledTrial] = []
        self.epochs = 0

    def add(
        self,
        params: dict[str, Any],
        curve: Curve,
        state: State = "running",
        broken: bool = False,
        skips_rungs: bool = False,
        ends: Sequence[int] = (),
    ) -> None:
        """Add the next trial, with its values so far. Without the `ends` of its sections it has one."""
        sections = shortened(ends or [curve.last_epoch], curve.last_epoch)
        self.trials.append(PooledTrial(params, sections, state, broken=broken, skips_rungs=skips_rungs))
        for epoch in sorted(curve.values):
            self.add_epoch(len(self.trials) - 1, epoch, curve.values[epoch])

    def add_epoch(self, number: int, epoch: int, value: float) -> None:
        """Record an epoch of a trial. Epochs may be missing, but come in order."""
        trial = self.trials[number]
        self.epochs += epoch - trial.epochs
        trial.epochs, trial.best = epoch, max(trial.best, value)
        for rung in trial.rungs:
            if rung <= epoch:
                trial.best_at_rung.setdefault(rung, trial.best)

    def paused(self) -> list[int]:
        return [number for number, trial in enumerate(self.trials) if trial.state == "paused"]

    def running(self) -> list[int]:
        return [number for number, trial in enumerate(self.trials) if trial.state == "running"]

    def broken(self) -> list[int]:
        return [number for number, trial in enumerate(self.trials) if trial.broken]

    def pareto_front(self) -> list[int]:
        """The trials with a cost that no other trial beats in both value and cost, the best value first."""
        known = [
            (-trial.best, trial.cost, number)
            for number, trial in enumerate(self.trials)
            if trial.cost is not None and trial.epochs and not trial.broken
        ]
        return [number for _, _, number in pareto_front(sorted(known), lambda item: item[1])]

    def best_values(self) -> np.ndarray:
        """Each trial's best value, -inf without one; shape [trials]."""
        return np.array([trial.best for trial in self.trials])


def next_promotion(
    pool: TrialPool, can_end: Callable[[int], bool] = lambda number: True
) -> tuple[int, str] | None:
    """Asynchronous successive halving by promotion (Li et al., MLSys 2020): the trial to resume and why, or None.

    From the last rung down: of the sound trials that have reached a rung, the best 1/ETA may go on to the next one,
    and the best of those that is paused at this rung, and can end in the time left, does.
    """
    for rung in reversed(range(N_RUNGS - 1)):
        values = _ranked(pool, rung)
        places = len(values) // ETA
        for place, (_, minus) in enumerate(values[:places], 1):
            trial = pool.trials[-minus]
            if trial.state == "paused" and trial.last_rung == rung and can_end(-minus):
                where = f"the rung of epoch {trial.epochs}"
                return -minus, f"rank {place} of {len(values)} at {where}: the best {places} go on"
    return None


def _ranked(pool: TrialPool, rung: int) -> list[tuple[float, int]]:
    """The sound trials that have reached a rung, as (value, -number), best first."""
    found = [(trial.value_at(rung), -n) for n, trial in enumerate(pool.trials) if not trial.broken]
    return sorted((item for item in found if item[0] > -math.inf), reverse=True)


def next_climb(
    pool: TrialPool, shares: Sequence[float], can_end: Callable[[int], bool] = lambda number: True
) -> tuple[int, str] | None:
    """Successive halving through fidelity levels: the trial to resume and why, or None.

    Of the trials that have reached a rung, the share that is given for it goes on, the best one that waits first.
    """
    for rung in reversed(range(len(shares))):
        order = [-minus for _, minus in _ranked(pool, rung)]
        here = [n for n in order if pool.trials[n].last_rung == rung and pool.trials[n].state != "running"]
        waiting = [n for n in here if pool.trials[n].state == "paused" and can_end(n)]
        gone = len(order) - len(here)
        if not waiting or gone >= int(len(order) * shares[rung]):
            continue
        where = f"the rung of epoch {pool.trials[waiting[0]].epochs}"
        place = 1 + order.index(waiting[0])
        return waiting[0], f"rank {place} of {len(order)} at {where}: {shares[rung]:.0%} go on"
    return None


def behind(pool: TrialPool, number: int) -> str | None:
    """Why a trial is paused that does not wait at rungs: it is below the median of the trials that have got as far
    (the median rule of Golovin et al., 2017, Vizier). None for trials on the Pareto front, and elsewhere than at a
    third of the training and at the end of a section that has told the order of final values."""
    trial = pool.trials[number]
    sections = trial.ends[:-1]
    if trial.epochs in sections:
        section = sections.index(trial.epochs)
        if not tells_the_end(pool, section):
            return None
        reached = [other.best_at_rung.get(other.ends[section]) for other in pool.trials if not other.broken]
        where = f"the end of fidelity level {section + 1}"
    elif trial.last_rung == len(trial.rungs) - 2:
        reached = [other.value_before_end() for other in pool.trials if not other.broken]
        where = "a third of their training"
    else:
        return None
    values = [value for value in reached if value is not None]
    if number in pool.pareto_front() or trial.best >= np.median(values):
        return None
    return f"below the median of {len(values)} trials at {where}"


def pairs_in_order(values: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """Of the pairs of trials with different final values, how many were in the same order at an earlier moment
    (Kendall, 1938), and how many there are; `values` are each trial's (earlier, final) ones."""
    pairs = [(a, b) for a, b in combinations(values, 2) if a[1] != b[1]]
    return sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)


def tells_the_end(pool: TrialPool, section: int) -> bool:
    """Whether the values at the end of a section have been seen to tell the order of final ones."""
    full = [
        (trial.best_at_rung[trial.ends[section]], trial.best)
        for trial in pool.trials
        if trial.is_full and trial.ends[section] in trial.best_at_rung
    ]
    right, pairs = pairs_in_order(full[-MAX_COMPARED:])
    return pairs >= MIN_PAIRS and right >= MIN_IN_ORDER * pairs
