"""How a sweep file's search is carried out by a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from binsweep.models.training_work import level_work
from binsweep.search.spec.parser import SweepSpec
from binsweep.search.strategy.factory import StrategyOptions


def strategy_options(spec: SweepSpec) -> StrategyOptions:
    """The options of the strategy that searches for a spec."""

    def epoch_cost(params: Mapping[str, Any], section: int) -> float:
        return level_work(spec.levels(replace(spec.settings, **params))[section])

    return StrategyOptions(
        spec.space,
        spec.goal,
        spec.max_epochs,
        spec.search.sampler,
        spec.search.stopping,
        spec.search.seed,
        sections=spec.level_epochs,
        epoch_cost=epoch_cost,
        weigh_seconds=not spec.budget.counts_work,
    )
