"""How a sweep file's search is carried out by a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from binsweep.models.levels import Level
from binsweep.models.training_work import INFLUENCE, level_work
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.strategy.factory import StrategyOptions
from binsweep.search.strategy.training_times import same_cost


def strategy_options(spec: SweepSpec) -> StrategyOptions:
    """The options of the strategy that searches for a spec."""

    def epoch_cost(params: Mapping[str, Any], section: int) -> float:
        level = spec.sections(params, seed=0)[section]
        return level_work(level) if isinstance(level, Level) else same_cost(params)

    return StrategyOptions(
        spec.space,
        spec.goal,
        spec.max_epochs,
        spec.search.sampler,
        spec.search.stopping,
        spec.search.seed,
        sections=spec.level_epochs,
        epoch_cost=epoch_cost,
        influence=INFLUENCE if isinstance(spec, PhotoSpec) else None,
        weigh_seconds=not spec.budget.counts_work,
        metric=spec.metric,
    )
