"""A Gaussian process over configurations and training progress.

    value(x, l) = trend(l) + final(x) + (1 - l) early(x, l) + trial + noise        0 <= l <= 1

The progress `l` is logarithmic, 1 at the end of a training. Early values have a term of their own that vanishes at the
end, so that effects that hold only early (fast learning) are not mistaken for good final values. The joint model of
curves follows freeze-thaw (Swersky et al., 2014), its form is close to Wu et al., 2020 (a fidelity kernel
(1 - l)(1 - l')). Matern 5/2 kernels with a length scale per dimension; hyperparameters at their posterior mode under
log-normal priors, by L-BFGS with exact gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, solve_triangular
from scipy.optimize import minimize

from binsweep.search.strategy.kernel import cholesky_factor, log_scale_gradient, matern
from binsweep.search.strategy.prior_mean import EarlierModel, PriorMean, fitted_mean

# Prior medians, and spreads on the log scale, for values of unit variance and coordinates of unit range. Besides the
# two length scales per dimension: variance and length scale of the trend, variance of the final value, variance and
# length scale of the early term, variance of the trial offset, variance of the noise.
_SCALE_MEDIANS = {"final_scale": 0.6, "early_scale": 1.0}
_REST_MEDIANS = np.log([1.0, 0.5, 0.7, 0.7, 0.5, 0.02, 0.002])
_SPREAD, _REST_SPREAD = 0.7, np.array([1.0, 0.4, 0.7, 0.7, 0.4, 1.0, 1.0])
_JITTER = 1e-6
REFIT_GROWTH = 1.2  # refit the hyperparameters when the observations have grown by this factor


def log_distances(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Minus the distance of each value from the best on a log scale, given the best value of each trial.

    Order at the top matters more than among bad values.
    """
    return np.asarray(-np.log1p((best.max() - values) / distance_unit(best)))


def distance_unit(best: np.ndarray) -> float:
    """The unit of `log_distances`: a fifth of the distance between best and median."""
    ceiling, middle = best.max(), np.median(best)
    return float(0.2 * (ceiling - middle) + 1e-12 + 1e-9 * abs(ceiling))


@dataclass(frozen=True)
class CurveData:
    """Observations: features [n, d], progress [n], trial numbers [n] (-1 for a new trial), values [n]."""

    x: np.ndarray
    progress: np.ndarray
    trial: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class _Kernels:
    """The terms of a covariance matrix, and what their gradients need."""

    trend: np.ndarray
    final: np.ndarray
    early: np.ndarray  # without its Matern factor
    early_x: np.ndarray
    trial: np.ndarray
    squared_distance: np.ndarray  # squared distance of the progress

    def total(self) -> np.ndarray:
        whole: np.ndarray = self.trend + self.final + self.early * self.early_x + self.trial
        return whole


class CurveModel:
    """The process; `theta` holds the logarithms of its hyperparameters, fitted to `n_fitted` observations."""

    def __init__(self, groups: np.ndarray) -> None:
        self._groups = groups  # the index of each feature's length scale
        scales = int(groups.max()) + 1
        self._n_scales = scales
        self.prior = np.concatenate(
            [np.full(scales, math.log(_SCALE_MEDIANS[k])) for k in ("final_scale", "early_scale")]
            + [_REST_MEDIANS]
        )
        self._spread = np.concatenate([np.full(2 * scales, _SPREAD), _REST_SPREAD])
        self.theta = self.prior.copy()
        self.n_fitted = 0
        self.earlier: Sequence[EarlierModel] = ()  # sweeps on other data, for the prior mean
        self.mean = PriorMean()

    def refit_if_due(self, data: CurveData, n_observed: int) -> None:
        """Refit `theta` if the observations have grown enough since the last fit."""
        if n_observed >= self.n_fitted * REFIT_GROWTH:
            self.n_fitted = n_observed
            self.fit(data)

    def fit(self, data: CurveData, steps: int = 12) -> None:
        """Move `theta` towards its posterior mode, starting at its present value."""
        bounds = list(zip(self.prior - 3 * self._spread, self.prior + 3 * self._spread, strict=True))
        start = np.clip(self.theta, *np.array(bounds).T)
        if self.earlier:
            self.condition(data)
            data = replace(data, y=data.y - self.mean(data.x))
        found = minimize(
            self.loss, start, (data,), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": steps}
        )
        if np.all(np.isfinite(found.x)):
            self.theta = found.x

    def condition(self, data: CurveData) -> None:
        """Condition the process on observations, without changing `theta`."""
        self._data = data
        covariance = self._kernels(self.theta, data, data).total()
        self._factor = cholesky_factor(covariance, math.exp(self.theta[-1]) + _JITTER)
        self.mean = fitted_mean(self.earlier, data.x, data.y, self._factor)
        self._weights = cho_solve((self._factor, True), data.y - self.mean(data.x), check_finite=False)

    def predict(
        self, x: np.ndarray, progress: np.ndarray, trial: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (without noise) at the given points, each of shape [n]."""
        asked = CurveData(x, progress, trial, np.empty(0))
        cross = self._kernels(self.theta, self._data, asked).total()
        trend, _, final, early, _, offset, _ = np.exp(self.theta[2 * self._n_scales :])
        prior = trend + final + early * (1 - progress) ** 2 + offset
        known = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        deviation = np.sqrt(np.maximum(prior - (known**2).sum(axis=0), 1e-10))
        return cross.T @ self._weights + self.mean(x), deviation

    def as_earlier(self, sweep: str, probes: np.ndarray) -> EarlierModel:
        """The final values that it predicts, up to an offset and with variance 1 over `probes` [n, d]."""
        final, scale = math.exp(self.theta[2 * self._n_scales + 2]), np.exp(self.theta[: self._n_scales])
        model = EarlierModel(sweep, self._data.x, scale[self._groups], final * self._weights)
        return replace(model, weights=model.weights / max(float(model(probes).std()), 1e-9))

    def loss(self, theta: np.ndarray, data: CurveData) -> tuple[float, np.ndarray]:
        """The negative log posterior of `theta`, up to a constant, and its gradient."""
        k = self._kernels(theta, data, data)
        noise = math.exp(theta[-1])
        try:
            factor = cholesky_factor(k.total(), noise + _JITTER)
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
        n = self._n_scales
        gradient = np.zeros_like(theta)
        variance = math.exp(theta[2 * n + 2])
        for first, factor in ((0, w * variance), (n, w * k.early)):
            scale = np.exp(theta[first : first + n])[self._groups]
            np.add.at(gradient, first + self._groups, log_scale_gradient(factor, data.x, scale))
        trend, early = w * k.trend, w * k.early * k.early_x
        length, early_length = np.exp(2 * theta[[2 * n + 1, 2 * n + 4]])
        gradient[2 * n :] = [
            trend.sum(),
            (trend * k.squared_distance).sum() / length,
            (w * k.final).sum(),
            early.sum(),
            (early * k.squared_distance).sum() / early_length,
            (w * k.trial).sum(),
            np.trace(w) * noise,
        ]
        return gradient

    def _kernels(self, theta: np.ndarray, a: CurveData, b: CurveData) -> _Kernels:
        n = self._n_scales
        trend, length, final, early, early_length, offset, _ = np.exp(theta[2 * n :])
        final_x = matern(a.x, b.x, np.exp(theta[:n])[self._groups])
        early_x = matern(a.x, b.x, np.exp(theta[n : 2 * n])[self._groups])
        # Progress has few distinct values: terms of progress alone are computed once for each pair of them.
        one, rows = np.unique(a.progress, return_inverse=True)
        two, columns = np.unique(b.progress, return_inverse=True)
        squared_distance = (one[:, None] - two[None]) ** 2
        left = (1 - one)[:, None] * (1 - two)[None]
        trends = trend * np.exp(-0.5 * squared_distance / length**2)
        earlies = early * left * np.exp(-0.5 * squared_distance / early_length**2)
        return _Kernels(
            trend=trends[rows][:, columns],
            final=final * final_x,
            early=earlies[rows][:, columns],
            early_x=early_x,
            trial=offset * ((a.trial[:, None] == b.trial[None]) & (a.trial >= 0)[:, None]),
            squared_distance=squared_distance[rows][:, columns],
        )
