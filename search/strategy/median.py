"""The median stopping rule."""

import statistics
from collections.abc import Mapping

from binsweep.search.strategy.stopping_rule import Curve, StoppingRule


def median(min_epochs: int, min_trials: int = 5) -> StoppingRule:
    """Median stopping (Golovin et al., Google Vizier, KDD 2017).

    A trial stops if its best value so far is below the median of the other trials' mean values up to the same epoch,
    once at least `min_trials` other trials have reached it.
    """

    def rule(curves: Mapping[int, Curve], number: int, epoch: int) -> str | None:
        others = [c.mean_until(epoch) for n, c in curves.items() if n != number and epoch in c.values]
        if epoch < min_epochs or len(others) < min_trials:
            return None
        middle = statistics.median(others)
        if curves[number].best_until(epoch) >= middle:
            return None
        return f"below the median of {len(others)} trials' means at epoch {epoch}"

    return rule
