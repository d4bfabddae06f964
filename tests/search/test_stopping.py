"""Stopping rules as pure functions, against results worked out by hand."""

import pytest

from binsweep.search.spec.space import Range, SearchSpace
from binsweep.search.strategy.asha import asha, level_asha, rung_epochs
from binsweep.search.strategy.base import Decision, Outcome
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.median import median
from binsweep.search.strategy.stopping_rule import Curve, never


def curves(*values: dict[int, float], last_epoch: int = 27) -> dict[int, Curve]:
    return {number: Curve(last_epoch, dict(by_epoch)) for number, by_epoch in enumerate(values)}


def test_rungs_grow_by_eta_and_end_before_the_last_epoch() -> None:
    assert rung_epochs(1, 3, 27) == [1, 3, 9]
    assert rung_epochs(2, 3, 52) == [2, 6, 18]
    assert rung_epochs(1, 2, 1) == []


def test_asha_lets_the_best_so_far_and_then_the_best_third_go_on() -> None:
    rule = asha(1, 3, 27)
    assert rule(curves({1: 0.1}), 0, 1) is None, "the first has no rival"
    two = curves({1: 0.9}, {1: 0.1})
    assert rule(two, 0, 1) is None
    assert rule(two, 1, 1) == "rank 2 of 2 at the rung of epoch 1: the best 1 go on"
    six = curves(*({1: value} for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)))
    assert [number for number in six if rule(six, number, 1) is None] == [4, 5]
    assert rule(six, 3, 1) == "rank 3 of 6 at the rung of epoch 1: the best 2 go on"


def test_asha_decides_at_rungs_only() -> None:
    rule = asha(1, 3, 27)
    poor = dict.fromkeys(range(1, 27), 0.0)
    good = dict.fromkeys(range(1, 27), 1.0)
    stopped = [epoch for epoch in poor if rule(curves(good, good, good, poor), 3, epoch)]
    assert stopped == [1, 3, 9]


def test_asha_keeps_ties() -> None:
    level = curves(*({1: 0.5} for _ in range(9)))
    assert all(asha(1, 3, 27)(level, number, 1) is None for number in level)


def test_asha_compares_best_values_so_far() -> None:
    dipped = curves({1: 0.9, 2: 0.9, 3: 0.1}, {1: 0.5, 2: 0.5, 3: 0.5}, {1: 0.4, 2: 0.4, 3: 0.4})
    assert asha(1, 3, 27)(dipped, 0, 3) is None
    assert asha(1, 3, 27)(dipped, 1, 3) is not None


def test_a_short_training_does_not_compete_at_its_own_end() -> None:
    rule = asha(1, 3, 27)
    field = curves({3: 0.5}, {3: 0.4}, {3: 0.3}) | {3: Curve(3, {3: 0.9})}
    assert rule(field, 0, 3) is None, "the best of those that go beyond the rung"
    field[3] = Curve(27, {3: 0.9})
    assert rule(field, 0, 3) is not None


def test_asha_with_levels_decides_at_their_ends_which_may_be_at_different_epochs() -> None:
    rule, ends = level_asha(3), [(4, 6, 9), (4, 6, 9), (8, 10, 13), (8, 10, 13)]
    field = {
        number: Curve(own[-1], dict.fromkeys(range(1, own[-1]), value), own)
        for number, (own, value) in enumerate(zip(ends, (0.4, 0.1, 0.3, 0.2), strict=True))
    }
    assert [epoch for epoch in field[3].values if rule(field, 3, epoch)] == [8, 10]
    assert [epoch for epoch in field[1].values if rule(field, 1, epoch)] == [4, 6]
    assert rule(field, 3, 10) == "rank 3 of 4 at the end of fidelity level 2: the best 1 go on"
    assert not any(rule(field, 0, epoch) for epoch in field[0].values), "the best one goes on"
    del field[2].values[8]
    assert rule(field, 3, 8) == "rank 2 of 3 at the end of fidelity level 1: the best 1 go on"


def test_a_strategy_with_levels_stops_at_their_ends() -> None:
    space = SearchSpace({"lr": Range(1e-4, 1e-1, log=True)})
    options = StrategyOptions(space, "maximize", 5, "random", "asha", sections=(4, 2, None))
    strategy, stopped = open_strategy(None, "levels", options), []
    for number, value in enumerate((0.9, 0.5, 0.4)):
        assert strategy.suggest() is not None
        verdicts = [strategy.observe(number, epoch, value).decision for epoch in range(1, 11)]
        stopped.append(verdicts.index(Decision.STOP) + 1 if Decision.STOP in verdicts else None)
        strategy.finish(number, Outcome("completed"))
    assert stopped == [None, 4, 4]


def test_median_compares_the_best_with_the_median_of_means() -> None:
    rule = median(min_epochs=2, min_trials=3)
    others = [{1: 0.2, 2: 0.4}, {1: 0.4, 2: 0.6}, {1: 0.6, 2: 0.8}]  # means 0.3, 0.5, 0.7
    assert rule(curves(*others, {1: 0.5, 2: 0.1}), 3, 2) is None
    assert rule(curves(*others, {1: 0.49, 2: 0.1}), 3, 2) == "below the median of 3 trials' means at epoch 2"


@pytest.mark.parametrize(("epoch", "others"), [(1, 3), (2, 2)])
def test_median_waits_for_epochs_and_company(epoch: int, others: int) -> None:
    rule = median(min_epochs=2, min_trials=3)
    field = curves(*({1: 1.0, 2: 1.0} for _ in range(others)), {1: 0.0, 2: 0.0})
    assert rule(field, others, epoch) is None


def test_never_never_stops() -> None:
    assert never(curves({1: 1.0}, {1: 0.0}), 1, 1) is None
