"""Where a trial's batches come from: pixels through the frozen prefix, or activations that were stored once.

Both draw nothing themselves: the training loop draws rows and views, so that the same seed sees the same
batches either way, and training with and without the feature bank gives the same losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from binsweep.models.augment import Augment, augment_images
from binsweep.models.precision import send
from binsweep.models.profiler import Mark, nothing


class Batches(Protocol):
    """One split, as the trained part of the network sees it; `labels` are class indices int64 [N], on the CPU."""

    labels: Tensor

    views: int  # how many there are to draw from

    def take(self, rows: Tensor, views: Tensor, mark: Mark = nothing) -> Tensor:
        """Inputs of `rows` int64 [B] as `views` int64 [B] show them; both on the CPU.

        `mark` is told when reading and when the copy to the device are over.
        """


def fits_on_gpu(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may lie on a GPU for a whole trial: a quarter of what is free, and of what this process may
    still take, as trials share it."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    # By index, None for the current GPU: of these calls, this one alone refuses a device that is "cuda" and no more.
    fraction = torch.cuda.get_per_process_memory_fraction(device.index)
    own = fraction * total - torch.cuda.memory_allocated(device)
    return size <= min(free, own) // 4


def _send_marked(batch: Tensor, device: torch.device, mark: Mark) -> Tensor:
    mark("wait")
    sent = send(batch, device)
    mark("copy")
    return sent


class PixelBatches:
    """Decoded images, augmented on the fly, through `front` (normalisation and the frozen prefix)."""

    def __init__(
        self,
        pixels: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        front: Callable[[Tensor], Tensor],
        device: torch.device,
        augment: Augment,
        views: int,
    ) -> None:
        self.labels, self.views = torch.tensor(labels), views
        self._augment: Augment = augment
        self._pixels, self._front, self._device = pixels, front, device
        self._resident = None
        if fits_on_gpu(pixels.nbytes, device):
            self._resident = torch.from_numpy(np.array(pixels)).to(device)

    def take(self, rows: Tensor, views: Tensor, mark: Mark = nothing) -> Tensor:
        if self._resident is not None:
            images = self._resident[send(rows, self._device)]
        else:
            images = _send_marked(torch.from_numpy(self._pixels[rows.numpy()]), self._device, mark)
        return self._front(augment_images(images, rows, views, self._augment))


class FeatureBatches:
    """Activations at the cut [views, N, ...], one set for each view."""

    def __init__(self, features: Tensor, labels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.labels, self.views = torch.tensor(labels), len(features)
        # On a GPU where it fits; else it stays in the mapped file, which a CPU reads in place.
        self._features = features.to(device) if fits_on_gpu(features.nbytes, device) else features
        self._device = device

    def take(self, rows: Tensor, views: Tensor, mark: Mark = nothing) -> Tensor:
        place = self._features.device
        return _send_marked(self._features[send(views, place), send(rows, place)], self._device, mark)


class JoinedBatches:
    """Two splits as one; rows of the second count on behind those of the first."""

    def __init__(self, first: Batches, second: Batches) -> None:
        self.labels, self.views = torch.cat([first.labels, second.labels]), first.views
        self._parts = ((first, 0, len(first.labels)), (second, len(first.labels), len(self.labels)))

    def take(self, rows: Tensor, views: Tensor, mark: Mark = nothing) -> Tensor:
        places, taken = [], []
        for part, start, end in self._parts:
            (here,) = torch.where((rows >= start) & (rows < end))
            if len(here):
                places.append(here)
                taken.append(part.take(rows[here] - start, views[here], mark))
        joined = torch.cat(taken)
        return joined[send(torch.cat(places).argsort(), joined.device)]
