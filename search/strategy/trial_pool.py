"""Where every trial stands, for planners that pause trials and go on with them.

A trial is weighed at a few checkpoints of its own training: its end, and that divided by ETA, twice, thrice.
Fractions of its own length, not absolute epochs, because that is where learning-rate schedules of different
lengths compare; what an epoch costs is the planner's to weigh.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from binsweep.search.strategy.stopping_rule import Curve

ETA = 3
LEVELS = 4  # so the first is at a 27th of the training, and one training's worth looks at 27 trials

State = Literal["running", "paused", "over"]


def levels(last_epoch: int) -> list[int]:
    """The epochs at which a training of `last_epoch` is weighed, rising, its end included."""
    return sorted({max(1, round(last_epoch / ETA**power)) for power in range(LEVELS)})


@dataclass
class PooledTrial:
    """One trial: the configuration, how far it is, and its best value so far at each level (larger is better)."""

    params: dict[str, Any]
    levels: list[int]
    state: State = "running"
    epochs: int = 0
    best: float = -math.inf
    at_level: dict[int, float] = field(default_factory=dict)
    broken: bool = False  # its value was not finite, or it broke a limit: the configuration is bad
    straight: bool = False  # it is trained to its end, unless it falls behind
    cost: float | None = None  # where value against cost is searched

    def rank_value(self, level: int) -> float:
        """Best value until the level of that index; -inf when it has not got there."""
        return self.at_level.get(self.levels[min(level, len(self.levels) - 1)], -math.inf)

    def before_end(self) -> float | None:
        """Best value until the last level before its end, a third of its training; None before that."""
        return self.at_level.get(self.levels[-2]) if len(self.levels) > 1 else None

    def next_level(self) -> int:
        """The next epoch at which it is weighed; its end when that is reached."""
        return next((level for level in self.levels if level > self.epochs), self.levels[-1])


class TrialPool:
    """All trials by number, and how many epochs were trained in all."""

    def __init__(self) -> None:
        self.stands: list[PooledTrial] = []
        self.epochs = 0

    def add(
        self,
        params: dict[str, Any],
        curve: Curve,
        state: State = "running",
        broken: bool = False,
        straight: bool = False,
    ) -> None:
        """The next trial, with what it has shown so far."""
        stand = PooledTrial(params, levels(curve.last_epoch), state, broken=broken, straight=straight)
        self.stands.append(stand)
        for epoch in sorted(curve.values):
            self.saw(len(self.stands) - 1, epoch, curve.values[epoch])

    def saw(self, number: int, epoch: int, value: float) -> None:
        """One more epoch of a trial; epochs may be missing, but come in order."""
        stand = self.stands[number]
        self.epochs += epoch - stand.epochs
        stand.epochs, stand.best = epoch, max(stand.best, value)
        reached = [level for level in stand.levels if level <= epoch and level not in stand.at_level]
        for level in reached:
            stand.at_level[level] = stand.best

    def paused(self) -> list[int]:
        return [number for number, stand in enumerate(self.stands) if stand.state == "paused"]

    def front(self) -> list[int]:
        """Where trials have a cost: those that no other beats in both value and cost, the best value first."""
        known = [n for n, s in enumerate(self.stands) if s.cost is not None and s.epochs and not s.broken]
        found: list[int] = []
        for number in sorted(known, key=lambda n: (-self.stands[n].best, self.stands[n].cost, n)):
            if not found or self.stands[number].cost < self.stands[found[-1]].cost:  # type: ignore[operator]
                found.append(number)
        return found

    def best(self) -> np.ndarray:
        """Each trial's best value, -inf without one; shape [trials]."""
        return np.array([stand.best for stand in self.stands])


def promoted(standing: TrialPool) -> tuple[int, str] | None:
    """Asynchronous successive halving by promotion (Li et al., MLSys 2020): the trial to go on with, and why.

    From the last level down: of the sound trials that reached a level, the best 1/ETA may go on to the next
    one; the best of them that is paused there does. None when no trial may.
    """
    for level in reversed(range(LEVELS - 1)):
        sound = [(number, stand) for number, stand in enumerate(standing.stands) if not stand.broken]
        there = [(stand.rank_value(level), -number) for number, stand in sound]
        there = sorted((item for item in there if item[0] > -math.inf), reverse=True)
        places = len(there) // ETA
        for place, (_, minus) in enumerate(there[:places], 1):
            stand = standing.stands[-minus]
            if stand.state == "paused" and _level_of(stand) == level:
                where = f"the level of epoch {stand.epochs}"
                return -minus, f"rank {place} of {len(there)} at {where}: the best {places} go on"
    return None


def behind(standing: TrialPool, number: int) -> str | None:
    """Why a trial at a third of its training is not trained on: most that got there had done better by then, the
    median rule of Golovin et al., 2017 (Vizier). None elsewhere, and on the front of value against cost."""
    stand = standing.stands[number]
    if _level_of(stand) != len(stand.levels) - 2 or number in standing.front():
        return None
    there = [other.before_end() for other in standing.stands if not other.broken]
    values = [value for value in there if value is not None]
    if stand.best >= np.median(values):
        return None
    return f"below the median of {len(values)} trials at a third of their training"


def _level_of(stand: PooledTrial) -> int:
    """The index of the last level that it has reached."""
    return sum(level <= stand.epochs for level in stand.levels) - 1
