"""Image statistics: size, brightness, sharpness, perceptual hash."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from binsweep.data.decode import decode, dimensions, read
from binsweep.data.image_quality import THUMBNAIL_SIZE, brightness_and_sharpness
from binsweep.data.near_duplicates import perceptual_hash
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
    brightness, sharpness = brightness_and_sharpness(pixels)
    image_stats = ImageStats(width, height, len(data), brightness, sharpness, perceptual_hash(pixels))
    return json.dumps(asdict(image_stats)), ""
