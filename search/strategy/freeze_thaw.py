"""The strategy `auto`: which paused trial to go on with, or which configuration to begin.

It starts by halving evenly spread configurations, and goes on with expected improvement at a horizon drawn at
random: how far beyond the best value each trial would come if it got that many more epochs. Short horizons
go on with trials that are nearly there, long ones begin new trials; without that, the improvement of the final
value alone would begin new ones nearly always, because they are the most uncertain. The random horizon is that
of Rakotoarison et al., 2024 (ifBO, who use the probability of improvement and another model of curves).

What looks bad early and ends well is lost on such a search. So after a few trainings' worth of epochs, new trials go
straight for their end, chosen by a model of final values alone; only those wait that are below the median at a third of
their training.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.spatial import cKDTree
from threadpoolctl import ThreadpoolController

from binsweep.search.spec.space import Dimension
from binsweep.search.strategy.curve_gp import CurveData, CurveModel
from binsweep.search.strategy.encoding import Encoder, Points
from binsweep.search.strategy.final_value_gp import FinalValueModel
from binsweep.search.strategy.kernel import log_improvement
from binsweep.search.strategy.planner import Plan
from binsweep.search.strategy.trial_pool import PooledTrial, TrialPool, promoted

START = 4.0  # trainings' worth of epochs by halving, before the model decides
STRAIGHT_FROM = 5.0  # trainings' worth of epochs, from which trials go straight for their end,
FULL = 3  # once so many have got there
TRIALS = 128  # that a model looks at: it takes its time by their number cubed
BROKEN = 20  # and so many of those whose value was not finite
TAIL = 3.0  # times as far below the median as the best is above it, is as bad as can be
NEW = -1  # the number of a trial that is not begun
RANDOM, NEAR = 200, 200  # new configurations weighed: drawn anywhere, and near the best trials
ANCESTORS = 8
APART = 0.03  # of a range, in at least one dimension: nearer is the same configuration again
WIDTHS = (0.1, 0.3)  # of the steps from the best trials, in parts of a range


class FreezeThaw:
    """Plans from a standing; the same plan for the same standing, seed and learned hyperparameters."""

    def __init__(self, space: Mapping[str, Dimension], seed: int, max_epochs: int, epochs_name: str) -> None:
        self._encoder = Encoder(space)
        self._epochs_name = epochs_name
        self._seed, self._max_epochs = seed % 2**32, max_epochs
        self._model = CurveModel(self._encoder.groups())
        self._ends = FinalValueModel(self._encoder)
        self._points: list[np.ndarray] = []  # by trial
        self._threads = ThreadpoolController()  # looking for the libraries takes 3 ms

    @property
    def learned(self) -> list[float]:
        """What must be kept to plan alike after a restart."""
        models = (self._model, self._ends)
        return [float(x) for model in models for x in (model.learned_from, *model.theta)]

    @learned.setter
    def learned(self, learned: list[float]) -> None:
        for model in (self._model, self._ends):
            own, learned = learned[: 1 + len(model.theta)], learned[1 + len(model.theta) :]
            if own:  # an earlier version kept the first model's only
                model.learned_from, model.theta = int(own[0]), np.array(own[1:])

    def plan(self, standing: TrialPool) -> Plan:
        """What a free worker should do next."""
        if standing.epochs >= START * self._max_epochs and any(
            stand.at_level and not stand.broken for stand in standing.stands
        ):
            # Trials have all cores: threads that wait for one at each step of the algebra made a plan 2 to 7 times
            # slower.
            with self._threads.limit(limits=1):
                straight = self._straight(standing) if self._straight_is_due(standing) else None
                return straight or self._by_model(standing)
        found = promoted(standing)
        if found is not None:
            return Plan(found[1], number=found[0])
        point = self._encoder.spread(self._seed, len(standing.stands))
        return Plan(
            "one of the evenly spread configurations to begin with", params=self._encoder.params(point)
        )

    def _by_model(self, standing: TrialPool) -> Plan:
        running = [n for n, stand in enumerate(standing.stands) if stand.state == "running"]
        rng = self._rng(standing, running)
        shown = [n for n, stand in enumerate(standing.stands) if stand.at_level and not stand.broken]
        known = self._known(shown, standing, rng)
        rows = [(n, epoch, value) for n in known for epoch, value in _telling(standing.stands[n])]
        data, top = self._observations(standing, rows, _prices(known, standing, rng))
        self._model.keep_up(data, sum(len(stand.at_level) for stand in standing.stands))
        pending = _some(running, rng)
        next_levels = np.array([standing.stands[n].next_level() for n in pending])
        self._model.condition(self._with_pending(data, standing, pending, next_levels))
        horizon = math.exp(rng.random() * math.log(self._max_epochs))
        paused = [n for n in known if standing.stands[n].state == "paused"]
        avoid = known + [n for n, stand in enumerate(standing.stands) if stand.broken] + running
        fresh = self._fresh(standing, known, avoid, rng)
        gain = self._gain(standing, paused, fresh, horizon, top)
        chosen = int(gain.argmax())
        of = f"of {len(paused)} paused trials and {len(fresh)} new configurations"
        reason = f"most to be gained within {max(1, round(horizon))} epochs, {of}"
        if chosen < len(paused):
            return Plan(reason, number=paused[chosen])
        return Plan(reason, params=self._encoder.params(fresh[chosen - len(paused)]))

    def _straight_is_due(self, standing: TrialPool) -> bool:
        enough = standing.epochs >= STRAIGHT_FROM * self._max_epochs
        return enough and sum(_is_full(stand) for stand in standing.stands) >= FULL

    def _straight(self, standing: TrialPool) -> Plan | None:
        """The new configuration that would probably gain most at its end.

        None where all that was weighed was tried before, as in a small space, or nearly is in training or broke.
        """
        stands = standing.stands
        running = [n for n, stand in enumerate(stands) if stand.state == "running"]
        rng = self._rng(standing, running)
        straight = [n for n in running if stands[n].straight]
        full = [n for n, stand in enumerate(stands) if _is_full(stand)]
        broken = [n for n, stand in enumerate(stands) if stand.broken]
        left = [n for n, s in enumerate(stands) if s.straight and s.state != "running" and not s.broken]
        left = [n for n in left if not _is_full(stands[n])]
        behind = [n for n in left if stands[n].before_end() is not None]
        known = self._known(full + behind, standing, rng)
        prices = _prices(known, standing, rng)
        # Whether bad is very bad says nothing of where the best is, and would hide its surroundings.
        best = standing.best()
        seen = best[best > -math.inf]
        middle = np.median(seen)
        least = middle - TAIL * (seen.max() - middle)
        # What fell behind would probably have gained on the rest of its way what others did.
        thirds = [(stands[n].best, stands[n].before_end()) for n in full]
        gained = [end - third for end, third in thirds if third is not None]
        gain = np.median(gained) if gained else 0.0
        ends = {n: stands[n].best + (0.0 if _is_full(stands[n]) else gain) for n in known}
        values = {n: float(max(end, least)) - prices.get(n, 0.0) for n, end in ends.items()}
        # What showed too little, or broke, is bad, or it would be proposed again.
        bad = [n for n in left if stands[n].before_end() is None] + broken
        values |= dict.fromkeys(bad[-BROKEN:], min(values.values()))
        tried, told = self._points_of(standing, np.array(list(values))), np.array(list(values.values()))
        self._ends.keep_up(tried, told, len(full + behind))
        pending = self._points_of(standing, np.array(_some(straight, rng), int))
        avoid = self._points_of(standing, np.array(running + bad, int))
        for point in self._ends.best(tried, told, pending, rng):
            params = self._encoder.params(point)
            near = np.abs(avoid - point).max(axis=1) < APART
            if not near.any() and all(stand.params != params for stand in stands):
                reason = f"most to be gained at its end, by a model of the ends of {len(known)} trials"
                return Plan(reason, params=params, straight=True)
        return None

    def _rng(self, standing: TrialPool, running: list[int]) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(standing.stands), standing.epochs, len(running)])

    def _known(self, shown: list[int], standing: TrialPool, rng: np.random.Generator) -> list[int]:
        """The trials that a model looks at: the best of those shown, and a sample of the others."""
        if len(shown) <= TRIALS:
            return shown
        order = np.array(shown)[np.argsort(-standing.best()[shown], kind="stable")]
        others = rng.choice(order[TRIALS // 2 :], TRIALS - TRIALS // 2, replace=False)
        return [int(n) for n in (*order[: TRIALS // 2], *others)]

    def _observations(
        self, standing: TrialPool, rows: list[tuple[int, int, float]], prices: dict[int, float]
    ) -> tuple[CurveData, float]:
        """(trial, epoch, value) less the trial's price, standardised, and where the best lies on that scale."""
        trials = sorted({n for n, _, _ in rows})
        best = np.array([standing.stands[n].best - prices.get(n, 0.0) for n in trials])
        ceiling, middle = best.max(), np.median(best)
        unit = 0.2 * (ceiling - middle) + 1e-12 + 1e-9 * abs(ceiling)
        # How far below the best, on a log scale: whether bad is very bad matters less than the order at the top.
        values = -np.log1p((ceiling - np.array([value - prices.get(n, 0.0) for n, _, value in rows])) / unit)
        broken = [n for n, stand in enumerate(standing.stands) if stand.broken][-BROKEN:]
        trial = np.array([row[0] for row in rows] + broken)
        lengths = np.array([standing.stands[n].levels[-1] for n, _, _ in rows])
        progress = self._progress(np.array([epoch for _, epoch, _ in rows]), lengths)
        values = np.concatenate([values, np.full(len(broken), values.min())])
        mean, deviation = values.mean(), values.std() + 1e-9
        x = self._features(standing, trial)
        data = CurveData(
            x, np.concatenate([progress, np.ones(len(broken))]), trial, (values - mean) / deviation
        )
        return data, float(-mean / deviation)

    def _with_pending(
        self, data: CurveData, standing: TrialPool, running: list[int], epochs: np.ndarray
    ) -> CurveData:
        """With what trials in training will probably show at those epochs, so that parallel workers do not all do
        the same (the kriging believer of Ginsbourger et al., 2010)."""
        if not running:
            return data
        self._model.condition(data)
        trial = np.array(running)
        lengths = np.array([standing.stands[n].levels[-1] for n in running])
        progress = self._progress(epochs, lengths)
        x = self._features(standing, trial)
        mean, _ = self._model.predict(x, progress, trial)
        return CurveData(
            np.concatenate([data.x, x]),
            np.concatenate([data.progress, progress]),
            np.concatenate([data.trial, trial]),
            np.concatenate([data.y, mean]),
        )

    def _fresh(
        self,
        standing: TrialPool,
        known: list[int],
        avoid: list[int],
        rng: np.random.Generator,
    ) -> Points:
        """New configurations to weigh, at random and near the best known trials, none nearly one to avoid."""
        trial = np.array(known)
        promise, _ = self._model.predict(self._features(standing, trial), np.ones(len(known)), trial)
        tried = self._points_of(standing, trial)
        ancestors = _distinct(tried[np.argsort(-promise, kind="stable")], ANCESTORS)
        copies = np.repeat(ancestors, NEAR // (len(WIDTHS) * len(ancestors)), axis=0)
        found = [self._encoder.random(rng, RANDOM)]
        found += [self._encoder.near(copies, width, rng) for width in WIDTHS]
        points = np.concatenate(found)
        # Apart by the largest difference in any coordinate.
        apart, _ = cKDTree(self._points_of(standing, np.array(avoid))).query(points, p=np.inf)
        new = points[apart >= APART]
        return new if len(new) else points  # a small space may be used up

    def _gain(
        self,
        standing: TrialPool,
        paused: list[int],
        fresh: Points,
        horizon: float,
        top: float,
    ) -> np.ndarray:
        """Expected improvement over the best value, of each candidate `horizon` epochs from now; its logarithm."""
        stands = [standing.stands[n] for n in paused]
        epochs = np.array([stand.epochs + horizon for stand in stands] + [horizon] * len(fresh))
        lengths = np.concatenate([[stand.levels[-1] for stand in stands], self._lengths(fresh)])
        progress = self._progress(epochs, lengths)
        known = self._features(standing, np.array(paused, int))
        x = np.concatenate([known, self._encoder.expand(fresh)])
        trial = np.array(paused + [NEW] * len(fresh))
        mean, deviation = self._model.predict(x, progress, trial)
        return log_improvement(mean, deviation, top)

    def _progress(self, epochs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """From 0, one epoch of the longest training, to 1, the training's own end; logarithmic."""
        done = np.log(np.minimum(1.0, epochs / lengths)) / math.log(max(self._max_epochs, 2))
        return np.asarray(np.maximum(0.0, 1 + done))

    def _lengths(self, points: Points) -> np.ndarray:
        """How many epochs each configuration trains."""
        if self._epochs_name not in self._encoder.names:
            return np.full(len(points), self._max_epochs)
        return np.array([self._encoder.value(point, self._epochs_name) for point in points])

    def _features(self, standing: TrialPool, trial: np.ndarray) -> np.ndarray:
        return self._encoder.expand(self._points_of(standing, trial))

    def _points_of(self, standing: TrialPool, trial: np.ndarray) -> Points:
        new = standing.stands[len(self._points) :]
        self._points += [self._encoder.point(stand.params) for stand in new]
        return np.array([self._points[n] for n in trial]).reshape(len(trial), len(self._encoder.names))


def _some(running: list[int], rng: np.random.Generator) -> list[int]:
    """Those in training that the model expects something of: of very many a sample, for its time."""
    return running if len(running) <= TRIALS else [int(n) for n in rng.choice(running, TRIALS, replace=False)]


def _prices(known: list[int], standing: TrialPool, rng: np.random.Generator) -> dict[int, float]:
    """What to take off the values of trials that have costs, at a random weight of cost against value: in the course of
    a search the weights lead along the whole front (ParEGO, Knowles, 2006). A third of them is nought."""
    costs = {n: standing.stands[n].cost for n in known}
    logs = {n: math.log(cost) for n, cost in costs.items() if cost is not None}
    if not logs:
        return {}
    weight = rng.choice([0.0, rng.random(), rng.random()])
    best = np.array([standing.stands[n].best for n in known])
    low, span = min(logs.values()), max(logs.values()) - min(logs.values()) + 1e-12
    # At even weights the costliest loses as much as lies between the best value and the median.
    price = weight / (1 - weight) * (best.max() - float(np.median(best))) / span
    return {n: price * (at - low) for n, at in logs.items()}


def _is_full(stand: PooledTrial) -> bool:
    """Whether it was trained to its end."""
    return stand.epochs >= stand.levels[-1] and not stand.broken


def _telling(stand: PooledTrial) -> list[tuple[int, float]]:
    """(epoch, best value until then) at the last level, and halfway there: more would tell little more."""
    reached = list(stand.at_level.items())
    return [reached[-1]] if len(reached) < 3 else [reached[len(reached) // 2], reached[-1]]


def _distinct(points: Points, count: int) -> Points:
    """The first `count` points that are not nearly the same."""
    found: list[np.ndarray] = []
    for point in points:
        if all(np.abs(point - other).max() >= APART for other in found):
            found.append(point)
        if len(found) == count:
            break
    return np.array(found)
