"""Vision Transformer and MaxViT of torchvision, which are built for one image size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from binsweep.models.backbones.architecture import ADAPTATIONS, Adaptation, State

_POSITIONS = "encoder.pos_embedding"


def _resized_positions(state: State, image_size: int) -> State:
    """The embeddings of positions, interpolated for another image size by torchvision's own function."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    kernel = state.get("conv_proj.weight")
    if kernel is None or _POSITIONS not in state:
        return state
    resized: dict[str, Any] = interpolate_embeddings(image_size, kernel.shape[-1], OrderedDict(state))
    return resized


ADAPTATIONS |= {
    "vit_": Adaptation(options=lambda image_size: {"image_size": image_size}, state=_resized_positions),
    "maxvit_": Adaptation(options=lambda image_size: {"input_size": (image_size, image_size)}),
}
