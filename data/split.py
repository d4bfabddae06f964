"""Which images a model learns from, is chosen by, and is judged on."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from binsweep.data.errors import UserError

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
# id: each image by itself; group: what looks alike or holds the same items together; folder: as the source says.
SplitBy = Literal["id", "group", "folder"]


@dataclass(frozen=True, slots=True)
class Split:
    """Fractions of the three splits, the seed that shuffles between them, and what is divided.

    Raises UserError unless each fraction is above 0 and they add up to 1.
    """

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0
    by: SplitBy = "id"

    def __post_init__(self) -> None:
        shares = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, share in shares.items():
            if not share > 0:  # refuses NaN too
                raise UserError(
                    f"data.split.{name} must be above 0, and is {share}", "for example 0.6, 0.2 and 0.2"
                )
        if not abs(sum(shares.values()) - 1) <= 1e-6:
            raise UserError(
                f"data.split must add up to 1: train {self.train} + validation {self.validation} "
                f"+ test {self.test} is {sum(shares.values()):g}",
                "for example 0.6, 0.2 and 0.2",
            )


def assign(split: Split, image_id: str, label: int) -> SplitName:
    """The split of one image, from nothing but the seed, its label and its id.

    Images that are added or removed therefore never move another one. Each class is divided in the same
    proportions in expectation: with n images of a class, the number in a split of share p varies around
    n * p with a standard deviation of sqrt(n * p * (1 - p)), instead of being exact.
    """
    digest = hashlib.sha256(f"{split.seed}\n{label}\n{image_id}".encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < split.train:
        return "train"
    return "validation" if place < split.train + split.validation else "test"
