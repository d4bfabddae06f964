"""Metrics of named classes, which have no order. Arrays of labels are str (or int64) [N]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from binsweep.data.labels import Label
from binsweep.models.metrics import N_RESAMPLES, Labels

MAX_BLOCK_NUMBERS = 4_000_000  # that a bootstrap holds in memory at a time, 32 MB
Cells = tuple[NDArray[np.int64], NDArray[np.int64], int]


def class_scores(predicted: Labels, actual: Labels) -> dict[str, float]:
    """`accuracy`; `balanced_accuracy`: the mean of TP / (TP + FN) over the true classes; `macro_f1`: the mean of
    2 TP / (2 TP + FP + FN) over the true and predicted classes (scikit-learn's `balanced_accuracy_score` and
    `f1_score`, macro)."""
    cells, photos, n = cells_of([predicted], actual)
    return {
        name: float(values[0]) for name, values in cell_scores(cells[0], cells[-1], photos[None], n).items()
    }


def class_intervals(predicted: Labels, actual: Labels, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `class_scores` over photos."""
    cells, photos, n = cells_of([predicted], actual)
    parts = [cell_scores(cells[0], cells[-1], draws, n) for draws in resample(photos, n, N_RESAMPLES, seed)]
    limits = {
        name: np.percentile(np.concatenate([part[name] for part in parts]), [2.5, 97.5]) for name in parts[0]
    }
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def cells_of(answers: Sequence[Labels], actual: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The different rows of (answers ..., actual) as class indices [A + 1, C], the number of photos of each [C], and
    the number of classes.

    Every score depends on these numbers alone.
    """
    columns = [*answers, actual]
    names, places = np.unique(np.concatenate(columns), return_inverse=True)
    table = places.reshape(len(columns), len(actual))
    code = np.zeros(len(actual), np.int64)
    for row in table:
        code = code * len(names) + row
    _, first, photos = np.unique(code, return_index=True, return_counts=True)
    return table[:, first].astype(np.int64), photos.astype(np.int64), len(names)


def resample(
    photos: NDArray[np.int64], n_classes: int, resamples: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Bootstrap samples as numbers of photos in each cell, [R, C] in blocks, `resamples` in all.

    Drawing N photos with replacement draws these numbers from a multinomial distribution.
    """
    rng, total = np.random.default_rng(seed), int(photos.sum())
    block = max(1, MAX_BLOCK_NUMBERS // max(len(photos), n_classes))
    for start in range(0, resamples, block):
        yield rng.multinomial(total, photos / total, min(block, resamples - start))


def cell_scores(
    predicted: NDArray[np.int64], actual: NDArray[np.int64], photos: NDArray[np.int64], n_classes: int
) -> dict[str, NDArray[np.float64]]:
    """`class_scores` of R samples: class indices `predicted` and `actual` [C] of each cell, and `photos` [R, C]."""
    is_right = predicted == actual
    true, said = _sums(photos, actual, n_classes), _sums(photos, predicted, n_classes)
    hits = _sums(photos * is_right, actual, n_classes)
    return {
        "accuracy": photos @ is_right / photos.sum(axis=1),
        "balanced_accuracy": _mean_share(hits, true),
        "macro_f1": _mean_share(2 * hits, true + said),
    }


def _sums(photos: NDArray[np.int64], classes: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """The photos [R, C] of each class, [R, n_classes]; `classes` [C] are the cells'."""
    n_cells = len(classes)
    membership = csr_array(
        (np.ones(n_cells, np.int64), (np.arange(n_cells), classes)), shape=(n_cells, n_classes)
    )
    sums: NDArray[np.int64] = photos @ membership
    return sums


def _mean_share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of part / whole over the classes where there is a whole."""
    shares = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    means: NDArray[np.float64] = np.nanmean(shares, axis=1)
    return means


def per_name(predicted: Labels, actual: Labels, classes: Sequence[Label]) -> dict[Label, dict[str, float]]:
    """accuracy (the share of its photos that are right), precision (the share of its answers that are), f1 and support
    of each true class; classes without a photo are left out."""
    table: dict[Label, dict[str, float]] = {}
    order = np.asarray(classes)
    rows, columns = (np.searchsorted(order, values) for values in (actual, predicted))
    true, said = (np.bincount(places, minlength=len(order)) for places in (rows, columns))
    hits = np.bincount(rows[rows == columns], minlength=len(order))
    for name, n_true, n_said, right in zip(classes, true.tolist(), said.tolist(), hits.tolist(), strict=True):
        if n_true:
            table[name] = {
                "accuracy": right / n_true,
                "precision": right / n_said if n_said else 0.0,
                "f1": 2 * right / (n_true + n_said),
                "support": float(n_true),
            }
    return table


def top_hits(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[Label], actual: Labels, top: int
) -> NDArray[np.bool_]:
    """Whether the true class is among the `top` most probable ones, [N]; the first of equally probable ones count."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    hits: NDArray[np.bool_] = (np.asarray(classes)[order] == actual[:, None]).any(axis=1)
    return hits
