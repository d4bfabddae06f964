"""DenseNet of torchvision, whose weights were saved with older names."""

from __future__ import annotations

import re

from binsweep.models.backbones.architecture import ADAPTATIONS, Adaptation, State

_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)")


def _renamed_layers(state: State, image_size: int) -> State:
    """`denselayer1.norm.1.weight` is `denselayer1.norm1.weight` today."""
    return {_OLD_LAYER.sub(r"\1\2", key): value for key, value in state.items()}


ADAPTATIONS["densenet"] = Adaptation(state=_renamed_layers)
