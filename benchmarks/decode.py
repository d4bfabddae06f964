"""Decoding and resizing photos: the product's decoder against plain Pillow, and what else was tried.

    python benchmarks/decode.py FOLDER [--size 224] [--rounds 5]

Processor time per image on one core; the ways take turns, and each one's best round counts. Beside it the mean
difference of the pixels from plain Pillow's, because a faster way may be a worse one.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as transforms

from binsweep.data import decode as product

Way = Callable[[bytes, int], np.ndarray]


def plain(content: bytes, size: int) -> np.ndarray:
    """Open, convert, resize."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def drafted(gap: float) -> Way:
    """libjpeg shrinks while it decodes, down to `gap` times the size."""

    def way(content: bytes, size: int) -> np.ndarray:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (int(gap * size), int(gap * size)))
            return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    return way


def reduced(content: bytes, size: int) -> np.ndarray:
    """Pillow's two-step resize: whole-number reduction first."""
    with Image.open(io.BytesIO(content)) as image:
        rgb = image.convert("RGB")
        return np.array(rgb.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def torchvision_io(content: bytes, size: int) -> np.ndarray:
    """torchvision's libjpeg-turbo and its antialiased resize on uint8."""
    pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return transforms.resize(pixels, [size, size], antialias=True).permute(1, 2, 0).contiguous().numpy()


WAYS: dict[str, Way] = {
    "plain Pillow": plain,
    "binsweep": product.decode,
    "Pillow, draft to 1 x the size": drafted(1),
    "Pillow, draft to 2 x the size": drafted(2),
    "Pillow, reducing_gap 2": reduced,
    "torchvision.io": torchvision_io,
}


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    contents = [path.read_bytes() for path in sorted(options.folder.rglob("*.jpg"))]
    if not contents:
        parser.error(f"{options.folder}: no *.jpg in it; name a folder of photos")
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            start = time.process_time()
            for content in contents:
                way(content, options.size)
            best[name] = min(best[name], time.process_time() - start)
    expected = [plain(content, options.size).astype(np.int16) for content in contents]
    print(
        f"{len(contents)} images to {options.size} x {options.size}, one core, best of {options.rounds} rounds"
    )
    for name, way in WAYS.items():
        differences = [
            np.abs(way(content, options.size).astype(np.int16) - pixels).mean()
            for content, pixels in zip(contents, expected, strict=True)
        ]
        each = 1000 * best[name] / len(contents)
        ratio = best["plain Pillow"] / best[name]
        print(
            f"{name:<32}{each:6.2f} ms an image, {ratio:4.2f} times plain, differs by {np.mean(differences):.2f} of 255"
        )


if __name__ == "__main__":
    main()
