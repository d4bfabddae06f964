"""Samplers: which configuration to try next.

Each asks Optuna for one new trial with a seed of its own, made from the sweep's seed and the trial's number.
So a suggestion depends on that seed, the number and the recorded results alone: a sweep that is re-opened
goes on as if it had never stopped, instead of drawing its first configurations again.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from data.errors import UserError
from search.space import Dimension, Value, grid_size, grid_values, to_distribution

GRID_LIMIT = 100_000  # points; a larger grid would never end
STARTUP = 10  # random configurations before TPE has enough to model, Optuna's default

Asked = tuple[optuna.Trial, str]  # the new trial, and why this configuration
Sampler = Callable[[optuna.Study, int], Asked | None]


def make_sampler(name: str, space: Mapping[str, Dimension], seed: int) -> Sampler:
    """The sampler `tpe`, `gp`, `random` or `grid`; UserError for a grid without end."""
    distributions = {key: to_distribution(dimension) for key, dimension in space.items()}
    if name == "grid":
        return _grid(space, distributions, seed)
    return {"tpe": _tpe, "gp": _gp, "random": _random}[name](distributions, seed)


def trial_seed(seed: int, number: int) -> int:
    """A 32-bit seed for one trial, statistically independent of its neighbours'."""
    return int(np.random.SeedSequence([seed % 2**32, number]).generate_state(1)[0])


def _random(distributions: dict[str, BaseDistribution], seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        study.sampler = optuna.samplers.RandomSampler(seed=trial_seed(seed, number))
        return study.ask(distributions), "drawn at random"

    return ask


def _tpe(distributions: dict[str, BaseDistribution], seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        known = len(study.get_trials(deepcopy=False, states=states))
        # Optuna ranks stopped trials below completed ones, by last epoch and then value: a half-trained
        # value is never taken for a final one.
        sampler_seed = trial_seed(seed, number)
        study.sampler = optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=STARTUP)
        start = f"drawn at random: {known} of the {STARTUP} trials that TPE starts from are done"
        model = f"likeliest to improve by TPE over {known} trials"
        return study.ask(distributions), start if known < STARTUP else model

    return ask


def _gp(distributions: dict[str, BaseDistribution], seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        states = (optuna.trial.TrialState.COMPLETE,)
        known = len(study.get_trials(deepcopy=False, states=states))
        study.sampler = optuna.samplers.GPSampler(seed=trial_seed(seed, number), n_startup_trials=STARTUP)
        start = (
            f"drawn at random: {known} of the {STARTUP} trials that a Gaussian process starts from are done"
        )
        model = f"most to be gained by a Gaussian process over {known} completed trials"
        return study.ask(distributions), start if known < STARTUP else model

    return ask


def _grid(space: Mapping[str, Dimension], distributions: dict[str, BaseDistribution], seed: int) -> Sampler:
    axes = _axes(space)
    points: list[tuple[Value, ...]] = list(itertools.product(*axes.values()))
    order = np.random.default_rng(seed % 2**32).permutation(len(points))  # a cut-short grid still spreads

    def ask(study: optuna.Study, number: int) -> Asked | None:
        tried = {tuple(trial.params[name] for name in axes) for trial in study.get_trials(deepcopy=False)}
        point = next((points[i] for i in order if points[i] not in tried), None)
        if point is None:
            return None
        study.enqueue_trial(dict(zip(axes, point, strict=True)))
        return study.ask(distributions), f"point {len(tried) + 1} of the grid's {len(points)}"

    return ask


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
