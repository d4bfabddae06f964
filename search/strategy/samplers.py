"""Samplers: which configuration to try next.

Each asks Optuna for one new trial with a seed of its own, made from the sweep's seed and the trial's number.
So a suggestion depends on that seed, the number and the recorded results alone: a sweep that is re-opened
goes on as if it had never stopped, instead of drawing its first configurations again.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from binsweep.data.errors import UserError
from binsweep.search.spec.space import (
    Dimension,
    Value,
    active,
    grid_size,
    grid_values,
    in_order,
    is_active,
    to_distribution,
)

GRID_LIMIT = 100_000  # points; a larger grid would never end
STARTUP = 10  # random configurations before a model has enough to learn from, Optuna's default

Asked = tuple[optuna.Trial, str]  # the new trial, and why this configuration
Sampler = Callable[[optuna.Study, int], Asked | None]


def make_sampler(name: str, space: Mapping[str, Dimension], seed: int) -> Sampler:
    """The sampler `tpe`, `gp`, `cmaes`, `random` or `grid`; UserError for a grid without end."""
    makers = {"tpe": _tpe, "gp": _gp, "cmaes": _cmaes, "random": _random, "grid": _grid}
    return makers[name](in_order(space), seed)


def trial_seed(seed: int, number: int) -> int:
    """A 32-bit seed for one trial, statistically independent of its neighbours'."""
    return int(np.random.SeedSequence([seed % 2**32, number]).generate_state(1)[0])


def _ask(study: optuna.Study, space: Mapping[str, Dimension]) -> optuna.Trial:
    """A new trial with a value for all that is searched in it."""
    trial = study.ask()
    chosen: dict[str, Any] = {}
    for name, dimension in space.items():
        if is_active(dimension, chosen):
            chosen[name] = _suggest(trial, name, to_distribution(dimension))
    return trial


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _random(space: Mapping[str, Dimension], seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        study.sampler = optuna.samplers.RandomSampler(seed=trial_seed(seed, number))
        return _ask(study, space), "drawn at random"

    return ask


def _tpe(space: Mapping[str, Dimension], seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        known = len(study.get_trials(deepcopy=False, states=states))
        # Optuna ranks stopped trials below completed ones, by last epoch and then value: a half-trained
        # value is never taken for a final one.
        study.sampler = optuna.samplers.TPESampler(
            seed=trial_seed(seed, number),
            n_startup_trials=STARTUP,
        )
        return _ask(study, space), _model("likeliest to improve", "TPE", known)

    return ask


def _gp(space: Mapping[str, Dimension], seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        known = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        study.sampler = optuna.samplers.GPSampler(seed=trial_seed(seed, number), n_startup_trials=STARTUP)
        return _ask(study, space), _model("most to be gained", "a Gaussian process", known)

    return ask


def _cmaes(space: Mapping[str, Dimension], seed: int) -> Sampler:
    """CMA-ES (Hansen, 2016) over the ranges; it has no notion of choices, which Optuna draws at random."""

    def ask(study: optuna.Study, number: int) -> Asked:
        known = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        sampler_seed = trial_seed(seed, number)
        study.sampler = optuna.samplers.CmaEsSampler(
            seed=sampler_seed,
            n_startup_trials=STARTUP,
            independent_sampler=optuna.samplers.RandomSampler(seed=sampler_seed),
            warn_independent_sampling=False,
        )
        return _ask(study, space), _model(
            "from the distribution that moves to where values are best", "CMA-ES", known
        )

    return ask


def _model(what: str, model: str, known: int) -> str:
    """Why a sampler that starts at random proposes a configuration."""
    if known < STARTUP:
        return f"drawn at random: {known} of the {STARTUP} trials that {model} starts from are done"
    return f"{what} by {model} over {known} trials"


def _grid(space: Mapping[str, Dimension], seed: int) -> Sampler:
    axes = _axes(space)
    # Combinations that differ only in what is not searched there are one point.
    found = (
        active(space, dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
    )
    points = list({_key(point): point for point in found}.values())
    order = np.random.default_rng(seed % 2**32).permutation(len(points))  # a cut-short grid still spreads

    def ask(study: optuna.Study, number: int) -> Asked | None:
        tried = {_key(trial.params) for trial in study.get_trials(deepcopy=False)}
        point = next((points[i] for i in order if _key(points[i]) not in tried), None)
        if point is None:
            return None
        study.enqueue_trial(point)
        return _ask(study, space), f"point {len(tried) + 1} of the grid's {len(points)}"

    return ask


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _axes(space: Mapping[str, Dimension]) -> dict[str, tuple[Value, ...]]:
    size = 1
    for name, dimension in space.items():
        count = grid_size(dimension)
        if count is None:
            rule = f"space.{name}: a grid needs an end to its values, but got {dimension!r}"
            raise UserError(rule, "list the values, give a step, or search with tpe")
        size *= count
    if size > GRID_LIMIT:
        rule = f"space: a grid may have {GRID_LIMIT:,} points, but got {size:,}"
        raise UserError(rule, "give fewer values or larger steps, or search with tpe")
    return {name: grid_values(dimension) for name, dimension in space.items()}
