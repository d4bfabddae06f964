"""Brightness and sharpness of a photo, as the data report and the watch over a served model measure them."""

import numpy as np

THUMBNAIL_SIZE = (
    128  # side in pixels at which photos are measured and hashed, so that those of any size are comparable
)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def brightness_and_sharpness(pixels: np.ndarray) -> tuple[float, float]:
    """The mean gray from 0 to 255, and the `sharpness`, of uint8 RGB [H, W, 3]."""
    gray = pixels @ _LUMA
    return round(float(gray.mean()), 1), round(sharpness(gray), 1)


def sharpness(gray: np.ndarray) -> float:
    """The variance of the 4-neighbour Laplacian of [H, W].

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000).
    """
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float((around - 4 * gray[1:-1, 1:-1]).var())
