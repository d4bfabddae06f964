"""The controller of a sweep: budget, strategy and trial records, behind the calls that every runner makes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from binsweep.models.levels import ending_at
from binsweep.search.execution.budget import BudgetTracker, ResourceUsage
from binsweep.search.execution.faults import FaultWatch
from binsweep.search.execution.health import HealthTracker
from binsweep.search.execution.interrupts import uninterrupted
from binsweep.search.execution.kinds import kind_of
from binsweep.search.execution.listener import Listener
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.steering import Steering
from binsweep.search.execution.sweep_clock import SweepClock
from binsweep.search.execution.trial import ERROR, TrialTask
from binsweep.search.execution.trial_record import ENDED, TrialRecord
from binsweep.search.history.run_keys import trial_key
from binsweep.search.spec.schema import BudgetPart
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.steering.request import AnsweredRequest
from binsweep.search.strategy.base import Decision, Outcome, Record, Strategy, Suggestion

INTERRUPTED = "its training was cut short"
MAX_LOST_WORKERS = 3  # lost at one epoch, after which the trial itself is to blame


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
        self._steering = Steering(spec, folder)
        self._spec, self._objective, self._strategy, self._folder = spec, spec.objective, strategy, folder
        self._kind = kind_of(spec)
        self._trial_resources, self._fits = trial_resources, fits
        self._budget = BudgetTracker(spec, spent)
        self._health = HealthTracker(spec.health)
        self._trace = trace
        self._waiting: deque[tuple[int, str]] = deque()  # the next trials, and why each is resumed
        self._faults = FaultWatch(folder)
        self._clock = SweepClock(self._budget, strategy, self.trials, self._reserved, lambda: self.is_paused)

    @property
    def epochs(self) -> int:
        """The epochs trained so far, by all trials."""
        return self._budget.epochs

    @property
    def spent(self) -> ResourceUsage:
        """What the sweep has cost until now."""
        return self._clock.spent

    def _reserved(self) -> float:
        return 0.0 if self.reserve is None else self.reserve(self)

    @property
    def budget(self) -> BudgetPart:
        """The present budget: the spec's, with what people have changed of it."""
        return self._spec.budget

    @property
    def paused_by(self) -> str:
        """Who has paused the sweep: no trial starts until it is resumed. Empty while it is not paused."""
        return self._steering.state.paused

    @property
    def is_paused(self) -> bool:
        """Whether somebody has paused the sweep."""
        return bool(self.paused_by)

    @property
    def answers(self) -> Sequence[AnsweredRequest]:
        """The requests of people that were taken in, also by earlier processes."""
        return self._steering.answers

    @uninterrupted()
    def steer(self) -> None:
        """Take in what people have asked for since the last call. It is on the disk when this returns."""
        self._clock.tick()  # the time of a pause, or until one, is over
        found = self._steering.take_in(self.trials)
        for answered in found:
            self._tell(lambda listener, one=answered: listener.request_answered(one))  # type: ignore[misc]
        if found:
            self._enforce()
        self._end_stopped()

    def _enforce(self) -> None:
        """Put in force what people have asked for. Running trials are stopped when they report an epoch."""
        state = self._steering.state
        self._spec = self._steering.spec
        self._budget.change(self._spec)
        self._strategy.steer(state.wishes, state.pins, state.space_of(self._spec.space))

    def _end_stopped(self) -> None:
        """End the trials that people have stopped, unless they are running: these end after their epoch."""
        for number, reason in self._steering.state.stops.items():
            if (trial := self.trials.get(number)) is not None and trial.state in ("paused", "waiting"):
                self._waiting = deque(item for item in self._waiting if item[0] != number)
                self._end(trial, "stopped", reason)

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
        for record in records:
            self._steering.note_begun(record.request, record.number)
        if self._steering.answers:
            self._enforce()

    @uninterrupted()
    def repeat(self, logged: Iterable[tuple[int, int, dict[str, float]]]) -> None:
        """Take in what the run log has of earlier processes, in its order: the trial, the epoch and its metrics, and a
        trial's end as epoch 0.

        A power cut may have taken an epoch from the study, or from a trial's files. And only the run log has the order
        of values and ends, which some limits of the budget are about.
        """
        is_open = {number for number, trial in self.trials.items() if trial.state not in ENDED}
        missing: list[tuple[TrialRecord, int, dict[str, float]]] = []
        has_ended: set[int] = set()
        for number, epoch, metrics in logged:
            if (trial := self.trials.get(number)) is None:
                continue
            if number in is_open and epoch == trial.epoch and not trial.metrics:
                trial.metrics = metrics
            if number in is_open and epoch >= max(1, trial.epochs_done):
                missing.append((trial, epoch, metrics))
            if number not in is_open and not metrics and number not in has_ended:
                has_ended.add(number)
                self._budget.note_end(number)
            # The last epoch of a trial that has exceeded a limit does not count.
            if metrics and epoch <= trial.epochs_done - (not trial.feasible):
                self._budget.note_value(number, self._objective.value_of(metrics))
        for number, trial in self.trials.items():  # what the study alone has kept
            self._note_value(trial)
            if number not in is_open and number not in has_ended:
                self._budget.note_end(number)
        last = {trial.number: epoch for trial, epoch, _ in sorted(missing, key=lambda one: one[1])}
        for trial, epoch, metrics in missing:
            self._repeat_epoch(trial, epoch, metrics, epoch < last[trial.number])

    def _repeat_epoch(self, trial: TrialRecord, epoch: int, metrics: dict[str, float], went_on: bool) -> None:
        """Take in an epoch that an open trial may lack, which is judged as any report unless the trial went on after
        it; then it is no longer paused."""
        is_new = epoch > trial.epochs_done
        if trial.state in ENDED or not (is_new or (went_on and trial.state == "paused")):
            return
        self._waiting = deque(item for item in self._waiting if item[0] != trial.number)
        trial.state, trial.since, trial.reported = "running", time.monotonic(), True
        if is_new:
            self._take_in(trial, epoch, metrics)
        if went_on:
            self._strategy.recall(trial.number, epoch, self._objective.value_of(metrics))
        else:
            self._judge(trial, epoch, metrics)
        if trial.state == "running":
            trial.state = "waiting"
            self._waiting.append((trial.number, INTERRUPTED))

    @uninterrupted()
    def next_task(self) -> TrialTask | None:
        """The next trial to run. None if the budget or the space is exhausted (`ended_by` says which), or if the next
        trial waits for resources, or while the sweep is paused."""
        self.steer()
        if self.is_paused:
            return None
        # One more trial would run: on GPUs and by money, the time is then over earlier.
        one_more = self._trial_resources(self._spec.trial_values({}))
        if (left := self.seconds_left(one_more)) is not None:
            self._strategy.note_time_left(left, self._clock.spent.seconds + left)
        if over := self._clock.over(self.seconds_left()):
            self.ended_by = over
        elif reason := self._faults.fault:
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
        return self._clock.seconds_left(*further)

    def training_seconds(self, number: int | None = None) -> float | None:
        """How long a trial's whole training takes, or the longest one of a typical configuration; None if nothing was
        measured yet."""
        return self._strategy.training_seconds(number)

    def _has_paused(self) -> bool:
        return any(trial.state == "paused" for trial in self.trials.values())

    def _note_value(self, trial: TrialRecord) -> None:
        if trial.feasible and trial.value is not None:
            self._budget.note_value(trial.number, trial.value)

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
        self._steering.note_begun(suggestion.request, number)
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
        hang_seconds, limit = self._clock.hang_limit()
        trial.hangs_at = math.inf if hang_seconds is None else trial.since + hang_seconds
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
            hang_seconds,
            limit,
        )

    @uninterrupted()
    def report(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in one epoch of a running trial; returns whether it continues.

        A stopped trial has ended. A paused one has not: its worker is free, and a later task resumes it from the
        state in its folder. An epoch that is reported again counts once; of a trial that has no worker, nothing does:
        a worker that was given up may still be heard, and what it says is reported again by the next one.
        """
        self.steer()
        trial = self.trials[number]
        if trial.state != "running":
            return False
        if epoch <= trial.epochs_done:
            # A power cut may have left it to the study and taken it from the run log and the trial's files.
            if epoch == trial.epoch:
                trial.metrics = metrics
            self._tell(lambda listener: listener.epoch_done(trial, epoch, metrics))
            return True
        self._take_in(trial, epoch, metrics)
        self._judge(trial, epoch, metrics)
        return trial.state == "running"

    def _take_in(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        """Note the next epoch of a running trial, and tell the listeners."""
        value = self._objective.value_of(metrics)
        self._clock.tick()
        self._clock.note_seconds(trial, metrics)
        self._budget.epochs += epoch - trial.epochs_done
        trial.epochs_done, trial.losses = epoch, 0
        trial.feasible = not self._broken_limit(metrics)[1]
        if self._objective.is_better(value, trial.value):
            trial.value, trial.epoch, trial.metrics = value, epoch, metrics
            self._note_value(trial)
        # The listeners come before the study: after a crash in between, the epoch is reported again, and the run log
        # records it once.
        self._tell(lambda listener: listener.epoch_done(trial, epoch, metrics))
        if (cost := self._spec.objective.cost_objective) is not None:
            self._strategy.note_cost(trial.number, metrics[cost])

    def _judge(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        """Record an epoch in the study, and decide whether the trial goes on, is paused or ends."""
        number, value = trial.number, self._objective.value_of(metrics)
        verdict = self._strategy.observe(number, epoch, value)
        found = self._health.check(number, epoch, metrics, trial.folder)
        if found:
            self._tell(lambda listener: listener.health_found(trial, found))
        violation, broken = self._broken_limit(metrics)
        if broken:
            self._end(trial, "stopped", broken, violation)
        elif unhealthy := self._health.stop_reason(found):
            self._end(trial, "stopped", unhealthy)
        elif (asked := self._steering.state.stops.get(number, "")) and epoch < trial.last_epoch:
            self._end(trial, "stopped", asked)
        elif verdict.decision is Decision.PAUSE:
            trial.state = "paused"
            self._tell(lambda listener: listener.trial_suspended(trial, verdict.reason))
        elif verdict.decision is Decision.STOP and not math.isfinite(value):
            self._end(trial, "failed", self._objective.what_is_broken(metrics))
        elif verdict.decision is Decision.STOP:
            self._end(trial, "stopped", verdict.reason)
        elif epoch < trial.last_epoch:
            self._keep_to_budget(trial)
            if trial.state == "running" and self.is_paused:
                self._suspend(trial, f"the sweep was paused by {self.paused_by}")
            elif trial.state == "running" and self._clock.hang_limit_is_early(trial):
                self._suspend(
                    trial, "the budget has been extended, and so has the time until it is taken to hang"
                )

    def _keep_to_budget(self, trial: TrialRecord) -> None:
        """Stop a running trial if the budget is spent; let it end earlier if the rest of it would take too long."""
        over, fitting = self._clock.epochs_left(trial)
        planned = trial.last_epoch - trial.epochs_done
        if over or not fitting:
            self.ended_by = over or f"{self._clock.time_limit()}: a further epoch would not end in time"
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
        self._suspend(trial, reason)

    def _suspend(self, trial: TrialRecord, reason: str) -> None:
        """Take a running trial from its worker; it is the next that is resumed."""
        trial.state = "waiting"
        self._waiting.appendleft((trial.number, reason))
        self._tell(lambda listener: listener.trial_suspended(trial, reason))

    @uninterrupted()
    def finish(self, number: int, error: str = "") -> None:
        """End a trial whose worker has trained all epochs or failed. Does nothing after a stop."""
        self._clock.tick()
        trial = self.trials[number]
        if trial.state != "running":
            return
        if error:
            self._faults.note_error(error)
        self._end(trial, "failed" if error else "completed", error or "trained to its end")

    @uninterrupted()
    def lost(self, number: int, reason: str) -> None:
        """Let another worker resume a trial whose worker died; fail it after MAX_LOST_WORKERS at the same epoch."""
        self._clock.tick()
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
        """End the trials that are still open when the sweep is over, so that no run stays RUNNING, and refuse what is
        asked for too late."""
        for answered in self._steering.refuse_rest(f"the sweep has ended ({self.ended_by})"):
            self._tell(lambda listener, one=answered: listener.request_answered(one))  # type: ignore[misc]
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
        # Trials are known to have ended in this order by the next process, whatever becomes of the clock.
        latest = max((one.ended for one in self.trials.values() if one.ended is not None), default=0.0)
        trial.state, trial.reason, trial.ended = state, reason, max(time.time(), latest + 0.001)
        if state != "failed":
            self._faults.note_success()
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
