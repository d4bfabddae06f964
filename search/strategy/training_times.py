"""How long trainings take, learnt from the trials that were measured, and which of them can end in the time left.

The model is a Gaussian process of the logarithm of an epoch's seconds, because costs differ by factors: a first guess,
an unknown factor (the machine's speed), a linear trend and a smooth rest. Its hyperparameters are fixed: times are
nearly free of noise, so that what a few trials show is believed at once (compare Lee et al., 2020, whose cost models
are linear in few features).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from binsweep.search.strategy.encoding import Encoder, Points
from binsweep.search.strategy.kernel import cholesky_factor, matern
from binsweep.search.strategy.lengths import TrainingLengths, epochs_by_section, reached_within
from binsweep.search.strategy.trial_pool import TrialPool, next_climb, next_promotion, training_rungs

FACTOR_VARIANCE = 100.0  # of the logarithm of the machine's factor: unknown
TREND_VARIANCE = 4.0  # of a linear effect over a whole range, or of another choice
REST_VARIANCE, REST_SCALE = 0.25, 1.0
NOISE_VARIANCE = 0.01  # measured epochs differ by some 10 %
MAX_MEASURED = (
    256  # the most recent measured trials that the model is conditioned on; its time is cubic in them
)
MAX_STARTS = 32  # the most recent ones, of which a start is expected to take the median
MIN_SHARE = 0.5  # of a training: a result of less would say too little
# Above this standard deviation of a logarithm a time is not known: it may be less by the factor e to the power of so
# many deviations. A first guess can be that wrong: on few photos, an epoch of a head is mostly overhead.
MAX_KNOWN_DEVIATION, N_DEVIATIONS = 1.0, 2.0
MIN_PROMOTED, MAX_PROMOTED = 1 / 6, 1 / 1.5  # shares that go on from a rung
N_TYPICAL = 256  # random configurations, whose median is the typical cost


class _Timed(NamedTuple):
    """An epoch's seconds in a section of a configuration, with the first guesses of all sections as logarithms [L]."""

    point: np.ndarray
    guesses: np.ndarray
    section: int
    seconds: float


# The first guess of an epoch's seconds, by the parameters and the index of the section.
FirstGuess = Callable[[Mapping[str, Any], int], float]


def same_cost(params: Mapping[str, Any], section: int = 0) -> float:
    """The first guess where nothing is known: all epochs cost the same."""
    return 1.0


class TrainingTimes:
    """Predicts the seconds of epochs in each section of trainings. `first_guess` need only be right up to a factor.

    `seconds_left` is the time that trials may still train, None without a limit. With `weigh`, a search counts what it
    spends in seconds; else in epochs (of several sections, by what they typically cost in the first guess), and the
    measured times, which differ from run to run, change its choices only where the time is nearly over. `influence`
    says how much a parameter may change the seconds of an epoch, from 0, not at all, to 1, anyhow, as of those that it
    does not name.
    """

    def __init__(
        self,
        encoder: Encoder,
        lengths: TrainingLengths,
        first_guess: FirstGuess = same_cost,
        weigh: bool = True,
        influence: Mapping[str, float] | None = None,
    ) -> None:
        self.encoder, self.lengths, self._first_guess = encoder, lengths, first_guess
        self.n_sections = len(lengths.sections)
        self._points: list[np.ndarray] = []  # by trial
        self._guesses: list[np.ndarray] = []  # by trial, logarithms [L]
        self._typical = encoder.random(np.random.default_rng(0), N_TYPICAL)
        self._typical_guesses = self._log_guesses(self._typical)
        relative = np.exp(np.median(self._typical_guesses, axis=0))
        self._relative = relative / relative[-1]
        self._weigh = weigh
        groups = encoder.feature_groups()
        shares = [(influence or {}).get(name, 1.0) for name in encoder.names]
        self._influence = np.array([shares[group] for group in groups])
        self.seconds_left: float | None = None
        # The seconds that trials may train from the sweep's beginning to its end.
        self.whole_budget = math.inf
        self._tried: _Timed | None = None
        self.start = 0.0  # seconds from handing a trial to a worker to its first epoch
        self._measured: list[tuple[int, int, float]] = []  # trial, section, seconds
        self._is_conditioned = False  # on what was measured; only predictions need it
        self._x, self._factor, self._weights = np.empty((0, 0)), np.empty((0, 0)), np.empty(0)

    def learn(self, pool: TrialPool) -> None:
        """Take in what the trials of a pool have shown until now."""
        self._take_new(pool)
        # Of each section the most recent ones: few trials get to the last one, and none of them may be among the most
        # recent of all.
        known: list[tuple[int, int, float]] = []
        for section in range(self.n_sections):
            of_section = [
                (n, section, trial.seconds[section])
                for n, trial in enumerate(pool.trials)
                if section in trial.seconds
            ]
            known += of_section[-(MAX_MEASURED // self.n_sections) :]
        starts = [trial.start for trial in pool.trials if trial.start is not None]
        self.start = float(np.median(starts[-MAX_STARTS:])) if starts else 0.0
        if known != self._measured:
            self._measured, self._is_conditioned = known, False

    def assume(self, params: Mapping[str, Any], section: int, seconds: float) -> None:
        """Take an epoch of this configuration to last so long, until one of a trial was measured."""
        self._tried = _Timed(self.encoder.point(params), self._log_guesses_of(params), section, seconds)
        self._is_conditioned = False

    def _condition(self) -> None:
        self._is_conditioned = True
        known = [
            _Timed(self._points[n], self._guesses[n], section, took) for n, section, took in self._measured
        ]
        if not known and self._tried is not None:
            known = [self._tried]
        self._x = self._features(
            np.array([one.point for one in known]), np.array([one.section for one in known])
        )
        rest = np.array([math.log(one.seconds) - one.guesses[one.section] for one in known])
        self._factor = cholesky_factor(_kernel(self._x, self._x), NOISE_VARIANCE)
        self._weights = cho_solve((self._factor, True), rest, check_finite=False)

    def _features(self, points: Points, sections: np.ndarray) -> np.ndarray:
        """What the seconds of an epoch depend on: the configuration and, if there are several, the section [n]."""
        features: np.ndarray = 0.5 + (self.encoder.features(points) - 0.5) * self._influence
        if self.n_sections == 1:
            return features
        return np.concatenate([features, np.eye(self.n_sections)[sections] / math.sqrt(2)], axis=1)

    def points_of(self, pool: TrialPool, numbers: Sequence[int] | np.ndarray) -> Points:
        """The points of these trials, each of which is encoded once."""
        self._take_new(pool)
        points = np.array([self._points[n] for n in numbers])
        return points.reshape(len(numbers), len(self.encoder.names))

    def ends_of(self, pool: TrialPool, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """The ends of the sections of these trials, shape [n, L]."""
        return np.array([pool.trials[n].ends for n in numbers], int).reshape(len(numbers), self.n_sections)

    def ends_of_new(self, points: Points) -> np.ndarray:
        """The ends of the sections of new configurations, shape [n, L]."""
        name, own = self.lengths.epochs_name, np.full(len(points), self.lengths.max_epochs)
        if name in self.encoder.names:
            own = np.array([self.encoder.value(point, name) for point in points], int)
        columns = [own if fixed is None else np.full(len(points), fixed) for fixed in self.lengths.sections]
        return np.cumsum(np.stack(columns, axis=1), axis=1)

    def _take_new(self, pool: TrialPool) -> None:
        for trial in pool.trials[len(self._points) :]:
            self._points.append(self.encoder.point(trial.params))
            self._guesses.append(self._log_guesses_of(trial.params))

    @property
    def is_known(self) -> bool:
        """Whether any epoch was measured, or tried; without, predictions are right up to a factor only."""
        return bool(self._measured) or self._tried is not None

    def typical(self) -> np.ndarray:
        """The predicted seconds of an epoch of the median configuration of the space, in each section [L]."""
        return np.asarray(np.exp(np.median(self._log_costs(self._typical, self._typical_guesses), axis=0)))

    def of_points(self, points: Points, at_least: bool = False) -> np.ndarray:
        """The predicted seconds of an epoch at each point, in each section; shape [n, L].

        With `at_least` they are those that count against the time left. If a mere guess kept all trials from what
        nobody has tried, its time would never be learnt.
        """
        return np.asarray(np.exp(self._log_costs(points, self._log_guesses(points), at_least)))

    def of_trials(self, pool: TrialPool, numbers: Sequence[int], at_least: bool = False) -> np.ndarray:
        """The seconds of an epoch of these trials in each section, measured or else as `of_points`; shape [n, L]."""
        self._take_new(pool)
        sections = range(self.n_sections)
        measured = [[pool.trials[n].seconds.get(section, math.nan) for section in sections] for n in numbers]
        seconds = np.array(measured).reshape(len(numbers), self.n_sections)
        if (missing := np.flatnonzero(np.isnan(seconds).any(axis=1))).size:
            which = [numbers[int(i)] for i in missing]
            guesses = np.array([self._guesses[n] for n in which])
            predicted = np.exp(self._log_costs(self.points_of(pool, which), guesses, at_least))
            seconds[missing] = np.where(np.isnan(seconds[missing]), predicted, seconds[missing])
        return seconds

    @property
    def _is_limited(self) -> bool:
        return self.seconds_left is not None and self.is_known

    @property
    def weighed(self) -> bool:
        """Whether choices weigh what is gained against seconds."""
        return self._weigh and self.is_known

    @property
    def start_cost(self) -> float:
        """What the start of a trial counts, in what `typical_cost` counts."""
        return self.start if self.weighed else 0.0

    def typical_cost(self) -> np.ndarray:
        """What an epoch of a typical configuration counts in each section [L]: seconds, or else parts of an epoch of
        the last one."""
        return self.typical() if self.weighed else self._relative

    def costs_of_points(self, points: Points) -> np.ndarray:
        """What an epoch at each point counts, shape [n, L]."""
        return self.of_points(points) if self.weighed else np.tile(self._relative, (len(points), 1))

    def costs_of_trials(self, pool: TrialPool, numbers: Sequence[int]) -> np.ndarray:
        """What an epoch of these trials counts, shape [n, L]."""
        return self.of_trials(pool, numbers) if self.weighed else np.tile(self._relative, (len(numbers), 1))

    def _promotion_shares(self) -> list[float]:
        """The share of the trials at each rung that goes on to the next one, so that about as much time is spent
        between any two rungs."""
        longest = np.array([self.lengths.longest])
        rungs = training_rungs(self.lengths.longest)
        work = epochs_by_section(np.array([0, *rungs]), np.repeat(longest, len(rungs) + 1, axis=0))
        costs = np.diff(work @ self.typical_cost()) + self.start_cost
        return [float(np.clip(a / b, MIN_PROMOTED, MAX_PROMOTED)) for a, b in pairwise(costs)]

    def next_promotion(self, pool: TrialPool) -> tuple[int, str] | None:
        """What successive halving resumes of the trials that can end in the time left, and why; None for nothing."""

        def can_end(number: int) -> bool:
            return self.last_epoch(pool, number) > 0

        if self.n_sections == 1:
            return next_promotion(pool, can_end)
        return next_climb(pool, self._promotion_shares(), can_end)

    def last_epochs(
        self, done: np.ndarray, ends: np.ndarray, seconds: np.ndarray, min_share: float = MIN_SHARE
    ) -> np.ndarray:
        """The epoch that trainings can get to in the time left, from `done` [n] towards the last of `ends` [n, L]; 0
        where it is less than `min_share` of a training's seconds, or of the whole budget's, if that is shorter than a
        training. `seconds` [n, L] are those of an epoch. Before any epoch was measured, it is at least the next one."""
        if self.seconds_left is None or not self.is_known:
            return np.asarray(ends[:, -1])
        reached = reached_within(done, ends, seconds, max(0.0, self.seconds_left - self.start), whole=True)
        if not self._measured:
            # What was tried says how long trainings may be, and not that there shall be none.
            return np.asarray(np.maximum(reached, done + 1).astype(int))
        work, whole = ((epochs_by_section(at, ends) * seconds).sum(axis=1) for at in (reached, ends[:, -1]))
        enough = (reached > done) & (work >= min_share * np.minimum(whole, self.whole_budget))
        return np.asarray(np.where(enough, reached, 0).astype(int))

    def reachable_by_new(self, params: Mapping[str, Any], min_share: float = MIN_SHARE) -> int:
        """The epoch that a new trial can get to in the time left, 0 if that is too little of its training."""
        return int(self.last_epochs_of_new(self.encoder.point(params)[None], min_share)[0])

    def reachable(self, pool: TrialPool, number: int, seconds: float) -> int:
        """The last epoch that a running trial gets to within so many seconds."""
        done, ends = np.array([pool.trials[number].epochs]), self.ends_of(pool, [number])
        costs = self.of_trials(pool, [number], at_least=True)
        return int(reached_within(done, ends, costs, max(0.0, seconds), whole=True)[0])

    @property
    def fits_typical(self) -> bool:
        """Whether enough of the longest training of a typical configuration fits into the time left."""
        costs = self._log_costs(self._typical, self._typical_guesses, at_least=True)
        longest, seconds = np.array([self.lengths.longest]), np.exp(np.median(costs, axis=0))[None]
        return bool(self.last_epochs(np.array([0]), longest, seconds)[0])

    def typical_training(self) -> float | None:
        """The seconds of the longest training of a typical configuration; None if nothing was measured yet."""
        lengths = np.diff([0, *self.lengths.longest])
        return float(lengths @ self.typical()) if self.is_known else None

    def seconds_to_end(self, pool: TrialPool, number: int, done: int) -> float | None:
        """The seconds of a trial from epoch `done` to its end, at least; None if nothing was measured yet."""
        if not (self.is_known or pool.trials[number].seconds):
            return None
        ends = self.ends_of(pool, [number])
        todo = epochs_by_section(ends[:, -1], ends) - epochs_by_section(np.array([done]), ends)
        return float((todo * self.of_trials(pool, [number], at_least=True)).sum())

    def last_epoch(self, pool: TrialPool, number: int) -> int:
        """The epoch that a trial can get to in the time left, 0 if that is too little of its training."""
        trial = pool.trials[number]
        if not self._is_limited:
            return trial.rungs[-1]
        done, ends = np.array([trial.epochs]), np.array([trial.ends])
        return int(self.last_epochs(done, ends, self.of_trials(pool, [number], at_least=True))[0])

    def last_epochs_of_new(self, points: Points, min_share: float = MIN_SHARE) -> np.ndarray:
        """The epoch that new configurations can get to in the time left, 0 where it is less than `min_share` of their
        trainings; shape [n]."""
        ends = self.ends_of_new(points)
        if not self._is_limited:  # predictions for hundreds of candidates would slow each plan down
            return np.asarray(ends[:, -1])
        seconds = self.of_points(points, at_least=True)
        return self.last_epochs(np.zeros(len(points)), ends, seconds, min_share)

    def _log_costs(self, points: Points, guesses: np.ndarray, at_least: bool = False) -> np.ndarray:
        """Shape [n, L], by first guesses of this shape; with `at_least` what is not known counts as little as it may
        take."""
        if not self.is_known:
            return guesses
        if not self._is_conditioned:
            self._condition()
        columns = []
        for section in range(self.n_sections):
            x = self._features(points, np.full(len(points), section))
            shared = _kernel(x, self._x)
            column = shared @ self._weights
            if at_least:
                known = solve_triangular(self._factor, shared.T, lower=True, check_finite=False)
                variance = np.maximum(0.0, _variance(x) - (known**2).sum(axis=0))
                deviation = np.sqrt(variance)
                column -= np.where(deviation > MAX_KNOWN_DEVIATION, N_DEVIATIONS * deviation, 0.0)
            columns.append(column)
        return np.asarray(guesses + np.stack(columns, axis=1))

    def _log_guesses(self, points: Points) -> np.ndarray:
        if self._first_guess is same_cost:
            return np.zeros((len(points), self.n_sections))
        guesses = [self._log_guesses_of(self.encoder.params(point)) for point in points]
        return np.array(guesses).reshape(len(points), self.n_sections)

    def _log_guesses_of(self, params: Mapping[str, Any]) -> np.ndarray:
        return np.log([self._first_guess(params, section) for section in range(self.n_sections)])


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    trend = TREND_VARIANCE * ((a - 0.5) @ (b - 0.5).T)
    rest = REST_VARIANCE * matern(a, b, np.full(a.shape[1], REST_SCALE))
    return np.asarray(FACTOR_VARIANCE + trend + rest)


def _variance(x: np.ndarray) -> np.ndarray:
    """The kernel's diagonal, shape [n]."""
    return np.asarray(FACTOR_VARIANCE + TREND_VARIANCE * ((x - 0.5) ** 2).sum(axis=1) + REST_VARIANCE)
