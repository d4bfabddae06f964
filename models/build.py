"""Builds the model of a trial from its settings."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from binsweep.data.labels import Label
from binsweep.models.backbones.architecture import ARCHITECTURES
from binsweep.models.backbones.library import find_architecture
from binsweep.models.network import CountingModel, CountingModelConfig
from binsweep.models.pretrained import load_state, weights_file
from binsweep.models.settings import Settings


class LazyBackbone(nn.Module):
    """A frozen backbone, built on its first forward pass on the input's device and in channels-last memory format.

    A head whose features are stored never needs it. Building it means importing timm and torchvision, which takes a
    worker two seconds and 110 MB.
    """

    def __init__(self, build: Callable[[], nn.Sequential]) -> None:
        super().__init__()
        self._build = build
        self._built: list[nn.Sequential] = []  # in a list, to keep it out of the state dict
        self._lock = threading.Lock()  # several threads compute a bank

    def forward(self, images: Tensor) -> Tensor:
        with self._lock:
            if not self._built:
                backbone = self._build().to(images.device)
                self._built = [backbone.to(memory_format=torch.channels_last).eval()]
        features: Tensor = self._built[0](images)
        return features


def build_model(
    settings: Settings,
    classes: Sequence[Label],
    image_size: int,
    head_classes: Sequence[Label] = (),
    lazy: bool = False,
) -> CountingModel:
    """A model with the backbone and weights of the settings, and a new head drawn from the trial's seed.

    It answers with the `classes`; `head_classes` are those of its head where it trains on further ones, too.

    A frozen part without pre-trained weights is drawn from seed 0, so that all trials share it (and one feature bank).
    Within a process, all models share the modules of their frozen stages: copying them took longer than training a
    head. With `lazy`, a backbone that is frozen as a whole is one LazyBackbone, which is not part of the state dict.
    """
    architecture = find_architecture(settings.backbone, image_size)
    file = weights_file(settings.backbone, settings.weights)
    config = CountingModelConfig(
        settings.backbone,
        settings.head,
        tuple(classes),
        image_size,
        architecture.mean,
        architecture.std,
        head_classes=() if tuple(head_classes) == tuple(classes) else tuple(head_classes),
        interpolation=architecture.interpolation,
    )
    modified = file.stat().st_mtime_ns if file else 0
    seed = settings.seed if settings.trainable == "all" and file is None else 0
    size = 0 if settings.backbone in ARCHITECTURES else image_size  # those are the same for every size
    build = partial(_cached_backbone, settings.backbone, size, file, modified, seed)
    with torch.random.fork_rng(devices=[]):
        as_one = lazy and settings.trainable == "head"
        model = CountingModel(config, backbone=nn.Sequential(LazyBackbone(build)) if as_one else build())
        cut = model.cut(settings.trainable)
        stages = enumerate(model.backbone.named_children())
        model.backbone = nn.Sequential(
            OrderedDict(
                (name, stage if place < cut else copy.deepcopy(stage)) for place, (name, stage) in stages
            )
        )
        torch.manual_seed(settings.seed)
        _draw_head(model.head, settings)
    return model


def _draw_head(head: nn.Module, settings: Settings) -> None:
    """Draw the weights of the linear layers from the global random generator."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            bias = None if layer.bias is None else layer.bias.detach().clone()
            layer.reset_parameters()
            # The bias of the regression head is its initial count and scale, so it is not random.
            if settings.head == "regress" and bias is not None and layer.out_features == 2:
                layer.bias.data.copy_(bias)


@lru_cache(maxsize=1)
def _cached_backbone(
    name: str, image_size: int, file: Path | None, modified: int, seed: int
) -> nn.Sequential:
    """Kept for the next trial of this process: building a backbone takes longer than training many a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return find_architecture(name, image_size).build(load_state(name, file) if file else None)
