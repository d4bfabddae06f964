"""How long trainings take: learnt from few trials, and what of a training fits the time left."""

import math
from typing import Any

import numpy as np
import pytest

from binsweep.search.spec.space import Choice, Range, SearchSpace
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.stopping_rule import Curve
from binsweep.search.strategy.training_times import TrainingTimes, same_cost
from binsweep.search.strategy.trial_pool import TrialPool

SPACE = SearchSpace(
    {
        "trainable": Choice(("head", "all")),
        "batch": Range(16, 256, log=True),
        "lr": Range(1e-4, 1e-1, log=True),
    }
)


def seconds_of(params: dict[str, Any]) -> float:
    """Between 0.1 s for a head and 80 s for a whole backbone; large batches are faster, the learning rate is not."""
    return {"head": 0.1, "all": 80.0}[params["trainable"]] * (16 / params["batch"]) ** 0.3


def measured(encoder: Encoder, count: int, noise: float = 0.05) -> TrialPool:
    rng, pool = np.random.default_rng(1), TrialPool()
    for point in encoder.random(rng, count):
        params = encoder.params(point)
        pool.add(params, Curve(10))
        pool.trials[-1].seconds = seconds_of(params) * math.exp(noise * rng.normal())
    return pool


@pytest.mark.parametrize(("count", "factor"), [(4, 1.6), (12, 1.25)])
def test_few_trials_show_what_others_cost(count: int, factor: float) -> None:
    encoder = Encoder(SPACE)
    times = TrainingTimes(encoder)
    assert not times.is_known
    times.learn(measured(encoder, count))
    assert times.is_known
    points = encoder.random(np.random.default_rng(2), 200)
    true = np.array([seconds_of(encoder.params(point)) for point in points])
    off = np.abs(np.log(times.of_points(points) / true))
    assert np.median(off) < math.log(factor)


def test_a_first_guess_is_right_up_to_a_factor_that_one_trial_shows() -> None:
    encoder = Encoder(SPACE)
    times = TrainingTimes(encoder, lambda params: 7 * seconds_of(params))
    points = encoder.random(np.random.default_rng(2), 50)
    true = np.array([seconds_of(encoder.params(point)) for point in points])
    before = times.of_points(points)
    assert np.allclose(before / before[0], true / true[0])
    times.learn(measured(encoder, 1, noise=0.0))
    assert np.abs(np.log(times.of_points(points) / true)).max() < math.log(2)


def test_a_measured_trial_has_its_own_time_and_an_unknown_one_a_predicted_one() -> None:
    encoder = Encoder(SPACE)
    pool, times = measured(encoder, 8), TrainingTimes(encoder)
    pool.trials[3].seconds = 5000.0  # on a slow worker
    pool.add({"trainable": "head", "batch": 16, "lr": 0.01}, Curve(10))
    times.learn(pool)
    own, predicted = times.of_trials(pool, [3, 8])
    assert own == 5000.0 and 0.01 < predicted < 10


def test_trainings_that_end_in_time_are_shortened_by_half_at_most() -> None:
    encoder = Encoder(SPACE)
    times, pool = TrainingTimes(encoder), measured(encoder, 3)
    done, last, seconds = np.array([0, 0, 0, 8]), np.full(4, 10), np.array([1.0, 7.0, 15.0, 40.0])
    times.seconds_left = 70.0
    assert times.last_epochs(done, last, seconds).tolist() == last.tolist(), "nothing was measured yet"
    times.learn(pool)
    assert times.last_epochs(done, last, seconds).tolist() == [10, 10, 0, 9]
    pool.trials[0].start = 10.0  # a start takes time, too
    times.learn(pool)
    assert times.last_epochs(done, last, seconds).tolist() == [10, 8, 0, 9]
    times.seconds_left = None
    assert times.last_epochs(done, last, seconds).tolist() == last.tolist()


def test_without_a_guess_all_cost_the_same() -> None:
    times = TrainingTimes(Encoder(SPACE), same_cost)
    assert times.typical() == 1.0
    assert set(times.of_points(times.encoder.random(np.random.default_rng(0), 5))) == {1.0}
