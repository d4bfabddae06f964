"""Earlier sweeps whose values do not count in a new one: what the study stores of them, and the models made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from binsweep.search.strategy.base import Record
from binsweep.search.strategy.curve_gp import CurveData, CurveModel, log_distances
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.lengths import progress_of
from binsweep.search.strategy.prior_mean import EarlierModel
from binsweep.search.strategy.stopping_rule import Curve
from binsweep.search.strategy.trial_pool import TrialPool, training_rungs

MAX_TRIALS = 64  # of one sweep: its model's time is cubic in them
MIN_TRIALS = 3  # of which a model is made
FIT_STEPS = 30  # of a model that is fitted once
N_PROBES = 512  # random configurations over which its predictions get a variance of 1
MIN_DISTANCE = 0.1  # relative to a range, in at least one dimension, between initial points


@dataclass(frozen=True)
class EarlierTrial:
    """One trial of an earlier sweep, in the new one's space; its values by epoch, larger is better."""

    params: dict[str, Any]
    ends: list[int]  # the epochs after which its sections end
    values: dict[int, float]

    @property
    def best(self) -> float:
        return max(self.values.values())


@dataclass(frozen=True)
class EarlierSweep:
    """The trials of one earlier sweep that lie in the new one's space, best first."""

    sweep: str
    longest: list[int]  # the ends of the sections of its longest training
    trials: list[EarlierTrial]

    def thinned(self) -> EarlierSweep:
        """With at most `MAX_TRIALS`: the best half of them, and others from all over the ranking."""
        if len(self.trials) <= MAX_TRIALS:
            return self
        half = MAX_TRIALS // 2
        others = np.linspace(half, len(self.trials) - 1, MAX_TRIALS - half).astype(int)
        return EarlierSweep(
            self.sweep, self.longest, [self.trials[i] for i in (*range(half), *map(int, others))]
        )

    def as_json(self) -> dict[str, Any]:
        """What a study stores of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> EarlierSweep:
        """What `as_json` returned, read from JSON, in which every key is text."""
        trials = [
            EarlierTrial(t["params"], t["ends"], {int(at): value for at, value in t["values"].items()})
            for t in stored["trials"]
        ]
        return cls(stored["sweep"], stored["longest"], trials)


@dataclass(frozen=True)
class InitialPoint:
    """A configuration to try before any other, and why; without a reason the sweep file asks for it."""

    params: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class FirstGuesses:
    """What a new sweep knows before its first trial: configurations to try first, trials of earlier sweeps (by their
    names) that count as its own results, and sweeps of which only the order of configurations may tell something."""

    points: Sequence[InitialPoint] = ()
    results: Sequence[tuple[str, Record]] = ()
    earlier: Sequence[EarlierSweep] = ()


def earlier_models(sweeps: Sequence[EarlierSweep], encoder: Encoder) -> list[EarlierModel]:
    """A model of each sweep of which `MIN_TRIALS` trials reached a rung. The same sweeps give the same models."""
    models = []
    for sweep in sweeps:
        pool = TrialPool()
        for trial in sweep.trials:
            curve = Curve(trial.ends[-1], trial.values)
            if max(trial.values) >= training_rungs(trial.ends)[0]:
                pool.add(trial.params, curve, "over", ends=trial.ends)
        if len(pool.trials) >= MIN_TRIALS:
            models.append(_model(sweep, pool, encoder))
    return models


def _model(sweep: EarlierSweep, pool: TrialPool, encoder: Encoder) -> EarlierModel:
    rows = [(n, *row) for n, trial in enumerate(pool.trials) for row in trial.curve_points()]
    number, epochs, values = (np.array(column) for column in zip(*rows, strict=True))
    values = log_distances(values, pool.best_values())
    ends = np.array([trial.ends for trial in pool.trials])[number]
    x = encoder.features(np.array([encoder.point(trial.params) for trial in pool.trials]))
    y = (values - values.mean()) / (values.std() + 1e-9)
    data = CurveData(x[number], progress_of(epochs, ends, sweep.longest), number, y)
    model = CurveModel(encoder.feature_groups())
    model.fit(data, FIT_STEPS)
    model.condition(data)
    probes = encoder.rounded(encoder.random(np.random.default_rng(0), N_PROBES))
    return model.as_earlier(sweep.sweep, encoder.features(probes))


def best_configurations(
    sweeps: Sequence[EarlierSweep], encoder: Encoder, count: int
) -> list[tuple[str, dict[str, Any]]]:
    """The best configurations of the sweeps in turn, each with its sweep; none is close to another one."""
    found: list[tuple[str, dict[str, Any]]] = []
    points: list[np.ndarray] = []
    waiting = {sweep.sweep: list(sweep.trials) for sweep in sweeps}
    while any(waiting.values()) and len(found) < count:
        for name, trials in waiting.items():
            while trials and len(found) < count:
                params = trials.pop(0).params
                point = encoder.point(params)
                if all(np.abs(point - other).max() >= MIN_DISTANCE for other in points):
                    found.append((name, params))
                    points.append(point)
                    break
    return found
