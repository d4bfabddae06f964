"""How far what a model sees has moved from its validation photos, in numbers that a server can compute at any time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from binsweep.tracking.monitoring.figures import ANSWER, CONFIDENCE, FIGURES
from binsweep.tracking.monitoring.store import AnsweredPhoto, Block, Counts

RECENT_BLOCKS = 8  # what is compared by the index: at least 2,000 of the last photos, if there were as many
MIN_PHOTOS = 200  # below it, chance alone makes an index of more than 0.1
SOME, LARGE = 0.1, 0.25  # the usual reading of the index
_MIN_SHARE = 0.1  # of a group of bins, on average of the two samples: ten groups at most, as is usual


def compared_figures(counts: Counts) -> list[str]:
    """The figures of a reference, in the order of reports."""
    return [name for name in (*FIGURES, ANSWER) if name in counts]


def summed(blocks: Iterable[Block]) -> Counts:
    """The counts of several blocks together."""
    total: Counts = {}
    for block in blocks:
        for figure, bins in block.counts.items():
            row = total.setdefault(figure, {})
            for place, times in bins.items():
                row[place] = row.get(place, 0) + times
    return total


def table_of(figure: str, samples: Sequence[Mapping[str, int]]) -> tuple[NDArray[np.int64], list[str]]:
    """Samples of one figure as rows of a table [S, B], and what each column stands for: a bin, or an answer."""
    if figure in FIGURES:
        names = [str(place) for place in range(FIGURES[figure].bins)]
    else:
        names = sorted({name for sample in samples for name in sample})
    return np.array([[sample.get(name, 0) for name in names] for sample in samples], np.int64), names


def grouped(
    table: NDArray[np.int64], weights: NDArray[np.float64], least: float, ordered: bool
) -> NDArray[np.int64]:
    """Merge columns of a table [S, B] until each has at least `least` of `weights` [B]; returns [S, G].

    Neighbours are merged if the columns are `ordered`, otherwise the rarest with each other.
    """
    order = np.arange(len(weights)) if ordered else np.argsort(weights, kind="stable")
    starts, weight = [0], 0.0
    for end, more in enumerate(weights[order].tolist(), start=1):
        weight += more
        if weight >= least:
            starts.append(end)
            weight = 0.0
    # The last start ends a group or begins a rest that is too small to be one.
    merged: NDArray[np.int64] = np.add.reduceat(table[:, order], starts[:-1] or [0], axis=1)
    return merged


def population_stability_index(
    figure: str, reference: Mapping[str, int], seen: Mapping[str, int]
) -> float | None:
    """sum((a - e) ln(a / e)) over groups of bins, with the share e of validation photos and a of those seen in each.

    None if one of the two has no photo. Half a photo is added to each group, so that an empty one leaves it finite.
    Below 0.1 is usually read as no change, from 0.25 on as a large one (Siddiqi, Credit Risk Scorecards, 2006); without
    any change it is about (G - 1) (1 / n + 1 / m) for G groups and n and m photos (Yurdakul, Statistical Properties of
    Population Stability Index, 2018), which is why few photos say nothing.
    """
    table, _ = table_of(figure, [reference, seen])
    if not table.sum(axis=1).all():
        return None
    shares = (table / table.sum(axis=1, keepdims=True)).mean(axis=0)
    groups = grouped(table, shares, _MIN_SHARE, figure in FIGURES) + 0.5
    expected, actual = groups / groups.sum(axis=1, keepdims=True)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def reading(index: float | None, photos: int) -> str:
    """What an index over `photos` photos is usually taken for."""
    if index is None or photos < MIN_PHOTOS:
        return "too few photos"
    return "none" if index < SOME else "some" if index < LARGE else "large"


class Oddness:
    """How unlike the validation photos one photo is, by the figure that is furthest out."""

    def __init__(self, reference: Counts) -> None:
        self._bits: dict[str, NDArray[np.float64]] = {}
        for name, figure in FIGURES.items():
            if not (seen := reference.get(name)):
                continue
            (row,), _ = table_of(name, [seen])
            below, total = np.cumsum(row), row.sum()
            above = total - below + row
            sided = 1 if name == CONFIDENCE else 2  # being sure is not odd
            tail = below if sided == 1 else np.minimum(below, above)
            share = np.minimum(1.0, sided * np.maximum(tail, 1) / (total + 1))
            inside, places = np.flatnonzero(row), np.arange(figure.bins)
            # Beyond the validation photos, each bin further is odder.
            beyond = np.where(tail == 0, np.maximum(inside[0] - places, places - inside[-1]), 0)
            self._bits[name] = -np.log2(share) + beyond

    def of(self, photo: AnsweredPhoto) -> tuple[float, str]:
        """Minus the binary logarithm of the share of validation photos that are at least as far out, plus the bins
        beyond all of them; and the figure. 0 where nothing is known."""
        values: dict[str, float] = {CONFIDENCE: photo.confidence, "bytes": photo.bytes}
        if photo.stats is not None:
            values |= {name: getattr(photo.stats, name) for name in FIGURES if hasattr(photo.stats, name)}
        found = [
            (float(self._bits[name][FIGURES[name].bin_of(value)]), name)
            for name, value in values.items()
            if name in self._bits
        ]
        return max(found, default=(0.0, ""))
