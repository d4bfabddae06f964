"""The served predictor: one or several counting models, with or without mirroring, and the decoding of a distribution.

This file is part of the served model (its source is stored in the registry), so it imports nothing but torch, numpy and
the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from binsweep.models.network import CountingModel, CountingModelConfig

# In this order, the count with the least expected error rate, absolute error and squared error.
Decoding = Literal["argmax", "median", "mean"]
DECODINGS: tuple[Decoding, ...] = ("argmax", "median", "mean")
MAX_ROWS = 256  # photos of one request; data.decode limits the size of each


def decode_counts(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[int], decoding: Decoding
) -> NDArray[np.int64]:
    """One count for each row of `probabilities` [N, K], always one of the ascending `classes`.

    `median` is the smallest count with at least half of the probability at or below it, `mean` the class nearest to the
    expected count. They minimise the expected absolute and squared error, as argmax minimises the error rate (Berger,
    Statistical Decision Theory, 1985, 2.4.2).
    """
    order = np.asarray(classes, dtype=np.int64)
    if decoding == "argmax":
        chosen = probabilities.argmax(axis=1)
    elif decoding == "median":
        chosen = (probabilities.cumsum(axis=1) >= 0.5 * probabilities.sum(axis=1, keepdims=True)).argmax(
            axis=1
        )
    else:
        chosen = np.abs((probabilities @ order)[:, None] - order).argmin(axis=1)
    counts: NDArray[np.int64] = order[chosen]
    return counts


class Predictor(nn.Module):
    """Probabilities of the counts of photos, averaged over its models and, with `flip`, over a photo and its mirror
    image. All models have the same classes and image size."""

    def __init__(
        self, counters: Sequence[CountingModel], flip: bool = False, decoding: Decoding = "argmax"
    ) -> None:
        super().__init__()
        self.counters = nn.ModuleList(counters)  # the name is part of the keys of stored weights
        self.configs = [counter.config for counter in counters]
        self.flip, self.decoding = flip, decoding
        self.classes, self.image_size = self.configs[0].classes, self.configs[0].image_size

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities float32 [B, K] of uint8 RGB [B, S, S, 3]."""
        views = [images, images.flip(2)] if self.flip else [images]
        probabilities = [counter(view).exp() for counter in self.counters for view in views]
        return torch.stack(probabilities).mean(dim=0)

    def to_dict(self) -> dict[str, Any]:
        """Everything except the weights, as plain JSON types."""
        return {
            "counters": [config.to_dict() for config in self.configs],
            "flip": self.flip,
            "decoding": self.decoding,
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Predictor:
        """The inverse of `to_dict`; the weights are random until they are loaded."""
        counters = [CountingModel(CountingModelConfig.from_dict(config)) for config in raw["counters"]]
        return Predictor(counters, raw["flip"], raw["decoding"])
