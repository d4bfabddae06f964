"""Asynchronous successive halving."""

from collections.abc import Mapping

from binsweep.search.strategy.stopping_rule import Curve, StoppingRule


def rung_epochs(min_epochs: int, eta: int, max_epochs: int) -> list[int]:
    """min_epochs * eta^k below max_epochs: the epochs at which successive halving decides."""
    found = []
    rung = min_epochs
    while rung < max_epochs:
        found.append(rung)
        rung *= eta
    return found


def asha(min_epochs: int, eta: int, max_epochs: int) -> StoppingRule:
    """Asynchronous successive halving (Li et al., 2018, MLSys 2020), in its stopping form.

    At a rung a trial goes on if it is among the best 1/eta of the trials that have reached it. While fewer than eta
    have, only the best so far goes on. Ties go on.
    """
    rungs = set(rung_epochs(min_epochs, eta, max_epochs))

    def rule(curves: Mapping[int, Curve], number: int, epoch: int) -> str | None:
        if epoch not in rungs:
            return None
        rivals = [c.best_until(epoch) for c in curves.values() if epoch in c.values and epoch < c.last_epoch]
        own = curves[number].best_until(epoch)
        better = sum(value > own for value in rivals)
        places = max(1, len(rivals) // eta)
        if better < places:
            return None
        return f"rank {better + 1} of {len(rivals)} at the rung of epoch {epoch}: the best {places} go on"

    return rule
