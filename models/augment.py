"""Augmentation of whole batches. A view is a number, and what it shows of a photo follows from both alone.

View 0 is the photo and view 1 its mirror image; every other one is drawn, always the same way for the same photo
and number. So a feature bank can hold the first few views of each photo, and training without a bank draws from
as many as it likes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from binsweep.models.precision import send

Augment = Literal["none", "flip", "flip_shift", "full"]

VERSION = 1
SHIFT = 0.06  # a photo moves by up to this part of its size each way
JITTER = 0.3  # brightness, contrast and saturation change by up to this factor
_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision weigh the colours
_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def views_of(augment: Augment, sampled: int) -> int:
    """How many views of each photo a bank holds: flipping has exactly two, what is drawn has `sampled`."""
    return {"none": 1, "flip": 2}.get(augment, sampled)


def augment_images(images: Tensor, rows: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """uint8 [B, S, S, 3] of the photos `rows` int64 [B], as their `views` int64 [B] show them; the same shape.

    none: as it is; flip: mirrored where the view is odd; flip_shift: moved as well, edge pixels repeated; full:
    brightness, contrast and saturation as in torchvision's ColorJitter and a blur of up to a 5 x 5 binomial kernel
    as well.
    """
    if augment == "none":
        return images
    mirrored = send(views % 2 == 1, images.device).view(-1, 1, 1, 1)
    images = torch.where(mirrored, images.flip(2), images)
    if augment == "flip":
        return images
    draws = _draws(rows, views, 6)
    reach = int(SHIFT * images.shape[1])
    shifts = (draws[:, :2] * (2 * reach + 1)).long() - reach
    shifts[views < 2] = 0
    images = shift_images(images, send(shifts, images.device))
    if augment == "flip_shift":
        return images
    factors = 1 + JITTER * (2 * draws[:, 2:5] - 1)
    blur = draws[:, 5].clone()
    factors[views < 2], blur[views < 2] = 1.0, 0.0
    return _recolour(images, send(factors, images.device), send(blur, images.device))


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Move each uint8 image [B, S, S, 3] by its own (dy, dx) pixels; edge pixels are repeated."""
    size = images.shape[1]
    steps = torch.arange(size, device=images.device)
    y = (steps - shifts[:, :1]).clamp(0, size - 1)
    x = (steps - shifts[:, 1:]).clamp(0, size - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, y[:, :, None], x[:, None, :]]


def _recolour(images: Tensor, factors: Tensor, blur: Tensor) -> Tensor:
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in factors.unbind(1))
    weights = send(torch.tensor(_GRAY), images.device)
    seen = images.float() * brightness
    mean = (seen @ weights).mean((1, 2)).view(-1, 1, 1, 1)
    seen = mean + contrast * (seen - mean)
    gray = (seen @ weights).unsqueeze(3)
    seen = gray + saturation * (seen - gray)
    line = send(torch.tensor(_KERNEL), images.device)
    planes = F.pad(seen.permute(0, 3, 1, 2), (2, 2, 2, 2), mode="replicate")
    for shape in ((1, 1, 5, 1), (1, 1, 1, 5)):
        planes = F.conv2d(planes, line.view(shape).expand(3, *shape[1:]), groups=3)
    seen = seen + blur.view(-1, 1, 1, 1) * (planes.permute(0, 2, 3, 1) - seen)
    return seen.round().clamp(0, 255).to(torch.uint8)


def _draws(rows: Tensor, views: Tensor, count: int) -> Tensor:
    """Uniform float32 [B, count] in [0, 1), a function of (row, view): SplitMix64 (Steele, Lea & Flood 2014)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    seed = _mixed(rows.numpy().astype(np.uint64)) ^ views.numpy().astype(np.uint64)
    bits = _mixed(_mixed(seed)[:, None] + steps)
    return torch.from_numpy(((bits >> np.uint64(40)) * 2.0**-24).astype(np.float32))


def _mixed(
    bits: np.ndarray[tuple[int, ...], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[tuple[int, ...], np.dtype[np.uint64]] = bits ^ (bits >> np.uint64(31))
    return mixed
