"""How a distribution over counts becomes one count, and the limit of a request.

This file is part of the served model (its source is stored in the registry), so it imports nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# In this order, the count with the least expected error rate, absolute error and squared error.
Decoding = Literal["argmax", "median", "mean"]
DECODINGS: tuple[Decoding, ...] = ("argmax", "median", "mean")
BEST_DECODING: dict[str, Decoding] = {"accuracy": "argmax", "mae": "median", "rmse": "mean"}
MAX_ROWS = 256  # photos of one request; data.decode limits the size of each


def decode_counts(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[int], decoding: Decoding
) -> NDArray[np.int64]:
    """One count for each row of `probabilities` [N, K], always one of the ascending `classes`."""
    counts: NDArray[np.int64] = np.asarray(classes, dtype=np.int64)[
        decode_indices(probabilities, classes, decoding)
    ]
    return counts


def decode_indices(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[int], decoding: Decoding
) -> NDArray[np.int64]:
    """The index in the ascending `classes` of the count of each row of `probabilities` [N, K].

    `median` is the smallest count with at least half of the probability at or below it, `mean` the class nearest to the
    expected count. They minimise the expected absolute and squared error, as argmax minimises the error rate (Berger,
    Statistical Decision Theory, 1985, 2.4.2).
    """
    indices: NDArray[np.int64]
    if decoding == "argmax":
        indices = probabilities.argmax(axis=1)
    elif decoding == "median":
        half = 0.5 * probabilities.sum(axis=1, keepdims=True)
        indices = (probabilities.cumsum(axis=1) >= half).argmax(axis=1)
    else:
        order = np.asarray(classes, dtype=np.int64)
        indices = np.abs((probabilities @ order)[:, None] - order).argmin(axis=1)
    return indices
