"""Matern 5/2 kernels of points, with a length scale per feature, and expected improvement."""

import math

import numpy as np
from scipy.linalg import cholesky
from scipy.special import erfcx, ndtr


def matern(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Matern 5/2 between rows, shape [len(a), len(b)]."""
    r = distance(a, b, scale)
    value: np.ndarray = (1 + r + r * r / 3) * np.exp(-r)
    return value


def by_log_scale(weights: np.ndarray, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The derivative of the sum of `weights` [n, n], symmetric, times Matern 5/2 between the rows of `x` [n, d], by the
    logarithm of each feature's length scale, shape [d]."""
    steep, scaled = weights * slope(distance(x, x, scale)), x / scale
    per_feature = (steep.sum(axis=1)[:, None] * scaled**2).sum(axis=0)
    per_feature -= (scaled * (steep @ scaled)).sum(axis=0)
    return np.asarray(-4 * per_feature)


def slope(r: np.ndarray) -> np.ndarray:
    """The derivative of Matern 5/2 by the squared scaled distance, at `r`, the root of 5 times the distance."""
    return np.asarray((-5 / 6) * (1 + r) * np.exp(-r))


def log_improvement(mean: np.ndarray, deviation: np.ndarray, top: np.ndarray | float) -> np.ndarray:
    """The logarithm of the expected improvement over `top` of what is normally distributed."""
    return np.asarray(np.log(deviation) + log_unit_improvement((mean - top) / deviation))


def log_unit_improvement(z: np.ndarray) -> np.ndarray:
    """The logarithm of the expected improvement over 0 of what has mean `z` and variance 1.

    Far below 0 the improvement itself is nought to a computer, and its logarithm keeps the order (Ament et al., 2023).
    """
    near, far = np.maximum(z, -1.0), np.clip(z, -1e6, -1.0)
    density = np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi)
    # z Phi(z) / phi(z), which comes near to -1
    ratio = far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2))
    tail = np.where(far > -1e3, np.log(np.maximum(1 + ratio, 1e-300)), -2 * np.log(-far))
    log_far = -0.5 * far**2 - 0.5 * math.log(2 * math.pi) + tail
    return np.asarray(np.where(z > -1, np.log(density + near * ndtr(near)), log_far))


def distance(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The scaled distance between rows, times the root of 5."""
    a, b = a / scale, b / scale
    squared = (-10 * a) @ b.T
    squared += (5 * (a * a).sum(axis=1))[:, None]
    squared += 5 * (b * b).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squared, 1e-12)))


def decompose(covariance: np.ndarray, noise: float) -> np.ndarray:
    """The lower Cholesky factor of a covariance matrix, to whose diagonal `noise` is added in place.

    Raises LinAlgError where that is not positive definite.
    """
    covariance[np.diag_indices(len(covariance))] += noise
    factor: np.ndarray = cholesky(covariance, lower=True, check_finite=False)
    return factor
