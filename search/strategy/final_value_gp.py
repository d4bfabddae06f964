"""A Gaussian process of final values: value(x) = f(x) + noise.

The model is that of Optuna's `GPSampler`: Matern 5/2 with a length scale per dimension, standardised values, and
hyperparameters at their posterior mode under the same priors. It is faster, because the hyperparameters are refitted
only when the observations have grown, gradients are exact, and many points are evaluated at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, solve_triangular
from scipy.optimize import Bounds, minimize
from scipy.special import log_ndtr

from binsweep.search.strategy.encoding import Encoder, Points
from binsweep.search.strategy.kernel import (
    cholesky_factor,
    log_improvement,
    log_scale_gradient,
    log_unit_improvement,
    matern,
    matern_slope,
    scaled_distance,
)

REFIT_GROWTH = 1.05  # refit the hyperparameters when the observations have grown by this factor
MIN_NOISE = 1e-6  # relative to the values' variance
JITTER = 1e-9
LOG_BOUNDS = (-15.0, 15.0)  # of the hyperparameters' logarithms, within which everything is finite
N_FANTASIES = 64  # samples of the final values of running trials
N_RANDOM = 1024  # random points at which the search for the best point begins
N_LEADERS = 8  # the best points, from which gradient ascent starts, besides the best trial
MAX_LBFGS_STEPS = 20
N_ROUNDS = 2  # of gradient ascent and a step to neighbouring choices


@dataclass
class _Posterior:
    """The process given observations: their features [n, d], the Cholesky factor and inverse of their covariance,
    weights [n, fantasies], and the best value of each fantasy."""

    x: np.ndarray
    factor: np.ndarray
    inverse: np.ndarray
    weights: np.ndarray
    top: np.ndarray


class FinalValueModel:
    """The process; `theta` holds the logarithms of its length scales, variance and noise."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._groups = encoder, encoder.feature_groups()
        self.theta = np.zeros(len(encoder.names) + 2)
        self.n_fitted = 0

    def refit_if_due(self, points: Points, values: np.ndarray, n_observed: int) -> None:
        """Refit `theta` if the observations have grown enough since the last fit."""
        if n_observed >= self.n_fitted * REFIT_GROWTH:
            self.n_fitted = n_observed
            self.fit(self._encoder.features(points), _standardised(values))

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        """Set `theta` to its posterior mode, starting at zeros each time."""
        start, options = np.zeros_like(self.theta), {"gtol": 1e-2}
        found = minimize(
            self.loss, start, (x, y), "L-BFGS-B", jac=True, bounds=Bounds(*LOG_BOUNDS), options=options
        )
        self.theta = found.x

    def loss(self, theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log posterior of `theta`, up to a constant, and its gradient."""
        scale, variance, noise = self._unpacked(theta)
        kernel = matern(x, x, scale)
        try:
            factor = cholesky_factor(variance * kernel, noise + JITTER)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((factor, True), np.eye(len(y)), check_finite=False)
        weights = inverse @ y
        w = 0.5 * (inverse - np.outer(weights, weights))
        gradient = np.zeros_like(theta)
        np.add.at(gradient, self._groups, log_scale_gradient(w * variance, x, scale))
        gradient[-2:] = variance * (w * kernel).sum(), (noise - MIN_NOISE) * np.trace(w)
        fit = 0.5 * y @ weights + np.log(np.diag(factor)).sum()
        # Optuna's priors: one of the inverse squared length scales, gamma priors of variance and noise.
        inverse_squared = np.exp(-2 * theta[:-2])
        prior = -0.1 * (1 / inverse_squared + inverse_squared).sum()
        prior += np.log(variance) - variance + 0.1 * np.log(noise) - 30 * noise
        gradient[:-2] -= 0.2 * (inverse_squared - 1 / inverse_squared)
        gradient[-2:] -= 1 - variance, (noise - MIN_NOISE) * (0.1 / noise - 30)
        return float(fit - prior), gradient

    def best(
        self,
        points: Points,
        values: np.ndarray,
        pending: Points,
        rng: np.random.Generator,
        log_cost: Callable[[Points], np.ndarray],
    ) -> tuple[Points, np.ndarray]:
        """Points by their expected improvement over the best value for their cost (Snoek et al., 2012), best first, and
        the improvement itself, in units of `values`.

        The final values of `pending` points are sampled, and the improvement is averaged over the samples (Snoek et
        al., 2012).
        """
        posterior = self._condition(points, _standardised(values), pending, rng)

        def rated(candidates: Points) -> tuple[np.ndarray, np.ndarray]:
            """The gain of each point less its cost, and the gain itself."""
            gain = self._gain(posterior, candidates)
            return gain - log_cost(candidates), gain

        found = self._encoder.rounded(self._encoder.random(rng, N_RANDOM))
        rates, gains = rated(found)
        leaders = np.concatenate([_leaders(found, rates), points[[values.argmax()]]])
        for _ in range(N_ROUNDS):
            climbed = self._ascend(posterior, leaders)
            more = np.concatenate([climbed, self._encoder.neighbours(climbed)])
            more_rates, more_gains = rated(more)
            found, gains = np.concatenate([found, more]), np.concatenate([gains, more_gains])
            rates = np.concatenate([rates, more_rates])
            leaders = _leaders(found, rates)
        order = np.argsort(-rates, kind="stable")
        return found[order], np.exp(gains[order]) / len(posterior.top) * values.std()

    def predict(self, posterior: _Posterior, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Means of each fantasy, shape [n, fantasies], and standard deviations (without noise), shape [n, 1]."""
        scale, variance, _ = self._unpacked(self.theta)
        cross = variance * matern(posterior.x, self._encoder.features(points), scale)
        left = variance - (cross * (posterior.inverse @ cross)).sum(axis=0)
        return cross.T @ posterior.weights, np.sqrt(np.maximum(left, 1e-10))[:, None]

    def _condition(
        self, points: Points, y: np.ndarray, pending: Points, rng: np.random.Generator
    ) -> _Posterior:
        posterior = self._condition_on(self._encoder.features(points), y[:, None])
        if not len(pending):
            return posterior
        scale, variance, _ = self._unpacked(self.theta)
        x = self._encoder.features(pending)
        cross = variance * matern(posterior.x, x, scale)
        # With the factor, because with the inverse the covariance of close points may not be positive definite.
        part = solve_triangular(posterior.factor, cross, lower=True, check_finite=False)
        spread = cholesky_factor(
            variance * matern(x, x, scale) - part.T @ part, MIN_NOISE * variance + JITTER
        )
        ends = cross.T @ posterior.weights + spread @ rng.standard_normal((len(pending), N_FANTASIES))
        both = np.concatenate([np.repeat(y[:, None], N_FANTASIES, axis=1), ends])
        return self._condition_on(np.concatenate([posterior.x, x]), both)

    def _condition_on(self, x: np.ndarray, y: np.ndarray) -> _Posterior:
        scale, variance, noise = self._unpacked(self.theta)
        factor = cholesky_factor(variance * matern(x, x, scale), noise + JITTER)
        inverse = cho_solve((factor, True), np.eye(len(x)), check_finite=False)
        return _Posterior(x, factor, inverse, inverse @ y, y.max(axis=0))

    def _gain(self, posterior: _Posterior, points: Points) -> np.ndarray:
        mean, deviation = self.predict(posterior, points)
        return np.asarray(np.logaddexp.reduce(log_improvement(mean, deviation, posterior.top), axis=1))

    def _ascend(self, posterior: _Posterior, points: Points) -> Points:
        """Each point moved to a local maximum of its improvement, along its active continuous ranges.

        All points are moved at once: the sum of their improvements is largest where each of them is (Balandat et al.,
        2020).
        """
        scale, variance, _ = self._unpacked(self.theta)
        free, features = self._encoder.continuous_mask(points)  # [n, ranges], [ranges]
        if not len(features):
            return points
        scales = scale[features]
        x = self._encoder.features(points)

        def loss(u: np.ndarray) -> tuple[float, np.ndarray]:
            x[:, features] = u.reshape(free.shape) * scales
            r = scaled_distance(posterior.x, x, scale)
            cross = variance * (1 + r + r * r / 3) * np.exp(-r)  # [trials, n]
            back = posterior.inverse @ cross
            deviation = np.sqrt(np.maximum(variance - (cross * back).sum(axis=0), 1e-10))[:, None]
            z = (cross.T @ posterior.weights - posterior.top) / deviation  # [n, fantasies]
            log_unit = log_unit_improvement(z)
            gain = np.logaddexp.reduce(log_unit, axis=1)
            # The weight of each fantasy, and the derivatives of its log improvement by mean and deviation, times the
            # weight.
            share = np.exp(log_unit - gain[:, None])
            by_mean = share * np.exp(log_ndtr(z) - log_unit) / deviation
            by_deviation = (1 - (by_mean * z * deviation).sum(axis=1)) / deviation[:, 0]
            # The derivative of the deviation by `cross` is -back / deviation.
            by_cross = posterior.weights @ by_mean.T - back * (by_deviation / deviation[:, 0])
            slopes = 2 * variance * by_cross * matern_slope(r)
            gradient = slopes.sum(axis=0)[:, None] * x[:, features] - slopes.T @ posterior.x[:, features]
            gradient = np.where(free, gradient / scales, 0.0)
            return -float((gain + np.log(deviation[:, 0])).sum()), -gradient.ravel()

        start = x[:, features] / scales
        low, high = self._encoder.continuous_bounds()
        bounds = Bounds(np.tile(low / scales, len(points)), np.tile(high / scales, len(points)))
        options = {"maxiter": MAX_LBFGS_STEPS}
        top = minimize(loss, start.ravel(), method="L-BFGS-B", jac=True, bounds=bounds, options=options)
        return self._encoder.rounded(
            self._encoder.with_continuous(points, top.x.reshape(free.shape) * scales)
        )

    def _unpacked(self, theta: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Length scales by feature, variance and noise."""
        return (
            np.exp(theta[:-2])[self._groups],
            float(np.exp(theta[-2])),
            MIN_NOISE + float(np.exp(theta[-1])),
        )


def _leaders(points: Points, gains: np.ndarray) -> Points:
    """The best points by their gains, without near duplicates."""
    ahead = points[np.argsort(-gains, kind="stable")[: 8 * N_LEADERS]]
    _, first = np.unique(ahead.round(2), axis=0, return_index=True)
    return np.asarray(ahead[np.sort(first)[:N_LEADERS]])


def _standardised(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(values.std(), 1e-10))
