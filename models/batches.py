"""Where a trial's batches come from: pixels through the frozen prefix, or activations that were stored once.

Both draw nothing themselves: the training loop draws rows and flips, so that the same seed sees the same
batches either way, and training with and without the feature bank gives the same losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Batches(Protocol):
    """One split, as the trained part of the network sees it; `labels` are class indices int64 [N]."""

    labels: Tensor

    def take(self, rows: Tensor, flips: Tensor, shifts: Tensor | None) -> Tensor:
        """Inputs of `rows` int64 [B]; mirrored where `flips` int64 [B] is 1; moved by `shifts` int64 [B, 2]."""


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Move each uint8 image [B, S, S, 3] by its own (dy, dx) pixels; edge pixels are repeated."""
    size = images.shape[1]
    steps = torch.arange(size, device=images.device)
    y = (steps - shifts[:, :1]).clamp(0, size - 1)
    x = (steps - shifts[:, 1:]).clamp(0, size - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, y[:, :, None], x[:, None, :]]


def fits_beside(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may lie on a GPU for a whole trial: a quarter of what is free, as trials share it."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4


def send(batch: Tensor, device: torch.device) -> Tensor:
    """A batch on the device; to a GPU from pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch


class PixelBatches:
    """Decoded images, mirrored and moved on the fly, through `front` (normalisation and the frozen prefix)."""

    def __init__(
        self,
        pixels: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        front: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.labels = torch.tensor(labels, device=device)
        self._pixels, self._front, self._device = pixels, front, device
        self._resident = None
        if fits_beside(pixels.nbytes, device):
            self._resident = torch.from_numpy(np.array(pixels)).to(device)

    def take(self, rows: Tensor, flips: Tensor, shifts: Tensor | None) -> Tensor:
        if self._resident is not None:
            images = self._resident[rows.to(self._device, non_blocking=True)]
        else:
            images = send(torch.from_numpy(self._pixels[rows.numpy()]), self._device)
        mirrored = flips.to(self._device).bool().view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(2), images)
        if shifts is not None:
            images = shift_images(images, shifts.to(self._device))
        return self._front(images)


class FeatureBatches:
    """Activations at the cut [views, N, ...]: view 1 is the mirror image."""

    def __init__(self, features: Tensor, labels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.labels = torch.tensor(labels, device=device)
        # On a GPU where it fits; else it stays in the mapped file, which a CPU reads in place.
        self._features = features.to(device) if fits_beside(features.nbytes, device) else features
        self._device = device

    def take(self, rows: Tensor, flips: Tensor, shifts: Tensor | None) -> Tensor:
        assert shifts is None, "a bank of two views holds no moved images"
        place = self._features.device
        return send(self._features[flips.to(place), rows.to(place)], self._device)
