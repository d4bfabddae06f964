"""The predictor: one or several counting models, with or without mirroring.

This file is part of models that are served by PyTorch (their source is stored in the registry), so it imports nothing
but torch, the network and the decodings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from binsweep.models.decoding import Decoding
from binsweep.models.network import CountingModel, CountingModelConfig


def calibrate(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities [B, K] raised to the power 1 / `temperature`: flatter above 1, more decided below.

    The most likely count stays the same (Guo et al., On calibration of modern neural networks, ICML 2017).
    """
    smallest = torch.finfo(probabilities.dtype).tiny
    return (probabilities.clamp(min=smallest).log() / temperature).softmax(dim=1)


class Predictor(nn.Module):
    """Probabilities of the counts of photos, averaged over its models and, with `flip`, over a photo and its mirror
    image. All models have the same classes, image size and interpolation. The average is calibrated by
    `temperature`."""

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
        self.interpolation = self.configs[0].interpolation

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
