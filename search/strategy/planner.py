"""Planners: what a free worker does next, for trials that can be paused and resumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from binsweep.search.strategy.earlier_sweeps import EarlierSweep
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import TrialPool


@dataclass(frozen=True)
class Plan:
    """Resume trial `number`, or begin one with `params`; with neither, begin one that the sampler suggests.

    With `skips_rungs` a new trial trains to its end without waiting at rungs, unless it falls below the median.
    """

    reason: str = ""
    number: int | None = None
    params: dict[str, Any] | None = None
    skips_rungs: bool = False


class Planner(Protocol):
    """The same trials, seed and `hyperparameters` give the same plan."""

    hyperparameters: list[float]  # of its models: stored, and set again after a restart; may be empty

    def use_earlier(self, sweeps: Sequence[EarlierSweep]) -> None:
        """Take earlier sweeps as a prior; before `hyperparameters` are set and before the first plan."""

    def plan(self, pool: TrialPool) -> Plan | None:
        """What a free worker should do next; None if nothing new can end in the time left."""


class Halving:
    """Promotes the best third at every rung; if no trial can be promoted, the sampler begins a new one."""

    hyperparameters: list[float]

    def __init__(self, times: TrainingTimes) -> None:
        self.hyperparameters = []
        self._times = times

    def use_earlier(self, sweeps: Sequence[EarlierSweep]) -> None:
        """It has no model that a prior could inform."""

    def plan(self, pool: TrialPool) -> Plan:
        promotion = self._times.next_promotion(pool)
        return Plan() if promotion is None else Plan(promotion[1], number=promotion[0])
