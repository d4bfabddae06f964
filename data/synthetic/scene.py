"""A synthetic photo of a bin with a known number of things in it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from binsweep.data.synthetic.drawing import smooth
from binsweep.data.synthetic.products import Product, draw_product, make_product
from binsweep.data.synthetic.shelf import Shelf, draw_back, draw_front, make_shelf

# Raise it whenever the same seed and index would give another picture.
VERSION = 1
CLASSES = (0, 1, 2, 3, 4, 5)
MAX_COUNT = 30  # more than that cannot be told apart in one picture
# Drawn at twice the size and shrunk, because Pillow draws polygons without antialiasing.
_OVERSAMPLING = 2
# Of every item at least this share of its own outline stays visible...
_MIN_VISIBLE = 0.3
# ...and at least this share of the picture, so that a person could count it.
_MIN_AREA = 0.006
_PLAN = 96  # side of the coarse map on which visibility is checked
_ATTEMPTS = 40  # each 4% smaller: the last at a fifth of the size


@dataclass(frozen=True, slots=True)
class _Placed:
    """A good's patch, where its upper left corner goes, and how much light it gets there."""

    patch: Image.Image
    x: int
    y: int
    light: float


def render(
    seed: int, index: int, size: int = 224, classes: Sequence[int] = CLASSES
) -> tuple[Image.Image, int, list[Product]]:
    """Picture number `index` of a seed: RGB [size, size], its label, and its goods (label many).

    The labels go round the classes in turn. The same arguments give the same picture on every machine: all
    choices come from one Random, and pixels from Pillow and from arithmetic without special functions.
    """
    label = classes[index % len(classes)]
    rng = Random(f"{VERSION}/{seed}/{index}")
    shelf = make_shelf(rng, size * _OVERSAMPLING)
    image = draw_back(shelf, rng)
    goods = _choose_goods(rng, label)
    for placed in _arrange(rng, shelf, goods):
        _drop_shadow(image, placed)
        dark = Image.new("RGB", placed.patch.size)
        colours = Image.blend(dark, placed.patch.convert("RGB"), placed.light)
        image.paste(colours, (placed.x, placed.y), placed.patch)
    image = draw_front(image, shelf, rng)
    return _photograph(image, rng, size), label, goods


def _choose_goods(rng: Random, count: int) -> list[Product]:
    """Now and then several of the same, as in a warehouse."""
    goods: list[Product] = []
    while len(goods) < count:
        goods.append(rng.choice(goods) if goods and rng.random() < 0.25 else make_product(rng))
    return goods


def _arrange(rng: Random, shelf: Shelf, goods: Sequence[Product]) -> list[_Placed]:
    """Place the goods back to front so that each one can be seen, smaller if they do not fit."""
    # Bins differ in how big their things are, so that the covered area alone does not tell the count.
    inch = shelf.side / 14 * rng.uniform(0.85, 1.4) * min(1.0, (7 / max(1, len(goods))) ** 0.5)
    while True:
        placed = _try_to_arrange(rng, shelf, goods, inch)
        if placed is not None:
            return placed
        inch *= 0.9


def _try_to_arrange(rng: Random, shelf: Shelf, goods: Sequence[Product], inch: float) -> list[_Placed] | None:
    """None when some good finds no place where it, and all before it, can still be seen."""
    placed: list[_Placed] = []
    owner = np.zeros((_PLAN, _PLAN), np.int16)  # which good is in front, 0 for none
    least = _MIN_AREA * min(1.0, 7 / max(1, len(goods))) * _PLAN**2
    need: list[float] = []
    depths = sorted((rng.random() for _ in goods), reverse=True)
    for number, (good, depth) in enumerate(zip(goods, depths, strict=True), start=1):
        for attempt in range(_ATTEMPTS):
            patch = _pose(rng, draw_product(good, inch * (1 - 0.2 * depth) * 0.96**attempt))
            x, y = _spot(rng, shelf, patch, depth, placed)
            whole, outline = _outline(patch, x, y, shelf)
            after = np.where(outline, np.int16(number), owner)
            seen = np.bincount(after.ravel(), minlength=number + 1)[1:]
            needed = [*need, max(least, _MIN_VISIBLE * whole)]
            if all(seen >= needed):
                break
        else:
            return None
        owner, need = after, needed
        placed.append(_Placed(patch, x, y, 1 - 0.35 * depth))
    return placed


def _pose(rng: Random, patch: Image.Image) -> Image.Image:
    """Upright, leaning or lying, cut to what is drawn."""
    fate = rng.random()
    angle = rng.triangular(-5, 5)
    if fate < 0.15:
        angle += rng.choice((-90, 90))
    elif fate < 0.35:
        angle += rng.choice((-1, 1)) * rng.uniform(8, 30)
    patch = patch.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return patch.crop(patch.getchannel("A").getbbox())


def _spot(
    rng: Random,
    shelf: Shelf,
    patch: Image.Image,
    depth: float,
    placed: Sequence[_Placed],
) -> tuple[int, int]:
    """The upper left corner of a patch that stands on the floor at its depth, or on an earlier one."""
    room = shelf.right - shelf.left - patch.width
    x = shelf.left + round(room * rng.random())
    ground = shelf.floor + shelf.side * 0.015 - depth * shelf.rise
    if placed and rng.random() < 0.35:
        below = rng.choice(placed)
        if below.y - patch.height > shelf.top:
            x = below.x + round((below.patch.width - patch.width) * rng.random())
            ground = below.y + shelf.side * 0.02
    return x, round(ground - patch.height)


def _outline(patch: Image.Image, x: int, y: int, shelf: Shelf) -> tuple[int, np.ndarray]:
    """How much of the coarse map a patch covers, and where the frame leaves it in sight, [_PLAN, _PLAN]."""
    ratio = _PLAN / shelf.side
    extent = (max(1, round(patch.width * ratio)), max(1, round(patch.height * ratio)))
    small = patch.getchannel("A").resize(extent, Image.Resampling.BOX)
    whole = Image.new("L", (_PLAN, _PLAN), 0)
    whole.paste(small, (round(x * ratio), round(y * ratio)))
    covered = np.asarray(whole) > 127
    inside = covered & (np.arange(_PLAN) >= shelf.top * ratio)[:, None]
    inside &= (np.arange(_PLAN) < shelf.floor * ratio)[:, None]
    return int((np.asarray(small) > 127).sum()), inside


def _drop_shadow(image: Image.Image, placed: _Placed) -> None:
    """Darken what is behind an item, softly and a little below it, which sets it off."""
    reach = max(4, image.width // 40)
    patch = placed.patch
    alpha = Image.new("L", (patch.width + 4 * reach, patch.height + 4 * reach), 0)
    alpha.paste(patch.getchannel("A"), (2 * reach, 2 * reach))
    quarter = alpha.reduce(4).filter(ImageFilter.BoxBlur(reach / 4))
    soft = quarter.resize(alpha.size, Image.Resampling.BILINEAR).point(lambda v: v * 0.6)
    left, top = placed.x - 2 * reach, placed.y - reach
    image.paste((12, 9, 5), (left, top, left + soft.width, top + soft.height), soft)


def _photograph(image: Image.Image, rng: Random, size: int) -> Image.Image:
    """Dim warm light, a soft lens, sensor noise and JPEG."""
    image = image.reduce(_OVERSAMPLING)
    blur = rng.choice((0.3, 0.4, 0.5, 0.6, 0.9, 1.3)) * size / 224
    image = image.filter(ImageFilter.GaussianBlur(blur))
    light = (0.75 + 0.35 * smooth(rng, size, size, 3) / 255) * rng.uniform(0.6, 1.05)
    warmth = np.array([1.0, rng.uniform(0.9, 0.98), rng.uniform(0.72, 0.92)], np.float32)
    noise = np.frombuffer(rng.randbytes(size * size), np.uint8).reshape(size, size)
    grain = (noise.astype(np.float32) - 127.5) * (rng.uniform(3, 10) / 127.5)
    pixels = np.asarray(image) * (light[:, :, None] * warmth) + grain[:, :, None]
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=rng.randrange(60, 90))
    return Image.open(stream).convert("RGB")
