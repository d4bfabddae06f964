"""The products in synthetic bins: boxes, books, bottles, cans, bags and balls of random size and appearance."""

from dataclasses import dataclass
from random import Random

from PIL import Image

from binsweep.data.synthetic.shapes import DRAW


@dataclass(frozen=True, slots=True)
class Product:
    """A product: sizes in inches, weight in pounds. `appearance_seed` seeds its artwork: copies look the same."""

    code: str
    kind: str
    width: float
    height: float
    depth: float
    weight: float
    appearance_seed: int


# Ranges of width, height and depth in inches.
_SIZES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "box": ((2.5, 5.5), (2.5, 6.5), (1.0, 4.0)),
    "carton": ((4.0, 7.0), (3.0, 6.0), (2.0, 5.0)),
    "book": ((0.8, 1.8), (5.5, 8.0), (4.0, 6.0)),
    "bottle": ((1.6, 2.8), (5.0, 8.0), (1.6, 2.8)),
    "can": ((2.2, 3.6), (2.5, 4.5), (2.2, 3.6)),
    "bag": ((3.5, 6.5), (3.0, 6.0), (0.8, 2.5)),
    "ball": ((2.2, 3.8), (2.2, 3.8), (2.2, 3.8)),
}
_KINDS = ("box", "box", "carton", "book", "bottle", "bottle", "can", "bag", "bag", "ball")


def make_product(rng: Random) -> Product:
    """A product of random kind, size and appearance."""
    kind = rng.choice(_KINDS)
    width, height, depth = (round(rng.uniform(*sides), 2) for sides in _SIZES[kind])
    code = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(8))
    weight = round(width * height * depth * rng.uniform(0.01, 0.04), 2)
    return Product(f"B0{code}", kind, width, height, depth, weight, rng.getrandbits(32))


def draw_product(product: Product, inch: float) -> Image.Image:
    """The product upright and front on, as an RGBA patch of `inch` pixels per inch."""
    rng = Random(product.appearance_seed)
    width = max(8, round(product.width * inch))
    height = max(8, round(product.height * inch))
    return DRAW[product.kind](rng, width, height)
