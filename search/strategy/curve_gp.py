"""A Gaussian process over configurations and how far they are trained.

    value(x, l) = trend(l) + final(x) + (1 - l) early(x, l) + trial + noise        0 <= l <= 1

`l` is how far a training has come on a log scale, 1 at its end. Early values are explained by a term of their
own that vanishes at the end, so that what holds only early (what learns fast) is not taken for what ends well.
The idea of a joint model of curves is freeze-thaw's (Swersky et al., 2014), the shape close to that of
Wu et al., 2020 (a fidelity kernel (1 - l)(1 - l')). Length scales per dimension, Matern 5/2 kernels, and
hyperparameters at their most probable value under log-normal priors, by L-BFGS with exact gradients.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, solve_triangular
from scipy.optimize import minimize

from binsweep.search.strategy.kernel import by_log_scale, decompose, matern

# Beyond the two length scales per dimension: variance and length of the trend, variance of the final value,
# variance and length of the early term, variance of a trial's own offset, and of the noise. Values have unit
# variance and coordinates unit range. Prior medians and their spreads on the log scale:
_MEDIANS = {"final_scale": 0.6, "early_scale": 1.0}
_REST = np.log([1.0, 0.5, 0.7, 0.7, 0.5, 0.02, 0.002])
_SPREAD, _REST_SPREAD = 0.7, np.array([1.0, 0.4, 0.7, 0.7, 0.4, 1.0, 1.0])
_JITTER = 1e-6
GROWTH = 1.2  # the hyperparameters are learned anew when there is so much more to learn from


@dataclass(frozen=True)
class CurveData:
    """Observations: features [n, d], progress [n], the trial of each [n] (-1: none seen yet), values [n]."""

    x: np.ndarray
    progress: np.ndarray
    trial: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class _Kernels:
    """The parts of a covariance matrix, and what their gradients need."""

    trend: np.ndarray
    final: np.ndarray
    early: np.ndarray  # without its Matern factor
    early_x: np.ndarray
    trial: np.ndarray
    apart: np.ndarray  # squared distance of the progress

    def total(self) -> np.ndarray:
        whole: np.ndarray = self.trend + self.final + self.early * self.early_x + self.trial
        return whole


class CurveModel:
    """The process; `theta` holds the logarithms of its hyperparameters, `learned_from` how much they know."""

    def __init__(self, groups: np.ndarray) -> None:
        self._groups = groups  # the length scale that each feature has
        scales = int(groups.max()) + 1
        self._n = scales
        self.prior = np.concatenate(
            [np.full(scales, math.log(_MEDIANS[k])) for k in ("final_scale", "early_scale")] + [_REST]
        )
        self._spread = np.concatenate([np.full(2 * scales, _SPREAD), _REST_SPREAD])
        self.theta = self.prior.copy()
        self.learned_from = 0

    def keep_up(self, data: CurveData, seen: int) -> None:
        """Learn anew when so much more was seen than when it last did."""
        if seen >= self.learned_from * GROWTH:
            self.learned_from = seen
            self.learn(data)

    def learn(self, data: CurveData, steps: int = 12) -> None:
        """Set `theta` by its posterior, from where it is."""
        bounds = list(zip(self.prior - 3 * self._spread, self.prior + 3 * self._spread, strict=True))
        start = np.clip(self.theta, *np.array(bounds).T)
        found = minimize(
            self.loss, start, (data,), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": steps}
        )
        if np.all(np.isfinite(found.x)):
            self.theta = found.x

    def condition(self, data: CurveData) -> None:
        """Take in the observations, with `theta` as it is."""
        self._data = data
        covariance = self._kernels(self.theta, data, data).total()
        self._factor = decompose(covariance, math.exp(self.theta[-1]) + _JITTER)
        self._weights = cho_solve((self._factor, True), data.y, check_finite=False)

    def predict(
        self, x: np.ndarray, progress: np.ndarray, trial: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (without noise) at the given points, each of shape [n]."""
        asked = CurveData(x, progress, trial, np.empty(0))
        cross = self._kernels(self.theta, self._data, asked).total()
        trend, _, final, early, _, offset, _ = np.exp(self.theta[2 * self._n :])
        prior = trend + final + early * (1 - progress) ** 2 + offset
        known = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        return cross.T @ self._weights, np.sqrt(np.maximum(prior - (known**2).sum(axis=0), 1e-10))

    def loss(self, theta: np.ndarray, data: CurveData) -> tuple[float, np.ndarray]:
        """The negative log posterior of `theta`, up to a constant, and its gradient."""
        k = self._kernels(theta, data, data)
        noise = math.exp(theta[-1])
        try:
            factor = decompose(k.total(), noise + _JITTER)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((factor, True), np.eye(len(data.y)), check_finite=False)
        weights = inverse @ data.y
        away = (theta - self.prior) / self._spread
        fit = 0.5 * data.y @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        w = 0.5 * (inverse - np.outer(weights, weights))
        return float(fit), self._gradient(theta, data, k, w, noise) + away / self._spread

    def _gradient(
        self, theta: np.ndarray, data: CurveData, k: _Kernels, w: np.ndarray, noise: float
    ) -> np.ndarray:
        n = self._n
        gradient = np.zeros_like(theta)
        variance = math.exp(theta[2 * n + 2])
        for first, factor in ((0, w * variance), (n, w * k.early)):
            scale = np.exp(theta[first : first + n])[self._groups]
            np.add.at(gradient, first + self._groups, by_log_scale(factor, data.x, scale))
        trend, early = w * k.trend, w * k.early * k.early_x
        length, early_length = np.exp(2 * theta[[2 * n + 1, 2 * n + 4]])
        gradient[2 * n :] = [
            trend.sum(),
            (trend * k.apart).sum() / length,
            (w * k.final).sum(),
            early.sum(),
            (early * k.apart).sum() / early_length,
            (w * k.trial).sum(),
            np.trace(w) * noise,
        ]
        return gradient

    def _kernels(self, theta: np.ndarray, a: CurveData, b: CurveData) -> _Kernels:
        n = self._n
        trend, length, final, early, early_length, offset, _ = np.exp(theta[2 * n :])
        final_x = matern(a.x, b.x, np.exp(theta[:n])[self._groups])
        early_x = matern(a.x, b.x, np.exp(theta[n : 2 * n])[self._groups])
        # There are few different progresses: what depends on them alone is computed once for each pair.
        one, rows = np.unique(a.progress, return_inverse=True)
        two, columns = np.unique(b.progress, return_inverse=True)
        apart = (one[:, None] - two[None]) ** 2
        left = (1 - one)[:, None] * (1 - two)[None]
        trends = trend * np.exp(-0.5 * apart / length**2)
        earlies = early * left * np.exp(-0.5 * apart / early_length**2)
        return _Kernels(
            trend=trends[rows][:, columns],
            final=final * final_x,
            early=earlies[rows][:, columns],
            early_x=early_x,
            trial=offset * ((a.trial[:, None] == b.trial[None]) & (a.trial >= 0)[:, None]),
            apart=apart[rows][:, columns],
        )
