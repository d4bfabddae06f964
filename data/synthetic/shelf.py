"""The empty synthetic bin: fabric, folds and shade, the shelf label and the tape across the front."""

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from binsweep.data.synthetic.drawing import Colour, mix, smooth_noise

_FABRIC_COLOURS: tuple[Colour, ...] = (
    (206, 178, 92),
    (198, 172, 100),
    (190, 160, 84),
    (172, 164, 140),
    (120, 128, 140),
)
_LABEL_COLOURS: tuple[Colour, ...] = (
    (226, 116, 66),
    (120, 168, 214),
    (240, 170, 160),
    (70, 56, 96),
    (226, 206, 120),
)

# Three by five dots each, enough to read "3C" on the label of a photo of 224 pixels.
_GLYPHS = {
    "1": "010110010010111",
    "2": "111001111100111",
    "3": "111001111001111",
    "4": "101101111001001",
    "A": "010101111101101",
    "B": "110101110101110",
    "C": "011100100100011",
    "D": "110101101101110",
    "E": "111100110100111",
    "F": "111100110100100",
    "^": "010111010010010",
}


@dataclass(frozen=True, slots=True)
class Shelf:
    """The bin's opening in pixels of the canvas, and the colour of its fabric.

    `floor` is the front edge of the floor; its back edge is `rise` pixels higher.
    """

    side: int
    left: int
    right: int
    top: int
    floor: int
    rise: int
    fabric: Colour


def make_shelf(rng: Random, side: int) -> Shelf:
    """An opening of random extent on a canvas of `side` x `side` pixels."""
    return Shelf(
        side=side,
        left=round(side * rng.uniform(0.0, 0.07)),
        right=round(side * rng.uniform(0.93, 1.0)),
        top=round(side * rng.uniform(0.02, 0.12)),
        floor=round(side * rng.uniform(0.84, 0.93)),
        rise=round(side * rng.uniform(0.05, 0.12)),
        fabric=rng.choice(_FABRIC_COLOURS),
    )


def draw_back(shelf: Shelf, rng: Random) -> Image.Image:
    """The inside of the empty bin, RGB: back wall, side walls, floor, with weave, folds and shade."""
    side = shelf.side
    image = Image.new("RGB", (side, side), mix(shelf.fabric, (30, 24, 10), 0.35))
    draw = ImageDraw.Draw(image)
    inset = round(side * rng.uniform(0.03, 0.1))
    back = shelf.floor - shelf.rise
    wall = mix(shelf.fabric, (30, 24, 10), 0.5)
    draw.polygon(
        [(shelf.left, 0), (shelf.left + inset, 0), (shelf.left + inset, back), (shelf.left, side)], fill=wall
    )
    draw.polygon(
        [(shelf.right, 0), (shelf.right - inset, 0), (shelf.right - inset, back), (shelf.right, side)],
        fill=wall,
    )
    floor = mix(shelf.fabric, (120, 110, 100), 0.45)
    draw.polygon(
        [(shelf.left, side), (shelf.left + inset, back), (shelf.right - inset, back), (shelf.right, side)],
        fill=floor,
    )
    depth = np.linspace(rng.uniform(0.5, 0.8), 1.0, side, dtype=np.float32)[:, None]
    return _add_weave(image, rng, depth)


def draw_front(image: Image.Image, shelf: Shelf, rng: Random) -> Image.Image:
    """Draw the front over the products: the frame of fabric with its labels, and the bands of tape."""
    side = shelf.side
    mask = Image.new("L", (side, side), 255)
    sag = round(side * rng.uniform(0.0, 0.04))
    steps = [k / 8 for k in range(9)]
    across = [shelf.left + (shelf.right - shelf.left) * t for t in steps]
    upper = [(x, shelf.top + 4 * sag * t * (1 - t) * 0.3) for x, t in zip(across, steps, strict=True)]
    lower = [(x, shelf.floor + 4 * sag * t * (1 - t)) for x, t in zip(across, steps, strict=True)]
    ImageDraw.Draw(mask).polygon(upper + lower[::-1], fill=0)
    fabric = _add_weave(Image.new("RGB", (side, side), shelf.fabric), rng, np.ones((side, 1), np.float32))
    draw = ImageDraw.Draw(fabric)
    height = side * rng.uniform(0.07, 0.1)
    _draw_label(draw, rng, side * rng.uniform(0.3, 0.6), shelf.floor + sag + side * 0.01, height)
    if rng.random() < 0.6:
        _draw_label(
            draw, rng, side * rng.uniform(0.3, 0.6), shelf.top - height * rng.uniform(0.8, 1.2), height
        )
    image = _add_tape(image, shelf, rng)
    image.paste(fabric, (0, 0), mask)
    ImageDraw.Draw(image).line(lower, fill=mix(shelf.fabric, (40, 30, 10), 0.6), width=max(1, side // 150))
    return image


def _add_weave(image: Image.Image, rng: Random, light: np.ndarray) -> Image.Image:
    """Add the grain of a coarse weave and the soft shade of folds; `light` is [side, 1]."""
    side = image.width
    folds = smooth_noise(rng, side, side, 5) / 255
    grain = np.frombuffer(rng.randbytes(side * side // 4), np.uint8).reshape(side // 2, side // 2)
    weave = (
        np.asarray(Image.fromarray(grain).resize((side, side), Image.Resampling.NEAREST), np.float32) / 255
    )
    weave[::3] -= 0.35
    weave[:, ::4] += 0.25
    factor = light * (0.84 + 0.3 * folds) * (0.96 + 0.08 * weave)
    return Image.fromarray((np.asarray(image) * factor[:, :, None]).clip(0, 255).astype(np.uint8))


def _draw_label(draw: ImageDraw.ImageDraw, rng: Random, x: float, y: float, height: float) -> None:
    """A shelf label: a short code such as 3C^, and a matrix code."""
    colour = rng.choice(_LABEL_COLOURS)
    draw.rectangle(
        (x - height * 0.2, y - height * 0.08, x + height * 3.2, y + height * 1.05), fill=(232, 228, 214)
    )
    draw.rectangle((x, y, x + height * 3, y + height), fill=colour)
    draw.rectangle(
        (x + height * 0.15, y + height * 0.1, x + height * 2.9, y + height * 0.9), fill=(240, 238, 232)
    )
    dot = height * 0.13
    for place, letter in enumerate((rng.choice("1234"), rng.choice("ABCDEF"), "^")):
        for k, bit in enumerate(_GLYPHS[letter]):
            if bit == "1":
                left = x + height * 0.3 + place * 4 * dot + (k % 3) * dot
                top = y + height * 0.18 + (k // 3) * dot
                draw.rectangle((left, top, left + dot, top + dot), fill=(30, 28, 30))
    cell = height * 0.72 / 9
    for k in range(81):
        if rng.random() < 0.5:
            left = x + height * 2.05 + (k % 9) * cell
            top = y + height * 0.14 + (k // 9) * cell
            draw.rectangle((left, top, left + cell, top + cell), fill=(20, 20, 20))


def _add_tape(image: Image.Image, shelf: Shelf, rng: Random) -> Image.Image:
    """Draw bands of ribbed transparent tape across the opening."""
    side = shelf.side
    cover = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(cover)
    for _ in range(rng.choice((1, 2, 2, 3))):
        y = shelf.top + (shelf.floor - shelf.top) * rng.uniform(0.1, 0.85)
        width = side * rng.uniform(0.05, 0.14)
        slope = side * rng.uniform(-0.03, 0.03)
        film = rng.randrange(30, 75)
        rib = rng.randrange(90, 170)
        draw.polygon([(0, y), (side, y + slope), (side, y + slope + width), (0, y + width)], fill=film)
        gap = side * rng.uniform(0.012, 0.02)
        line = 0.0
        while line <= width:
            draw.line([(0, y + line), (side, y + slope + line)], fill=rib, width=max(1, side // 220))
            line += gap
    white = Image.new("RGB", (side, side), mix((214, 208, 190), shelf.fabric, 0.25))
    return Image.composite(white, image, cover)
