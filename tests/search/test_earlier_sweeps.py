"""Earlier sweeps as a prior: it helps where they agree with the new trials, and gives way where they do not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binsweep.search.spec.space import Choice, Range, SearchSpace
from binsweep.search.strategy.base import Decision, Outcome, Suggestion
from binsweep.search.strategy.earlier_sweeps import (
    MAX_TRIALS,
    EarlierSweep,
    EarlierTrial,
    FirstGuesses,
    InitialPoint,
    best_configurations,
    earlier_models,
)
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.freeze_thaw import FreezeThaw
from binsweep.search.strategy.optuna_strategy import OptunaStrategy
from binsweep.search.strategy.prior_mean import MIN_RANKED, fitted_mean, rank_weights
from binsweep.search.strategy.simulator import SyntheticTask, simulate

TASK = SyntheticTask(5)
ENCODER = Encoder(TASK.space)


class Reversed:
    """A task whose best configurations are another's worst."""

    goal = "maximize"

    def __init__(self, task: SyntheticTask) -> None:
        self.space, self.max_epochs, self._task = task.space, task.max_epochs, task

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        values, seconds = self._task.curve(params)
        end = 1.0 - values[-1]
        return [end * value / values[-1] for value in values], seconds


def opened(seed: int, path: Path | None = None, task: Any = TASK) -> OptunaStrategy:
    return open_strategy(path, "s", StrategyOptions(task.space, task.goal, task.max_epochs, seed=seed))


def swept(task: Any, trainings: int = 15, name: str = "a") -> EarlierSweep:
    strategy = opened(99, task=task)
    simulate(strategy, task, workers=1, epochs=trainings * task.max_epochs)
    trials = [
        EarlierTrial(record.params, [record.last_epoch or task.max_epochs], record.values)
        for record in strategy.trials()
        if record.values
    ]
    return EarlierSweep(name, [task.max_epochs], sorted(trials, key=lambda trial: -trial.best)).thinned()


@pytest.fixture(scope="module")
def helpful() -> EarlierSweep:
    return swept(TASK)


@pytest.fixture(scope="module")
def misleading() -> EarlierSweep:
    return swept(Reversed(TASK), name="b")


def guesses(*sweeps: EarlierSweep) -> FirstGuesses:
    best = best_configurations(sweeps, ENCODER, 3)
    return FirstGuesses([InitialPoint(params, name) for name, params in best], earlier=sweeps)


def values_at(points: np.ndarray) -> np.ndarray:
    return np.array([TASK.curve(ENCODER.params(point))[0][-1] for point in points])


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def test_a_model_of_a_sweep_orders_configurations_as_its_task_does(helpful: EarlierSweep) -> None:
    (model,) = earlier_models([helpful], ENCODER)
    points = ENCODER.random(np.random.default_rng(0), 200)
    x = ENCODER.features(points)
    assert np.corrcoef(model(x), values_at(points))[0, 1] > 0.7
    assert np.std(model(x)) == pytest.approx(1, abs=0.2)
    again = earlier_models([EarlierSweep.from_json(json.loads(json.dumps(helpful.as_json())))], ENCODER)[0]
    assert np.array_equal(again(x), model(x)), "what the study stores gives the same model"


def test_trials_that_reached_no_rung_are_left_out() -> None:
    short = [EarlierTrial({"x": x / 9}, [54], {1: x / 9}) for x in range(9)]
    long = [EarlierTrial({"x": x / 9}, [54], {1: 0.0, 2: x / 9}) for x in range(9)]
    encoder = Encoder(SearchSpace({"x": Range(0.0, 1.0)}))
    assert earlier_models([EarlierSweep("a", [54], short)], encoder) == []
    assert earlier_models([EarlierSweep("a", [54], short + long[:2])], encoder) == [], "two are too few"
    (model,) = earlier_models([EarlierSweep("a", [54], short + long)], encoder)
    assert model(np.array([[0.9]])) > model(np.array([[0.1]]))


def test_weights_follow_the_new_trials(helpful: EarlierSweep, misleading: EarlierSweep) -> None:
    models = earlier_models([helpful, misleading], ENCODER)
    points = ENCODER.random(np.random.default_rng(2), 40)
    x, y = ENCODER.features(points), standardised(values_at(points))
    weights = [fitted_mean(models, x[:n], standardised(y[:n]), 0.5 * np.eye(n)).weights for n in (4, 40)]
    assert weights[1][0] > 0.5, "the sweep that agrees is believed"
    assert weights[1][1] == 0, "the other one is not"
    assert weights[0][0] < weights[1][0], "and the more trials agree, the more"
    agree = rank_weights(models, x, y)
    assert agree[0] > 0.3 and agree[1] == 0
    few = MIN_RANKED - 1
    assert rank_weights(models, x[:few], y[:few]).tolist() == [1, 1]
    unexplained = y - fitted_mean(models, x, y, 0.5 * np.eye(40))(x)
    assert unexplained.std() < 0.8


def test_only_what_the_order_says_matters(helpful: EarlierSweep) -> None:
    """Other data have other values: an offset and a scale change nothing."""
    moved = [
        EarlierTrial(trial.params, trial.ends, {at: 0.1 * value - 7 for at, value in trial.values.items()})
        for trial in helpful.trials
    ]
    x = ENCODER.features(ENCODER.random(np.random.default_rng(3), 50))
    one, other = (
        earlier_models([EarlierSweep("a", helpful.longest, trials)], ENCODER)[0](x)
        for trials in (helpful.trials, moved)
    )
    assert np.corrcoef(one, other)[0, 1] > 0.999


def test_the_best_configurations_of_several_sweeps_take_turns_and_differ() -> None:
    encoder = Encoder(SearchSpace({"x": Range(0.0, 1.0), "arm": Choice(("a", "b"))}))

    def sweep(name: str, *places: float) -> EarlierSweep:
        return EarlierSweep(name, [1], [EarlierTrial({"x": x, "arm": "a"}, [1], {1: 1 - x}) for x in places])

    found = best_configurations([sweep("one", 0.0, 0.02, 0.2, 0.6), sweep("two", 0.01, 0.4)], encoder, 4)
    assert [(name, params["x"]) for name, params in found] == [
        ("one", 0.0),
        ("two", 0.4),
        ("one", 0.2),
        ("one", 0.6),
    ]


def test_of_many_trials_the_best_and_some_of_all_the_others_are_kept() -> None:
    trials = [EarlierTrial({"x": i}, [1], {1: -float(i)}) for i in range(1000)]
    kept = [trial.params["x"] for trial in EarlierSweep("a", [1], trials).thinned().trials]
    assert len(kept) == MAX_TRIALS == len(set(kept))
    assert kept[: MAX_TRIALS // 2] == list(range(MAX_TRIALS // 2)) and kept[-1] == 999


def regrets(known: FirstGuesses | None, seeds: int = 4) -> list[float]:
    """The mean regrets of several searches after two and after six trainings, against the best of all."""
    best = values_at(ENCODER.random(np.random.default_rng(4), 2000)).max()
    found = []
    for seed in range(seeds):
        strategy = opened(seed)
        if known is not None:
            strategy.warm_start(known)
        steps = simulate(strategy, TASK, workers=1, epochs=6 * TASK.max_epochs)
        found.append([best - steps[trainings * TASK.max_epochs - 1].best for trainings in (2, 6)])
    early, late = np.mean(found, axis=0)
    return [float(early), float(late)]


def test_a_helpful_prior_saves_trainings_and_a_misleading_one_costs_few(
    helpful: EarlierSweep, misleading: EarlierSweep
) -> None:
    without, with_right, with_wrong = regrets(None), regrets(guesses(helpful)), regrets(guesses(misleading))
    assert with_right[0] < 0.5 * without[0], "as good after two trainings"
    assert with_right[1] < 0.5 * without[1]
    assert with_wrong[0] < 2.0 * without[0]
    assert with_wrong[1] < 2.0 * without[1]


def test_a_misleading_prior_is_overruled(misleading: EarlierSweep) -> None:
    strategy = opened(0)
    strategy.warm_start(guesses(misleading))
    simulate(strategy, TASK, workers=1, epochs=7 * TASK.max_epochs)
    reasons = [record.suggested_because for record in strategy.trials()]
    guided = [n for n, reason in enumerate(reasons) if "configurations by models of earlier" in reason]
    assert guided and max(guided) < 2 * MIN_RANKED, "believed at first, and not for long"
    assert "weight of b 0.00" in [reason for reason in reasons if "weight of b" in reason][-1]


def test_where_sweeps_disagree_the_one_that_is_right_is_believed(
    helpful: EarlierSweep, misleading: EarlierSweep
) -> None:
    strategy = opened(0)
    strategy.warm_start(guesses(misleading, helpful))
    simulate(strategy, TASK, workers=1, epochs=6 * TASK.max_epochs)
    planner = strategy._policy.planner
    assert isinstance(planner, FreezeThaw)
    assert planner._curves.mean.weights[0] < planner._curves.mean.weights[1]


def test_a_reopened_study_goes_on_as_if_never_closed(tmp_path: Path, helpful: EarlierSweep) -> None:
    """Killed after any trial: the prior and the points to try first are in the study."""
    task = SyntheticTask(5, max_epochs=9)
    whole, parts = opened(0, task=task), opened(0, tmp_path / "study.db", task)
    for strategy in (whole, parts):
        strategy.warm_start(guesses(helpful))
    for number in range(50):
        if number % 10 == 0:
            parts = opened(0, tmp_path / "study.db", task)
            parts.warm_start(FirstGuesses())  # what a resumed sweep knows
        suggestion, other = whole.suggest(), parts.suggest()
        assert suggestion == other and suggestion is not None
        for strategy in (whole, parts):
            _train(strategy, suggestion, task)
    reasons = [record.suggested_because for record in whole.trials()]
    assert any("weight of a" in reason for reason in reasons), "the prior was used"


def _train(strategy: OptunaStrategy, suggestion: Suggestion, task: SyntheticTask) -> None:
    """Train a trial until its pause or end."""
    values, _ = task.curve(suggestion.params)
    for epoch in range(suggestion.epochs_done + 1, task.max_epochs + 1):
        if strategy.observe(suggestion.number, epoch, values[epoch - 1]).decision is Decision.PAUSE:
            return
    strategy.finish(suggestion.number, Outcome("completed"))


def test_without_earlier_sweeps_nothing_changes() -> None:
    """The mean is zero, whatever the models are asked."""
    plain, known = opened(3), opened(3)
    known.warm_start(FirstGuesses())
    steps = [simulate(strategy, TASK, 1, epochs=6 * TASK.max_epochs) for strategy in (plain, known)]
    assert steps[0] == steps[1]
