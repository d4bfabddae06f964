"""Image statistics: size, brightness, sharpness, perceptual hash."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from binsweep.data.decode import decode, dimensions, read
from binsweep.data.near_duplicates import THUMBNAIL_SIZE, perceptual_hash
from binsweep.data.sources.scan_cache import ScanResult


@dataclass(frozen=True, slots=True)
class ImageStats:
    """`brightness` is the mean gray from 0 to 255, `sharpness` the variance of the Laplacian, small if blurred.

    Both are measured at THUMBNAIL_SIZE, so that images of any size are comparable. `hash` is perceptual.
    """

    width: int
    height: int
    bytes: int
    brightness: float
    sharpness: float
    hash: str


def measure_image(path: Path) -> ScanResult:
    """The ImageStats of a file as JSON."""
    data = read(path)
    width, height = dimensions(data)
    pixels = decode(data, THUMBNAIL_SIZE)
    gray = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    image_stats = ImageStats(
        width,
        height,
        len(data),
        round(float(gray.mean()), 1),
        round(sharpness(gray), 1),
        perceptual_hash(pixels),
    )
    return json.dumps(asdict(image_stats)), ""


def sharpness(gray: np.ndarray) -> float:
    """The variance of the 4-neighbour Laplacian of [H, W].

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000).
    """
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float((around - 4 * gray[1:-1, 1:-1]).var())
