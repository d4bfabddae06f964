"""The time of a sweep: what it has spent, what is left of its budget, and how far its trials get in that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from binsweep.search.execution.budget import BudgetTracker, ResourceUsage
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.strategy.base import Strategy
from binsweep.search.terminal.format import format_duration

SLACK = 0.03  # of the time of the budget, by which it may be exceeded for a trial to end
# How long an epoch may keep a sweep from its end: it is taken to hang after so many times the longest one, or, before
# one has ended, after as long as the budget; but not before a few minutes.
MAX_EPOCH_LENGTHS = 5.0
MIN_OVERTIME_SECONDS = 300.0


class SweepClock:
    """Measures the running ones of `trials` by a budget.

    `reserved` gives the seconds to leave at the end, for the promotion; `is_paused` whether a person has paused the
    sweep.
    """

    def __init__(
        self,
        budget: BudgetTracker,
        strategy: Strategy,
        trials: Mapping[int, TrialRecord],
        reserved: Callable[[], float],
        is_paused: Callable[[], bool],
    ) -> None:
        self._budget, self._strategy, self._trials = budget, strategy, trials
        self._reserved, self._is_paused = reserved, is_paused
        self._longest_epoch = 0.0  # seconds

    @property
    def spent(self) -> ResourceUsage:
        """What the sweep has cost until now."""
        return self._budget.usage(self._running())

    def _running(self) -> list[TrialResources]:
        return [trial.resources for trial in list(self._trials.values()) if trial.state == "running"]

    def tick(self) -> None:
        """Count the time since the last call. To be called before a trial starts or leaves its worker. The time in
        which a sweep stands paused does not count."""
        running = self._running()
        self._budget.tick(running, counts=bool(running) or not self._is_paused())

    def seconds_left(self, *further: TrialResources) -> float | None:
        """The seconds for which the running trials and `further` ones may train, below 0 if the time is over; None
        without a limit on time."""
        self.tick()
        left = self._budget.seconds_left([*self._running(), *further])
        return None if left is None else left - self._reserved()

    def time_limit(self) -> str:
        """The limit that the running trials reach first, such as `budget.minutes: 60`."""
        return self._budget.time_limit(self._running())

    def over(self, left: float | None) -> str:
        """The limit of the budget that is reached with so many seconds `left`, so that no trial may start; empty if
        there is none."""
        over = self._budget.exhausted(self.spent)
        if not over and left is not None and left <= 0:
            promotion = format_duration(self._reserved())
            return f"{self.time_limit()}, less about {promotion} for the promotion, are over"
        return over

    def epochs_left(self, trial: TrialRecord) -> tuple[str, int]:
        """The limit of the budget that ends a running trial now ("" for none), and for how many more epochs there is
        time, at most those that it has left."""
        left, remaining = self.seconds_left(), None
        if left is not None:
            remaining = self._strategy.training_seconds(trial.number, trial.epochs_done)
        over, fitting = self.over(left), trial.last_epoch - trial.epochs_done
        if left is not None and remaining is not None:
            slack = SLACK * (self.spent.seconds + max(0.0, left))
            if remaining > left + slack:
                fitting = self._strategy.reachable(trial.number, left) - trial.epochs_done
            elif left <= 0:
                over = ""  # it ends within the slack
        return over, fitting

    def hang_limit(self) -> tuple[float | None, str]:
        """The seconds until an epoch that has not ended is taken to hang, because the sweep's time is long over, and
        the limit of the budget that this is about; None without a limit on time."""
        running = self._running()
        if (left := self._budget.seconds_left(running)) is None:
            return None, ""
        left = max(0.0, left)
        longest = MAX_EPOCH_LENGTHS * self._longest_epoch or self.spent.seconds + left
        return left + max(MIN_OVERTIME_SECONDS, longest), self._budget.time_limit(running)

    def hang_limit_is_early(self, trial: TrialRecord) -> bool:
        """Whether a trial is taken to hang before the sweep's time is over, because that was extended meanwhile."""
        left = self._budget.seconds_left(self._running())
        return trial.hangs_at < math.inf and (left is None or trial.hangs_at < time.monotonic() + left)

    def note_seconds(self, trial: TrialRecord, metrics: Mapping[str, float]) -> None:
        """Tell the strategy how long the epoch took that a trial reports, and the start before it."""
        now, start = time.monotonic(), None
        since, trial.since = now - trial.since, now
        seconds = metrics.get("seconds", since)
        if not trial.reported:
            start = max(0.0, since - seconds)
        elif since > seconds:  # writing and reporting take time, too
            seconds = since
        trial.reported = True
        self._longest_epoch = max(self._longest_epoch, seconds)
        self._strategy.note_seconds(trial.number, seconds, start)
