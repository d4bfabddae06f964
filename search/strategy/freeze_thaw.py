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
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree
from threadpoolctl import ThreadpoolController

from binsweep.search.strategy.curve_gp import CurveData, CurveModel, distance_unit, log_distances
from binsweep.search.strategy.earlier_sweeps import EarlierSweep, earlier_models
from binsweep.search.strategy.encoding import Points
from binsweep.search.strategy.final_value_gp import FinalValueModel
from binsweep.search.strategy.kernel import log_improvement
from binsweep.search.strategy.lengths import epochs_by_section, progress_of, reached_within, section_of
from binsweep.search.strategy.planner import Plan
from binsweep.search.strategy.prior_mean import rank_weights
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import TrialPool

# Phases begin after this many trainings' worth of epochs.
MODEL_FROM = 4.0  # successive halving before, the model of curves from here on
SKIP_RUNGS_FROM = 5.0  # new trials skip the rungs from here on,
MIN_FULL_TRIALS = 3  # if at least this many trials were trained to their end

# Before the model of curves, with earlier sweeps: every so many-th configuration is the best, by their models,
GUIDED_SHARE = 2
N_GUIDED = 16  # of this many random ones
N_INITIAL = 4  # evenly spread points that the next initial configuration is the cheapest of, if seconds count

MAX_MODEL_TRIALS = 128  # that a model is conditioned on; its time is cubic in them
MAX_BROKEN_TRIALS = 20  # the most recent broken trials that a model is conditioned on
MAX_TAIL_RATIO = 3.0  # values are clipped this many times as far below the median as the best is above it

MIN_NAMED = 1e-6  # smaller expected improvements are not worth a number

NEW_TRIAL = -1  # the trial number of a new configuration
N_RANDOM = 200  # new configurations drawn from the whole space
N_NEAR = 200  # new configurations drawn near the best trials
N_PARENTS = 8  # the best trials that new configurations are drawn near
STEP_WIDTHS = (0.1, 0.3)  # standard deviations of the steps from them, relative to a range
MIN_DISTANCE = 0.03  # relative to a range, in at least one dimension; closer configurations count as the same


class FreezeThaw:
    """Implements `Planner` by two Gaussian processes."""

    def __init__(self, times: TrainingTimes, seed: int) -> None:
        self._encoder, self._times = times.encoder, times
        self._seed, self._longest = seed % 2**32, times.lengths.longest
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

    def use_earlier(self, sweeps: Sequence[EarlierSweep]) -> None:
        """Let earlier sweeps whose values do not count here say where to look first."""
        self._curves.earlier = earlier_models(sweeps, self._encoder)

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
        promotion = self._times.next_promotion(pool)
        if promotion is not None:
            return Plan(promotion[1], number=promotion[0])
        if self._curves.earlier and len(pool.trials) % GUIDED_SHARE == 0:
            guided = self._plan_by_earlier(pool)
            if guided is not None:
                return guided
        point = self._initial_point(len(pool.trials))
        if not self._can_end(point[None])[0]:
            others = self._encoder.random(self._generator(pool, pool.running()), N_RANDOM)
            others = others[self._can_end(others)]
            if not len(others):
                return None
            point = others[0]
        return Plan("one of the evenly spread initial configurations", params=self._encoder.params(point))

    def _plan_by_earlier(self, pool: TrialPool) -> Plan | None:
        """The best of a few random configurations by the models of earlier sweeps that the new trials agree with."""
        reached = [n for n, trial in enumerate(pool.trials) if trial.rungs[0] in trial.best_at_rung]
        values = np.array([pool.trials[n].value_at(0) for n in reached])
        models, shown = self._curves.earlier, self._features(pool, np.array(reached, int))
        weights = rank_weights(models, shown, values)
        points = self._encoder.random(self._generator(pool, pool.running()), N_GUIDED)
        points = points[self._can_end(points)]
        if not len(points) or not weights.any():
            return None
        x = self._encoder.features(points)
        predicted = np.sum([w * model(x) for w, model in zip(weights, models, strict=True)], axis=0)
        reason = f"the best of {len(points)} random configurations by models of earlier sweeps"
        return Plan(reason, params=self._encoder.params(points[predicted.argmax()]))

    def _initial_point(self, number: int) -> np.ndarray:
        """An evenly spread point for the `number`th trial; if seconds count, the cheapest of several, because cheap
        configurations tell as much as costly ones (the cost-effective initial design of Lee et al., 2020)."""
        if not self._times.weighed:
            return self._encoder.sobol_point(self._seed, number)
        points = [self._encoder.sobol_point(self._seed, N_INITIAL * number + i) for i in range(N_INITIAL)]
        costs = self._times.of_points(np.array(points)) @ np.diff([0, *self._longest])
        return points[int(costs.argmin())]

    def _can_end(self, points: Points) -> np.ndarray:
        """Which new configurations can be trained in the time left, shape [n]."""
        return self._times.last_epochs_of_new(points) > 0

    def _trainings(self, pool: TrialPool) -> float:
        """How many of the longest trainings the epochs so far would be; if seconds count, of a typical configuration's
        by its seconds, where that is more."""
        times, numbers = self._times, range(len(pool.trials))
        done = np.array([trial.epochs for trial in pool.trials])
        epochs = epochs_by_section(done, times.ends_of(pool, numbers))
        costs = times.typical_cost()
        training = float(np.diff([0, *self._longest]) @ costs)
        spent = float((times.costs_of_trials(pool, numbers) * epochs).sum()) + times.start_cost * len(epochs)
        return max(float((epochs @ costs).sum()) / training, spent / (times.start_cost + training))

    def _plan_by_curves(self, pool: TrialPool) -> Plan | None:
        """The paused trial or new configuration with the largest expected improvement within a random horizon."""
        running = pool.running()
        rng = self._generator(pool, running)
        shown = [n for n, trial in enumerate(pool.trials) if trial.best_at_rung and not trial.broken]
        known = self._known(shown, pool, rng)
        rows = [(n, epoch, value) for n in known for epoch, value in pool.trials[n].curve_points()]
        data, top, unit = self._observations(pool, rows, _cost_penalties(known, pool, rng))
        self._curves.refit_if_due(data, sum(len(trial.best_at_rung) for trial in pool.trials))
        pending = _sample_of(running, rng)
        self._curves.condition(self._with_pending(data, pool, pending))
        horizon = self._horizon(rng)
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
        about = _amount(math.exp(gain[chosen]) * unit)
        reason = f"largest expected improvement within {within} ({about}), {of}{self._curves.mean}"
        if chosen < len(paused):
            return Plan(reason, number=paused[chosen])
        point = fresh[chosen - len(paused)]
        return Plan(reason + self._seconds_of_training(point), params=self._encoder.params(point))

    def _horizon(self, rng: np.random.Generator) -> float:
        """Log-uniform from one epoch to the longest training of a typical configuration, in its cost."""
        costs = self._times.typical_cost()
        trainings = np.diff([0, *self._longest]) @ (costs / costs[-1])  # in epochs of the last section
        return float(math.exp(rng.random() * math.log(trainings)) * costs[-1])

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
        points, gains = self._final_values.best(tried, observed, pending, rng, self._log_cost_of_training)
        for point, gain in zip(points, gains, strict=True):
            params = self._encoder.params(point)
            close = np.abs(avoid - point).max(axis=1) < MIN_DISTANCE
            new = not close.any() and all(trial.params != params for trial in trials)
            if new and self._can_end(point[None])[0]:
                by = f"by a model of {len(known)} trials{self._seconds_of_training(point)}"
                reason = f"largest expected improvement of its final value ({_amount(gain)}), {by}"
                return Plan(reason, params=params, skips_rungs=True)
        return None

    def _seconds_of_training(self, point: np.ndarray) -> str:
        """What a reason says of a training's seconds, where they are weighed."""
        if not self._times.weighed:
            return ""
        return f"; it takes about {math.exp(self._log_cost_of_training(point[None])[0]):.3g} s"

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
    ) -> tuple[CurveData, float, float]:
        """Rows of (trial, epoch, value) less the cost penalty, standardised; the best value on that scale; and what one
        unit of the scale is in the metric, at the best value."""
        trials = sorted({n for n, _, _ in rows})
        best = np.array([pool.trials[n].best - penalties.get(n, 0.0) for n in trials])
        values = log_distances(np.array([value - penalties.get(n, 0.0) for n, _, value in rows]), best)
        broken = pool.broken()[-MAX_BROKEN_TRIALS:]
        trial = np.array([row[0] for row in rows] + broken)
        ends = self._times.ends_of(pool, [n for n, _, _ in rows])
        progress = progress_of(np.array([epoch for _, epoch, _ in rows]), ends, self._longest)
        values = np.concatenate([values, np.full(len(broken), values.min())])
        mean, deviation = values.mean(), values.std() + 1e-9
        x = self._features(pool, trial)
        data = CurveData(
            x, np.concatenate([progress, np.ones(len(broken))]), trial, (values - mean) / deviation
        )
        return data, float(-mean / deviation), float(deviation * distance_unit(best))

    def _with_pending(self, data: CurveData, pool: TrialPool, running: list[int]) -> CurveData:
        """The data with the predicted values of running trials at their next rungs, so that parallel workers do not all
        do the same (the kriging believer of Ginsbourger et al., 2010)."""
        if not running:
            return data
        self._curves.condition(data)
        trial = np.array(running)
        epochs = np.array([pool.trials[n].next_rung() for n in running])
        progress = progress_of(epochs, self._times.ends_of(pool, running), self._longest)
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
        times = self._times
        done = np.array([pool.trials[n].epochs for n in paused] + [0] * len(fresh))
        ends = np.concatenate([times.ends_of(pool, paused), times.ends_of_new(fresh)])
        costs = np.concatenate([times.costs_of_trials(pool, paused), times.costs_of_points(fresh)])
        epochs = np.maximum(reached_within(done, ends, costs, horizon), done + 1.0)
        known = self._features(pool, np.array(paused, int))
        x = np.concatenate([known, self._encoder.features(fresh)])
        trial = np.array(paused + [NEW_TRIAL] * len(fresh))
        mean, deviation = self._curves.predict(x, progress_of(epochs, ends, self._longest), trial)
        # Where not even one epoch fits, only a share of what it would bring.
        next_epoch = np.take_along_axis(costs, section_of(done, ends)[:, None], axis=1)[:, 0]
        return np.asarray(
            log_improvement(mean, deviation, top) + np.log(np.minimum(horizon / next_epoch, 1.0))
        )

    def _log_cost_of_training(self, points: Points) -> np.ndarray:
        """The logarithm of a whole training's seconds, up to a constant."""
        if not self._times.weighed:
            return np.zeros(len(points))
        lengths = np.diff(self._times.ends_of_new(points), axis=1, prepend=0)
        return np.asarray(np.log(self._times.start + (self._times.of_points(points) * lengths).sum(axis=1)))

    def _features(self, pool: TrialPool, trial: np.ndarray) -> np.ndarray:
        return self._encoder.features(self._points_of(pool, trial))

    def _points_of(self, pool: TrialPool, trial: np.ndarray) -> Points:
        return self._times.points_of(pool, trial)


def _amount(gain: float) -> str:
    """An expected improvement, as reasons name it."""
    return f"about {gain:.2g}" if gain >= MIN_NAMED else "next to nothing"


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


def _distinct(points: Points, count: int) -> Points:
    """The first `count` points that are at least MIN_DISTANCE apart."""
    found: list[np.ndarray] = []
    for point in points:
        if all(np.abs(point - other).max() >= MIN_DISTANCE for other in found):
            found.append(point)
        if len(found) == count:
            break
    return np.array(found)
