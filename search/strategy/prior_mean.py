"""What earlier sweeps on other data say about a new one: a prior mean that the new trials overrule.

    mean(x) = sum over sweeps s of w_s (m_s(x) - the average of m_s over the new trials),    w_s >= 0

m_s is the final value of a configuration by a model of the earlier sweep alone. Its offset and scale, which differ
between data, do not matter: only how it orders configurations does. The new sweep's model of curves learns what this
mean leaves unexplained. The weights have a normal prior and follow the new trials by generalised least squares, with
that model's covariance: early values, which tell little of the end, move them little. A sweep that
contradicts the new trials gets no weight. To weigh models of earlier tasks by how they order the new task's trials is
the idea of Feurer et al., 2018 (RGPE, arXiv 1802.02219), where a model of the new trials competes for the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import nnls
from scipy.stats import kendalltau

from binsweep.search.strategy.kernel import matern

WEIGHT_DEVIATION = (
    0.5  # of the weights' normal prior around 0; between standardised values they are correlations
)
MIN_RANKED = 8  # new trials, from which on their order says whether an earlier sweep is believed


@dataclass(frozen=True)
class EarlierModel:
    """Predicted final values of one earlier sweep, up to an offset: matern(x, its trials) @ weights."""

    sweep: str
    x: np.ndarray  # features [trials, d]
    scale: np.ndarray  # length scales [d]
    weights: np.ndarray  # [trials]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The predictions at features [n, d], shape [n]."""
        return np.asarray(matern(x, self.x, self.scale) @ self.weights)


@dataclass(frozen=True)
class PriorMean:
    """The weighted models of earlier sweeps; without any it is zero everywhere."""

    models: Sequence[EarlierModel] = ()
    weights: np.ndarray = field(default_factory=lambda: np.empty(0))
    average: float = 0.0  # of the weighted sum over the new trials

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The mean at features [n, d], shape [n]."""
        terms = [weight * model(x) for model, weight in self._used()]
        return np.asarray(sum(terms, np.zeros(len(x))) - self.average)

    def _used(self) -> list[tuple[EarlierModel, float]]:
        return [(model, float(w)) for model, w in zip(self.models, self.weights, strict=True) if w > 0]

    def __str__(self) -> str:
        shares = [f"{model.sweep} {w:.2f}" for model, w in zip(self.models, self.weights, strict=True)]
        return "; weight of " + ", of ".join(shares) if shares else ""


def rank_weights(models: Sequence[EarlierModel], x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How well each model orders new trials with features `x` [n, d] by their `values` [n]: Kendall's tau, or 0.

    It is 0 unless tau exceeds its standard error, that of n values without any relation. Of fewer than `MIN_RANKED`
    trials every model gets the same weight.
    """
    n = len(values)
    if n < MIN_RANKED:
        return np.ones(len(models))
    taus = np.nan_to_num(
        [kendalltau(model(x), values).statistic for model in models]
    )  # nan: all values are alike
    return np.asarray(np.where(taus > math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))), taus, 0.0))


def fitted_mean(
    models: Sequence[EarlierModel], x: np.ndarray, values: np.ndarray, factor: np.ndarray
) -> PriorMean:
    """The mean for new trials with features `x` [n, d] and standardised `values` [n].

    `factor` [n, n] is the lower Cholesky factor of the covariance of what the mean leaves unexplained.
    """
    if not models:
        return PriorMean()
    predicted = np.stack([model(x) for model in models], axis=1)  # [n, sweeps]
    average = predicted.mean(axis=0)
    whitened = solve_triangular(
        factor, np.column_stack([predicted - average, values]), lower=True, check_finite=False
    )
    # The prior of each weight is one more observation of it: 0.
    rows = np.concatenate([whitened[:, :-1], np.eye(len(models)) / WEIGHT_DEVIATION])
    weights, _ = nnls(rows, np.concatenate([whitened[:, -1], np.zeros(len(models))]))
    return PriorMean(models, weights, float(average @ weights))
