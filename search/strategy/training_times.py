"""How long trainings take, learnt from the trials that were measured, and which of them can end in the time left.

The model is a Gaussian process of the logarithm of an epoch's seconds, because costs differ by factors: a first guess,
an unknown factor (the machine's speed), a linear trend and a smooth rest. Its hyperparameters are fixed: times are
nearly free of noise, so that what a few trials show is believed at once (compare Lee et al., 2020, whose cost models
are linear in few features).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import cho_solve

from binsweep.search.strategy.encoding import Encoder, Points
from binsweep.search.strategy.kernel import cholesky_factor, matern
from binsweep.search.strategy.trial_pool import TrialPool

FACTOR_VARIANCE = 100.0  # of the logarithm of the machine's factor: unknown
TREND_VARIANCE = 4.0  # of a linear effect over a whole range, or of another choice
REST_VARIANCE, REST_SCALE = 0.25, 1.0
NOISE_VARIANCE = 0.01  # measured epochs differ by some 10 %
MAX_MEASURED = (
    256  # the most recent measured trials that the model is conditioned on; its time is cubic in them
)
MAX_STARTS = 32  # the most recent ones, of which a start is expected to take the median
MIN_SHARE = 0.5  # of a training: a result of less would say too little
N_TYPICAL = 256  # random configurations, whose median is the typical cost

FirstGuess = Callable[[Mapping[str, Any]], float]


def same_cost(params: Mapping[str, Any]) -> float:
    """The first guess where nothing is known: all epochs cost the same."""
    return 1.0


class TrainingTimes:
    """Predicts the seconds of epochs. `first_guess` need only be right up to a factor.

    `seconds_left` is the time that trials may still train, None without a limit. With `weigh`, a search counts what it
    spends in seconds; else in epochs, and the measured times, which differ from run to run, change its choices only
    where the time is nearly over.
    """

    def __init__(self, encoder: Encoder, first_guess: FirstGuess = same_cost, weigh: bool = True) -> None:
        self.encoder, self._first_guess = encoder, first_guess
        self._points: list[np.ndarray] = []  # by trial
        self._guesses: list[float] = []  # by trial, logarithms
        typical = encoder.random(np.random.default_rng(0), N_TYPICAL)
        self._typical = (encoder.features(typical), self._log_guesses(typical))
        self._weigh = weigh
        self.seconds_left: float | None = None
        self.start = 0.0  # seconds from handing a trial to a worker to its first epoch
        self._measured: list[tuple[int, float]] = []
        self._is_conditioned = False  # on what was measured; only predictions need it
        self._x, self._weights = np.empty((0, 0)), np.empty(0)

    def learn(self, pool: TrialPool) -> None:
        """Take in what the trials of a pool have shown until now."""
        self._take_new(pool)
        known = [(n, trial.seconds) for n, trial in enumerate(pool.trials) if trial.seconds is not None]
        starts = [trial.start for trial in pool.trials if trial.start is not None]
        self.start = float(np.median(starts[-MAX_STARTS:])) if starts else 0.0
        if known[-MAX_MEASURED:] != self._measured:
            self._measured, self._is_conditioned = known[-MAX_MEASURED:], False

    def _condition(self) -> None:
        self._is_conditioned = True
        numbers = [number for number, _ in self._measured]
        self._x = self.encoder.features(np.array([self._points[n] for n in numbers]))
        rest = np.log([seconds for _, seconds in self._measured]) - np.array(self._guesses)[numbers]
        factor = cholesky_factor(_kernel(self._x, self._x), NOISE_VARIANCE)
        self._weights = cho_solve((factor, True), rest, check_finite=False)

    def points_of(self, pool: TrialPool, numbers: Sequence[int] | np.ndarray) -> Points:
        """The points of these trials, each of which is encoded once."""
        self._take_new(pool)
        points = np.array([self._points[n] for n in numbers])
        return points.reshape(len(numbers), len(self.encoder.names))

    def _take_new(self, pool: TrialPool) -> None:
        for trial in pool.trials[len(self._points) :]:
            self._points.append(self.encoder.point(trial.params))
            self._guesses.append(math.log(self._first_guess(trial.params)))

    @property
    def is_known(self) -> bool:
        """Whether any epoch was measured; without, predictions are right up to a factor only."""
        return bool(self._measured)

    def typical(self) -> float:
        """The predicted seconds of an epoch of the median configuration of the space."""
        return float(np.exp(np.median(self._log_costs(*self._typical))))

    def of_points(self, points: Points) -> np.ndarray:
        """The predicted seconds of an epoch at each point, shape [n]."""
        return np.asarray(np.exp(self._log_costs(self.encoder.features(points), self._log_guesses(points))))

    def of_trials(self, pool: TrialPool, numbers: list[int]) -> np.ndarray:
        """The seconds of an epoch of these trials, measured or else predicted, shape [n]."""
        self._take_new(pool)
        seconds = np.array([pool.trials[n].seconds or math.nan for n in numbers])
        if (missing := np.flatnonzero(np.isnan(seconds))).size:
            which = [numbers[i] for i in missing]
            x = self.encoder.features(self.points_of(pool, which))
            seconds[missing] = np.exp(self._log_costs(x, np.array(self._guesses)[which]))
        return seconds

    @property
    def _is_limited(self) -> bool:
        return self.seconds_left is not None and self.is_known

    @property
    def weighed(self) -> bool:
        """Whether choices weigh what is gained against seconds."""
        return self._weigh and self.is_known

    def last_epochs(
        self, done: np.ndarray, last: np.ndarray, seconds: np.ndarray, min_share: float = MIN_SHARE
    ) -> np.ndarray:
        """The epoch that trainings can get to in the time left, from `done` towards `last`; 0 where it is less than
        `min_share` of a training. `seconds` are those of an epoch; all have shape [n]."""
        if self.seconds_left is None or not self.is_known:
            return last
        further = np.floor(max(0.0, self.seconds_left - self.start) / seconds)
        reached = np.minimum(last, done + further)
        enough = (reached > done) & (reached >= min_share * last)
        return np.asarray(np.where(enough, reached, 0).astype(int))

    def last_epoch(self, pool: TrialPool, number: int) -> int:
        """The epoch that a trial can get to in the time left, 0 if that is too little of its training."""
        trial = pool.trials[number]
        if not self._is_limited:
            return trial.rungs[-1]
        done, last = np.array([trial.epochs]), np.array([trial.rungs[-1]])
        return int(self.last_epochs(done, last, self.of_trials(pool, [number]))[0])

    def last_epochs_of_new(
        self, points: Points, lengths: np.ndarray, min_share: float = MIN_SHARE
    ) -> np.ndarray:
        """The epoch that new configurations with trainings of these lengths can get to in the time left, 0 where it is
        less than `min_share` of them; shape [n]."""
        if not self._is_limited:  # predictions for hundreds of candidates would slow each plan down
            return lengths
        return self.last_epochs(np.zeros(len(points)), lengths, self.of_points(points), min_share)

    def _log_costs(self, x: np.ndarray, guesses: np.ndarray) -> np.ndarray:
        if not self._measured:
            return guesses
        if not self._is_conditioned:
            self._condition()
        return np.asarray(guesses + _kernel(x, self._x) @ self._weights)

    def _log_guesses(self, points: Points) -> np.ndarray:
        if self._first_guess is same_cost:
            return np.zeros(len(points))
        return np.array([math.log(self._first_guess(self.encoder.params(point))) for point in points])


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    trend = TREND_VARIANCE * ((a - 0.5) @ (b - 0.5).T)
    rest = REST_VARIANCE * matern(a, b, np.full(a.shape[1], REST_SCALE))
    return np.asarray(FACTOR_VARIANCE + trend + rest)
