"""Asynchronous successive halving."""

from collections.abc import Mapping

from binsweep.search.strategy.stopping_rule import Curve, StoppingRule


def rungs(min_epochs: int, eta: int, max_epochs: int) -> list[int]:
    """min_epochs * eta^k below max_epochs: the epochs at which halving decides."""
    found = []
    rung = min_epochs
    while rung < max_epochs:
        found.append(rung)
        rung *= eta
    return found


def asha(min_epochs: int, eta: int, max_epochs: int) -> StoppingRule:
    """Asynchronous successive halving (Li et al., 2018, MLSys 2020), in its stopping form.

    At a rung a trial goes on when it is among the best 1/eta of those that have been there so far; of the
    first arrivals, too few for a 1/eta, only the best so far goes on. Ties go on.
    """
    levels = set(rungs(min_epochs, eta, max_epochs))

    def rule(curves: Mapping[int, Curve], number: int, epoch: int) -> str | None:
        if epoch not in levels:
            return None
        rivals = [c.best_until(epoch) for c in curves.values() if epoch in c.values and epoch < c.last_epoch]
        own = curves[number].best_until(epoch)
        better = sum(value > own for value in rivals)
        places = max(1, len(rivals) // eta)
        if better < places:
            return None
        return f"rank {better + 1} of {len(rivals)} at the rung of epoch {epoch}: the best {places} go on"

    return rule
