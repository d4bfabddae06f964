"""How long trainings take: learnt from few trials, and what of a training fits the time left."""

import math
from typing import Any

import numpy as np
import pytest

from binsweep.models.training_work import INFLUENCE
from binsweep.search.spec.space import Choice, Range, SearchSpace
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.lengths import (
    TrainingLengths,
    epochs_by_section,
    progress_of,
    reached_within,
    section_of,
)
from binsweep.search.strategy.stopping_rule import Curve
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import TrialPool

LENGTHS = TrainingLengths(10)
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
        pool.trials[-1].seconds = {0: seconds_of(params) * math.exp(noise * rng.normal())}
    return pool


@pytest.mark.parametrize(("count", "factor"), [(4, 1.6), (12, 1.25)])
def test_few_trials_show_what_others_cost(count: int, factor: float) -> None:
    encoder = Encoder(SPACE)
    times = TrainingTimes(encoder, LENGTHS)
    assert not times.is_known
    times.learn(measured(encoder, count))
    assert times.is_known
    points = encoder.random(np.random.default_rng(2), 200)
    true = np.array([seconds_of(encoder.params(point)) for point in points])
    off = np.abs(np.log(times.of_points(points)[:, 0] / true))
    assert np.median(off) < math.log(factor)


def test_a_first_guess_is_right_up_to_a_factor_that_one_trial_shows() -> None:
    encoder = Encoder(SPACE)
    times = TrainingTimes(encoder, LENGTHS, lambda params, section: 7 * seconds_of(params))
    points = encoder.random(np.random.default_rng(2), 50)
    true = np.array([seconds_of(encoder.params(point)) for point in points])
    before = times.of_points(points)[:, 0]
    assert np.allclose(before / before[0], true / true[0])
    times.learn(measured(encoder, 1, noise=0.0))
    assert np.abs(np.log(times.of_points(points)[:, 0] / true)).max() < math.log(2)


def test_what_changes_no_seconds_is_known_of_every_configuration() -> None:
    """One measured trial of a sweep over rates alone says whether any other can end in time."""
    space = SearchSpace({"lr": Range(1e-4, 1e-1, log=True), "batch_size": Choice((32, 64))})
    encoder, pool = Encoder(space), TrialPool()
    pool.add({"lr": 1e-3, "batch_size": 32}, Curve(10))
    pool.trials[-1].seconds = {0: 100.0}
    told = {}
    for name, influence in {"as photos": INFLUENCE, "as own code": None}.items():
        times = TrainingTimes(encoder, LENGTHS, influence=influence)
        times.learn(pool)
        times.seconds_left = 400.0
        told[name] = times.fits_typical
    assert told == {"as photos": False, "as own code": True}


def test_an_epoch_that_was_tried_counts_until_one_was_measured() -> None:
    encoder = Encoder(SPACE)
    times = TrainingTimes(encoder, LENGTHS, lambda params, section: seconds_of(params))
    slow = {"trainable": "all", "batch": 16, "lr": 0.01}
    times.assume(slow, 0, 3 * seconds_of(slow))
    assert times.is_known
    points = encoder.random(np.random.default_rng(2), 50)
    true = np.array([seconds_of(encoder.params(point)) for point in points])
    assert np.median(np.abs(np.log(times.of_points(points)[:, 0] / true / 3))) < math.log(1.1)
    times.learn(measured(encoder, 1, noise=0.0))
    assert np.median(np.abs(np.log(times.of_points(points)[:, 0] / true))) < math.log(1.1)


def test_what_was_tried_shortens_trainings_and_forbids_none() -> None:
    encoder = Encoder(SPACE)
    times = TrainingTimes(encoder, LENGTHS)
    times.assume({"trainable": "all", "batch": 16, "lr": 0.01}, 0, 60.0)
    ends, seconds = np.array([[10]]), np.array([[60.0]])
    found = []
    for left in (1000.0, 200.0, 20.0):
        times.seconds_left = times.whole_budget = left
        found += times.last_epochs(np.array([0]), ends, seconds).tolist()
        assert times.fits_typical
    assert found == [10, 3, 1]


def test_a_budget_that_is_shorter_than_a_training_is_used_all_the_same() -> None:
    times = TrainingTimes(Encoder(SPACE), LENGTHS)
    times.learn(measured(times.encoder, 1))
    done, last, seconds = np.array([0]), np.array([[10]]), np.array([[100.0]])
    found = []
    for left in (300.0, 200.0, 110.0):
        times.seconds_left, times.whole_budget = left, 300.0
        found += times.last_epochs(done, last, seconds).tolist()
    assert found == [3, 2, 0], "half of what the budget has is enough, less is not"


def test_a_measured_trial_has_its_own_time_and_an_unknown_one_a_predicted_one() -> None:
    encoder = Encoder(SPACE)
    pool, times = measured(encoder, 8), TrainingTimes(encoder, LENGTHS)
    pool.trials[3].seconds = {0: 5000.0}  # on a slow worker
    pool.add({"trainable": "head", "batch": 16, "lr": 0.01}, Curve(10))
    times.learn(pool)
    own, predicted = times.of_trials(pool, [3, 8])[:, 0]
    assert own == 5000.0 and 0.01 < predicted < 10


def test_trainings_that_end_in_time_are_shortened_by_half_at_most() -> None:
    encoder = Encoder(SPACE)
    times, pool = TrainingTimes(encoder, LENGTHS), measured(encoder, 3)
    done, last = np.array([0, 0, 0, 8]), np.full((4, 1), 10)
    seconds = np.array([1.0, 7.0, 15.0, 40.0])[:, None]
    times.seconds_left = 70.0
    assert times.last_epochs(done, last, seconds).tolist() == [10, 10, 10, 10], "nothing was measured yet"
    times.learn(pool)
    assert times.last_epochs(done, last, seconds).tolist() == [10, 10, 0, 9]
    pool.trials[0].start = 10.0  # a start takes time, too
    times.learn(pool)
    assert times.last_epochs(done, last, seconds).tolist() == [10, 8, 0, 9]
    times.seconds_left = None
    assert times.last_epochs(done, last, seconds).tolist() == [10, 10, 10, 10]


def test_without_a_guess_all_cost_the_same() -> None:
    times = TrainingTimes(Encoder(SPACE), LENGTHS)
    assert times.typical().tolist() == [1.0]
    assert set(times.of_points(times.encoder.random(np.random.default_rng(0), 5)).flat) == {1.0}


ENDS = np.array([[20, 25, 30], [20, 25, 30], [20, 23, 23]])  # the last one was shortened
SECONDS = np.tile([1.0, 10.0, 100.0], (3, 1))


def test_a_given_time_leads_through_sections_of_different_cost() -> None:
    done = np.array([0, 22, 22])
    assert section_of(done, ENDS).tolist() == [0, 1, 1]
    assert section_of(np.array([20, 25, 23]), ENDS).tolist() == [1, 2, 2]
    assert epochs_by_section(done, ENDS).tolist() == [[0, 0, 0], [20, 2, 0], [20, 2, 0]]
    assert reached_within(done, ENDS, SECONDS, 45.0).tolist() == [22.5, 25.15, 23.0]
    assert reached_within(done, ENDS, SECONDS, 45.0, whole=True).tolist() == [22.0, 25.0, 23.0]
    assert reached_within(done, ENDS, SECONDS, 1e9).tolist() == [30.0, 30.0, 23.0]


def test_sections_count_equally_in_the_progress_of_a_training() -> None:
    at = [progress_of(np.full(3, epoch), ENDS, [20, 25, 30]) for epoch in (20, 23, 30)]
    assert np.allclose(at[0], 1 / 3)
    assert at[1][0] == pytest.approx(1 / 3 + (1 + math.log(3 / 5) / math.log(5)) / 3)
    assert at[1][2] == pytest.approx(2 / 3), "its second section has ended"
    assert np.allclose(at[2], [1, 1, 2 / 3]), "without its last section a training is not complete"


def test_times_of_each_section_are_learnt_from_those_that_were_measured() -> None:
    encoder = Encoder(SPACE)
    lengths = TrainingLengths(5, sections=(20, None, None))
    guess = {0: 1.0, 1: 8.0, 2: 50.0}
    times = TrainingTimes(encoder, lengths, lambda params, section: guess[section])
    pool, rng = TrialPool(), np.random.default_rng(1)
    for point in encoder.random(rng, 12):
        params = encoder.params(point)
        pool.add(params, Curve(30), ends=lengths.ends(params))
        pool.trials[-1].seconds = {0: 2.0 * seconds_of(params), 1: 20.0 * seconds_of(params)}
    times.learn(pool)
    points = encoder.random(np.random.default_rng(2), 50)
    true = np.array([seconds_of(encoder.params(point)) for point in points])
    found = times.of_points(points)
    assert times.of_points(points[:0]).shape == (0, 3)
    for section, factor in enumerate((2.0, 20.0)):
        assert np.median(np.abs(np.log(found[:, section] / true / factor))) < math.log(1.4)
    # Nothing is known of the last section but that the first guess is off by a factor.
    assert np.all(found[:, 2] > found[:, 1])
    assert times.of_trials(pool, [0])[0, 1] == 20.0 * seconds_of(pool.trials[0].params)
    shares = times._promotion_shares()
    assert len(shares) == 4 and 0.3 < shares[0] < 0.5, "as much time for each of them"


def test_half_of_a_training_in_sections_is_half_of_its_seconds() -> None:
    encoder = Encoder(SPACE)
    lengths = TrainingLengths(5, sections=(20, None))
    times, pool = TrainingTimes(encoder, lengths), measured(encoder, 3)
    times.learn(pool)
    ends, seconds = np.array([[20, 25]]), np.array([[0.1, 100.0]])
    found = []
    for left in (200.0, 260.0, 1000.0):
        times.seconds_left = left
        found += times.last_epochs(np.array([0]), ends, seconds).tolist()
    assert found == [0, 0, 25], "twenty cheap epochs are not half of a training"
    times.seconds_left = 310.0
    assert times.last_epochs(np.array([0]), ends, seconds).tolist() == [23]
