"""Metrics of predicted counts. Counts are numbers of items, never class indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binsweep.data.labels import Label

Counts = NDArray[np.int64]
Labels = NDArray[Any]  # counts int64 [N], or names of classes str [N]
N_RESAMPLES = 2000
_SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class CalibrationBin:
    """The photos with a confidence from `low` up to the next bin, their mean confidence and their accuracy."""

    low: float
    photos: int
    confidence: float
    accuracy: float


def count_metrics(predicted: Counts, actual: Counts) -> dict[str, float]:
    """`accuracy` = mean(p == g), `rmse` = sqrt(mean((p - g)^2)), `mae` = mean(|p - g|); both arrays [N]."""
    difference = (predicted - actual).astype(np.float64)
    return {
        "accuracy": float(np.mean(difference == 0)),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "mae": float(np.mean(np.abs(difference))),
    }


def all_scores(predicted: Counts, actual: Counts) -> dict[str, float]:
    """`count_metrics`, `within_one` = mean(|p - g| <= 1), and `macro_f1`: the mean of F1 = 2 TP / (2 TP + FP + FN)
    over all true and predicted counts (scikit-learn's `f1_score`, macro)."""
    pairs, photos = np.unique(np.stack([predicted, actual]), axis=1, return_counts=True)
    return {name: float(values[0]) for name, values in _cell_scores(pairs, photos[None]).items()}


def intervals(predicted: Counts, actual: Counts, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `all_scores` over photos; arrays [N].

    The scores depend only on the number of photos with each pair of predicted and true count. Drawing N photos with
    replacement draws these numbers from a multinomial distribution.
    """
    pairs, photos = np.unique(np.stack([predicted, actual]), axis=1, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(actual), photos / len(actual), N_RESAMPLES)
    limits = {name: np.percentile(v, [2.5, 97.5]) for name, v in _cell_scores(pairs, draws).items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def _cell_scores(pairs: Counts, photos: Counts) -> dict[str, NDArray[np.float64]]:
    """The scores of R samples: `pairs` [2, C] of predicted and true count, and `photos` [R, C] with each pair."""
    predicted, actual = pairs
    error = np.abs(predicted - actual).astype(np.float64)
    total = photos.sum(axis=1)
    classes = np.unique(pairs)
    hits = photos @ ((predicted == actual)[:, None] & (actual[:, None] == classes))
    both = photos @ ((predicted[:, None] == classes).astype(np.int64) + (actual[:, None] == classes))
    f1 = np.divide(2 * hits, both, out=np.full(both.shape, np.nan), where=both > 0)
    return {
        "accuracy": photos @ (error == 0) / total,
        "rmse": np.sqrt(photos @ error**2 / total),
        "mae": photos @ error / total,
        "within_one": photos @ (error <= 1) / total,
        "macro_f1": np.nanmean(f1, axis=1),
    }


def log_losses(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log of the probability of each photo's true class; `probabilities` [N, K], class indices `labels` [N]."""
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(right, _SMALLEST_PROBABILITY))
    return losses


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10
) -> list[CalibrationBin]:
    """Photos in `bins` equal intervals of confidence, without the empty ones; arrays [N]."""
    bin_numbers = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    groups = [(number, bin_numbers == number) for number in range(bins)]
    return [
        CalibrationBin(
            number / bins, int(rows.sum()), float(confidence[rows].mean()), float(right[rows].mean())
        )
        for number, rows in groups
        if rows.any()
    ]


def calibration_error(table: Sequence[CalibrationBin]) -> float:
    """The expected calibration error: the mean of |confidence - accuracy| over the bins, weighted by their photos
    (Guo et al., On calibration of modern neural networks, ICML 2017)."""
    photos = sum(row.photos for row in table)
    return sum(row.photos * abs(row.confidence - row.accuracy) for row in table) / photos


def confusion_matrix(predicted: Labels, actual: Labels, classes: Sequence[Label]) -> NDArray[np.int64]:
    """[K, K]: row = true label, column = predicted label, both in the order of the sorted `classes`."""
    counts, k = np.asarray(classes), len(classes)
    cells = np.searchsorted(counts, actual) * k + np.searchsorted(counts, predicted)
    return np.bincount(cells, minlength=k * k).reshape(k, k)


def per_class(predicted: Counts, actual: Counts, classes: Sequence[Label]) -> dict[Label, dict[str, float]]:
    """accuracy, rmse and support of each true count; classes without a photo are left out."""
    table: dict[Label, dict[str, float]] = {}
    for count in classes:
        rows = actual == count
        if rows.any():
            scores = count_metrics(predicted[rows], actual[rows])
            table[count] = {
                "accuracy": scores["accuracy"],
                "rmse": scores["rmse"],
                "support": float(rows.sum()),
            }
    return table


def commonest(labels: Labels) -> Label:
    """The most frequent label; the first of several."""
    values, frequencies = np.unique(labels, return_counts=True)
    found: Label = values[frequencies.argmax()].item()
    return found
