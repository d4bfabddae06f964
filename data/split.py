"""Train, validation and test splits."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from binsweep.data.errors import UserError
from binsweep.data.labels import Label

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
# id: each image by itself; group: similar images and those of the same products together; folder: by the source.
SplitBy = Literal["id", "group", "folder"]


@dataclass(frozen=True, slots=True)
class Split:
    """Fractions of the three splits, the seed of the assignment, and its unit.

    Raises UserError unless each fraction is above 0 and they add up to 1.
    """

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0
    by: SplitBy = "id"

    def __post_init__(self) -> None:
        fractions = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, fraction in fractions.items():
            if not fraction > 0:  # NaN is refused, too
                raise UserError(
                    f"data.split.{name} must be above 0, and is {fraction}", "for example 0.6, 0.2 and 0.2"
                )
        if not abs(sum(fractions.values()) - 1) <= 1e-6:
            raise UserError(
                f"data.split must add up to 1: train {self.train} + validation {self.validation} "
                f"+ test {self.test} is {sum(fractions.values()):g}",
                "for example 0.6, 0.2 and 0.2",
            )


def assign(split: Split, image_id: str, label: Label) -> SplitName:
    """The split of one image, which depends only on the seed, its label and its id.

    Adding or removing images therefore never moves another image. Each class is divided in the same proportions in
    expectation: of n images of a class, the number in a split of fraction p has mean n * p and standard deviation
    sqrt(n * p * (1 - p)).
    """
    digest = hashlib.sha256(f"{split.seed}\n{label}\n{image_id}".encode(errors="surrogateescape")).digest()
    quantile = int.from_bytes(digest[:8], "big") / 2**64
    if quantile < split.train:
        return "train"
    return "validation" if quantile < split.train + split.validation else "test"
