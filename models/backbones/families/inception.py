"""Inception v3 and GoogLeNet of torchvision: without auxiliary outputs, for inputs scaled to -1..1."""

from __future__ import annotations

from typing import Any

from torch import nn

from binsweep.models.backbones.architecture import (
    ADAPTATIONS,
    ARCHITECTURES,
    HALF,
    Adaptation,
    Architecture,
    Stages,
    torchvision_network,
    torchvision_weights,
)


def _inception(net: Any) -> Stages:
    names = [name for name, _ in net.named_children()]
    groups = [("stem", "Conv2d_1a_3x3", "Mixed_5b"), ("mixed5", "Mixed_5b", "Mixed_6a")]
    groups += [("mixed6", "Mixed_6a", "Mixed_7a"), ("mixed7", "Mixed_7a", "avgpool")]
    stages: Stages = []
    for stage, first, after in groups:
        modules = [getattr(net, name) for name in names[names.index(first) : names.index(after)]]
        stages.append((stage, nn.Sequential(*modules)))
    return [*stages, ("pool", nn.Sequential(net.avgpool, nn.Flatten()))]


_WITHOUT_AUXILIARY: dict[str, Any] = {"aux_logits": False, "init_weights": False}
ARCHITECTURES["inception_v3"] = Architecture(
    torchvision_network("inception_v3", **_WITHOUT_AUXILIARY),
    _inception,
    2048,
    "mixed5",
    "mixed7",
    HALF,
    HALF,
    weights=torchvision_weights("inception_v3"),
)
# With pre-trained weights, torchvision's own forward pass rescales the input from ImageNet's statistics to -1..1.
ADAPTATIONS |= {
    name: Adaptation(options=lambda image_size: _WITHOUT_AUXILIARY, mean=HALF, std=HALF)
    for name in ("inception_v3", "googlenet")
}
