"""The strategies that are compared, by the name that the command line knows them by."""

from collections.abc import Callable
from typing import Any

import optuna
from benchmarks.packages import NoCosts, SyneTune, dehb, smac
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from binsweep.search.spec.objective import Objective
from binsweep.search.strategy.base import Decision, Outcome, Strategy, Suggestion, Verdict
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.simulator import Task


class StockOptuna(NoCosts):
    """Optuna's own sampler and pruner, with nothing of ours.

    With `as_ray`, a stopped trial is told as complete with its half-trained value, as Ray Tune's OptunaSearch
    does; the pruner then decides like Ray's scheduler but sees the same values.
    """

    def __init__(self, task: Task, sampler: BaseSampler, pruner: BasePruner, as_ray: bool = False) -> None:
        self._study = optuna.create_study(direction=task.goal, sampler=sampler, pruner=pruner)
        self._space, self._sign = task.space.distributions, Objective(task.goal).sign
        self._as_ray, self._last = as_ray, task.max_epochs
        self._live: dict[int, tuple[optuna.Trial, list[float]]] = {}

    def suggest(self) -> Suggestion:
        trial = self._study.ask(self._space)
        self._live[trial.number] = (trial, [])
        return Suggestion(trial.number, trial.params, "stock")

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        trial, values = self._live[number]
        values.append(value)
        trial.report(value, epoch)
        stop = epoch < self._last and trial.should_prune()
        return Verdict(Decision.STOP if stop else Decision.CONTINUE, "stock")

    def finish(self, number: int, outcome: Outcome) -> None:
        trial, values = self._live.pop(number, (None, []))
        if trial is None:
            return
        if not values:
            self._study.tell(trial, state=TrialState.FAIL)
        elif outcome.state == "completed":
            self._study.tell(trial, self._sign * max(self._sign * value for value in values))
        elif self._as_ray:
            self._study.tell(trial, values[-1])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)


def _halving() -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)


def _hyperband(task: Task) -> BasePruner:
    return HyperbandPruner(min_resource=2, max_resource=task.max_epochs, reduction_factor=3)


def _ours(task: Task, seed: int, sampler: Any, stopping: Any) -> Strategy:
    options = StrategyOptions(task.space, task.goal, task.max_epochs, sampler, stopping, seed)
    return open_strategy(None, "s", options)


class WithoutTimes(NoCosts):
    """A strategy that is never told how long an epoch took."""

    def __init__(self, strategy: Strategy) -> None:
        self.suggest, self.observe, self.finish = strategy.suggest, strategy.observe, strategy.finish


STRATEGIES: dict[str, Callable[[Task, int], Strategy]] = {
    "random": lambda t, s: StockOptuna(t, RandomSampler(seed=s), NopPruner()),
    "tpe": lambda t, s: StockOptuna(t, TPESampler(seed=s), NopPruner()),
    "tpe-v4": lambda t, s: StockOptuna(
        t, TPESampler(seed=s, multivariate=False, constant_liar=False), NopPruner()
    ),
    "gp": lambda t, s: StockOptuna(t, GPSampler(seed=s), NopPruner()),
    "cmaes": lambda t, s: _ours(t, s, "cmaes", "none"),
    "random+sh": lambda t, s: StockOptuna(t, RandomSampler(seed=s), _halving()),
    "tpe+sh": lambda t, s: StockOptuna(t, TPESampler(seed=s), _halving()),
    "tpe+sh-as-ray": lambda t, s: StockOptuna(t, TPESampler(seed=s), _halving(), as_ray=True),
    "random+hyperband": lambda t, s: StockOptuna(t, RandomSampler(seed=s), _hyperband(t)),
    "tpe+hyperband": lambda t, s: StockOptuna(t, TPESampler(seed=s), _hyperband(t)),
    "bohb": lambda t, s: SyneTune(t, s, "BOHB"),
    "asha-cqr": lambda t, s: SyneTune(t, s, "ASHACQR"),
    "asha-bore": lambda t, s: SyneTune(t, s, "ASHABORE"),
    "dehb": dehb,
    "smac": smac,
    "auto": lambda t, s: _ours(t, s, "auto", "auto"),
    "auto-without-times": lambda t, s: WithoutTimes(_ours(t, s, "auto", "auto")),
    "auto+none": lambda t, s: _ours(t, s, "auto", "none"),
    "random+promotion": lambda t, s: _ours(t, s, "random", "auto"),
    "tpe+promotion": lambda t, s: _ours(t, s, "tpe", "auto"),
    "random+asha": lambda t, s: _ours(t, s, "random", "asha"),
    "random+median": lambda t, s: _ours(t, s, "random", "median"),
    "tpe+asha": lambda t, s: _ours(t, s, "tpe", "asha"),
    "tpe+median": lambda t, s: _ours(t, s, "tpe", "median"),
}
