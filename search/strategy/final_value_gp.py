"""A Gaussian process of how trainings end: value(x) = f(x) + noise.

The model is that of Optuna's `GPSampler`: Matern 5/2 with a length scale per dimension, values of mean 0 and variance
1, hyperparameters at their most probable value under the same priors. What is saved is time: they are learned only
when there is more to learn from, gradients are exact, and many points are asked for at once.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, solve_triangular
from scipy.optimize import Bounds, minimize
from scipy.special import log_ndtr

from binsweep.search.strategy.encoding import Encoder, Points
from binsweep.search.strategy.kernel import (
    by_log_scale,
    decompose,
    distance,
    log_improvement,
    log_unit_improvement,
    matern,
    slope,
)

GROWTH = 1.05  # the hyperparameters are learned anew when there is so much more to learn from
LEAST_NOISE = 1e-6  # of the values' variance
JITTER = 1e-9
WITHIN = (-15.0, 15.0)  # of the logarithms, where all is finite
FANTASIES = 64
ANYWHERE = 1024  # points asked for first; from
BEST = 8  # of them, and from the best trial, uphill in so many
CLIMB = 20  # steps, then to other choices, and that
ROUNDS = 2  # times


@dataclass
class _Known:
    """What the model was conditioned on: features [n, d], the Cholesky factor and the inverse of their covariance,
    weights [n, fantasies], and the best value of each fantasy."""

    x: np.ndarray
    factor: np.ndarray
    inverse: np.ndarray
    weights: np.ndarray
    top: np.ndarray


class FinalValueModel:
    """The process; `theta` holds the logarithms of its length scales, variance and noise."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._groups = encoder, encoder.groups()
        self.theta = np.zeros(len(encoder.names) + 2)
        self.learned_from = 0

    def keep_up(self, points: Points, values: np.ndarray, seen: int) -> None:
        """Learn anew when so much more was seen than when it last did."""
        if seen >= self.learned_from * GROWTH:
            self.learned_from = seen
            self.learn(self._encoder.expand(points), _standardised(values))

    def learn(self, x: np.ndarray, y: np.ndarray) -> None:
        """Set `theta` to the most probable one, found from the same start each time."""
        start, options = np.zeros_like(self.theta), {"gtol": 1e-2}
        found = minimize(
            self.loss, start, (x, y), "L-BFGS-B", jac=True, bounds=Bounds(*WITHIN), options=options
        )
        self.theta = found.x

    def loss(self, theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log posterior of `theta`, up to a constant, and its gradient."""
        scale, variance, noise = self._unpacked(theta)
        shape = matern(x, x, scale)
        try:
            factor = decompose(variance * shape, noise + JITTER)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((factor, True), np.eye(len(y)), check_finite=False)
        weights = inverse @ y
        w = 0.5 * (inverse - np.outer(weights, weights))
        gradient = np.zeros_like(theta)
        np.add.at(gradient, self._groups, by_log_scale(w * variance, x, scale))
        gradient[-2:] = variance * (w * shape).sum(), (noise - LEAST_NOISE) * np.trace(w)
        fit = 0.5 * y @ weights + np.log(np.diag(factor)).sum()
        # Optuna's priors: of the inverse squared length scale, and gamma ones of variance and noise.
        inverse_squared = np.exp(-2 * theta[:-2])
        prior = -0.1 * (1 / inverse_squared + inverse_squared).sum()
        prior += np.log(variance) - variance + 0.1 * np.log(noise) - 30 * noise
        gradient[:-2] -= 0.2 * (inverse_squared - 1 / inverse_squared)
        gradient[-2:] -= 1 - variance, (noise - LEAST_NOISE) * (0.1 / noise - 30)
        return float(fit - prior), gradient

    def best(self, points: Points, values: np.ndarray, pending: Points, rng: np.random.Generator) -> Points:
        """Points by what they would probably gain on the best value, the most first.

        What is in training has drawn ends, many times over, and the gain is averaged over them (Snoek et al., 2012).
        """
        known = self._conditioned(points, _standardised(values), pending, rng)
        found = self._encoder.rounded(self._encoder.random(rng, ANYWHERE))
        gains = self._gain(known, found)
        leaders = np.concatenate([_leaders(found, gains), points[[values.argmax()]]])
        for _ in range(ROUNDS):
            climbed = self._climbed(known, leaders)
            more = np.concatenate([climbed, self._encoder.others(climbed)])
            found, gains = np.concatenate([found, more]), np.concatenate([gains, self._gain(known, more)])
            leaders = _leaders(found, gains)
        return found[np.argsort(-gains, kind="stable")]

    def predict(self, known: _Known, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Means of each fantasy, shape [n, fantasies], and standard deviations (without noise), shape [n, 1]."""
        scale, variance, _ = self._unpacked(self.theta)
        cross = variance * matern(known.x, self._encoder.expand(points), scale)
        left = variance - (cross * (known.inverse @ cross)).sum(axis=0)
        return cross.T @ known.weights, np.sqrt(np.maximum(left, 1e-10))[:, None]

    def _conditioned(
        self, points: Points, y: np.ndarray, pending: Points, rng: np.random.Generator
    ) -> _Known:
        known = self._known(self._encoder.expand(points), y[:, None])
        if not len(pending):
            return known
        scale, variance, _ = self._unpacked(self.theta)
        x = self._encoder.expand(pending)
        cross = variance * matern(known.x, x, scale)
        # By the factor, which keeps this positive where points are close; the inverse may not.
        part = solve_triangular(known.factor, cross, lower=True, check_finite=False)
        spread = decompose(variance * matern(x, x, scale) - part.T @ part, LEAST_NOISE * variance + JITTER)
        ends = cross.T @ known.weights + spread @ rng.standard_normal((len(pending), FANTASIES))
        both = np.concatenate([np.repeat(y[:, None], FANTASIES, axis=1), ends])
        return self._known(np.concatenate([known.x, x]), both)

    def _known(self, x: np.ndarray, y: np.ndarray) -> _Known:
        scale, variance, noise = self._unpacked(self.theta)
        factor = decompose(variance * matern(x, x, scale), noise + JITTER)
        inverse = cho_solve((factor, True), np.eye(len(x)), check_finite=False)
        return _Known(x, factor, inverse, inverse @ y, y.max(axis=0))

    def _gain(self, known: _Known, points: Points) -> np.ndarray:
        mean, deviation = self.predict(known, points)
        return np.asarray(np.logaddexp.reduce(log_improvement(mean, deviation, known.top), axis=1))

    def _climbed(self, known: _Known, points: Points) -> Points:
        """Each point at the top of its hill, along ranges of many places that are searched there.

        All at once, since the sum of their gains is highest where each of them is (Balandat et al., 2020).
        """
        scale, variance, _ = self._unpacked(self.theta)
        free, features = self._encoder.free(points)  # [n, ranges], [ranges]
        if not len(features):
            return points
        scales = scale[features]
        x = self._encoder.expand(points)

        def loss(u: np.ndarray) -> tuple[float, np.ndarray]:
            x[:, features] = u.reshape(free.shape) * scales
            r = distance(known.x, x, scale)
            cross = variance * (1 + r + r * r / 3) * np.exp(-r)  # [trials, n]
            back = known.inverse @ cross
            deviation = np.sqrt(np.maximum(variance - (cross * back).sum(axis=0), 1e-10))[:, None]
            z = (cross.T @ known.weights - known.top) / deviation  # [n, fantasies]
            log_unit = log_unit_improvement(z)
            gain = np.logaddexp.reduce(log_unit, axis=1)
            # What a fantasy counts for; the derivatives of its gain's logarithm by mean and deviation, times it
            share = np.exp(log_unit - gain[:, None])
            by_mean = share * np.exp(log_ndtr(z) - log_unit) / deviation
            by_deviation = (1 - (by_mean * z * deviation).sum(axis=1)) / deviation[:, 0]
            # The derivative of the deviation by `cross` is -back / deviation.
            by_cross = known.weights @ by_mean.T - back * (by_deviation / deviation[:, 0])
            steep = 2 * variance * by_cross * slope(r)
            gradient = steep.sum(axis=0)[:, None] * x[:, features] - steep.T @ known.x[:, features]
            gradient = np.where(free, gradient / scales, 0.0)
            return -float((gain + np.log(deviation[:, 0])).sum()), -gradient.ravel()

        start = x[:, features] / scales
        bounds = Bounds(0.0, np.tile(1 / scales, len(points)))
        options = {"maxiter": CLIMB}
        top = minimize(loss, start.ravel(), method="L-BFGS-B", jac=True, bounds=bounds, options=options)
        return self._encoder.rounded(self._encoder.moved(points, top.x.reshape(free.shape) * scales))

    def _unpacked(self, theta: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Length scales by feature, variance and noise."""
        return (
            np.exp(theta[:-2])[self._groups],
            float(np.exp(theta[-2])),
            LEAST_NOISE + float(np.exp(theta[-1])),
        )


def _leaders(points: Points, gains: np.ndarray) -> Points:
    """The first of the points by their gains, none nearly twice."""
    ahead = points[np.argsort(-gains, kind="stable")[: 8 * BEST]]
    _, first = np.unique(ahead.round(2), axis=0, return_index=True)
    return np.asarray(ahead[np.sort(first)[:BEST]])


def _standardised(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(values.std(), 1e-10))
