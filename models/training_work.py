"""A first guess of what an epoch costs, before any was measured: right up to a factor, the machine's speed."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from binsweep.models.backbones.library import meta_network, own_image_size
from binsweep.models.levels import Level

# Billions of multiply-adds for a photo of 224 x 224 pixels: torchvision's model table, and the EfficientNet-Lite page
# (github.com/tensorflow/tpu, models/official/efficientnet/lite), scaled from their sizes by area.
_GIGA_OPERATIONS = {
    "resnet18": 1.81,
    "resnet34": 3.66,
    "resnet50": 4.09,
    "vgg16": 15.47,
    "inception_v3": 3.21,
    "efficientnet_b0": 0.39,
    "mobilenet_v2": 0.30,
    "efficientnet_lite0": 0.41,
    "efficientnet_lite1": 0.55,
    "efficientnet_lite2": 0.67,
}
# Depthwise convolutions wait for memory: per operation, these networks take about three times as long.
_DEPTHWISE = ("efficientnet", "mobilenet")
_DEPTHWISE_FACTOR = 3.0
# Of an epoch of the whole network; measured with efficientnet_lite0 at 160 and 224 pixels on a CPU.
_TRAINED_SHARE = {"head": 1 / 800, "last_stage": 0.2, "later_stages": 0.45, "all": 1.0}

# How much the settings that `level_work` does not know may change an epoch's seconds, against one that may do anything;
# those that are not named here, backbone and the trained part among them, may. The rate, for one, changes nothing.
INFLUENCE = {
    **dict.fromkeys(("lr", "weight_decay", "momentum", "label_smoothing", "schedule", "epochs", "seed"), 0.0),
    **dict.fromkeys(("head", "optimizer", "ema", "balance", "augment", "views", "batch_size"), 0.3),
}


@lru_cache
def _giga_operations(backbone: str) -> float:
    """Billions of multiply-adds of a network for a photo, by area as for 224 x 224 pixels."""
    size = own_image_size(backbone)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_network(backbone, size)(torch.empty((1, 3, size, size), device="meta"))
    return float(counter.get_total_flops()) / 2e9 * (224 / size) ** 2


def level_work(level: Level) -> float:
    """What an epoch of a section costs, against other sections on the same photos; without unit."""
    settings = level.settings
    pixels = (level.image_size / 224) ** 2 * settings.train_share
    if settings.trainable == "head":  # its features are stored, whatever the backbone and the size
        return _TRAINED_SHARE["head"] * settings.train_share
    name = settings.backbone
    factor = _DEPTHWISE_FACTOR if name.rpartition("/")[2].startswith(_DEPTHWISE) else 1.0
    operations = _GIGA_OPERATIONS[name] if name in _GIGA_OPERATIONS else _giga_operations(name)
    return factor * operations * _TRAINED_SHARE[settings.trainable] * pixels
