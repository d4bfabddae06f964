"""The budget of a sweep: what has been spent of it, and which limit is reached."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from binsweep.search.execution.resources import TrialResources
from binsweep.search.spec.sweep_spec import SweepSpec


@dataclass(frozen=True)
class ResourceUsage:
    """The seconds that a sweep took, and the CPU and GPU seconds of its trials."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0


def _held(running: Sequence[TrialResources]) -> tuple[float, float]:
    """The CPUs and GPUs of these trials."""
    return sum(trial.cpus for trial in running), sum(trial.gpus for trial in running)


def _metered(spec: SweepSpec, usage: ResourceUsage) -> dict[str, float]:
    """How much a usage takes of each limit that is spent by the mere passing of time."""
    money = spec.resources.price_of(usage.cpu_seconds, usage.gpu_seconds)
    return {"minutes": usage.seconds / 60, "gpu_hours": usage.gpu_seconds / 3600, "money": money or 0.0}


def seconds_at_pace(spec: SweepSpec, usage: ResourceUsage, ended: int, epochs: int) -> float | None:
    """Seconds left at the pace so far, by the limit that is used up most, after so many `ended` trials and `epochs`.

    None before the first progress, and without a limit.
    """
    done = {**_metered(spec, usage), "trials": ended, "epochs": epochs}
    shares = (spent / limit for name, spent in done.items() if (limit := getattr(spec.budget, name)))
    furthest = min(max(shares, default=0.0), 1.0)
    return usage.seconds * (1 - furthest) / furthest if furthest > 0 else None


class BudgetTracker:
    """Counts what a sweep spends. `spent` is what earlier processes have spent on it.

    The clock is monotonic: nobody can set it, and it stands still while the machine sleeps.
    """

    def __init__(self, spec: SweepSpec, spent: ResourceUsage | None = None) -> None:
        self.epochs = 0  # trained so far, by all trials
        self._spec, self._budget, self._objective = spec, spec.budget, spec.objective
        self._counted = (
            spent or ResourceUsage(),
            time.monotonic(),
        )  # the usage, and until when it is counted
        self._best: float | None = None
        self._best_trial = -1
        self._ended_since_best = 0

    def change(self, spec: SweepSpec) -> None:
        """Take over the limits of a spec that differs in its budget."""
        self._spec, self._budget = spec, spec.budget

    def tick(self, running: Sequence[TrialResources], counts: bool = True) -> None:
        """Count the time since the last call, during which trials with these resources were running; unless it does
        not count, as while the sweep is paused."""
        now = time.monotonic()
        self._counted = (self._usage_at(now, running) if counts else self._counted[0], now)

    def usage(self, running: Sequence[TrialResources]) -> ResourceUsage:
        """The usage until now, while trials with these resources are running."""
        return self._usage_at(time.monotonic(), running)

    def _usage_at(self, now: float, running: Sequence[TrialResources]) -> ResourceUsage:
        usage, until = self._counted
        elapsed = now - until
        cpus, gpus = _held(running)
        return ResourceUsage(
            usage.seconds + elapsed, usage.cpu_seconds + elapsed * cpus, usage.gpu_seconds + elapsed * gpus
        )

    def note_value(self, number: int, value: float) -> None:
        """Take in a value of a trial that keeps all limits of the objective."""
        if self._objective.is_better(value, self._best):
            self._best, self._best_trial, self._ended_since_best = value, number, 0

    def note_end(self, number: int) -> None:
        """Count a trial that has ended. Once `budget.no_improvement` is reached, only a better value goes on with the
        sweep: not the end of the best trial, which may have been stopped for it."""
        if number != self._best_trial:
            self._ended_since_best += 1
        elif not self._is_without_improvement():
            self._ended_since_best = 0

    def _is_without_improvement(self) -> bool:
        limit = self._budget.no_improvement
        return limit is not None and self._ended_since_best >= limit

    def may_begin(self, trials: int) -> bool:
        """Whether another trial may be started after so many."""
        return self._budget.trials is None or trials < self._budget.trials

    def seconds_left(self, running: Sequence[TrialResources]) -> float | None:
        """The seconds until minutes, gpu_hours or money are spent if trials with these resources keep running.

        Below 0 if one is spent, None if none ever will be. As in `usage`, the trials count from the last `tick` on.
        """
        left = self._left(running)
        return min(left.values()) if left else None

    def time_limit(self, running: Sequence[TrialResources]) -> str:
        """The limit that `seconds_left` is about, such as `budget.minutes: 60`."""
        left = self._left(running)
        name = min(left, key=lambda name: left[name])
        return f"budget.{name}: {getattr(self._budget, name):g}"

    def _left(self, running: Sequence[TrialResources]) -> dict[str, float]:
        """The seconds until each limit is spent that is spent by time."""
        spent = _metered(self._spec, self.usage(running))
        a_second = _metered(self._spec, ResourceUsage(1.0, *_held(running)))
        limits = {name: getattr(self._budget, name) for name in spent}
        return {
            name: (limit - spent[name]) / a_second[name] if a_second[name] > 0 else 0.0
            for name, limit in limits.items()
            if limit is not None and (a_second[name] > 0 or spent[name] >= limit)
        }

    def exhausted(self, usage: ResourceUsage) -> str:
        """The first limit of the budget that is reached, with the reason; empty if none is."""
        budget = self._budget
        for name, spent in _metered(self._spec, usage).items():
            limit = getattr(budget, name)
            if limit is not None and spent >= limit:
                return f"budget.{name}: {limit:g} are {'over' if name == 'minutes' else 'spent'}"
        if budget.epochs is not None and self.epochs >= budget.epochs:
            return f"budget.epochs: all {budget.epochs} were trained"
        if budget.target is not None and not self._objective.is_better(budget.target, self._best):
            return f"budget.target: {self._objective.metric} reached {self._best:g}"
        if self._is_without_improvement():
            return f"budget.no_improvement: {budget.no_improvement} trials ended without a better one"
        return ""
