"""EfficientNet-B0, MobileNetV2 and VGG16, which torchvision writes as one list of layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from binsweep.models.backbones.architecture import (
    ARCHITECTURES,
    Architecture,
    Stages,
    cut_features,
    torchvision_network,
    torchvision_weights,
)


def _vgg(net: Any) -> Stages:
    # The two wide linear layers belong to the backbone: the published recipe replaces only the last layer.
    pool = nn.Sequential(net.avgpool, nn.Flatten(), *list(net.classifier)[:-1])
    return [*cut_features([0, 5, 10, 17, 24])(net)[:-1], ("pool", pool)]


ARCHITECTURES |= {
    "efficientnet_b0": Architecture(
        torchvision_network("efficientnet_b0"),
        cut_features([0, 2, 3, 4, 6]),
        1280,
        "stage2",
        "stage4",
        weights=torchvision_weights("efficientnet_b0"),
    ),
    "mobilenet_v2": Architecture(
        torchvision_network("mobilenet_v2"),
        cut_features([0, 2, 4, 7, 14]),
        1280,
        "stage2",
        "stage4",
        weights=torchvision_weights("mobilenet_v2"),
    ),
    "vgg16": Architecture(
        torchvision_network("vgg16", ("classifier.6.",)),
        _vgg,
        4096,
        "stage2",
        "stage4",
        weights=torchvision_weights("vgg16"),
    ),
}
