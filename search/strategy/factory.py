"""Building a strategy from a sweep's settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from binsweep.data.errors import UserError
from binsweep.search.spec.space import Dimension, is_active, to_distribution
from binsweep.search.strategy.asha import asha
from binsweep.search.strategy.base import Goal
from binsweep.search.strategy.freeze_thaw import FreezeThaw
from binsweep.search.strategy.median import median
from binsweep.search.strategy.optuna_strategy import OptunaStrategy, Policy
from binsweep.search.strategy.planner import Halving, Planner
from binsweep.search.strategy.samplers import make_sampler
from binsweep.search.strategy.stopping_rule import StoppingRule, never
from binsweep.search.strategy.study_storage import StudyStorage

SamplerName = Literal["auto", "tpe", "gp", "cmaes", "random", "grid"]
StoppingName = Literal["auto", "asha", "median", "none"]
ETA = 3  # the best third goes on, as in the paper on asynchronous successive halving (2 to 4 do alike)


def open_strategy(
    path: Path | None,
    study_name: str,
    space: Mapping[str, Dimension],
    goal: Goal,
    sampler: SamplerName,
    stopping: StoppingName,
    seed: int,
    max_epochs: int,
    epochs_name: str = "epochs",
) -> OptunaStrategy:
    """Begin the study `study_name` in the SQLite file `path`, or go on with it; without a path, in memory.

    `max_epochs` is the longest that any trial may train; a trial whose parameters hold `epochs_name` trains
    that long instead. `stopping: auto` pauses trials, which only a runner that can go on from a checkpoint may
    be given; `sampler: auto` then decides which one goes on, any other sampler leaves that to halving.
    Trials that an earlier process left running run still, for their runner to go on with, and paused ones wait
    on. Only one process may have a study open. UserError: the file is no study, the study has another goal or
    space, or the grid has no end.
    """
    # Where `auto` plans, it asks no sampler; random is there for want of none.
    ask = make_sampler("random" if sampler == "auto" else sampler, space, seed)
    ledger = StudyStorage(path, study_name, goal)
    _check_space(ledger, space, study_name)
    planner: Planner | None = None
    if sampler == "auto":
        planner = FreezeThaw(space, seed, max_epochs, epochs_name)
    elif stopping == "auto":
        planner = Halving()
    policy = Policy(ask, _rule(stopping, max_epochs), planner, pauses=stopping == "auto")
    return OptunaStrategy(
        ledger, space, goal, lambda params: int(params.get(epochs_name, max_epochs)), policy
    )


def _rule(stopping: StoppingName, max_epochs: int) -> StoppingRule:
    # Two decisions, at a 9th and a third of the longest training: under a one-cycle schedule the first epochs
    # only warm up, and ranking them stops good trials (docs/search.md has the figures).
    first = max(1, round(max_epochs / ETA**2))
    rules: dict[str, StoppingRule] = {"asha": asha(first, ETA, max_epochs), "median": median(first)}
    return rules.get(stopping, never)  # `auto` pauses and stops nothing


def _check_space(ledger: StudyStorage, space: Mapping[str, Dimension], study_name: str) -> None:
    asked: dict[str, Any] = {name: to_distribution(dimension) for name, dimension in space.items()}
    for trial in ledger.trials():
        stored = trial.distributions
        # What depends on others need not be there.
        wanted = {name for name in asked if is_active(space[name], trial.params)}
        differ = sorted(name for name in stored.keys() | wanted if stored.get(name) != asked.get(name))
        if differ:
            rule = f"space.{differ[0]}: study {study_name!r} was begun with another range or choices"
            raise UserError(rule, "keep the space to go on with it, or give the sweep another name")
