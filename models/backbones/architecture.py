"""What is known of a backbone, and the table of those that are described one by one.

This file is part of models that are served by PyTorch (their source is stored in the registry), so it imports nothing
but torch, torchvision and timm.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Stages = list[tuple[str, nn.Module]]
State = Mapping[str, Tensor]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Inception's and EfficientNet-Lite's weights were trained on inputs scaled to -1..1, not by ImageNet's statistics.
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights that are named `imagenet` come from: an installed `package`, a file at `url` whose name ends
    with the first digits of its SHA-256, or one of the `files` of a repository `hub` of the Hugging Face Hub.

    Without any of them there are none.
    """

    licence: str = "not known"
    package: str = ""
    url: str = ""
    hub: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """How to create a library's network and cut it into stages.

    `create` takes a state dict with the library's names, or None for random weights; it raises RuntimeError for a state
    that does not fit. `features` is the width after pooling, `last` the first stage that `trainable: last_stage` trains
    (the blocks at the last resolution), `later` the first one of `later_stages` (those at an eighth of the photo's
    resolution and below, a quarter of vgg16's). `mean`, `std` (per RGB channel on the 0..1 scale) and `interpolation`
    are those that its pre-trained weights are used to; `convert` gives their state dict the library's names.
    """

    create: Callable[[State | None], Any]
    stages: Callable[[Any], Stages]
    features: int
    later: str
    last: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    weights: Callable[[], WeightsSource] = WeightsSource
    convert: Callable[[State], State] = lambda state: state

    def build(self, state: State | None = None) -> nn.Sequential:
        """The backbone as a sequence of stages, images [B, 3, S, S] -> features [B, F]."""
        return nn.Sequential(OrderedDict(self.stages(self.create(state))))


# Those with a description of their own, by name; files in `families` add them.
ARCHITECTURES: dict[str, Architecture] = {}


@dataclass(frozen=True)
class Adaptation:
    """What a network of torchvision needs beyond its name: `options` of its constructor for an image size, another
    `mean` and `std`, and `state`, which changes a state dict for an image size before it is loaded."""

    options: Callable[[int], dict[str, Any]] = lambda image_size: {}
    state: Callable[[State, int], State] = lambda state, image_size: state
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


# By the beginning of torchvision's name; files in `families` add them.
ADAPTATIONS: dict[str, Adaptation] = {}


def load_state_into(net: nn.Module, state: State, optional: Collection[str]) -> None:
    """Load a state dict; entries that begin with one of `optional` (a classifier's, an auxiliary output's) are ignored.

    Raises RuntimeError if another entry is missing or has another shape.
    """
    own = net.state_dict()
    # Files from before 2018 have no counters of batches.
    known = [key for key in own if key in state or not key.endswith(".num_batches_tracked")]
    wanted = [key for key in known if not key.startswith(tuple(optional))]
    missing = sorted(set(wanted) - set(state))
    wrong = sorted(key for key in set(wanted) & set(state) if own[key].shape != state[key].shape)
    if missing or wrong:
        raise RuntimeError(f"missing {missing[:3]}, of another shape {wrong[:3]}")
    loaded = copy.copy(state)  # which keeps the versions of the layers that it was saved with
    for key in set(loaded) - set(wanted):
        del loaded[key]  # type: ignore[attr-defined]
    net.load_state_dict(loaded, strict=False)


def torchvision_weights(name: str) -> Callable[[], WeightsSource]:
    """The source of torchvision's default weights."""

    def source() -> WeightsSource:
        import torchvision  # here, as importing it takes as long as torch

        url = torchvision.models.get_model_weights(name).DEFAULT.url
        return WeightsSource("BSD-3-Clause (torchvision, trained on ImageNet)", url=url)

    return source


def torchvision_network(
    name: str, optional: Sequence[str] = ("fc.", "classifier."), **options: Any
) -> Callable[[State | None], Any]:
    """`Architecture.create` of a network of torchvision."""

    def create(state: State | None = None) -> Any:
        import torchvision

        net = getattr(torchvision.models, name)(weights=None, **options)
        if state is not None:
            load_state_into(net, state, optional)
        return net

    return create


def cut_features(groups: Sequence[int]) -> Callable[[Any], Stages]:
    """Cut `net.features` before each index of `groups`, where the resolution halves."""

    def stages(net: Any) -> Stages:
        ends = [*groups[1:], len(net.features)]
        cut = [(f"stage{i}", net.features[a:b]) for i, (a, b) in enumerate(zip(groups, ends, strict=True))]
        return [*cut, ("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))]

    return stages
