"""The checkpoint of one epoch: everything needed to rebuild the model and to know how good it was."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binsweep.data.atomic_write import atomic_path
from binsweep.data.labels import Label
from binsweep.models.build import build_model
from binsweep.models.levels import Level
from binsweep.models.network import CountingModel
from binsweep.models.settings import Settings


@dataclass(frozen=True)
class Checkpoint:
    """One epoch of a trial: its trained weights, and its predictions for the validation split."""

    epoch: int
    metrics: dict[str, float]
    settings: Settings
    classes: tuple[Label, ...]
    image_size: int
    state: dict[str, Tensor]  # of the trained part only; the settings name the frozen part
    log_probabilities: Tensor  # float32 [N validation, K]
    head_classes: tuple[Label, ...] = ()  # of the head, where it was trained on more than `classes`
    earlier: tuple[
        Level, ...
    ] = ()  # the sections that were trained before, whose weights this one began with

    @property
    def levels(self) -> tuple[Level, ...]:
        """The sections of its training."""
        return (*self.earlier, Level(self.settings, self.image_size))

    def save(self, path: Path) -> None:
        """Write the file atomically; `load_checkpoint` reads it."""
        with atomic_path(path) as temporary:
            torch.save({**asdict(self), "settings": asdict(self.settings)}, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without unpickling code."""
    raw: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    earlier = tuple(Level.from_dict(level) for level in raw.get("earlier", ()))
    return Checkpoint(**{**raw, "settings": Settings(**raw["settings"]), "earlier": earlier})


def model_from_checkpoint(checkpoint: Checkpoint) -> CountingModel:
    """The whole model, frozen and trained part, in eval mode on the CPU."""
    model = build_model(
        checkpoint.settings, checkpoint.classes, checkpoint.image_size, checkpoint.head_classes
    )
    cut = model.cut(checkpoint.settings.trainable)
    model.suffix(cut).load_state_dict(checkpoint.state)
    return model.cpu().eval()
