"""What a trial trains on: the photos of a sweep, and the batches that a trial's network reads from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from binsweep.data.banks.features import open_feature_bank
from binsweep.data.banks.pixels import PixelBank
from binsweep.data.labels import Label
from binsweep.data.parallel import Progress
from binsweep.data.resource_limits import cores
from binsweep.models.augment import AUGMENT_VERSION, augment_images, views_of
from binsweep.models.batches import Batches, FeatureBatches, PixelBatches
from binsweep.models.build import build_model
from binsweep.models.network import CountingModel
from binsweep.models.precision import (
    Precision,
    choose_precision,
    disable_tf32,
    release_gpu_memory,
    to_device,
)
from binsweep.models.pretrained import file_hash, weights_file
from binsweep.models.settings import Augment, Settings

NO_AUGMENT: Augment = "none"
INFERENCE_BATCH = 256  # photos per forward pass where no gradients are kept
# On a CPU small batches stay in its caches: on 2 cores, 8 photos at a time were twice as fast as 64.
CPU_ENCODE_BATCH = 8
UNLIMITED_VIEWS = 2**31  # views drawn anew for each batch; too many for one to repeat


@dataclass(frozen=True)
class TrialData:
    """What every trial of a sweep trains on. Small to pickle: pixels stay in their memory-mapped files.

    Models answer with the `classes`, in their order; the labels of `train` and `validation` are their indices. The head
    tells apart `head_classes` in training, which the labels of `train_also` are indices of; () stands for `classes`.
    `other_sizes` holds the same photos at the image sizes of other fidelity levels, and resized with other
    `interpolation`s, which are those of the networks' weights.
    """

    classes: tuple[Label, ...]
    image_size: int
    train: PixelBank
    validation: PixelBank
    banks: Path  # the folder of the feature banks
    train_also: PixelBank | None = None  # photos of other counts
    head_classes: tuple[Label, ...] = ()
    other_sizes: tuple[TrialData, ...] = ()
    interpolation: str = "bilinear"

    def at_size(self, image_size: int, interpolation: str = "") -> TrialData:
        """The same photos at one of the sizes that they were decoded at; by default with the same interpolation."""
        wanted = (image_size, interpolation or self.interpolation)
        every = (replace(self, other_sizes=()), *self.other_sizes)
        (found,) = (data for data in every if (data.image_size, data.interpolation) == wanted)
        return replace(found, other_sizes=tuple(data for data in every if data is not found))

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_classes", self.head_classes or self.classes)


def build_trial_model(settings: Settings, data: TrialData, precision: Precision) -> CountingModel:
    """A new model for these photos, on the device of `precision` and in channels-last memory format.

    A backbone that is frozen as a whole is built on its first use.
    """
    if precision.device.type == "cuda":
        disable_tf32()
    model = build_model(settings, data.classes, data.image_size, data.head_classes, lazy=True)
    model = model.to(precision.device)
    return model.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class BatchFactory:
    """Opens a split as batches of what the trained part of `model` takes: pixels, or the frozen part's activations.

    Activations come from a feature bank in the folder `banks`. Without `use_feature_bank`, the frozen part runs again
    for every batch; the losses are the same. `micro_batches` divides the batches of the frozen part on a GPU.
    """

    model: CountingModel
    settings: Settings
    banks: Path
    precision: Precision
    use_feature_bank: bool = True
    micro_batches: int = 1

    def open(self, bank: PixelBank, augment: Augment, progress: Progress | None = None) -> Batches:
        """The batches of one split; a feature bank that does not exist yet is built first."""
        settings, precision, device = self.settings, self.precision, self.precision.device
        cut = self.model.cut(settings.trainable)
        prefix = self.model.prefix(cut).eval()
        on_cpu = device.type == "cpu"
        stored = precision.autocast
        if settings.trainable == "later_stages":
            stored = (
                torch.bfloat16
            )  # fp32 would take twice the room: 150 kB for each view of a photo of 160 px
        batch = CPU_ENCODE_BATCH if on_cpu else max(1, INFERENCE_BATCH // self.micro_batches)

        def encode(images: Tensor) -> Tensor:
            with torch.no_grad(), precision.context():
                inputs = self.model.normalise(to_device(images, device))
                if cut == 0:
                    return inputs
                features = torch.cat([prefix(chunk) for chunk in inputs.split(batch)])
            return features if stored is None else features.to(stored)

        def encode_views(images: Tensor, rows: Tensor, views: Tensor) -> Tensor:
            return encode(augment_images(to_device(images, device), rows, views, augment))

        views = views_of(augment, settings.views if cut else UNLIMITED_VIEWS)
        if cut == 0 or not self.use_feature_bank:
            return PixelBatches(bank.pixels, bank.labels, encode, device, augment, views)
        key, threads = self._bank_key(bank, augment), cores() if on_cpu else 1
        features = open_feature_bank(
            bank.pixels, encode_views, key, self.banks, views, progress, batch, threads
        )
        return FeatureBatches(features, bank.labels, device)

    def _bank_key(self, bank: PixelBank, augment: Augment) -> str:
        settings = self.settings
        weights = file_hash(weights_file(settings.backbone, settings.weights))
        key = f"{bank.key}|{settings.backbone}|{weights}|before {settings.trainable}|{self.precision.name}"
        return key if augment in ("none", "flip") else f"{key}|{augment}-{AUGMENT_VERSION}"


def build_banks(settings: Settings, data: TrialData, progress: Progress | None = None) -> None:
    """Build the feature banks that a trial with these settings opens; nothing to do where nothing is frozen."""
    precision = choose_precision(settings.precision)
    model = build_trial_model(settings, data, precision)
    if model.cut(settings.trainable):
        batches = BatchFactory(model, settings, data.banks, precision)
        for bank in (data.train, *([data.train_also] if data.train_also else [])):
            batches.open(bank, settings.augment, progress)
        batches.open(data.validation, NO_AUGMENT, progress)
    release_gpu_memory()  # trials run in processes of their own
