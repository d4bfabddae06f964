"""Building a strategy from a sweep's settings."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from binsweep.data.errors import UserError
from binsweep.search.spec.objective import Goal, Objective
from binsweep.search.spec.space import SearchSpace
from binsweep.search.strategy.asha import asha, level_asha
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.freeze_thaw import FreezeThaw
from binsweep.search.strategy.lengths import TrainingLengths
from binsweep.search.strategy.median import median
from binsweep.search.strategy.optuna_strategy import OptunaStrategy, Policy
from binsweep.search.strategy.planner import Halving, Planner
from binsweep.search.strategy.samplers import make_sampler
from binsweep.search.strategy.stopping_rule import StoppingRule, never
from binsweep.search.strategy.study_storage import StudyStorage
from binsweep.search.strategy.training_times import FirstGuess, TrainingTimes, same_cost

SamplerName = Literal["auto", "tpe", "gp", "cmaes", "random", "grid"]
StoppingName = Literal["auto", "asha", "median", "none"]
ETA = 3  # the best third goes on, as in the paper on asynchronous successive halving (2 to 4 perform alike)


@dataclass(frozen=True)
class StrategyOptions:
    """How a strategy searches.

    `max_epochs` is the longest training of any trial; a trial whose parameters contain `epochs_name` trains for that
    many epochs instead. With several fidelity levels, that holds for those without `sections` of their own.
    `stopping: auto` pauses trials, which needs a runner that can resume from a checkpoint; `sampler: auto` then decides
    which trial is resumed, with any other sampler successive halving does.
    """

    space: SearchSpace
    goal: Goal
    max_epochs: int
    sampler: SamplerName = "auto"
    stopping: StoppingName = "auto"
    seed: int = 0
    epochs_name: str = "epochs"
    sections: tuple[int | None, ...] = (None,)  # the epochs of each fidelity level, as in TrainingLengths
    epoch_cost: FirstGuess = same_cost  # a first guess of an epoch's seconds, right up to a factor
    influence: Mapping[str, float] | None = None  # of parameters on an epoch's seconds, as in TrainingTimes
    weigh_seconds: bool = True  # where times are measured; else epochs are what a search spends
    metric: str = ""  # what the values are called where the study is read by others


def open_strategy(path: Path | None, study_name: str, options: StrategyOptions) -> OptunaStrategy:
    """Create the study `study_name` in the SQLite file `path`, or open it; without a path, create it in memory.

    Trials that an earlier process left running stay running, for their runner to resume, and paused ones stay paused.
    Only one process may have a study open. Raises UserError if the file is no study, if the study has another goal or
    space, or if the grid is infinite.
    """
    space, goal, seed = options.space, options.goal, options.seed
    # The planner of `auto` proposes every configuration itself; the random sampler is a placeholder.
    sampler_name = "random" if options.sampler == "auto" else options.sampler
    storage = StudyStorage(path, study_name, goal, options.metric)
    _check_space(storage, space, study_name)
    lengths = TrainingLengths(options.max_epochs, options.epochs_name, options.sections)
    times = TrainingTimes(
        Encoder(space), lengths, options.epoch_cost, options.weigh_seconds, options.influence
    )
    planner: Planner | None = None
    if options.sampler == "auto":
        planner = FreezeThaw(times, seed)
    elif options.stopping == "auto":
        planner = Halving(times)
    rule = _stopping_rule(options.stopping, lengths)
    policy = Policy(
        functools.partial(make_sampler, sampler_name, seed=seed),
        rule,
        times,
        planner,
        pauses=options.stopping == "auto",
    )
    return OptunaStrategy(storage, space, Objective(goal), policy)


def _stopping_rule(stopping: StoppingName, lengths: TrainingLengths) -> StoppingRule:
    # Two decisions, at a ninth and a third of the longest training: under a one-cycle schedule the first epochs only
    # warm up, and ranking trials by them stops good ones (figures in docs/search.md).
    max_epochs = lengths.longest[-1]
    first = max(1, round(max_epochs / ETA**2))
    halving = asha(first, ETA, max_epochs) if len(lengths.sections) == 1 else level_asha(ETA)
    rules: dict[str, StoppingRule] = {"asha": halving, "median": median(first)}
    return rules.get(stopping, never)  # `auto` pauses and stops nothing


def _check_space(storage: StudyStorage, space: SearchSpace, study_name: str) -> None:
    for trial in storage.trials():
        stored = trial.distributions
        active = {name for name in space if space.is_active(name, trial.params)}
        differ = sorted(
            name for name in stored.keys() | active if stored.get(name) != space.distributions.get(name)
        )
        if differ:
            rule = f"space.{differ[0]}: study {study_name!r} was begun with another range or choices"
            raise UserError(rule, "keep the space to go on with it, or give the sweep another name")
