"""The controller of a sweep: budget, strategy and trial records, behind the calls that every runner makes."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from binsweep.models.health_rules import HealthFinding
from binsweep.models.levels import ending_at
from binsweep.search.execution.budget import BudgetTracker, ResourceUsage
from binsweep.search.execution.health import HealthTracker
from binsweep.search.execution.interrupts import uninterrupted
from binsweep.search.execution.kinds import kind_of
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import ERROR, TrialTask
from binsweep.search.execution.trial_record import ENDED, TrialRecord
from binsweep.search.history.run_keys import trial_key
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.strategy.base import Decision, Outcome, Record, Strategy, Suggestion
from binsweep.search.terminal.format import format_duration

INTERRUPTED = "its training was cut short"
MAX_LOST_WORKERS = 3  # lost at one epoch, after which the trial itself is to blame
MAX_EQUAL_ERRORS = 3  # failures of one kind in a row, after which the code or the data is to blame
SLACK = 0.03  # of the time of the budget, by which it may be exceeded for a trial to end
# How long an epoch may keep a sweep from its end: it is taken to hang after so many times the longest one, or, before
# one has ended, after as long as the budget; but not before a few minutes.
MAX_EPOCH_LENGTHS = 5.0
MIN_OVERTIME_SECONDS = 300.0
MIN_FREE_BYTES = 200 * 2**20  # on the disk, below which no trial starts


class Listener(Protocol):
    """Receives the events of a sweep: the MLflow recorder, the decision log, the live table."""

    def trial_started(self, trial: TrialRecord) -> None: ...
    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None: ...
    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None: ...
    def trial_suspended(self, trial: TrialRecord, reason: str) -> None: ...
    def trial_ended(self, trial: TrialRecord) -> None: ...


def trial_seed(seed: int, number: int) -> int:
    """The seed of a trial: different for each trial, the same whenever the sweep is repeated."""
    return (seed * 1_000_003 + number) % 2**31


class Controller:
    """Hands out trials, decides after each epoch, and notifies the listeners. Call it from the main thread only.

    `trial_resources` gives the resources of a trial by the values of `SweepSpec.trial_values`. `fits` tells whether
    trials fit at the same time; without it, the runner limits their number. `spent` is what earlier processes have
    spent on the sweep. `trace` turns on torch.profiler for every trial. A `suspended` sweep was given up for a reason
    that a person can fix, which `ended_by` names; it can be resumed afterwards.
    """

    def __init__(
        self,
        spec: SweepSpec,
        strategy: Strategy,
        folder: Path,
        trial_resources: Callable[[Mapping[str, Any]], TrialResources],
        fits: Callable[[Sequence[TrialResources]], bool] | None = None,
        spent: ResourceUsage | None = None,
        trace: bool = False,
    ) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.listeners: list[Listener] = []
        self.ended_by = ""
        self.suspended = False
        self.reserve: Callable[[Controller], float] | None = None  # seconds that the promotion will need
        self._spec, self._objective, self._strategy, self._folder = spec, spec.objective, strategy, folder
        self._kind = kind_of(spec)
        self._trial_resources, self._fits = trial_resources, fits
        self._budget = BudgetTracker(spec, spent)
        self._health = HealthTracker(spec.health)
        self._trace = trace
        self._waiting: deque[tuple[int, str]] = deque()  # the next trials, and why each is resumed
        self._errors: list[str] = []
        self._longest_epoch = 0.0  # seconds

    @property
    def epochs(self) -> int:
        """The epochs trained so far, by all trials."""
        return self._budget.epochs

    @property
    def spent(self) -> ResourceUsage:
        """What the sweep has cost until now."""
        return self._budget.usage(self._running_resources())

    def restore(self, records: Sequence[Record]) -> None:
        """Take over the trials of earlier processes. Those that were running are resumed before new ones start."""
        for record in records:
            trial = self._add(record.number, record.params, record.suggested_because, record.last_epoch)
            trial.value, trial.epoch = record.value, record.epoch or 0
            trial.epochs_done = max(record.values, default=0)
            trial.reason, trial.feasible = record.ended_because, record.feasible
            if record.state == "running":
                trial.state = "waiting"
                self._waiting.append((trial.number, INTERRUPTED))
            else:
                trial.state = record.state
            trial.restore(self._kind)
            self._budget.epochs += trial.epochs_done
        ended = [trial for trial in self.trials.values() if trial.state in ENDED]
        for trial in sorted(ended, key=lambda trial: trial.ended or trial.started):
            self._note_value(trial)
            self._budget.note_end(trial.number)

    @uninterrupted()
    def next_task(self) -> TrialTask | None:
        """The next trial to run. None if the budget or the space is exhausted (`ended_by` says which), or if the next
        trial waits for resources."""
        self._tick()
        # One more trial would run: on GPUs and by money, the time is then over earlier.
        one_more = self._trial_resources(self._spec.trial_values({}))
        if (left := self.seconds_left(one_more)) is not None:
            self._strategy.note_time_left(left)
        if over := self._over(self.seconds_left()):
            self.ended_by = over
        elif reason := self._fault():
            self.suspend(reason)
        elif self._waiting:
            number, reason = self._waiting[0]
            if self._has_resources(number):
                self._waiting.popleft()
                return self._dispatch(number, reason)
        elif (suggestion := self._strategy.suggest(self._budget.may_begin(len(self.trials)))) is not None:
            return self._start(suggestion)
        elif not self._budget.may_begin(len(self.trials)):
            self.ended_by = f"budget.trials: all {self._spec.budget.trials} were started"
        elif left is not None and (self._has_paused() or not self._strategy.is_used_up):
            self.ended_by = f"{self._budget.time_limit([one_more])}: nothing more can be trained to its end"
        else:
            self.ended_by = "space: every configuration was tried"
        return None

    def seconds_left(self, *further: TrialResources) -> float | None:
        """The seconds for which the running trials and `further` ones may train, below 0 if the time is over; None
        without a limit on time."""
        self._tick()
        left = self._budget.seconds_left([*self._running_resources(), *further])
        return None if left is None else left - self._reserved()

    def _reserved(self) -> float:
        return 0.0 if self.reserve is None else self.reserve(self)

    def training_seconds(self, number: int | None = None) -> float | None:
        """How long a trial's whole training takes, or the longest one of a typical configuration; None if nothing was
        measured yet."""
        return self._strategy.training_seconds(number)

    def _over(self, left: float | None) -> str:
        """The limit of the budget that is reached with so many seconds `left`, so that no trial may start; empty if
        there is none."""
        over = self._budget.exhausted(self.spent)
        if not over and left is not None and left <= 0:
            limit = self._budget.time_limit(self._running_resources())
            return f"{limit}, less about {format_duration(self._reserved())} for the promotion, are over"
        return over

    def _tick(self) -> None:
        """Count the time since the last call. To be called before a trial starts or leaves its worker."""
        self._budget.tick(self._running_resources())

    def _has_paused(self) -> bool:
        return any(trial.state == "paused" for trial in self.trials.values())

    def _running_resources(self) -> list[TrialResources]:
        return [trial.resources for trial in list(self.trials.values()) if trial.state == "running"]

    def _note_value(self, trial: TrialRecord) -> None:
        if trial.feasible and trial.value is not None:
            self._budget.note_value(trial.number, trial.value)

    def _fault(self) -> str:
        """Why no trial should start although the budget is not exhausted; empty if nothing is wrong."""
        if len(self._errors) >= MAX_EQUAL_ERRORS:
            return (
                f"errors: {MAX_EQUAL_ERRORS} trials in a row failed with the same error: {self._errors[-1]}"
            )
        free = shutil.disk_usage(self._folder).free
        if free < MIN_FREE_BYTES:
            need = f"{MIN_FREE_BYTES // 2**20} MB are needed"
            return f"disk: only {free // 2**20} MB are free at {self._folder}, {need}: free some space to continue"
        return ""

    def _add(
        self, number: int, params: dict[str, object], suggested: str, last_epoch: int | None = None
    ) -> TrialRecord:
        levels = self._spec.sections(params, trial_seed(self._spec.search.seed, number))
        folder = self._folder / trial_key(number)
        resources = self._trial_resources(self._spec.trial_values(params))
        threads = self._kind.threads(levels, int(resources.each["CPU"]))
        trial = TrialRecord(number, params, levels, folder, suggested, resources, threads)
        trial.last_epoch = last_epoch or trial.planned_epochs
        self.trials[number] = trial
        return trial

    def _start(self, suggestion: Suggestion) -> TrialTask | None:
        number, reason = suggestion.number, suggestion.reason
        if number not in self.trials:
            self._add(number, suggestion.params, suggestion.reason)
            reason = ""
        if suggestion.last_epoch is not None:
            self.trials[number].last_epoch = suggestion.last_epoch
        if self._has_resources(number):
            return self._dispatch(number, reason)
        trial = self.trials[number]
        trial.state, trial.resumed = "waiting", reason
        self._waiting.append((number, reason))
        self._tell(lambda listener: listener.trial_started(trial))
        self._tell(lambda listener: listener.trial_suspended(trial, "it waits for free resources"))
        return None

    def _has_resources(self, number: int) -> bool:
        """Whether a trial fits next to the running ones.

        While the next trial does not fit, no other one starts: small trials would keep a large one waiting for ever.
        """
        if self._fits is None:
            return True
        others = [
            trial for trial in self.trials.values() if trial.state == "running" and trial.number != number
        ]
        return self._fits([trial.resources for trial in (*others, self.trials[number])])

    def _dispatch(self, number: int, reason: str = "") -> TrialTask:
        trial = self.trials[number]
        trial.state, trial.resumed = "running", reason
        trial.since, trial.reported = time.monotonic(), False
        self._tell(lambda listener: listener.trial_started(trial))
        return TrialTask(
            number,
            ending_at(trial.levels, trial.last_epoch),
            trial.folder,
            self._spec.metric,
            self._spec.goal,
            trial.threads,
            trial.epochs_done,
            self._trace,
            self._spec.budget.trial_minutes,
            bool(self._spec.limits or self._spec.objective.cost_objective),
            trial.resources,
            self._spec.health,
            *self._hang_limit(),
        )

    def _hang_limit(self) -> tuple[float | None, str]:
        """The seconds until an epoch that has not ended is taken to hang, because the sweep's time is long over, and
        the limit of the budget that this is about; None without a limit on time."""
        running = self._running_resources()
        if (left := self._budget.seconds_left(running)) is None:
            return None, ""
        left = max(0.0, left)
        longest = MAX_EPOCH_LENGTHS * self._longest_epoch or self.spent.seconds + left
        return left + max(MIN_OVERTIME_SECONDS, longest), self._budget.time_limit(running)

    @uninterrupted()
    def report(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in one epoch of a running trial; returns whether it continues.

        A stopped trial has ended. A paused one has not: its worker is free, and a later task resumes it from the
        state in its folder. An epoch that is reported again counts once.
        """
        trial = self.trials[number]
        if epoch <= trial.epochs_done:
            return trial.state == "running"
        value = self._objective.value_of(metrics)
        self._tick()
        self._note_seconds(trial, metrics)
        self._budget.epochs += epoch - trial.epochs_done
        trial.epochs_done, trial.losses = epoch, 0
        violation, broken = self._broken_limit(metrics)
        trial.feasible = violation <= 0
        if self._objective.is_better(value, trial.value):
            trial.value, trial.epoch, trial.metrics = value, epoch, metrics
            self._note_value(trial)
        # The listeners come before the study: after a crash in between, the epoch is reported again, and the run log
        # records it once.
        self._tell(lambda listener: listener.epoch_done(trial, epoch, metrics))
        if (cost := self._spec.objective.cost_objective) is not None:
            self._strategy.note_cost(number, metrics[cost])
        verdict = self._strategy.observe(number, epoch, value)
        found = self._health.check(number, epoch, metrics, trial.folder)
        if found:
            self._tell(lambda listener: listener.health_found(trial, found))
        if not trial.feasible:
            self._end(trial, "stopped", broken, violation)
        elif unhealthy := self._health.stop_reason(found):
            self._end(trial, "stopped", unhealthy)
        elif verdict.decision is Decision.PAUSE:
            trial.state = "paused"
            self._tell(lambda listener: listener.trial_suspended(trial, verdict.reason))
        elif not math.isfinite(value):
            self._end(trial, "failed", self._objective.what_is_broken(metrics))
        elif verdict.decision is Decision.STOP:
            self._end(trial, "stopped", verdict.reason)
        elif epoch < trial.last_epoch:
            self._keep_to_budget(trial)
        return trial.state == "running"

    def _note_seconds(self, trial: TrialRecord, metrics: Mapping[str, float]) -> None:
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

    def _keep_to_budget(self, trial: TrialRecord) -> None:
        """Stop a running trial if the budget is spent; let it end earlier if the rest of it would take too long."""
        left, remaining = self.seconds_left(), None
        if left is not None:
            remaining = self._strategy.training_seconds(trial.number, trial.epochs_done)
        over, planned = self._over(left), trial.last_epoch - trial.epochs_done
        fitting = planned
        if left is not None and remaining is not None:
            slack = SLACK * (self.spent.seconds + max(0.0, left))
            if remaining > left + slack:
                fitting = self._strategy.reachable(trial.number, left) - trial.epochs_done
            elif left <= 0:
                over = ""  # it ends within the slack
        if over or not fitting:
            limit = over or self._budget.time_limit(self._running_resources())
            self.ended_by = over or f"{limit}: a further epoch would not end in time"
            if trial.is_at_level_end:  # its learning rate has come down
                self._end(trial, "completed", f"trained to the end of a level ({self.ended_by})")
            else:
                self._end(trial, "stopped", f"the sweep was over ({self.ended_by})")
        elif fitting < planned:
            self._shorten(trial, trial.epochs_done + fitting)

    def _shorten(self, trial: TrialRecord, last_epoch: int) -> None:
        """Let a running trial end earlier: it is resumed at once, by a schedule that ends there."""
        reason = f"shortened from {trial.last_epoch} to {last_epoch} epochs, to end within the budget"
        self._strategy.end_at(trial.number, last_epoch)
        trial.last_epoch = last_epoch
        trial.state = "waiting"
        self._waiting.appendleft((trial.number, reason))
        self._tell(lambda listener: listener.trial_suspended(trial, reason))

    @uninterrupted()
    def finish(self, number: int, error: str = "") -> None:
        """End a trial whose worker has trained all epochs or failed. Does nothing after a stop."""
        self._tick()
        trial = self.trials[number]
        if trial.state != "running":
            return
        kind = error.partition(":")[0]
        if error and kind != "TimeoutError":
            same_kind = [other for other in self._errors if other.partition(":")[0] == kind]
            self._errors = [*same_kind, error]
        self._end(trial, "failed" if error else "completed", error or "trained to its end")

    @uninterrupted()
    def lost(self, number: int, reason: str) -> None:
        """Let another worker resume a trial whose worker died; fail it after MAX_LOST_WORKERS at the same epoch."""
        self._tick()
        trial = self.trials[number]
        if trial.state != "running":
            return
        trial.losses += 1
        if trial.losses >= MAX_LOST_WORKERS:
            where = f"after epoch {trial.epochs_done}"
            self._end(trial, "failed", f"{reason}, {MAX_LOST_WORKERS} times {where} (out of memory?)")
            return
        trial.state = "waiting"
        self._waiting.append((number, INTERRUPTED))
        self._tell(lambda listener: listener.trial_suspended(trial, reason))

    def error_of(self, number: int) -> str:
        """The first line of a failed trial's error file; empty if its worker left none."""
        file = self.trials[number].folder / ERROR
        lines = file.read_text().splitlines() if file.exists() else []
        return lines[0] if lines else ""  # on a full disk the file can exist and be empty

    def suspend(self, reason: str) -> None:
        """Give the sweep up for a reason that a person can fix; it can be resumed afterwards."""
        self.ended_by, self.suspended = reason, True

    @uninterrupted()
    def close(self) -> None:
        """End the trials that are still open when the sweep is over, so that no run stays RUNNING."""
        for trial in self.trials.values():
            if trial.state not in ENDED:
                before = "others did better until " if trial.state == "paused" else ""
                self._end(trial, "stopped", f"{before}the sweep ended ({self.ended_by})")

    def _broken_limit(self, metrics: dict[str, float]) -> tuple[float, str]:
        """The first limit of the objective that is exceeded: by which fraction of it, and the reason; else 0."""
        for name, limit in self._spec.limits.items():
            if metrics[name] > limit:
                reason = f"objective.max_{name}: {metrics[name]:.3g} is above {limit:g}"
                return metrics[name] / limit - 1, reason
        return 0.0, ""

    def _end(
        self,
        trial: TrialRecord,
        state: Literal["completed", "stopped", "failed"],
        reason: str,
        violation: float = 0.0,
    ) -> None:
        if trial.value is None:
            state = "failed"  # it has no value to compare and no checkpoint to keep
        trial.state, trial.reason, trial.ended = state, reason, time.time()
        if state != "failed":
            self._errors = []
        self._budget.note_end(trial.number)
        trial.save()
        self._strategy.finish(trial.number, Outcome(state, reason, violation))
        self._kind.remove_state(trial.folder)  # it will not be resumed
        self._tell(lambda listener: listener.trial_ended(trial))

    def _tell(self, call: Callable[[Listener], None]) -> None:
        for listener in self.listeners:
            call(listener)

    def leaderboard(self) -> list[TrialRecord]:
        """Trials with a value that keep all limits, best first; ties go to the earlier trial."""
        done = [
            trial
            for trial in list(self.trials.values())
            if trial.value is not None and trial.state != "failed" and trial.feasible
        ]
        return sorted(done, key=lambda trial: self._objective.sort_key(trial.value, trial.number))
