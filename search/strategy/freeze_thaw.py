"""The planner of `auto`: which paused trial to resume, or which configuration to begin.

It starts with successive halving of evenly spread configurations. It continues with the expected improvement within a
random horizon: by how much each trial would exceed the best value if it were trained for that many more epochs. Short
horizons favour trials that are nearly there, long ones favour new trials. The improvement of the final value alone
would nearly always favour new trials, because they are the most uncertain. The random horizon is that of Rakotoarison
et al., 2024 (ifBO, with the probability of improvement and another model of curves).

Such a search loses trials that look bad early and end well. Therefore, after a few trainings' worth of epochs, new
trials skip the rungs and train to their end. A model of final values alone chooses them, and only those below the
median at a third of their training are paused.
"""

import math

import numpy as np
from scipy.spatial import cKDTree
from threadpoolctl import ThreadpoolController

from binsweep.search.strategy.curve_gp import CurveData, CurveModel
from binsweep.search.strategy.encoding import Points
from binsweep.search.strategy.final_value_gp import FinalValueModel
from binsweep.search.strategy.kernel import log_improvement
from binsweep.search.strategy.planner import Plan
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import PooledTrial, TrialPool, next_promotion

# Phases begin after this many trainings' worth of epochs.
MODEL_FROM = 4.0  # successive halving before, the model of curves from here on
SKIP_RUNGS_FROM = 5.0  # new trials skip the rungs from here on,
MIN_FULL_TRIALS = 3  # if at least this many trials were trained to their end

N_INITIAL = 4  # evenly spread points that the next initial configuration is the cheapest of, if seconds count

MAX_MODEL_TRIALS = 128  # that a model is conditioned on; its time is cubic in them
MAX_BROKEN_TRIALS = 20  # the most recent broken trials that a model is conditioned on
MAX_TAIL_RATIO = 3.0  # values are clipped this many times as far below the median as the best is above it

NEW_TRIAL = -1  # the trial number of a new configuration
N_RANDOM = 200  # new configurations drawn from the whole space
N_NEAR = 200  # new configurations drawn near the best trials
N_PARENTS = 8  # the best trials that new configurations are drawn near
STEP_WIDTHS = (0.1, 0.3)  # standard deviations of the steps from them, relative to a range
MIN_DISTANCE = 0.03  # relative to a range, in at least one dimension; closer configurations count as the same


class FreezeThaw:
    """Implements `Planner` by two Gaussian processes."""

    def __init__(self, times: TrainingTimes, seed: int, max_epochs: int, epochs_name: str) -> None:
        self._encoder, self._times = times.encoder, times
        self._epochs_name = epochs_name
        self._seed, self._max_epochs = seed % 2**32, max_epochs
        self._curves = CurveModel(self._encoder.feature_groups())
        self._final_values = FinalValueModel(self._encoder)
        self._threads = ThreadpoolController()  # kept, because finding the libraries takes 3 ms

    @property
    def hyperparameters(self) -> list[float]:
        """The fitted hyperparameters of both models, to be set again after a restart."""
        models = (self._curves, self._final_values)
        return [float(x) for model in models for x in (model.n_fitted, *model.theta)]

    @hyperparameters.setter
    def hyperparameters(self, hyperparameters: list[float]) -> None:
        for model in (self._curves, self._final_values):
            own, hyperparameters = (
                hyperparameters[: 1 + len(model.theta)],
                hyperparameters[1 + len(model.theta) :],
            )
            if own:  # an earlier version stored the first model only
                model.n_fitted, model.theta = int(own[0]), np.array(own[1:])

    def plan(self, pool: TrialPool) -> Plan | None:
        """What a free worker should do next; None if nothing new can end in the time left."""
        self._times.learn(pool)
        spent = self._trainings(pool)
        if spent >= MODEL_FROM and any(trial.best_at_rung and not trial.broken for trial in pool.trials):
            # Trials occupy all cores: with several BLAS threads, which wait for one, a plan took 2 to 7 times as long.
            with self._threads.limit(limits=1):
                straight = spent >= SKIP_RUNGS_FROM and sum(t.is_full for t in pool.trials) >= MIN_FULL_TRIALS
                full_training = self._plan_full_training(pool) if straight else None
                return full_training or self._plan_by_curves(pool)
        promotion = next_promotion(pool, lambda number: self._times.last_epoch(pool, number) > 0)
        if promotion is not None:
            return Plan(promotion[1], number=promotion[0])
        point = self._initial_point(len(pool.trials))
        if not self._can_end(point[None])[0]:
            others = self._encoder.random(self._generator(pool, pool.running()), N_RANDOM)
            others = others[self._can_end(others)]
            if not len(others):
                return None
            point = others[0]
        return Plan("one of the evenly spread initial configurations", params=self._encoder.params(point))

    def _initial_point(self, number: int) -> np.ndarray:
        """An evenly spread point for the `number`th trial; if seconds count, the cheapest of several, because cheap
        configurations tell as much as costly ones (the cost-effective initial design of Lee et al., 2020)."""
        if not self._times.weighed:
            return self._encoder.sobol_point(self._seed, number)
        points = [self._encoder.sobol_point(self._seed, N_INITIAL * number + i) for i in range(N_INITIAL)]
        return points[int(self._times.of_points(np.array(points)).argmin())]

    def _can_end(self, points: Points) -> np.ndarray:
        """Which new configurations can be trained in the time left, shape [n]."""
        return self._times.last_epochs_of_new(points, self._lengths(points)) > 0

    def _trainings(self, pool: TrialPool) -> float:
        """How many of the longest trainings the epochs so far would be; if seconds count, of a typical configuration's
        by its seconds, where that is more."""
        trainings = pool.epochs / self._max_epochs
        if not self._times.weighed:
            return trainings
        seconds = self._times.of_trials(pool, list(range(len(pool.trials))))
        spent = float(seconds @ np.array([trial.epochs for trial in pool.trials]))
        spent += self._times.start * len(pool.trials)
        return max(trainings, spent / (self._times.start + self._max_epochs * self._times.typical()))

    def _plan_by_curves(self, pool: TrialPool) -> Plan | None:
        """The paused trial or new configuration with the largest expected improvement within a random horizon."""
        running = pool.running()
        rng = self._generator(pool, running)
        shown = [n for n, trial in enumerate(pool.trials) if trial.best_at_rung and not trial.broken]
        known = self._known(shown, pool, rng)
        rows = [(n, epoch, value) for n in known for epoch, value in _curve_points(pool.trials[n])]
        data, top = self._observations(pool, rows, _cost_penalties(known, pool, rng))
        self._curves.refit_if_due(data, sum(len(trial.best_at_rung) for trial in pool.trials))
        pending = _sample_of(running, rng)
        next_rungs = np.array([pool.trials[n].next_rung() for n in pending])
        self._curves.condition(self._with_pending(data, pool, pending, next_rungs))
        horizon = math.exp(rng.random() * math.log(self._max_epochs))
        if self._times.weighed:
            horizon *= self._times.typical()
        paused = [
            n for n in known if pool.trials[n].state == "paused" and self._times.last_epoch(pool, n) > 0
        ]
        avoid = known + pool.broken() + running
        fresh = self._new_points(pool, known, avoid, rng)
        fresh = fresh[self._can_end(fresh)]
        if not paused and not len(fresh):
            return None
        gain = self._gain(pool, paused, fresh, horizon, top)
        chosen = int(gain.argmax())
        of = f"of {len(paused)} paused trials and {len(fresh)} new configurations"
        within = f"{horizon:.3g} s" if self._times.weighed else f"{max(1, round(horizon))} epochs"
        reason = f"largest expected improvement within {within}, {of}"
        if chosen < len(paused):
            return Plan(reason, number=paused[chosen])
        return Plan(reason, params=self._encoder.params(fresh[chosen - len(paused)]))

    def _plan_full_training(self, pool: TrialPool) -> Plan | None:
        """The new configuration with the largest expected improvement of its final value.

        None if all candidates were tried before, as in a small space, or are close to running or broken ones.
        """
        trials, running = pool.trials, pool.running()
        rng = self._generator(pool, running)
        full = [n for n, trial in enumerate(trials) if trial.is_full]
        ended_early = [
            n
            for n, trial in enumerate(trials)
            if trial.skips_rungs and trial.state != "running" and not trial.broken and not trial.is_full
        ]
        behind = [n for n in ended_early if trials[n].value_before_end() is not None]
        known = self._known(full + behind, pool, rng)
        penalties = _cost_penalties(known, pool, rng)
        values = {n: value - penalties.get(n, 0.0) for n, value in _expected_ends(pool, full, known).items()}
        # Trials that ended too early to tell, or broke, count as bad, or they would be proposed again.
        bad = [n for n in ended_early if trials[n].value_before_end() is None] + pool.broken()
        values |= dict.fromkeys(bad[-MAX_BROKEN_TRIALS:], min(values.values()))
        tried, observed = self._points_of(pool, np.array(list(values))), np.array(list(values.values()))
        self._final_values.refit_if_due(tried, observed, len(full + behind))
        skipping = [n for n in running if trials[n].skips_rungs]
        pending = self._points_of(pool, np.array(_sample_of(skipping, rng), int))
        avoid = self._points_of(pool, np.array(running + bad, int))
        for point in self._final_values.best(tried, observed, pending, rng, self._log_cost_of_training):
            params = self._encoder.params(point)
            close = np.abs(avoid - point).max(axis=1) < MIN_DISTANCE
            new = not close.any() and all(trial.params != params for trial in trials)
            if new and self._can_end(point[None])[0]:
                reason = f"largest expected improvement of its final value, by a model of {len(known)} trials"
                return Plan(reason, params=params, skips_rungs=True)
        return None

    def _generator(self, pool: TrialPool, running: list[int]) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(pool.trials), pool.epochs, len(running)])

    def _known(self, shown: list[int], pool: TrialPool, rng: np.random.Generator) -> list[int]:
        """The trials that a model is conditioned on: the best of those given, and a sample of the others."""
        if len(shown) <= MAX_MODEL_TRIALS:
            return shown
        order = np.array(shown)[np.argsort(-pool.best_values()[shown], kind="stable")]
        others = rng.choice(
            order[MAX_MODEL_TRIALS // 2 :], MAX_MODEL_TRIALS - MAX_MODEL_TRIALS // 2, replace=False
        )
        return [int(n) for n in (*order[: MAX_MODEL_TRIALS // 2], *others)]

    def _observations(
        self, pool: TrialPool, rows: list[tuple[int, int, float]], penalties: dict[int, float]
    ) -> tuple[CurveData, float]:
        """Rows of (trial, epoch, value) less the cost penalty, standardised, and the best value on that scale."""
        trials = sorted({n for n, _, _ in rows})
        best = np.array([pool.trials[n].best - penalties.get(n, 0.0) for n in trials])
        ceiling, middle = best.max(), np.median(best)
        unit = 0.2 * (ceiling - middle) + 1e-12 + 1e-9 * abs(ceiling)
        # The distance from the best on a log scale, because order at the top matters more than among bad values.
        values = -np.log1p(
            (ceiling - np.array([value - penalties.get(n, 0.0) for n, _, value in rows])) / unit
        )
        broken = pool.broken()[-MAX_BROKEN_TRIALS:]
        trial = np.array([row[0] for row in rows] + broken)
        lengths = np.array([pool.trials[n].rungs[-1] for n, _, _ in rows])
        progress = self._progress(np.array([epoch for _, epoch, _ in rows]), lengths)
        values = np.concatenate([values, np.full(len(broken), values.min())])
        mean, deviation = values.mean(), values.std() + 1e-9
        x = self._features(pool, trial)
        data = CurveData(
            x, np.concatenate([progress, np.ones(len(broken))]), trial, (values - mean) / deviation
        )
        return data, float(-mean / deviation)

    def _with_pending(
        self, data: CurveData, pool: TrialPool, running: list[int], epochs: np.ndarray
    ) -> CurveData:
        """The data with the predicted values of running trials at those epochs, so that parallel workers do not all do
        the same (the kriging believer of Ginsbourger et al., 2010)."""
        if not running:
            return data
        self._curves.condition(data)
        trial = np.array(running)
        lengths = np.array([pool.trials[n].rungs[-1] for n in running])
        progress = self._progress(epochs, lengths)
        x = self._features(pool, trial)
        mean, _ = self._curves.predict(x, progress, trial)
        return CurveData(
            np.concatenate([data.x, x]),
            np.concatenate([data.progress, progress]),
            np.concatenate([data.trial, trial]),
            np.concatenate([data.y, mean]),
        )

    def _new_points(
        self,
        pool: TrialPool,
        known: list[int],
        avoid: list[int],
        rng: np.random.Generator,
    ) -> Points:
        """New configurations, random ones and some near the best known trials, none close to one to avoid."""
        trial = np.array(known)
        promise, _ = self._curves.predict(self._features(pool, trial), np.ones(len(known)), trial)
        tried = self._points_of(pool, trial)
        ancestors = _distinct(tried[np.argsort(-promise, kind="stable")], N_PARENTS)
        copies = np.repeat(ancestors, N_NEAR // (len(STEP_WIDTHS) * len(ancestors)), axis=0)
        found = [self._encoder.random(rng, N_RANDOM)]
        found += [self._encoder.perturbed(copies, width, rng) for width in STEP_WIDTHS]
        points = np.concatenate(found)
        # The distance is the largest difference in any coordinate.
        apart, _ = cKDTree(self._points_of(pool, np.array(avoid))).query(points, p=np.inf)
        new = points[apart >= MIN_DISTANCE]
        return new if len(new) else points  # a small space may be used up

    def _gain(
        self,
        pool: TrialPool,
        paused: list[int],
        fresh: Points,
        horizon: float,
        top: float,
    ) -> np.ndarray:
        """The log expected improvement of each candidate over the best value, `horizon` seconds or epochs later."""
        trials = [pool.trials[n] for n in paused]
        costs = np.ones(len(paused) + len(fresh))
        if self._times.weighed:
            costs = np.concatenate([self._times.of_trials(pool, paused), self._times.of_points(fresh)])
        further = horizon / costs
        epochs = np.array([trial.epochs for trial in trials] + [0] * len(fresh)) + np.maximum(further, 1.0)
        lengths = np.concatenate([[trial.rungs[-1] for trial in trials], self._lengths(fresh)])
        progress = self._progress(epochs, lengths)
        known = self._features(pool, np.array(paused, int))
        x = np.concatenate([known, self._encoder.features(fresh)])
        trial = np.array(paused + [NEW_TRIAL] * len(fresh))
        mean, deviation = self._curves.predict(x, progress, trial)
        # Where not even one epoch fits, only a share of what it would bring.
        return np.asarray(log_improvement(mean, deviation, top) + np.log(np.minimum(further, 1.0)))

    def _log_cost_of_training(self, points: Points) -> np.ndarray:
        """The logarithm of a whole training's seconds, up to a constant."""
        if not self._times.weighed:
            return np.zeros(len(points))
        return np.asarray(np.log(self._times.start + self._times.of_points(points) * self._lengths(points)))

    def _progress(self, epochs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Logarithmic progress: 0 at one epoch of the longest training, 1 at the training's own end."""
        done = np.log(np.minimum(1.0, epochs / lengths)) / math.log(max(self._max_epochs, 2))
        return np.asarray(np.maximum(0.0, 1 + done))

    def _lengths(self, points: Points) -> np.ndarray:
        """The training length of each configuration, in epochs."""
        if self._epochs_name not in self._encoder.names:
            return np.full(len(points), self._max_epochs)
        return np.array([self._encoder.value(point, self._epochs_name) for point in points])

    def _features(self, pool: TrialPool, trial: np.ndarray) -> np.ndarray:
        return self._encoder.features(self._points_of(pool, trial))

    def _points_of(self, pool: TrialPool, trial: np.ndarray) -> Points:
        return self._times.points_of(pool, trial)


def _sample_of(running: list[int], rng: np.random.Generator) -> list[int]:
    """The running trials whose values are predicted, a sample of them if there are many, to save time."""
    if len(running) <= MAX_MODEL_TRIALS:
        return running
    return [int(n) for n in rng.choice(running, MAX_MODEL_TRIALS, replace=False)]


def _cost_penalties(known: list[int], pool: TrialPool, rng: np.random.Generator) -> dict[int, float]:
    """What to subtract from the values of trials with costs, for a random weight of cost against value.

    Over a search, the weights lead along the whole Pareto front (ParEGO, Knowles, 2006). A third of them are zero.
    """
    costs = {n: pool.trials[n].cost for n in known}
    logs = {n: math.log(cost) for n, cost in costs.items() if cost is not None}
    if not logs:
        return {}
    weight = rng.choice([0.0, rng.random(), rng.random()])
    best = np.array([pool.trials[n].best for n in known])
    low, span = min(logs.values()), max(logs.values()) - min(logs.values()) + 1e-12
    # At equal weights the costliest trial loses the difference between the best value and the median.
    price = weight / (1 - weight) * (best.max() - float(np.median(best))) / span
    return {n: price * (at - low) for n, at in logs.items()}


def _expected_ends(pool: TrialPool, full: list[int], known: list[int]) -> dict[int, float]:
    """The final values of the known trials, clipped below; for those that fell behind, with the median later gain."""
    trials = pool.trials
    # How bad a bad value is says nothing about the best, and as an outlier it would hide the best's surroundings.
    best = pool.best_values()
    seen = best[best > -math.inf]
    median = np.median(seen)
    least = median - MAX_TAIL_RATIO * (seen.max() - median)
    thirds = [(trials[n].best, trials[n].value_before_end()) for n in full]
    gains = [end - third for end, third in thirds if third is not None]
    gain = np.median(gains) if gains else 0.0
    return {n: float(max(trials[n].best + (0.0 if trials[n].is_full else gain), least)) for n in known}


def _curve_points(trial: PooledTrial) -> list[tuple[int, float]]:
    """(epoch, best value so far) at the last rung and halfway there; more rungs add little information."""
    reached = list(trial.best_at_rung.items())
    return [reached[-1]] if len(reached) < 3 else [reached[len(reached) // 2], reached[-1]]


def _distinct(points: Points, count: int) -> Points:
    """The first `count` points that are at least MIN_DISTANCE apart."""
    found: list[np.ndarray] = []
    for point in points:
        if all(np.abs(point - other).max() >= MIN_DISTANCE for other in found):
            found.append(point)
        if len(found) == count:
            break
    return np.array(found)
