"""Augmentation of whole batches. A view is a number; photo and number alone determine the augmented image.

View 0 is the photo and view 1 its mirror image; all others are drawn, always the same way for the same photo and
number. So a feature bank can hold the first few views of each photo, and training without a bank can use any number.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from binsweep.models.precision import to_device
from binsweep.models.settings import Augment

AUGMENT_VERSION = 1  # part of the key of feature banks
MAX_SHIFT = 0.06  # a share of the photo's size, in each direction
MAX_JITTER = 0.3  # relative change of brightness, contrast and saturation
_GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision
_BLUR_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def views_of(augment: Augment, sampled: int) -> int:
    """The number of views of each photo in a bank: two for flipping, `sampled` for drawn augmentations."""
    return {"none": 1, "flip": 2}.get(augment, sampled)


def augment_images(images: Tensor, rows: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """The `views` int64 [B] of `images` uint8 [B, S, S, 3], which are the photos `rows` int64 [B]; the same shape.

    none: unchanged; flip: mirrored if the view is odd; flip_shift: also shifted, with edge pixels repeated; full: also
    brightness, contrast and saturation as in torchvision's ColorJitter, and a blur of up to a 5 x 5 binomial kernel.
    """
    if augment == "none":
        return images
    mirrored = to_device(views % 2 == 1, images.device).view(-1, 1, 1, 1)
    images = torch.where(mirrored, images.flip(2), images)
    if augment == "flip":
        return images
    draws = _draws(rows, views, 6)
    reach = int(MAX_SHIFT * images.shape[1])
    shifts = (draws[:, :2] * (2 * reach + 1)).long() - reach
    shifts[views < 2] = 0
    images = shift_images(images, to_device(shifts, images.device))
    if augment == "flip_shift":
        return images
    factors = 1 + MAX_JITTER * (2 * draws[:, 2:5] - 1)
    blur = draws[:, 5].clone()
    factors[views < 2], blur[views < 2] = 1.0, 0.0
    return _recolour(images, to_device(factors, images.device), to_device(blur, images.device))


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift each uint8 image [B, S, S, 3] by its own (dy, dx) pixels; edge pixels are repeated."""
    size = images.shape[1]
    steps = torch.arange(size, device=images.device)
    y = (steps - shifts[:, :1]).clamp(0, size - 1)
    x = (steps - shifts[:, 1:]).clamp(0, size - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, y[:, :, None], x[:, None, :]]


def _recolour(images: Tensor, factors: Tensor, blur: Tensor) -> Tensor:
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in factors.unbind(1))
    weights = to_device(torch.tensor(_GRAY_WEIGHTS), images.device)
    values = images.float() * brightness
    mean = (values @ weights).mean((1, 2)).view(-1, 1, 1, 1)
    values = mean + contrast * (values - mean)
    gray = (values @ weights).unsqueeze(3)
    values = gray + saturation * (values - gray)
    kernel = to_device(torch.tensor(_BLUR_KERNEL), images.device)
    planes = F.pad(values.permute(0, 3, 1, 2), (2, 2, 2, 2), mode="replicate")
    for shape in ((1, 1, 5, 1), (1, 1, 1, 5)):
        planes = F.conv2d(planes, kernel.view(shape).expand(3, *shape[1:]), groups=3)
    values = values + blur.view(-1, 1, 1, 1) * (planes.permute(0, 2, 3, 1) - values)
    return values.round().clamp(0, 255).to(torch.uint8)


def _draws(rows: Tensor, views: Tensor, count: int) -> Tensor:
    """Uniform float32 [B, count] in [0, 1), a function of (row, view), by SplitMix64 (Steele, Lea & Flood 2014)."""
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
