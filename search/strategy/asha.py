"""Asynchronous successive halving."""

from collections.abc import Mapping, Sequence

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
        return _judge(curves[number].best_until(epoch), rivals, eta, f"the rung of epoch {epoch}")

    return rule


def level_asha(eta: int) -> StoppingRule:
    """The same for trainings in fidelity levels: the rungs are the ends of the levels before the last one.

    There a trial has learnt what its level can teach, and its learning rate has come down; in the middle of a level it
    has not, and trials whose levels differ in length would be at different ones.
    """

    def rule(curves: Mapping[int, Curve], number: int, epoch: int) -> str | None:
        ends = curves[number].ends[:-1]
        if epoch not in ends:
            return None
        level = ends.index(epoch)
        rivals = [c.best_until(c.ends[level]) for c in curves.values() if c.ends[level] in c.values]
        return _judge(curves[number].best_until(epoch), rivals, eta, f"the end of fidelity level {level + 1}")

    return rule


def _judge(own: float, rivals: Sequence[float], eta: int, where: str) -> str | None:
    """Why a trial stops whose value is not among the best 1/eta of its `rivals`, of which it is one; None if it is."""
    better = sum(value > own for value in rivals)
    places = max(1, len(rivals) // eta)
    if better < places:
        return None
    return f"rank {better + 1} of {len(rivals)} at {where}: the best {places} go on"
