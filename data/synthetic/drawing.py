"""Colours, artwork and shading of synthetic products."""

from random import Random

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


def mix(a: Colour, b: Colour, weight: float) -> Colour:
    """Blend two colours: (1 - weight) * a + weight * b."""
    return tuple(round(x + (y - x) * weight) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def product_colour(rng: Random) -> Colour:
    """A random colour: cardboard, white, black, or any hue."""
    plain: list[Colour] = [(150, 112, 76), (222, 218, 208), (44, 42, 46), (176, 136, 92)]
    if rng.random() < 0.3:
        return rng.choice(plain)
    # A hue of the colour wheel, saturated or pale.
    hue = rng.random() * 3
    ramp = [max(0.0, 1 - min(abs(hue - k), 3 - abs(hue - k))) for k in range(3)]
    floor = rng.uniform(0.05, 0.5)
    value = rng.uniform(120, 235)
    return tuple(round(value * (floor + (1 - floor) * min(1.0, 1.4 * part))) for part in ramp)  # type: ignore[return-value]


def contrast(colour: Colour, rng: Random) -> Colour:
    """A random colour that is readable on `colour`."""
    return mix(colour, (250, 248, 240) if sum(colour) < 380 else (30, 28, 40), rng.uniform(0.6, 0.95))


def _draw_text_lines(
    draw: ImageDraw.ImageDraw, rng: Random, box: tuple[float, ...], colour: Colour, row: float
) -> None:
    """Rows of short dashes, which look like print from the distance of the camera."""
    left, top, right, bottom = box
    y = top
    while y + row * 0.6 <= bottom:
        x = left
        end = right - rng.random() * 0.4 * (right - left)
        while x < end:
            length = min(row * rng.uniform(0.4, 2.2), end - x)
            draw.rectangle((x, y, x + length, y + row * 0.55), fill=colour)
            x += length + row * 0.35
        y += row


def _draw_barcode(draw: ImageDraw.ImageDraw, rng: Random, x: float, y: float, width: float) -> None:
    height = width * 0.6
    draw.rectangle((x, y, x + width, y + height), fill=(236, 234, 228))
    at = x + width * 0.08
    while at < x + width * 0.9:
        bar = width * rng.choice((0.02, 0.04, 0.06))
        draw.rectangle((at, y + height * 0.12, at + bar, y + height * 0.75), fill=(25, 25, 28))
        at += bar + width * rng.choice((0.03, 0.05))


def draw_artwork(
    draw: ImageDraw.ImageDraw, rng: Random, box: tuple[float, float, float, float], base: Colour
) -> None:
    """Draw a product's artwork on one face: a band, a picture, lines of text, a barcode."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    ink = contrast(base, rng)
    accent = product_colour(rng)
    if rng.random() < 0.6:
        y = top + height * rng.uniform(0.05, 0.6)
        draw.rectangle((left, y, right, y + height * rng.uniform(0.12, 0.35)), fill=accent)
    if rng.random() < 0.6:
        radius = min(width, height) * rng.uniform(0.15, 0.3)
        x = left + width * rng.uniform(0.3, 0.7)
        y = top + height * rng.uniform(0.3, 0.7)
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=mix(accent, ink, 0.5))
    row = max(3.0, height * rng.uniform(0.1, 0.2))
    title = (left + width * 0.08, top + height * 0.08, right - width * 0.1, top + height * 0.08 + row)
    _draw_text_lines(draw, rng, title, ink, row)
    _draw_text_lines(
        draw,
        rng,
        (left + width * 0.1, top + height * 0.68, right - width * 0.2, bottom - height * 0.06),
        ink,
        row / 2.5,
    )
    if rng.random() < 0.5:
        _draw_barcode(draw, rng, left + width * 0.55, top + height * 0.7, min(width * 0.38, height * 0.4))


def shade_cylinder(image: Image.Image, amount: float, rng: Random) -> Image.Image:
    """Shade a patch like an upright cylinder, with a highlight left or right of its middle."""
    x = np.arange(image.width) / max(1, image.width - 1) - rng.uniform(0.35, 0.6)
    light = 1.1 - amount * 4 * x * x * 0.6
    highlight = amount * 0.5 * (np.abs(x + 0.12) < 0.05)
    return apply_light(image, (light + highlight)[None, :])


def apply_light(image: Image.Image, light: np.ndarray) -> Image.Image:
    """Multiply the colours of an RGBA patch by `light`, an array that broadcasts to [height, width]."""
    pixels = np.asarray(image).astype(np.float32)
    pixels[:, :, :3] *= np.maximum(light, 0.12)[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")


def smooth_noise(rng: Random, width: int, height: int, knots: int) -> np.ndarray:
    """Smooth noise from 0 to 255, float32 [height, width], with `knots` random values along each side."""
    grid = np.frombuffer(rng.randbytes(knots * knots), np.uint8).reshape(knots, knots)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), np.float32)
