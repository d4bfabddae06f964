"""The budget of a sweep: what has been spent of it, and which limit is reached."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from binsweep.search.execution.resources import TrialResources
from binsweep.search.spec.parser import SweepSpec


@dataclass(frozen=True)
class ResourceUsage:
    """The seconds that a sweep took, and the CPU and GPU seconds of its trials."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0


class BudgetTracker:
    """Counts what a sweep spends. `spent` is what earlier processes have spent on it.

    The clock is monotonic: nobody can set it, and it stands still while the machine sleeps.
    """

    def __init__(self, spec: SweepSpec, spent: ResourceUsage | None = None) -> None:
        self.epochs = 0  # trained so far, by all trials
        self._budget, self._objective = spec.budget, spec.objective
        self._counted = (
            spent or ResourceUsage(),
            time.monotonic(),
        )  # the usage, and until when it is counted
        self._best: float | None = None
        self._best_trial = -1
        self._ended_since_best = 0

    def tick(self, running: Sequence[TrialResources]) -> None:
        """Count the time since the last call, during which trials with these resources were running."""
        now = time.monotonic()
        self._counted = (self._usage_at(now, running), now)

    def usage(self, running: Sequence[TrialResources]) -> ResourceUsage:
        """The usage until now, while trials with these resources are running."""
        return self._usage_at(time.monotonic(), running)

    def _usage_at(self, now: float, running: Sequence[TrialResources]) -> ResourceUsage:
        usage, until = self._counted
        elapsed = now - until
        return ResourceUsage(
            usage.seconds + elapsed,
            usage.cpu_seconds + elapsed * sum(resources.cpus for resources in running),
            usage.gpu_seconds + elapsed * sum(resources.gpus for resources in running),
        )

    def note_value(self, number: int, value: float) -> None:
        """Take in a value of a trial that keeps all limits of the objective."""
        if self._objective.is_better(value, self._best):
            self._best, self._best_trial, self._ended_since_best = value, number, 0

    def note_end(self, number: int) -> None:
        """Count a trial that has ended."""
        self._ended_since_best = 0 if number == self._best_trial else self._ended_since_best + 1

    def exhausted(self, usage: ResourceUsage) -> str:
        """The first limit of the budget that is reached, with the reason; empty if none is."""
        budget = self._budget
        if budget.minutes is not None and usage.seconds > 60 * budget.minutes:
            return f"budget.minutes: {budget.minutes:g} are over"
        if budget.gpu_hours is not None and usage.gpu_seconds > 3600 * budget.gpu_hours:
            return f"budget.gpu_hours: {budget.gpu_hours:g} are spent"
        if budget.epochs is not None and self.epochs >= budget.epochs:
            return f"budget.epochs: all {budget.epochs} were trained"
        if budget.target is not None and not self._objective.is_better(budget.target, self._best):
            return f"budget.target: {self._objective.metric} reached {self._best:g}"
        if budget.no_improvement is not None and self._ended_since_best >= budget.no_improvement:
            return f"budget.no_improvement: {budget.no_improvement} trials ended without a better one"
        return ""
