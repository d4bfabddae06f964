"""A test for drift that may be looked at as often as one likes.

After each block of photos there is a look, whether or not anyone watches, so that the looks are the same however often
a person asks. The k-th look may spend ALPHA / (k (k + 1)) of the false alarms, which adds up to ALPHA however many
looks follow. This is alpha spending (Lan and DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70,
1983) with a union bound, which holds whatever the looks have in common. Each look compares the last 1, 2, 4, ... blocks
with the validation photos, so that a sudden change is found soon, and a small one once there are enough photos; the
share of a look is divided among these windows and among the figures (Bonferroni).

One comparison is Pearson's chi-squared test of homogeneity of the two samples (the validation photos are a sample, too:
taking their shares for the truth would give false alarms for certain, sooner or later). Bins are merged until the
expected number of photos is at least MIN_EXPECTED in each cell, which looks only at the sum of both samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from binsweep.tracking.monitoring.drift import compared_figures, grouped, table_of
from binsweep.tracking.monitoring.figures import FIGURES
from binsweep.tracking.monitoring.store import BLOCK_PHOTOS, Block, Counts

ALPHA = (
    0.05  # the chance that a model that sees what it was validated on is ever said to drift, in any figure
)
# Photos in each cell. The usual 5 are enough for a p of 0.05; later looks ask for much smaller ones.
MIN_EXPECTED = 10.0
MIN_SHARE = (
    0.05  # of the photos of both samples in a group of bins: more groups would see small changes later
)


@dataclass(frozen=True)
class DriftTest:
    """The smallest p of a figure over all looks, corrected for these and for the other figures: below ALPHA it drifts.

    `look` is the block after which the smallest p was found (None before the first look), and `first` the one after
    which it was below ALPHA for the first time.
    """

    p: float
    look: int | None
    first: int | None

    @property
    def drifts(self) -> bool:
        return self.first is not None


def homogeneity_p(figure: str, reference: Mapping[str, int], seen: Mapping[str, int]) -> float:
    """The p of the chi-squared test that both samples of a figure come from the same distribution."""
    table, _ = table_of(figure, [reference, seen])
    return _homogeneity(table, figure in FIGURES)


def _homogeneity(table: NDArray[np.int64], ordered: bool) -> float:
    sizes, both = table.sum(axis=1), table.sum(axis=0)
    if not sizes.all():
        return 1.0
    least = max(MIN_EXPECTED * sizes.sum() / sizes.min(), MIN_SHARE * sizes.sum())
    groups = grouped(table, both.astype(np.float64), least, ordered)
    if groups.shape[1] == 1:
        return 1.0
    expected = np.outer(sizes, groups.sum(axis=0)) / sizes.sum()
    statistic = float(((groups - expected) ** 2 / expected).sum())
    return float(chdtrc(groups.shape[1] - 1, statistic))


def drift_tests(reference: Counts, blocks: Sequence[Block]) -> dict[str, DriftTest]:
    """Test each figure of a reference at every look at these blocks, in order."""
    figures = compared_figures(reference)
    closed = [block for block in blocks if block.measured >= BLOCK_PHOTOS]
    return {name: _test(name, reference[name], closed, len(figures)) for name in figures}


def _test(figure: str, reference: Mapping[str, int], blocks: Sequence[Block], figures: int) -> DriftTest:
    smallest, at, first = float("inf"), None, None
    table, _ = table_of(figure, [reference, *(block.counts.get(figure, {}) for block in blocks)])
    sums = np.concatenate([np.zeros_like(table[:1]), np.cumsum(table[1:], axis=0)])
    for end, block in enumerate(blocks, start=1):
        look = block.number
        windows = [2**power for power in range(look.bit_length()) if 2**power <= look]
        for width in (width for width in windows if width <= end):
            both = np.stack([table[0], sums[end] - sums[end - width]])
            p = _homogeneity(both, figure in FIGURES) * figures * len(windows) * look * (look + 1)
            if p < smallest:
                smallest, at = p, look
            if p <= ALPHA and first is None:
                first = look
    return DriftTest(min(1.0, smallest), at, first)
