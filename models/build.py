"""A counter from settings, and again from what a trial left behind."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binsweep.models.network import ARCHITECTURES, CountingModel, CountingModelConfig, build_backbone
from binsweep.models.pretrained import load_state, weights_file
from binsweep.models.settings import Settings


class LazyBackbone(nn.Module):
    """A frozen backbone that is built when the first photo goes through it, where and as that photo lies.

    A head whose features are stored never asks for it. Building it means importing timm and torchvision, which takes
    a worker two seconds and 110 MB.
    """

    def __init__(self, build: Callable[[], nn.Sequential]) -> None:
        super().__init__()
        self._build = build
        self._built: list[nn.Sequential] = []  # in a list, so that it is no part of the state
        self._lock = threading.Lock()  # several threads compute a bank

    def forward(self, images: Tensor) -> Tensor:
        with self._lock:
            if not self._built:
                backbone = self._build().to(images.device)
                self._built = [backbone.to(memory_format=torch.channels_last).eval()]
        features: Tensor = self._built[0](images)
        return features


def build_model(
    settings: Settings, classes: Sequence[int], image_size: int, postponed: bool = False
) -> CountingModel:
    """A counter with the settings' pre-trained backbone and a fresh head.

    The head is drawn from the trial's seed; a frozen part without pre-trained weights is drawn from a seed of
    its own, so that all trials share it (and one feature bank). Within a process, the frozen stages of all
    counters are the same modules: copying them took longer than training a head. With `postponed`, a backbone that is
    frozen as a whole is one stage, and no part of the counter's state.
    """
    architecture = ARCHITECTURES[settings.backbone]
    file = weights_file(settings.backbone, settings.weights)
    config = CountingModelConfig(
        settings.backbone, settings.head, tuple(classes), image_size, architecture.mean, architecture.std
    )
    stamp = file.stat().st_mtime_ns if file else 0
    drawn_from = settings.seed if settings.trainable == "all" and file is None else 0
    build = partial(_backbone, settings.backbone, file, stamp, drawn_from)
    with torch.random.fork_rng(devices=[]):
        whole = postponed and settings.trainable == "head"
        counter = CountingModel(config, backbone=nn.Sequential(LazyBackbone(build)) if whole else build())
        cut = counter.cut(settings.trainable)
        stages = enumerate(counter.backbone.named_children())
        counter.backbone = nn.Sequential(
            OrderedDict(
                (name, stage if place < cut else copy.deepcopy(stage)) for place, (name, stage) in stages
            )
        )
        torch.manual_seed(settings.seed)
        for module in counter.head.modules():
            if isinstance(module, torch.nn.Linear):
                bias = None if module.bias is None else module.bias.detach().clone()
                module.reset_parameters()
                # The regression head starts at the middle count: its bias is a statement, not noise.
                if settings.head == "regress" and bias is not None and module.out_features == 2:
                    module.bias.data.copy_(bias)
    return counter


@lru_cache(maxsize=1)
def _backbone(name: str, file: Path | None, stamp: int, seed: int) -> nn.Sequential:
    """Kept for the next trial of this process: building one takes longer than training many a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(name, load_state(name, file) if file else None)


@dataclass(frozen=True)
class Checkpoint:
    """What one epoch leaves behind: enough to rebuild the counter, and what it said on validation."""

    epoch: int
    metrics: dict[str, float]
    settings: Settings
    classes: tuple[int, ...]
    image_size: int
    state: dict[str, Tensor]  # the trained part only; the frozen part is named by the settings
    log_probabilities: Tensor  # float32 [N validation, K]

    def save(self, path: Path) -> None:
        """Write beside, then rename; read back with `load_checkpoint`."""
        temporary = path.with_suffix(".tmp")
        torch.save({**asdict(self), "settings": asdict(self.settings)}, temporary)
        temporary.replace(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without unpickling code."""
    raw: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return Checkpoint(**{**raw, "settings": Settings(**raw["settings"])})


def model_from_checkpoint(checkpoint: Checkpoint) -> CountingModel:
    """The whole counter, frozen and trained part, in eval mode on the CPU."""
    counter = build_model(checkpoint.settings, checkpoint.classes, checkpoint.image_size)
    cut = counter.cut(checkpoint.settings.trainable)
    counter.suffix(cut).load_state_dict(checkpoint.state)
    return counter.cpu().eval()
