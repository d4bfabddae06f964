"""The parts of `auto`: points and parameters, the model of curves, training_rungs and promotion, and the plan."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from binsweep.search.spec.space import Choice, Range, SearchSpace
from binsweep.search.strategy.curve_gp import CurveData, CurveModel
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.final_value_gp import FinalValueModel
from binsweep.search.strategy.freeze_thaw import MIN_DISTANCE, MIN_FULL_TRIALS, MODEL_FROM, FreezeThaw
from binsweep.search.strategy.kernel import log_improvement
from binsweep.search.strategy.lengths import TrainingLengths
from binsweep.search.strategy.stopping_rule import Curve
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import ETA, TrialPool, behind, next_promotion, training_rungs

SPACE = SearchSpace(
    {
        "lr": Range(1e-4, 1e-1, log=True),
        "units": Range(1, 64, log=True),
        "depth": Range(1, 9, step=2),
        "drop": Range(0.0, 0.9, step=0.3),
        "arm": Choice(("a", "b", "c")),
        "fixed": Range(3, 3),
        "inner": Choice((True, False), when=(("arm", ("b", "c")),)),
        "innermost": Range(0.0, 1.0, when=(("inner", (True,)),)),
    }
)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_every_point_is_a_configuration_of_the_space_and_back(seed: int) -> None:
    encoder = Encoder(SPACE)
    point = encoder.random(np.random.default_rng(seed), 1)[0]
    params = encoder.params(point)
    assert ("inner" in params) == (params["arm"] in ("b", "c"))
    assert ("innermost" in params) == params.get("inner", False)
    for name in params:
        assert SPACE.contains(name, params[name]), name
    assert encoder.params(encoder.point(params)) == pytest.approx(params)
    near = encoder.perturbed(np.tile(point, (20, 1)), 0.3, np.random.default_rng(seed))
    for moved in near:  # what is not searched there has one place only
        assert encoder.point(encoder.params(moved))[6:] == pytest.approx(moved[6:])
    for there, moved in zip(encoder.rounded(near), near, strict=True):
        expected = encoder.point(encoder.params(moved))
        expected[5] = moved[5]  # of a range of one value, every place is that value
        assert there == pytest.approx(expected)


def test_every_choice_and_every_place_of_a_short_range_is_among_the_others() -> None:
    encoder = Encoder(SPACE)
    start = {"lr": 0.01, "units": 8, "depth": 3, "drop": 0.3, "arm": "a", "fixed": 3}
    found = [encoder.params(point) for point in encoder.neighbours(encoder.point(start)[None])]
    expected = [start]
    expected += [start | {"depth": depth} for depth in (1, 3, 5, 7, 9)]
    expected += [start | {"drop": drop} for drop in (0.0, 0.3, 0.6, 0.9)]
    expected += [start, start]  # of arm and of what has one place only
    expected += [start | {"arm": arm, "inner": True, "innermost": 0.5} for arm in "bc"]
    assert len(found) == len(expected) + 2  # what is not searched there has two options that change nothing
    for params in expected:
        assert any(other == pytest.approx(params) for other in found), params
    assert all(any(other == pytest.approx(params) for params in expected) for other in found)


def test_ends_of_a_range_are_within_reach_and_choices_are_equally_far_apart() -> None:
    encoder = Encoder(SPACE)
    ends = (np.array([0, 0, 0, 0, 0, 0, -1, 0.5]), np.array([1, 1, 1, 1, 2, 1, 1, 0.5]))
    low, high = encoder.params(ends[0]), encoder.params(ends[1])
    assert low == pytest.approx({"lr": 1e-4, "units": 1, "depth": 1, "drop": 0.0, "arm": "a", "fixed": 3})
    other = {"lr": 0.1, "units": 64, "depth": 9, "drop": 0.9, "arm": "c", "fixed": 3, "inner": False}
    assert high == pytest.approx(other)
    points = np.tile(encoder.point(low), (3, 1))
    points[:, 4] = [0, 1, 2]
    features = encoder.features(points)
    assert {round(math.dist(features[i], features[j]), 9) for i, j in ((0, 1), (0, 2), (1, 2))} == {1.0}


def test_the_spread_start_fills_every_half_of_every_dimension() -> None:
    encoder = Encoder(SearchSpace({name: Range(0.0, 1.0) for name in "abcd"}))
    points = np.array([encoder.sobol_point(5, number) for number in range(16)])
    assert ((points < 0.5).sum(axis=0) == 8).all()
    assert (encoder.sobol_point(5, 3) == points[3]).all()


def observations(rng: np.random.Generator, count: int) -> CurveData:
    progress, trial = rng.choice([0.0, 0.3, 0.7, 1.0], count), rng.integers(-1, 9, count)
    return CurveData(rng.random((count, 4)), progress, trial, rng.normal(size=count))


def test_the_gradient_of_the_model_is_right() -> None:
    rng = np.random.default_rng(0)
    model, data = CurveModel(np.array([0, 1, 2, 2])), observations(rng, 25)
    theta = model.prior + 0.2 * rng.normal(size=len(model.prior))
    error = check_grad(lambda t: model.loss(t, data)[0], lambda t: model.loss(t, data)[1], theta)
    assert error < 1e-4 * np.linalg.norm(model.loss(theta, data)[1])


def test_the_model_tells_final_values_from_early_ones() -> None:
    rng = np.random.default_rng(1)
    x = rng.random((60, 2))
    final, early = x[:, 0], x[:, 1]  # what learns fast is not what ends well
    data = CurveData(
        np.concatenate([x, x[:20]]),
        np.concatenate([np.zeros(60), np.ones(20)]),
        np.concatenate([np.arange(60), np.arange(20)]),
        np.concatenate([early - 1, final[:20]]),
    )
    model = CurveModel(np.array([0, 1]))
    model.fit(data)
    model.condition(data)
    asked = rng.random((50, 2))
    new = np.full(50, -1)
    at_end, unsure = model.predict(asked, np.ones(50), new)
    at_start, _ = model.predict(asked, np.zeros(50), new)
    assert np.corrcoef(at_end, asked[:, 0])[0, 1] > 0.9
    assert np.corrcoef(at_start, asked[:, 1])[0, 1] > 0.9
    assert (unsure > 0).all()


def ends(rng: np.random.Generator, count: int) -> tuple[Encoder, np.ndarray, np.ndarray]:
    """An encoder, points, and values that are best at x = 0.7 with `arm` a; `idle` changes nothing."""
    space = {"x": Range(0.0, 1.0), "idle": Range(0.0, 1.0), "arm": Choice(("a", "b"))}
    encoder = Encoder(SearchSpace(space))
    points = encoder.random(rng, count)
    return (
        encoder,
        points,
        100 - (points[:, 0] - 0.7) ** 2 - 0.2 * points[:, 2] + 0.001 * rng.normal(size=count),
    )


def test_the_gradient_of_the_model_of_ends_is_right() -> None:
    rng = np.random.default_rng(0)
    encoder, points, values = ends(rng, 20)
    model, x, y = FinalValueModel(encoder), encoder.features(points), (values - values.mean()) / values.std()
    theta = 0.4 * rng.normal(size=len(model.theta))
    error = check_grad(lambda t: model.loss(t, x, y)[0], lambda t: model.loss(t, x, y)[1], theta)
    assert error < 1e-5 * np.linalg.norm(model.loss(theta, x, y)[1])


def test_the_model_of_ends_believes_what_optunas_does() -> None:
    """The same posterior of hyperparameters as `GPSampler`'s regressor."""
    gp = pytest.importorskip("optuna._gp.gp")
    prior = pytest.importorskip("optuna._gp.prior")
    encoder, points, values = ends(np.random.default_rng(1), 30)
    y = (values - values.mean()) / values.std()
    model = FinalValueModel(encoder)
    model.refit_if_due(points, values, 30)
    theirs = gp.fit_kernel_params(
        points, y, np.array([False, False, True]), prior.default_log_prior, 1e-6, False
    )
    expected = [*-0.5 * np.log(theirs.inverse_squared_lengthscales.numpy())]
    assert model.theta[:-1] == pytest.approx([*expected, math.log(theirs.kernel_scale)], abs=0.1)
    assert math.exp(model.theta[-1]) == pytest.approx(float(theirs.noise_var), abs=1e-4)
    assert model.theta[1] > model.theta[0] + 1, "what changes nothing has a long scale"


def test_most_is_to_be_gained_at_the_best_and_elsewhere_while_that_is_in_training() -> None:
    rng = np.random.default_rng(2)
    encoder, points, values = ends(rng, 30)
    model = FinalValueModel(encoder)
    model.refit_if_due(points, values, 30)
    first = model.best(points, values, points[:0], rng, equal_cost)[0][0]
    assert abs(first[0] - 0.7) < 0.05 and first[2] == 0
    near = first + 0.02 * rng.normal(size=(6, 3)) * [1, 1, 0]
    second = model.best(points, values, near, rng, equal_cost)[0][0]
    assert np.abs(near - second).max(axis=1).min() > 0.03


def test_the_logarithm_of_an_improvement_keeps_the_order_where_it_is_nought() -> None:
    z = np.array([3.0, 0.5, -0.999, -1.001, -8.0, -40.0, -999.0, -1001.0, -1e5])
    found = log_improvement(2 * z, np.full(len(z), 2.0), 0.0)
    assert (np.diff(found) < 0).all()
    drawn = np.random.default_rng(0).normal(size=400_000)[:, None]
    direct = np.log(2 * np.maximum(drawn + z[:4], 0).mean(axis=0))
    assert found[:4] == pytest.approx(direct, abs=0.02)
    # Mills' ratio: the improvement is phi(z) / z^2 far out.
    assert found[5] == pytest.approx(
        math.log(2) - 800 - 0.5 * math.log(2 * math.pi) - 2 * math.log(40), abs=0.01
    )


@pytest.mark.parametrize(
    ("last", "expected"), [(52, [2, 6, 17, 52]), (27, [1, 3, 9, 27]), (4, [1, 4]), (1, [1])]
)
def test_rungs_are_thirds_of_a_trials_own_length(last: int, expected: list[int]) -> None:
    assert training_rungs([last]) == expected


def standing(*curves: tuple[list[float], str], last: int = 9) -> TrialPool:
    found = TrialPool()
    for index, (values, state) in enumerate(curves):
        curve = Curve(last, dict(enumerate(values, 1)))
        found.add({"x": index / 10}, curve, state)  # type: ignore[arg-type]
    return found


def test_the_best_third_at_a_rung_is_promoted_once() -> None:
    trials = standing(([0.1], "paused"), ([0.3], "paused"), ([0.2], "paused"))
    found = next_promotion(trials)
    assert found is not None and found[0] == 1 and "rank 1 of 3" in found[1]
    trials.trials[1].state = "running"
    assert next_promotion(trials) is None, f"one place for each {ETA} that arrived"
    assert next_promotion(standing(([0.1], "paused"), ([0.3], "paused"))) is None
    trials = standing(*[([0.1 * index], "paused") for index in range(3)], *[([0.9], "over")] * 3)
    assert next_promotion(trials) is None, "two places, which the better ones have"
    for stand in trials.trials[3:]:
        stand.broken = True  # over a limit
    found = next_promotion(trials)
    assert found is not None and found[0] == 2


def test_pausing_costs_no_epoch_twice_in_the_count() -> None:
    trials = standing(([0.1, 0.2, 0.3], "paused"), ([0.5], "paused"))
    assert trials.epochs == 4
    trials.add_epoch(1, 3, 0.4)  # an epoch was missed
    assert (trials.epochs, trials.trials[1].best, trials.trials[1].best_at_rung) == (6, 0.5, {1: 0.5, 3: 0.5})


def equal_cost(points: np.ndarray) -> np.ndarray:
    return np.zeros(len(points))


def freeze_thaw(space: SearchSpace, seed: int) -> FreezeThaw:
    return FreezeThaw(TrainingTimes(Encoder(space), TrainingLengths(9)), seed)


def planned(trials: TrialPool) -> list[Any]:
    """By many seeds, and so at many horizons."""
    return [freeze_thaw(SearchSpace({"x": Range(0.0, 1.0)}), seed).plan(trials) for seed in range(30)]


def test_the_model_begins_new_trials_apart_from_what_was_tried_and_goes_on_with_the_best() -> None:
    curves = [([0.1 * level + 0.05 * index for level in range(3)], "paused") for index in range(10)]
    trials = standing(*curves, *[([1.0] * 9, "over")] * (MIN_FULL_TRIALS - 1))
    assert trials.epochs > MODEL_FROM * 9
    plans = planned(trials)
    begun = [plan.params["x"] for plan in plans if plan.params]
    tried = [index / 10 for index in range(12)]
    assert begun and min(abs(x - at) for x in begun for at in tried) > MIN_DISTANCE - 1e-9
    assert all(plan.number is None or plan.number < 10 for plan in plans), "only paused trials go on"


def test_where_seconds_count_it_starts_with_cheap_configurations() -> None:
    trials = standing(([0.1], "paused"), ([0.2], "paused"))  # x is 0.0 and 0.1
    begun = [plan.params["x"] for plan in planned(trials)]
    assert np.mean(begun) > 0.4, "without seconds anywhere"
    for trial, seconds in zip(trials.trials, (1.0, 1.6), strict=True):  # 100 times as much at the other end
        trial.seconds = {0: seconds}
    cheap = [plan.params["x"] for plan in planned(trials)]
    assert np.mean(cheap) < 0.3 and len(set(cheap)) > 20


def test_the_model_begins_as_soon_where_the_first_trials_were_cheap() -> None:
    trials = standing(*[([index / 10] * 9, "over") for index in range(5)])
    assert trials.epochs > MODEL_FROM * 9
    for trial in trials.trials:
        trial.seconds = {0: 1000 ** trial.params["x"]}  # one training of the median configuration in all
    assert all(plan.reason.startswith("largest expected improvement") for plan in planned(trials))


def test_a_configuration_whose_value_broke_is_not_tried_again() -> None:
    curves = [([0.5 + 0.01 * index] * 9, "over") for index in range(6)]
    trials = standing(*curves)
    for at in (0.7, 0.75, 0.8):
        trials.add({"x": at}, Curve(9, {}), "over", broken=True)
    begun = [plan.params["x"] for plan in planned(trials)]
    assert min(abs(x - at) for x in begun for at in (0.7, 0.75, 0.8)) > MIN_DISTANCE - 1e-9


def test_what_broke_is_bad_for_what_goes_straight() -> None:
    trials = standing(*[([index / 10] * 9, "over") for index in range(8)])  # the further right, the better
    for at in (0.8, 0.9, 1.0):
        trials.add({"x": at}, Curve(9, {}), "over", broken=True)
    assert all(plan.skips_rungs and 0.5 < plan.params["x"] < 0.8 for plan in planned(trials))


def test_where_the_space_is_small_nothing_is_trained_straight_twice() -> None:
    trials = TrialPool()
    for arm, value in zip("abc" * 3, [0.9, 0.5, 0.1] * 3, strict=True):
        trials.add({"arm": arm}, Curve(9, dict.fromkeys(range(1, 10), value)), "over")
    plans = [freeze_thaw(SearchSpace({"arm": Choice(tuple("abcd"))}), seed).plan(trials) for seed in range(5)]
    assert all(plan.params == {"arm": "d"} for plan in plans)


def test_trials_in_training_and_conditions_are_known_to_what_goes_straight() -> None:
    """Eight workers begin at once: what they get differs, and names what is searched there and no more."""
    encoder, rng = Encoder(SPACE), np.random.default_rng(3)
    trials = TrialPool()
    for point in encoder.random(rng, 12):
        trials.add(encoder.params(point), Curve(9, dict(enumerate(np.sort(rng.random(9)), 1))), "over")
    planner = freeze_thaw(SPACE, 0)
    begun: list[dict[str, Any]] = []
    for _ in range(8):
        plan = planner.plan(trials)
        assert plan.skips_rungs and plan.params is not None
        assert encoder.params(encoder.point(plan.params)) == pytest.approx(plan.params)
        assert ("inner" in plan.params) == (plan.params["arm"] in ("b", "c"))
        begun.append(plan.params)
        trials.add(plan.params, Curve(9, {}), skips_rungs=True)
    assert len({tuple(params.items()) for params in begun}) == 8


def test_what_went_straight_and_ended_early_is_not_proposed_again() -> None:
    trials = standing(*[([0.5 - abs(index / 12 - 0.7)] * 9, "over") for index in range(12)])
    tried: list[float] = []
    for value in (None, 0.1, None, 0.1):  # an error before the first value, a stop after it
        plan = freeze_thaw(SearchSpace({"x": Range(0.0, 1.0)}), 0).plan(trials)
        assert plan.skips_rungs and plan.params is not None
        assert all(abs(plan.params["x"] - x) > 0.01 for x in tried), (plan.params, tried)
        tried.append(plan.params["x"])
        trials.add(plan.params, Curve(9, {} if value is None else {1: value}), "over", skips_rungs=True)


def test_what_fell_behind_counts_for_what_it_would_have_gained() -> None:
    """All gain 0.5 on the last two thirds: what had the most at the third would have ended best, or what had little."""

    def where(third: float) -> list[float]:
        trials = TrialPool()
        for x in np.linspace(0, 0.7, 8):
            trials.add({"x": x}, Curve(9, {3: x / 2, 9: x / 2 + 0.5}), "over")
        for x in (0.9, 0.95, 1.0):
            trials.add({"x": x}, Curve(9, {3: third}), "paused", skips_rungs=True)
        return [plan.params["x"] for plan in planned(trials) if plan.params and plan.skips_rungs]

    assert np.median(where(0.45)) > 0.8
    assert np.median(where(0.0)) < 0.8


def test_below_the_median_at_a_third_is_behind() -> None:
    trials = standing(
        *[([0.0, 0.0, 0.1 * index], "paused") for index in range(5)], ([0.0, 0.0, 0.05], "over")
    )
    assert [number for number in range(6) if behind(trials, number) is not None] == [0, 1, 5]
    assert "below the median of 6 trials" in str(behind(trials, 0))
    for stand in trials.trials[2:5]:
        stand.broken = True
    assert behind(trials, 1) is None, "what broke is no measure"
    trials.add_epoch(0, 4, 0.0)
    assert behind(trials, 0) is not None, "the third was passed by"
    trials.add({"x": 0.5}, Curve(9, {1: 0.0}))
    assert behind(trials, 6) is None, "too early to tell"
    trials.add_epoch(0, 9, 0.0)
    assert behind(trials, 0) is None, "it is at its end"
    short = TrialPool()
    for value in (0.2, 0.1):
        short.add({"x": 0.5}, Curve(1, {1: value}))
    assert behind(short, 1) is None, "one epoch has no third"


def test_what_is_cheap_is_not_behind() -> None:
    trials = standing(*[([0.0, 0.0, 0.1 * index], "paused") for index in range(5)])
    for stand, cost in zip(trials.trials, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True):
        stand.cost = cost
    assert all(behind(trials, number) is None for number in range(5)), "all are on the front"
    trials.trials[1].cost = 6.0
    assert behind(trials, 1) is not None


def test_wide_whole_numbers_stay_whole_numbers() -> None:
    space = SearchSpace({"units": Range(8, 512, log=True)})
    trials = TrialPool()
    for units in (8, 16, 32, 64, 128, 256, 512):
        trials.add(
            {"units": units}, Curve(9, dict.fromkeys(range(1, 10), -abs(math.log(units / 100)))), "over"
        )
    plans = [freeze_thaw(space, seed).plan(trials) for seed in range(5)]
    assert all(plan.skips_rungs and plan.params and type(plan.params["units"]) is int for plan in plans)
    assert all(60 < plan.params["units"] < 160 for plan in plans if plan.params)


def test_one_very_bad_value_hides_nothing() -> None:
    """A loss that exploded: whoever takes its distance for a scale sees no difference among the others."""
    values = {index / 12: -abs(index / 12 - 0.7) for index in range(12)} | {0.05: -50.0}
    trials = TrialPool()
    for x, value in values.items():
        trials.add({"x": x}, Curve(9, dict.fromkeys(range(1, 10), value)), "over")
    plans = [freeze_thaw(SearchSpace({"x": Range(0.0, 1.0)}), seed).plan(trials) for seed in range(5)]
    assert all(plan.skips_rungs and abs(plan.params["x"] - 0.7) < 0.1 for plan in plans if plan.params)
