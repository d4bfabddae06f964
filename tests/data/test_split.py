"""The split is a property of one image: stable, seeded, and proportional within each class."""

import math

import pytest

from binsweep.data.errors import UserError
from binsweep.data.split import SPLITS, Split, assign


def test_the_split_never_changes_between_versions() -> None:
    names = [assign(Split(), f"{index:05d}", 3) for index in range(12)]
    assert "".join(name[0] for name in names) == "ttttttvttttt"


def test_proportions_hold_within_each_class() -> None:
    split = Split(0.7, 0.1, 0.2, seed=5)
    for label in (0, 1, 17):
        names = [assign(split, str(index), label) for index in range(4000)]
        for name, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
            spread = math.sqrt(4000 * share * (1 - share))
            assert abs(names.count(name) - 4000 * share) < 4 * spread


def test_seed_and_label_reshuffle() -> None:
    ids = [str(index) for index in range(200)]
    first = [assign(Split(), id, 1) for id in ids]
    assert first == [assign(Split(), id, 1) for id in ids]
    assert first != [assign(Split(seed=1), id, 1) for id in ids]
    assert first != [assign(Split(), id, 2) for id in ids]


def test_ids_that_are_not_text_have_a_split() -> None:
    assert assign(Split(), "broken\udcffname", 1) in SPLITS


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ((0.6, 0.2, 0.1), r"must add up to 1: train 0\.6 \+ validation 0\.2 \+ test 0\.1 is 0\.9"),
        ((0.8, 0.2, 0.0), r"data\.split\.test must be above 0, and is 0\.0"),
        ((1.2, -0.2, 0.0), r"data\.split\.validation must be above 0"),
        ((math.nan, 0.5, 0.5), r"data\.split\.train must be above 0, and is nan"),
        ((math.inf, 0.5, 0.5), r"must add up to 1"),
    ],
)
def test_invalid_fractions(shares: tuple[float, float, float], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Split(*shares)
    assert caught.value.hint


def test_rounding_errors_are_no_mistake() -> None:
    Split(0.7, 0.2, 0.1)
    Split(1 / 3, 1 / 3, 1 / 3)
