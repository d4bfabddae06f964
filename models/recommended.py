"""Where to begin with each backbone: settings that are known to train it, for a search that is told nothing else.

They are starting points, not optima: a search goes on from them. Sources:

- measured here: the whole EfficientNet-Lite0 and its later stages (benchmarks/RESULTS.md, 2026-11-26 and 2026-11-27;
  sweeps/abid.yaml); heads on the frozen EfficientNet-Lite0 and 1, which learn alike from 1e-3 to 3e-2.
- fastai's `Learner.fine_tune`, AdamW with one cycle: 2e-3 for a new head, then up to 1e-3 for it and a hundredth of
  that for the first layers; 3e-4 is in between, for one rate for all layers.
- Kornblith et al., 2019 (arXiv 1805.08974), and Kolesnikov et al., 2019 (BiT, arXiv 1912.11370): fine-tuning by SGD
  with momentum 0.9 at 3e-3 to 1e-2.
- Girshick, 2015 (Fast R-CNN, arXiv 1504.08083): VGG16, which has no batch norm, by SGD at 1e-3; for AdamW a tenth of
  it, by custom.
- Steiner et al., 2021 (arXiv 2106.10270): Vision Transformers by SGD with momentum at 1e-3 to 1e-2. Liu et al., 2022
  (ConvNeXt, arXiv 2201.03545): fine-tuning by AdamW at 5e-5; twice that for one rate and few epochs, by custom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from binsweep.models.backbones.library import meta_network, own_image_size

# Of choices that no backbone decides, the one to begin with, the best first. Later stages cost half of the whole
# network and are 1.5 points behind it; a head costs next to nothing and is 8 points behind (docs/results.md).
PREFERRED: Mapping[str, tuple[str, ...]] = {"trainable": ("later_stages", "all", "last_stage", "head")}


@dataclass(frozen=True)
class _Rates:
    """Peak learning rates: of a head on the frozen backbone and of more, by AdamW, and of more by SGD."""

    head: float
    adamw: float
    sgd: float


_LITE = _Rates(head=1e-2, adamw=1e-3, sgd=1e-2)  # measured, except for SGD
_RESNET = _Rates(head=2e-3, adamw=3e-4, sgd=1e-2)  # fastai; Kornblith et al.
_DEPTHWISE = _Rates(
    head=2e-3, adamw=1e-3, sgd=1e-2
)  # as EfficientNet-Lite, which is built of the same blocks
RATES: Mapping[str, _Rates] = {
    "resnet18": _RESNET,
    "resnet34": _RESNET,
    "resnet50": _RESNET,
    "inception_v3": _RESNET,  # batch norm after every convolution, as there
    "vgg16": _Rates(head=1e-3, adamw=1e-4, sgd=1e-3),
    "efficientnet_b0": _DEPTHWISE,
    "mobilenet_v2": _DEPTHWISE,
    **dict.fromkeys(("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"), _LITE),
}
# Networks without batch norm, as transformers and ConvNeXt: Steiner et al.; Liu et al.
_WITHOUT_BATCH_NORM = _Rates(head=1e-3, adamw=1e-4, sgd=3e-3)
SGD_HEAD_FACTOR = 10.0  # of AdamW's rate for a head, which SGD does not normalise


@lru_cache
def _rates(backbone: str) -> _Rates:
    if backbone in RATES:
        return RATES[backbone]
    modules = meta_network(backbone, own_image_size(backbone)).modules()
    return _RESNET if any(isinstance(module, nn.BatchNorm2d) for module in modules) else _WITHOUT_BATCH_NORM


def recommended_settings(backbone: str, trainable: str, optimizer: str) -> dict[str, Any]:
    """The settings to begin with, by name, for a backbone of which this part is trained by this optimizer."""
    rates = _rates(backbone)
    of_head = rates.head * (SGD_HEAD_FACTOR if optimizer == "sgd" else 1.0)
    shared = {
        "batch_size": 32,
        "momentum": 0.9,
        "head": "classify",
        "optimizer": "adamw",
        "schedule": "one_cycle",
    }
    if trainable == "head":
        regularisation = {"weight_decay": 0.01, "augment": "flip", "ema": 0.0, "label_smoothing": 0.0}
        return {**shared, **regularisation, "lr": of_head}
    regularisation = {"weight_decay": 0.01, "augment": "flip_shift", "ema": 0.99, "label_smoothing": 0.1}
    return {**shared, **regularisation, "lr": rates.sgd if optimizer == "sgd" else rates.adamw}
