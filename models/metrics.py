"""How well a counter counts. Counts are numbers of items, never class indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def count_metrics(predicted: Counts, actual: Counts) -> dict[str, float]:
    """`accuracy` = mean(p == g), `rmse` = sqrt(mean((p - g)^2)), `mae` = mean(|p - g|); both arrays [N]."""
    difference = (predicted - actual).astype(np.float64)
    return {
        "accuracy": float(np.mean(difference == 0)),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "mae": float(np.mean(np.abs(difference))),
    }


def confusion_matrix(predicted: Counts, actual: Counts, classes: Sequence[int]) -> NDArray[np.int64]:
    """[K, K]: row = true count, column = predicted count, both in the order of the ascending `classes`."""
    order = np.asarray(classes)
    matrix = np.zeros((len(order), len(order)), dtype=np.int64)
    np.add.at(matrix, (np.searchsorted(order, actual), np.searchsorted(order, predicted)), 1)
    return matrix


def per_class(predicted: Counts, actual: Counts, classes: Sequence[int]) -> dict[int, dict[str, float]]:
    """accuracy, rmse and support of the bins that truly hold each count; classes without a bin are left out."""
    table = {}
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


def constant_guess(train: Counts, actual: Counts) -> dict[str, float]:
    """What always guessing the commonest training count scores on `actual`: the bar that any model must beat."""
    values, frequencies = np.unique(train, return_counts=True)
    guess = int(values[frequencies.argmax()])
    return {"guess": float(guess), **count_metrics(np.full_like(actual, guess), actual)}
