"""A synthetic photo of a bin with a known number of products."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from binsweep.data.synthetic.drawing import smooth_noise
from binsweep.data.synthetic.products import Product, draw_product, make_product
from binsweep.data.synthetic.shelf import Shelf, draw_back, draw_front, make_shelf

# Raise it whenever the same seed and index give another image.
VERSION = 1
CLASSES = (0, 1, 2, 3, 4, 5)
MAX_COUNT = 30  # more cannot be distinguished in one image
# Drawn at twice the size and shrunk, because Pillow draws polygons without antialiasing.
_OVERSAMPLING = 2
# The part of every product's outline that stays visible, at least.
_MIN_VISIBLE_FRACTION = 0.3
# The part of the image that every product covers visibly, at least, so that a person can count it.
_MIN_AREA_FRACTION = 0.006
_MAP_SIZE = 96  # side of the coarse map on which visibility is computed
_MAX_SHRINK_STEPS = 40  # each 4% smaller: the last at a fifth of the size


@dataclass(frozen=True, slots=True)
class _Placed:
    """A product's patch with its upper left corner and its brightness there."""

    patch: Image.Image
    x: int
    y: int
    light: float


def render(
    seed: int, index: int, size: int = 224, classes: Sequence[int] = CLASSES
) -> tuple[Image.Image, int, list[Product]]:
    """Image number `index` of a seed: RGB [size, size], its label, and its products (as many as the label).

    The labels cycle through the classes. The same arguments give the same image on every machine: all choices come
    from one Random, and pixels from Pillow and from arithmetic without special functions.
    """
    label = classes[index % len(classes)]
    rng = Random(f"{VERSION}/{seed}/{index}")
    shelf = make_shelf(rng, size * _OVERSAMPLING)
    image = draw_back(shelf, rng)
    products = _choose_products(rng, label)
    for placed in _arrange(rng, shelf, products):
        _drop_shadow(image, placed)
        dark = Image.new("RGB", placed.patch.size)
        colours = Image.blend(dark, placed.patch.convert("RGB"), placed.light)
        image.paste(colours, (placed.x, placed.y), placed.patch)
    image = draw_front(image, shelf, rng)
    return _photograph(image, rng, size), label, products


def _choose_products(rng: Random, count: int) -> list[Product]:
    """Random products, some of them several times, as in a warehouse."""
    products: list[Product] = []
    while len(products) < count:
        products.append(rng.choice(products) if products and rng.random() < 0.25 else make_product(rng))
    return products


def _arrange(rng: Random, shelf: Shelf, products: Sequence[Product]) -> list[_Placed]:
    """Place the products back to front so that each one is visible, smaller if they do not fit."""
    # The scale varies between bins, so that the covered area alone does not determine the count.
    inch = shelf.side / 14 * rng.uniform(0.85, 1.4) * min(1.0, (7 / max(1, len(products))) ** 0.5)
    while True:
        placed = _try_to_arrange(rng, shelf, products, inch)
        if placed is not None:
            return placed
        inch *= 0.9


def _try_to_arrange(
    rng: Random, shelf: Shelf, products: Sequence[Product], inch: float
) -> list[_Placed] | None:
    """None if a product has no place where it and all earlier ones stay visible."""
    placed: list[_Placed] = []
    front_product = np.zeros((_MAP_SIZE, _MAP_SIZE), np.int16)  # number of the product in front, 0 for none
    min_area = _MIN_AREA_FRACTION * min(1.0, 7 / max(1, len(products))) * _MAP_SIZE**2
    required: list[float] = []
    depths = sorted((rng.random() for _ in products), reverse=True)
    for number, (product, depth) in enumerate(zip(products, depths, strict=True), start=1):
        for attempt in range(_MAX_SHRINK_STEPS):
            patch = _pose(rng, draw_product(product, inch * (1 - 0.2 * depth) * 0.96**attempt))
            x, y = _find_position(rng, shelf, patch, depth, placed)
            area, outline = _visible_area(patch, x, y, shelf)
            new_front = np.where(outline, np.int16(number), front_product)
            visible = np.bincount(new_front.ravel(), minlength=number + 1)[1:]
            new_required = [*required, max(min_area, _MIN_VISIBLE_FRACTION * area)]
            if all(visible >= new_required):
                break
        else:
            return None
        front_product, required = new_front, new_required
        placed.append(_Placed(patch, x, y, 1 - 0.35 * depth))
    return placed


def _pose(rng: Random, patch: Image.Image) -> Image.Image:
    """Rotate a patch (upright, leaning or lying) and crop it to its contents."""
    pose = rng.random()
    angle = rng.triangular(-5, 5)
    if pose < 0.15:
        angle += rng.choice((-90, 90))
    elif pose < 0.35:
        angle += rng.choice((-1, 1)) * rng.uniform(8, 30)
    patch = patch.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return patch.crop(patch.getchannel("A").getbbox())


def _find_position(
    rng: Random,
    shelf: Shelf,
    patch: Image.Image,
    depth: float,
    placed: Sequence[_Placed],
) -> tuple[int, int]:
    """The upper left corner of a patch that stands on the floor at its depth, or on an earlier one."""
    free_width = shelf.right - shelf.left - patch.width
    x = shelf.left + round(free_width * rng.random())
    ground = shelf.floor + shelf.side * 0.015 - depth * shelf.rise
    if placed and rng.random() < 0.35:
        below = rng.choice(placed)
        if below.y - patch.height > shelf.top:
            x = below.x + round((below.patch.width - patch.width) * rng.random())
            ground = below.y + shelf.side * 0.02
    return x, round(ground - patch.height)


def _visible_area(patch: Image.Image, x: int, y: int, shelf: Shelf) -> tuple[int, np.ndarray]:
    """The cells of the coarse map that a patch covers, and a mask [_MAP_SIZE, _MAP_SIZE] of those inside the frame."""
    ratio = _MAP_SIZE / shelf.side
    extent = (max(1, round(patch.width * ratio)), max(1, round(patch.height * ratio)))
    small = patch.getchannel("A").resize(extent, Image.Resampling.BOX)
    mask = Image.new("L", (_MAP_SIZE, _MAP_SIZE), 0)
    mask.paste(small, (round(x * ratio), round(y * ratio)))
    covered = np.asarray(mask) > 127
    inside = covered & (np.arange(_MAP_SIZE) >= shelf.top * ratio)[:, None]
    inside &= (np.arange(_MAP_SIZE) < shelf.floor * ratio)[:, None]
    return int((np.asarray(small) > 127).sum()), inside


def _drop_shadow(image: Image.Image, placed: _Placed) -> None:
    """Darken the background of a product, softly and a little below it."""
    reach = max(4, image.width // 40)
    patch = placed.patch
    alpha = Image.new("L", (patch.width + 4 * reach, patch.height + 4 * reach), 0)
    alpha.paste(patch.getchannel("A"), (2 * reach, 2 * reach))
    quarter = alpha.reduce(4).filter(ImageFilter.BoxBlur(reach / 4))
    soft = quarter.resize(alpha.size, Image.Resampling.BILINEAR).point(lambda v: v * 0.6)
    left, top = placed.x - 2 * reach, placed.y - reach
    image.paste((12, 9, 5), (left, top, left + soft.width, top + soft.height), soft)


def _photograph(image: Image.Image, rng: Random, size: int) -> Image.Image:
    """Add dim warm light, a soft lens, sensor noise and JPEG artifacts."""
    image = image.reduce(_OVERSAMPLING)
    blur = rng.choice((0.3, 0.4, 0.5, 0.6, 0.9, 1.3)) * size / 224
    image = image.filter(ImageFilter.GaussianBlur(blur))
    light = (0.75 + 0.35 * smooth_noise(rng, size, size, 3) / 255) * rng.uniform(0.6, 1.05)
    warmth = np.array([1.0, rng.uniform(0.9, 0.98), rng.uniform(0.72, 0.92)], np.float32)
    noise = np.frombuffer(rng.randbytes(size * size), np.uint8).reshape(size, size)
    grain = (noise.astype(np.float32) - 127.5) * (rng.uniform(3, 10) / 127.5)
    pixels = np.asarray(image) * (light[:, :, None] * warmth) + grain[:, :, None]
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=rng.randrange(60, 90))
    return Image.open(stream).convert("RGB")
