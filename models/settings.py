"""The settings of one trial: all values that a sweep can fix or search over."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

Augment = Literal["none", "flip", "flip_shift", "full"]
Trainable = Literal["head", "last_stage", "later_stages", "all"]
Head = Literal["classify", "ordinal", "regress"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["one_cycle", "constant"]
Balance = Literal["none", "weights", "sampler"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of a trial. Defaults are the head of the published recipe and a schedule that suits it."""

    backbone: str = "efficientnet_lite0"
    weights: str = "imagenet"  # imagenet | none | a state-dict file, or a folder of BACKBONE.pth files
    trainable: Trainable = "head"
    head: Head = "classify"
    lr: float = 1e-3  # the peak of the schedule
    batch_size: int = 32
    epochs: int = 10
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.01
    momentum: float = 0.9  # sgd only
    label_smoothing: float = 0.0
    ema: float = 0.0  # decay, for each step, of the average of the weights that is judged and kept; 0: the last weights
    schedule: Schedule = "one_cycle"
    augment: Augment = "flip"
    views: int = 8  # of each photo in a feature bank, for flip_shift and full
    balance: Balance = "none"  # weights: in the loss; sampler: draw every class equally often
    train_share: float = (
        1.0  # of the training photos, an equal share of each class; a smaller one is part of a larger
    )
    precision: PrecisionChoice = "auto"
    seed: int = 0


# The allowed values of each setting: names, or the half-open interval [low, high) of a number.
CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(Settings).items() if get_args(hint)
}
ABOVE_ONE = math.nextafter(1.0, 2.0)  # the upper bound where 1 itself is allowed
BOUNDS: dict[str, tuple[float, float]] = {
    "lr": (1e-12, 1e3),
    "batch_size": (1, 2**31),
    "epochs": (1, 100_000),
    "views": (3, 1000),
    "weight_decay": (0.0, 1e3),
    "momentum": (0.0, 1.0),
    "label_smoothing": (0.0, 1.0),
    "ema": (0.0, 1.0),
    "train_share": (0.01, ABOVE_ONE),
    "seed": (0, 2**63),
}
TYPES: dict[str, type] = {field.name: type(field.default) for field in fields(Settings)}
