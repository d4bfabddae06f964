"""The shapes of synthetic products, each drawn upright on its own RGBA patch."""

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from binsweep.data.synthetic.drawing import (
    Colour,
    apply_light,
    contrast,
    draw_artwork,
    mix,
    product_colour,
    shade_cylinder,
    smooth_noise,
)


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    return image, ImageDraw.Draw(image)


def _box(rng: Random, width: int, height: int, base: Colour | None = None) -> Image.Image:
    """Front, top and one side in parallel projection."""
    base = base or product_colour(rng)
    deep = max(3, round(min(width, height) * rng.uniform(0.1, 0.25)))
    up = max(2, round(deep * rng.uniform(0.4, 0.9)))
    image, draw = _canvas(width + deep, height + up)
    w, h = width - 1, height + up - 1
    edge = mix(base, (20, 18, 16), 0.6)
    draw.polygon([(0, up), (deep, 0), (w + deep, 0), (w, up)], fill=mix(base, (255, 250, 240), 0.35))
    draw.polygon([(w, up), (w + deep, 0), (w + deep, h - up), (w, h)], fill=mix(base, (15, 12, 10), 0.5))
    draw.rectangle((0, up, w, h), fill=base)
    draw_artwork(draw, rng, (0, up, w, h), base)
    draw.line([(0, up), (w, up), (w, h)], fill=edge, width=2)
    draw.line([(w, up), (w + deep, 0)], fill=edge, width=2)
    draw.rectangle((0, up, w, h), outline=edge)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _carton(rng: Random, width: int, height: int) -> Image.Image:
    """A cardboard box with a strip of packing tape."""
    brown = mix((156, 116, 78), (190, 150, 108), rng.random())
    image = _box(rng, width, height, brown)
    draw = ImageDraw.Draw(image)
    middle = image.height * rng.uniform(0.35, 0.6)
    draw.rectangle(
        (4, middle, image.width * 0.8, middle + height * 0.1), fill=mix(brown, (230, 215, 180), 0.5)
    )
    return image


def _book(rng: Random, width: int, height: int) -> Image.Image:
    base = product_colour(rng)
    image, draw = _canvas(width, height)
    draw.rectangle((0, 0, width - 1, height - 1), fill=base)
    ink = contrast(base, rng)
    row = max(3.0, width * 0.35)
    y = height * 0.15
    while y < height * 0.7:  # the title runs down the spine
        draw.rectangle((width * 0.35, y, width * 0.65, y + row * rng.uniform(0.4, 1.0)), fill=ink)
        y += row * rng.uniform(1.0, 1.5)
    for place in (0.05, 0.82):
        band = height * place
        draw.rectangle((0, band, width, band + height * 0.04), fill=mix(base, ink, 0.6))
    return shade_cylinder(image, 0.35, rng)


def _bottle(rng: Random, width: int, height: int) -> Image.Image:
    base = product_colour(rng)
    image, draw = _canvas(width, height)
    neck = width * rng.uniform(0.2, 0.34)
    shoulder = height * rng.uniform(0.2, 0.34)
    cap = height * rng.uniform(0.07, 0.14)
    middle = width / 2
    draw.rounded_rectangle((0, shoulder, width - 1, height - 1), radius=width * 0.15, fill=base)
    draw.pieslice((0, shoulder * 0.45, width - 1, shoulder * 1.7), 180, 360, fill=base)
    draw.rectangle((middle - neck / 2, cap * 0.8, middle + neck / 2, shoulder), fill=base)
    draw.rectangle((middle - neck * 0.62, 0, middle + neck * 0.62, cap), fill=contrast(base, rng))
    label = contrast(base, rng)
    top = shoulder + height * 0.1
    draw.rectangle((0, top, width - 1, height * 0.88), fill=label)
    draw_artwork(draw, rng, (0, top, width - 1, height * 0.88), label)
    return shade_cylinder(image, 0.6, rng)


def _can(rng: Random, width: int, height: int) -> Image.Image:
    base = product_colour(rng)
    image, draw = _canvas(width, height)
    lid = max(4.0, width * 0.22)
    draw.rectangle((0, lid / 2, width - 1, height - lid / 2), fill=base)
    draw.ellipse((0, height - lid, width - 1, height - 1), fill=base)
    draw_artwork(draw, rng, (0, lid, width - 1, height - lid * 0.7), base)
    image = shade_cylinder(image, 0.6, rng)
    metal = (190, 188, 182) if rng.random() < 0.6 else contrast(base, rng)
    draw = ImageDraw.Draw(image)
    draw.ellipse((0, 0, width - 1, lid), fill=metal, outline=mix(metal, (0, 0, 0), 0.5), width=2)
    return image


def _bag(rng: Random, width: int, height: int) -> Image.Image:
    """A crumpled bag: an uneven outline, wrinkles, and often a sticker."""
    clear = rng.random() < 0.35
    base = mix((205, 203, 198), (235, 233, 228), rng.random()) if clear else product_colour(rng)
    image, draw = _canvas(width, height)
    outline = []
    for step in range(14):
        angle = 2 * math.pi * step / 14
        # A superellipse: fuller in the corners than an oval.
        cos, sin = math.cos(angle), math.sin(angle)
        reach = rng.uniform(0.84, 1.0) / (abs(cos) ** 3 + abs(sin) ** 3) ** (1 / 3)
        outline.append((round((0.5 + 0.5 * reach * cos) * width), round((0.5 + 0.5 * reach * sin) * height)))
    draw.polygon(outline, fill=base)
    if not clear or rng.random() < 0.5:
        place = (width * 0.25, height * 0.25, width * 0.75, height * 0.72)
        paper = contrast(base, rng)
        draw.rectangle(place, fill=paper)
        draw_artwork(draw, rng, place, paper)
    image.putalpha(image.getchannel("A").filter(ImageFilter.GaussianBlur(1.5)))
    ridges = smooth_noise(rng, width, height, 7)
    wrinkles = np.abs(ridges - 128) < rng.uniform(5, 9)
    return apply_light(image, 0.55 + ridges / 255 * 0.75 + wrinkles * 0.5)


def _ball(rng: Random, width: int, height: int) -> Image.Image:
    """A round product: yarn, a toy, a roll."""
    base = product_colour(rng)
    side = min(width, height)
    image, draw = _canvas(side, side)
    draw.ellipse((0, 0, side - 1, side - 1), fill=base)
    stripe = contrast(base, rng)
    for _ in range(rng.randrange(1, 5)):
        x = side * rng.uniform(-0.2, 0.6)
        draw.arc((x, side * 0.1, x + side * 0.8, side * 0.9), 90, 270, fill=stripe, width=max(2, side // 14))
    image.putalpha(_disc(side))
    y, x = np.mgrid[0:side, 0:side] / side
    return apply_light(image, 1.2 - 2.2 * ((x - 0.4) ** 2 + (y - 0.35) ** 2))


def _disc(side: int) -> Image.Image:
    disc = Image.new("L", (side, side), 0)
    ImageDraw.Draw(disc).ellipse((0, 0, side - 1, side - 1), fill=255)
    return disc


DRAW: dict[str, Callable[[Random, int, int], Image.Image]] = {
    "box": _box,
    "carton": _carton,
    "book": _book,
    "bottle": _bottle,
    "can": _can,
    "bag": _bag,
    "ball": _ball,
}
