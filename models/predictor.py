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


def calibrate(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities [B, K] raised to the power 1 / `temperature`: flatter above 1, more decided below.

    The most likely count stays the same (Guo et al., On calibration of modern neural networks, ICML 2017).
    """
    smallest = torch.finfo(probabilities.dtype).tiny
    return (probabilities.clamp(min=smallest).log() / temperature).softmax(dim=1)


class Predictor(nn.Module):
    """Probabilities of the counts of photos, averaged over its models and, with `flip`, over a photo and its mirror
    image. All models have the same classes and image size. The average is calibrated by `temperature`."""

    def __init__(
        self,
        counters: Sequence[CountingModel],
        flip: bool = False,
        decoding: Decoding = "argmax",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.counters = nn.ModuleList(counters)  # the name is part of the keys of stored weights
        self.configs = [counter.config for counter in counters]
        self.flip, self.decoding, self.temperature = flip, decoding, temperature
        self.classes, self.image_size = self.configs[0].classes, self.configs[0].image_size

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities float32 [B, K] of uint8 RGB [B, S, S, 3]."""
        views = [images, images.flip(2)] if self.flip else [images]
        probabilities = [counter(view).exp() for counter in self.counters for view in views]
        mean = torch.stack(probabilities).mean(dim=0)
        return mean if self.temperature == 1 else calibrate(mean, self.temperature)

    def to_dict(self) -> dict[str, Any]:
        """Everything except the weights, as plain JSON types."""
        return {
            "counters": [config.to_dict() for config in self.configs],
            "flip": self.flip,
            "decoding": self.decoding,
            "temperature": self.temperature,
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Predictor:
        """The inverse of `to_dict`; the weights are random until they are loaded."""
        counters = [CountingModel(CountingModelConfig.from_dict(config)) for config in raw["counters"]]
        return Predictor(counters, raw["flip"], raw["decoding"], raw["temperature"])
