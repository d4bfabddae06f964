"""ResNet-18, 34 and 50, as torchvision has them."""

from __future__ import annotations

from typing import Any

from torch import nn

from binsweep.models.backbones.architecture import (
    ARCHITECTURES,
    Architecture,
    Stages,
    torchvision_network,
    torchvision_weights,
)


def _resnet(net: Any) -> Stages:
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    layers = [(f"layer{i}", getattr(net, f"layer{i}")) for i in range(1, 5)]
    return [("stem", stem), *layers, ("pool", nn.Sequential(net.avgpool, nn.Flatten()))]


ARCHITECTURES |= {
    name: Architecture(
        torchvision_network(name), _resnet, features, "layer2", "layer4", weights=torchvision_weights(name)
    )
    for name, features in (("resnet18", 512), ("resnet34", 512), ("resnet50", 2048))
}
