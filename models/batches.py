"""Where a trial's batches come from: pixels through the frozen prefix, or activations from a feature bank.

Neither draws anything itself: the training loop draws rows and views, so that one seed gives the same batches, and the
same losses, with and without the feature bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from binsweep.models.augment import augment_images
from binsweep.models.precision import to_device
from binsweep.models.profiler import Mark, no_mark
from binsweep.models.settings import Augment


class Batches(Protocol):
    """One split as input of the trained part of the network; `labels` are class indices int64 [N], on the CPU."""

    labels: Tensor

    views: int  # how many there are to draw from

    def take(self, rows: Tensor, views: Tensor, mark: Mark = no_mark) -> Tensor:
        """Inputs of `rows` int64 [B] in `views` int64 [B]; both on the CPU.

        `mark` is called after reading and after the copy to the device.
        """


def fits_on_gpu(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on a GPU for a whole trial.

    The limit is a quarter of the memory that is free, and of what this process may still allocate, because trials share
    the GPU.
    """
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    # By index, None for the current GPU: of these calls, only this one refuses a device "cuda" without an index.
    fraction = torch.cuda.get_per_process_memory_fraction(device.index)
    own = fraction * total - torch.cuda.memory_allocated(device)
    return size <= min(free, own) // 4


def _copy_with_marks(batch: Tensor, device: torch.device, mark: Mark) -> Tensor:
    mark("wait")
    copied = to_device(batch, device)
    mark("copy")
    return copied


class PixelBatches:
    """Decoded images, augmented on the fly, through `encode` (normalisation and the frozen prefix)."""

    def __init__(
        self,
        pixels: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        encode: Callable[[Tensor], Tensor],
        device: torch.device,
        augment: Augment,
        views: int,
    ) -> None:
        self.labels, self.views = torch.tensor(labels), views
        self._augment: Augment = augment
        self._pixels, self._encode, self._device = pixels, encode, device
        self._resident = None
        if fits_on_gpu(pixels.nbytes, device):
            self._resident = torch.from_numpy(np.array(pixels)).to(device)

    def take(self, rows: Tensor, views: Tensor, mark: Mark = no_mark) -> Tensor:
        if self._resident is not None:
            images = self._resident[to_device(rows, self._device)]
        else:
            images = _copy_with_marks(torch.from_numpy(self._pixels[rows.numpy()]), self._device, mark)
        return self._encode(augment_images(images, rows, views, self._augment))


class FeatureBatches:
    """Activations at the cut [views, N, ...], one set per view."""

    def __init__(self, features: Tensor, labels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.labels, self.views = torch.tensor(labels), len(features)
        # Copied to a GPU if they fit; otherwise they stay in the mapped file, which a CPU reads in place.
        self._features = features.to(device) if fits_on_gpu(features.nbytes, device) else features
        self._device = device

    def take(self, rows: Tensor, views: Tensor, mark: Mark = no_mark) -> Tensor:
        source = self._features.device
        return _copy_with_marks(
            self._features[to_device(views, source), to_device(rows, source)], self._device, mark
        )


class JoinedBatches:
    """Two splits as one; the rows of the second follow those of the first."""

    def __init__(self, first: Batches, second: Batches) -> None:
        self.labels, self.views = torch.cat([first.labels, second.labels]), first.views
        self._splits = ((first, 0, len(first.labels)), (second, len(first.labels), len(self.labels)))

    def take(self, rows: Tensor, views: Tensor, mark: Mark = no_mark) -> Tensor:
        positions, taken = [], []
        for split, start, end in self._splits:
            (here,) = torch.where((rows >= start) & (rows < end))
            if len(here):
                positions.append(here)
                taken.append(split.take(rows[here] - start, views[here], mark))
        joined = torch.cat(taken)
        return joined[to_device(torch.cat(positions).argsort(), joined.device)]
