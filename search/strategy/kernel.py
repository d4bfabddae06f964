"""The Matern 5/2 kernel with a length scale per feature, and the logarithm of expected improvement."""

import math

import numpy as np
from scipy.linalg import cholesky
from scipy.special import erfcx, ndtr


def matern(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Matern 5/2 between rows, shape [len(a), len(b)]."""
    r = scaled_distance(a, b, scale)
    value: np.ndarray = (1 + r + r * r / 3) * np.exp(-r)
    return value


def log_scale_gradient(weights: np.ndarray, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The gradient of sum(weights * matern(x, x, scale)) by the logarithms of the length scales, shape [d].

    `weights` [n, n] is symmetric, `x` has shape [n, d].
    """
    steep, scaled = weights * matern_slope(scaled_distance(x, x, scale)), x / scale
    per_feature = (steep.sum(axis=1)[:, None] * scaled**2).sum(axis=0)
    per_feature -= (scaled * (steep @ scaled)).sum(axis=0)
    return np.asarray(-4 * per_feature)


def matern_slope(r: np.ndarray) -> np.ndarray:
    """The derivative of Matern 5/2 by the squared scaled distance, at `r`, sqrt(5) times that distance."""
    return np.asarray((-5 / 6) * (1 + r) * np.exp(-r))


def log_improvement(mean: np.ndarray, deviation: np.ndarray, top: np.ndarray | float) -> np.ndarray:
    """The logarithm of the expected improvement of a normal distribution over `top`."""
    return np.asarray(np.log(deviation) + log_unit_improvement((mean - top) / deviation))


def log_unit_improvement(z: np.ndarray) -> np.ndarray:
    """The logarithm of the expected improvement over 0 of a normal distribution with mean `z` and variance 1.

    Far below 0 the improvement itself underflows; its logarithm keeps the order (Ament et al., 2023).
    """
    near, far = np.maximum(z, -1.0), np.clip(z, -1e6, -1.0)
    density = np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi)
    # z Phi(z) / phi(z), which approaches -1
    ratio = far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2))
    tail = np.where(far > -1e3, np.log(np.maximum(1 + ratio, 1e-300)), -2 * np.log(-far))
    log_far = -0.5 * far**2 - 0.5 * math.log(2 * math.pi) + tail
    return np.asarray(np.where(z > -1, np.log(density + near * ndtr(near)), log_far))


def scaled_distance(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """sqrt(5) times the scaled distance between rows."""
    a, b = a / scale, b / scale
    squared = (-10 * a) @ b.T
    squared += (5 * (a * a).sum(axis=1))[:, None]
    squared += 5 * (b * b).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squared, 1e-12)))


def cholesky_factor(covariance: np.ndarray, noise: float) -> np.ndarray:
    """The lower Cholesky factor of a covariance matrix after adding `noise` to its diagonal in place.

    Raises LinAlgError if the result is not positive definite.
    """
    covariance[np.diag_indices(len(covariance))] += noise
    factor: np.ndarray = cholesky(covariance, lower=True, check_finite=False)
    return factor
