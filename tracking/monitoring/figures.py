"""The figures of a photo and of its answer, and the bins in which they are counted.

The bins are the same for every model and version: fine enough that drift tests can merge them as they need, and fixed,
so that a server counts without knowing what it will be compared with. This module runs in the model server, whose
container has neither SciPy nor PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from binsweep.data.decode import decode, dimensions
from binsweep.data.image_quality import THUMBNAIL_SIZE, brightness_and_sharpness


@dataclass(frozen=True)
class Figure:
    """A number that is counted in bins: below `edges[0]`, between the edges, and from the last edge on."""

    title: str
    edges: NDArray[np.float64]

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    def bin_of(self, value: float) -> int:
        """The bin that a value belongs to."""
        return int(np.searchsorted(self.edges, value, side="right"))


def _octaves(low: float, high: float, each: int) -> NDArray[np.float64]:
    """Edges from `low` to `high`, `each` of them for a doubling."""
    return low * 2.0 ** (np.arange(round(np.log2(high / low)) * each + 1) / each)


CONFIDENCE = "confidence"
# What is compared with the validation photos, in the order of reports.
FIGURES: Mapping[str, Figure] = {
    "brightness": Figure("brightness (mean gray, 0 to 255)", np.arange(4.0, 256.0, 4.0)),
    "sharpness": Figure("sharpness (variance of the Laplacian; low is blurred)", _octaves(1, 2**15, 4)),
    "width": Figure("width in pixels", _octaves(16, 2**14, 8)),
    "height": Figure("height in pixels", _octaves(16, 2**14, 8)),
    "bytes": Figure("bytes of the file", _octaves(512, 2**24, 4)),
    # Trained networks are sure of most answers: the bins are narrow there.
    CONFIDENCE: Figure(
        "confidence of the answer",
        np.array([*np.arange(5, 95, 5) / 100, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9999]),
    ),
}
ANSWER = "answer"  # counted by label instead of in bins
LATENCY = Figure(
    "seconds of a request",
    np.array(
        [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60]
    ),
)


@dataclass(frozen=True, slots=True)
class PhotoStats:
    """`brightness` is the mean gray from 0 to 255, `sharpness` the variance of the Laplacian; sizes in pixels."""

    brightness: float
    sharpness: float
    width: int
    height: int


def measure_photo(content: bytes) -> PhotoStats:
    """Measure the bytes of a photo's file. Raises ImageError as `decode` does."""
    width, height = dimensions(content)
    return PhotoStats(*brightness_and_sharpness(decode(content, THUMBNAIL_SIZE)), width, height)
