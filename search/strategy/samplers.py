"""Samplers: which configuration to try next.

Each call asks Optuna for one new trial, with a seed derived from the sweep's seed and the trial's number. A suggestion
therefore depends only on these two and the recorded results: a resumed sweep continues as if it had never stopped,
instead of drawing its first configurations again.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from binsweep.data.errors import UserError
from binsweep.search.spec.space import SearchSpace, Value, grid_size, grid_values

MAX_GRID_POINTS = 100_000  # a larger grid would never finish
N_STARTUP_TRIALS = 10  # random configurations before a model is used, Optuna's default

Asked = tuple[optuna.Trial, str]  # the new trial, and why this configuration
Sampler = Callable[[optuna.Study, int], Asked | None]  # None: every configuration was tried


def make_sampler(name: str, space: SearchSpace, seed: int) -> Sampler:
    """The sampler `tpe`, `gp`, `cmaes`, `random` or `grid`. Raises UserError for an infinite grid."""
    makers: dict[str, Callable[[SearchSpace, int], Sampler]] = {
        "tpe": _tpe,
        "gp": _gp,
        "cmaes": _cmaes,
        "random": _random,
        "grid": Grid,
    }
    return makers[name](space, seed)


def trial_seed(seed: int, number: int) -> int:
    """A 32-bit seed for one trial, statistically independent of its neighbours'."""
    return int(np.random.SeedSequence([seed % 2**32, number]).generate_state(1)[0])


def _ask(study: optuna.Study, space: SearchSpace) -> optuna.Trial:
    """A new trial with values of all its active parameters."""
    trial = study.ask()
    chosen: dict[str, Any] = {}
    for name, distribution in space.distributions.items():
        if space.is_active(name, chosen):
            chosen[name] = _suggest(trial, name, distribution)
    return trial


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _random(space: SearchSpace, seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        study.sampler = optuna.samplers.RandomSampler(seed=trial_seed(seed, number))
        return _ask(study, space), "drawn at random"

    return ask


def _tpe(space: SearchSpace, seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        known = len(study.get_trials(deepcopy=False, states=states))
        # Optuna ranks pruned trials below completed ones, by last epoch and then value, so that an intermediate
        # value is never taken for a final one.
        study.sampler = optuna.samplers.TPESampler(
            seed=trial_seed(seed, number),
            n_startup_trials=N_STARTUP_TRIALS,
        )
        return _ask(study, space), _reason("likeliest to improve", "TPE", known)

    return ask


def _gp(space: SearchSpace, seed: int) -> Sampler:
    def ask(study: optuna.Study, number: int) -> Asked:
        known = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        study.sampler = optuna.samplers.GPSampler(
            seed=trial_seed(seed, number), n_startup_trials=N_STARTUP_TRIALS
        )
        return _ask(study, space), _reason("largest expected improvement", "a Gaussian process", known)

    return ask


def _cmaes(space: SearchSpace, seed: int) -> Sampler:
    """CMA-ES (Hansen, 2016) over the ranges; choices are drawn at random, because it does not support them."""

    def ask(study: optuna.Study, number: int) -> Asked:
        known = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        sampler_seed = trial_seed(seed, number)
        study.sampler = optuna.samplers.CmaEsSampler(
            seed=sampler_seed,
            n_startup_trials=N_STARTUP_TRIALS,
            independent_sampler=optuna.samplers.RandomSampler(seed=sampler_seed),
            warn_independent_sampling=False,
        )
        return _ask(study, space), _reason(
            "from the distribution that moves towards the best values", "CMA-ES", known
        )

    return ask


def _reason(what: str, model: str, known: int) -> str:
    """Why a sampler with random startup trials proposes a configuration."""
    if known < N_STARTUP_TRIALS:
        return f"drawn at random: {known} of the {N_STARTUP_TRIALS} startup trials of {model} are done"
    return f"{what} by {model} over {known} trials"


class Grid:
    """A sampler that tries each point of a grid once."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        axes = _axes(space)
        # Combinations that differ only in inactive parameters are one point.
        found: Iterable[dict[str, Any]] = (
            space.active(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
        )
        points = list({_key(point): point for point in found}.values())
        # In random order, so that an unfinished grid covers the space.
        order = np.random.default_rng(seed % 2**32).permutation(len(points))
        self._space, self._points = space, [points[i] for i in order]

    def __call__(self, study: optuna.Study, number: int) -> Asked | None:
        untried = self.untried(study)
        if not untried:
            return None
        study.enqueue_trial(untried[0])
        place = len(self._points) - len(untried) + 1
        return _ask(study, self._space), f"point {place} of the grid's {len(self._points)}"

    def untried(self, study: optuna.Study) -> list[dict[str, Any]]:
        """The points that no trial has, in the order in which they are tried."""
        tried = {_key(trial.params) for trial in study.get_trials(deepcopy=False)}
        return [point for point in self._points if _key(point) not in tried]


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _axes(space: SearchSpace) -> dict[str, tuple[Value, ...]]:
    size = 1
    for name, dimension in space.items():
        count = grid_size(dimension)
        if count is None:
            rule = f"space.{name}: a grid needs finitely many values, but got {dimension!r}"
            raise UserError(rule, "list the values, give a step, or search with tpe")
        size *= count
    if size > MAX_GRID_POINTS:
        rule = f"space: a grid may have {MAX_GRID_POINTS:,} points, but got {size:,}"
        raise UserError(rule, "give fewer values or larger steps, or search with tpe")
    return {name: grid_values(dimension) for name, dimension in space.items()}
