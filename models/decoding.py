"""How a distribution over labels becomes one answer, what is answered, and the limit of a request.

This file is part of the served model (its source is stored in the registry), so it imports nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# In this order, the count with the least expected error rate, absolute error, squared error, and sum of the first two.
Decoding = Literal["argmax", "median", "mean", "compromise"]
DECODINGS: tuple[Decoding, ...] = ("argmax", "median", "mean", "compromise")
BEST_DECODING: dict[str, Decoding] = {"mae": "median", "rmse": "mean"}  # argmax for all other scores
MAX_ROWS = 256  # photos of one request; data.decode limits the size of each


def decode_labels(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[int | str], decoding: Decoding
) -> NDArray[Any]:
    """One label for each row of `probabilities` [N, K], always one of the sorted `classes`: int64, or str."""
    labels: NDArray[Any] = np.asarray(classes)[decode_indices(probabilities, classes, decoding)]
    return labels


def decode_indices(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[int | str], decoding: Decoding
) -> NDArray[np.int64]:
    """The index in the sorted `classes` of the answer to each row of `probabilities` [N, K].

    `median` is the smallest count with at least half of the probability at or below it, `mean` the class nearest to the
    expected count. They minimise the expected absolute and squared error, as argmax minimises the error rate (Berger,
    Statistical Decision Theory, 1985, 2.4.2). `compromise` minimises the sum of error rate and absolute error: being
    off by two costs 3, by one 2.
    """
    indices: NDArray[np.int64]
    if decoding == "argmax":
        indices = probabilities.argmax(axis=1)
    elif decoding == "median":
        half = 0.5 * probabilities.sum(axis=1, keepdims=True)
        indices = (probabilities.cumsum(axis=1) >= half).argmax(axis=1)
    elif decoding == "compromise":
        counts = np.asarray(classes, dtype=np.int64)
        apart = np.abs(counts[:, None] - counts)
        indices = (probabilities @ (apart + (apart > 0))).argmin(axis=1)
    else:
        order = np.asarray(classes, dtype=np.int64)
        indices = np.abs((probabilities @ order)[:, None] - order).argmin(axis=1)
    return indices


def answer_columns(classes: Sequence[int | str]) -> tuple[str, ...]:
    """The keys of `answer_rows`: counts have an expected value, names of classes have none."""
    named = isinstance(classes[0], str)
    return ("label",) * named + ("count", "expected_count") * (not named) + ("confidence", "probabilities")


def answer_rows(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[int | str], decoding: Decoding
) -> list[dict[str, Any]]:
    """What is answered for each row of `probabilities` [N, K], as plain types by `answer_columns`."""
    rows = []
    for row, label in zip(
        probabilities, decode_labels(probabilities, classes, decoding).tolist(), strict=True
    ):
        spread = {str(one): float(p) for one, p in zip(classes, row, strict=True)}
        answer: dict[str, Any] = {"label": label}
        if not isinstance(label, str):
            expected = float(
                sum(one * p for one, p in zip(classes, row, strict=True) if not isinstance(one, str))
            )
            answer = {"count": label, "expected_count": expected}
        rows.append({**answer, "confidence": spread[str(label)], "probabilities": spread})
    return rows
