"""The course of a sweep: budget, strategy and record, behind the calls that every runner makes."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from binsweep.data.atomic_write import write_json
from binsweep.models.health_rules import HealthFinding
from binsweep.models.precision import threads_of
from binsweep.models.settings import Settings
from binsweep.models.training_state import load_training_state
from binsweep.search.execution.health import HealthTracker
from binsweep.search.execution.interrupts import uninterrupted
from binsweep.search.execution.trial import ERROR, LAST, ONE_CORE, Goal, TrialResources, TrialTask, better
from binsweep.search.history.run_keys import trial_key
from binsweep.search.spec.parser import SweepSpec
from binsweep.search.strategy import Decision, Outcome, Record, Strategy, Suggestion

# paused: the strategy may take it up again; waiting: it is next, when a
# worker is free in place of the one that it lost, or room for it where trials get different shares.
State = Literal["running", "paused", "waiting", "completed", "stopped", "failed"]
ENDED = ("completed", "stopped", "failed")
RECORD = "record.json"
CUT_SHORT = "its training was cut short"
LOSSES = 3  # so often may a worker be lost at one epoch before the trial is to blame
ERRORS = 3  # so many failures of one kind in a row are the code's or the data's fault
MIN_FREE = 200 * 2**20  # bytes on the disk below which no trial begins


@dataclass
class TrialRecord:
    """What is known of one trial; `value` is its best so far, at `epoch`; `reason` says why it ended."""

    number: int
    params: dict[str, object]
    settings: Settings
    folder: Path
    suggested: str
    resources: TrialResources = ONE_CORE
    threads: int = 1
    reason: str = ""
    state: State = "running"
    value: float | None = None
    epoch: int = 0
    epochs_done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    ended: float | None = None
    losses: int = 0  # workers lost since the last epoch
    feasible: bool = True  # it broke no limit of the objective
    resumed: str = ""  # why it went on when it last did


@dataclass(frozen=True)
class ResourceUsage:
    """Seconds that a sweep took, and those of all CPUs and GPUs that its trials had."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0


class Listener(Protocol):
    """Who is told of a sweep's course: the MLflow recorder, the live table."""

    def trial_started(self, trial: TrialRecord) -> None: ...
    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None: ...
    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None: ...
    def trial_suspended(self, trial: TrialRecord, reason: str) -> None: ...
    def trial_ended(self, trial: TrialRecord) -> None: ...


def trial_seed(seed: int, number: int) -> int:
    """A seed of its own for every trial, the same in every repetition of the sweep."""
    return (seed * 1_000_003 + number) % 2**31


class Controller:
    """Hands out trials, judges their epochs, and tells the listeners; calls come from the main thread only.

    `share_of` says what a trial gets, `fits` whether trials have room together (where all get the same, their runner
    knows how many), `spent` what earlier processes gave to the sweep. `trace` lets torch.profiler
    look at each trial. `halted` says that the sweep was given up for a reason that a person can mend (`ended_by` names
    it): it can go on afterwards.
    """

    def __init__(
        self,
        spec: SweepSpec,
        strategy: Strategy,
        folder: Path,
        trial_resources: Callable[[Settings], TrialResources],
        fits: Callable[[Sequence[TrialResources]], bool] | None = None,
        spent: ResourceUsage | None = None,
        trace: bool = False,
    ) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.listeners: list[Listener] = []
        # What was spent, and until when: by a clock that nobody sets, and that stands still while the machine sleeps.
        self._counted = (ResourceUsage() if spent is None else spent, time.monotonic())
        self.ended_by = ""
        self.suspended = False
        self.epochs = 0  # trained so far, by all trials
        self.goal: Goal = spec.goal
        self._spec, self._strategy, self._folder = spec, strategy, folder
        self._trial_resources, self._fits = trial_resources, fits
        self._health = HealthTracker(spec.health)
        self._trace = trace
        self._waiting: deque[tuple[int, str]] = deque()  # trials that are next, and why they go on
        self._errors: list[str] = []
        self._best: float | None = None
        self._holder = -1  # the trial that has it
        self._ended_since_best = 0

    def restore(self, records: Sequence[Record]) -> None:
        """Take up what earlier processes left: what has ended stays so, and the rest goes on before anything new."""
        for record in records:
            trial = self._add(record.number, record.params, record.suggested_because)
            trial.value, trial.epoch = record.value, record.epoch or 0
            trial.epochs_done = max(record.values, default=0)
            trial.reason, trial.feasible = record.ended_because, record.feasible
            if record.state == "running":
                trial.state = "waiting"
                self._waiting.append((trial.number, CUT_SHORT))
            else:
                trial.state = record.state
            _read_record(trial)
            self.epochs += trial.epochs_done
        ended = [trial for trial in self.trials.values() if trial.state in ENDED]
        for trial in sorted(ended, key=lambda trial: trial.ended or trial.started):
            self._note_best(trial)
            self._count_end(trial)

    @uninterrupted()
    def next_task(self) -> TrialTask | None:
        """The next trial to run, or None: the budget or the space is used up (`ended_by` says which), or the next one
        waits for room."""
        self._tick()
        if over := self._over():
            self.ended_by = over
        elif reason := self._fault():
            self.suspend(reason)
        elif self._waiting:
            number, reason = self._waiting[0]
            if self._has_room(number):
                self._waiting.popleft()
                return self._go_on(number, reason)
        elif (suggestion := self._strategy.suggest(len(self.trials) < self._spec.budget.trials)) is not None:
            return self._start(suggestion)
        elif len(self.trials) >= self._spec.budget.trials:
            self.ended_by = f"budget.trials: all {self._spec.budget.trials} were started"
        else:
            self.ended_by = "space: every configuration was tried"
        return None

    def _over(self) -> str:
        """Why no trial may train on, or an empty text; the first budget that is spent."""
        budget = self._spec.budget
        if budget.minutes is not None and self.spent.seconds > 60 * budget.minutes:
            return f"budget.minutes: {budget.minutes:g} are over"
        if budget.gpu_hours is not None and self.spent.gpu_seconds > 3600 * budget.gpu_hours:
            return f"budget.gpu_hours: {budget.gpu_hours:g} are spent"
        if budget.epochs is not None and self.epochs >= budget.epochs:
            return f"budget.epochs: all {budget.epochs} were trained"
        if budget.target is not None and not better(budget.target, self._best, self.goal):
            return f"budget.target: {self._spec.metric} reached {self._best:g}"
        if budget.no_improvement is not None and self._ended_since_best >= budget.no_improvement:
            return f"budget.no_improvement: {budget.no_improvement} trials ended without a better one"
        return ""

    def _tick(self) -> None:
        """Count the time since the last call; to be called before any trial begins or leaves its worker."""
        now = time.monotonic()
        self._counted = (self._spent_at(now), now)

    @property
    def spent(self) -> ResourceUsage:
        """What the sweep has cost until now."""
        return self._spent_at(time.monotonic())

    def _spent_at(self, now: float) -> ResourceUsage:
        running = [trial.resources for trial in list(self.trials.values()) if trial.state == "running"]
        known, until = self._counted
        past = now - until
        return ResourceUsage(
            known.seconds + past,
            known.cpu_seconds + past * sum(resources.cpus for resources in running),
            known.gpu_seconds + past * sum(resources.gpus for resources in running),
        )

    def _note_best(self, trial: TrialRecord) -> None:
        if trial.feasible and trial.value is not None and better(trial.value, self._best, self.goal):
            self._best, self._holder, self._ended_since_best = trial.value, trial.number, 0

    def _count_end(self, trial: TrialRecord) -> None:
        self._ended_since_best = 0 if trial.number == self._holder else self._ended_since_best + 1

    def _fault(self) -> str:
        """Why no trial should begin now although the budget is not used up; empty when nothing is wrong."""
        if len(self._errors) >= ERRORS:
            return f"errors: {ERRORS} trials in a row failed alike: {self._errors[-1]}"
        free = shutil.disk_usage(self._folder).free
        if free < MIN_FREE:
            need = f"{MIN_FREE // 2**20} MB are needed"
            return f"disk: only {free // 2**20} MB are free at {self._folder} and {need}: free some to go on"
        return ""

    def _add(self, number: int, params: dict[str, object], suggested: str) -> TrialRecord:
        settings = self._spec.trial_settings(params, trial_seed(self._spec.search.seed, number))
        folder = self._folder / trial_key(number)
        resources = self._trial_resources(settings)
        threads = threads_of(settings.trainable, int(resources.each["CPU"]))
        self.trials[number] = TrialRecord(number, params, settings, folder, suggested, resources, threads)
        return self.trials[number]

    def _start(self, suggestion: Suggestion) -> TrialTask | None:
        number, reason = suggestion.number, suggestion.reason
        if number not in self.trials:
            self._add(number, suggestion.params, suggestion.reason)
            reason = ""
        if self._has_room(number):
            return self._go_on(number, reason)
        trial = self.trials[number]
        trial.state, trial.resumed = "waiting", reason
        self._waiting.append((number, reason))
        self._tell(lambda listener: listener.trial_started(trial))
        self._tell(lambda listener: listener.trial_suspended(trial, "it waits for room"))
        return None

    def _has_room(self, number: int) -> bool:
        """Whether a trial finds what it needs beside those that run. The next one waits until it does, and none begins
        before it: small ones would take for ever what a large one waits for."""
        if self._fits is None:
            return True
        others = [one for one in self.trials.values() if one.state == "running" and one.number != number]
        return self._fits([one.resources for one in (*others, self.trials[number])])

    def _go_on(self, number: int, reason: str = "") -> TrialTask:
        trial = self.trials[number]
        trial.state, trial.resumed = "running", reason
        self._tell(lambda listener: listener.trial_started(trial))
        return TrialTask(
            number,
            trial.settings,
            trial.folder,
            self._spec.metric,
            self._spec.goal,
            trial.threads,
            trial.epochs_done,
            self._trace,
            self._spec.budget.trial_minutes,
            bool(self._spec.limits or self._spec.objective.against),
            trial.resources,
            self._spec.health,
        )

    @uninterrupted()
    def report(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in one epoch of a running trial; returns whether it goes on.

        A stop also ends the trial. A paused one is not ended: its worker is free, and a later task with the
        same folder goes on from the state left there. An epoch that is told again counts once.
        """
        trial = self.trials[number]
        if epoch <= trial.epochs_done:
            return trial.state == "running"
        # Accuracy stays a number while the loss is already NaN: a diverged trial must not compete with it.
        diverged = not all(math.isfinite(metrics[loss]) for loss in ("train_loss", "val_loss"))
        value = math.nan if diverged else metrics[self._spec.metric]
        self._tick()
        self.epochs += epoch - trial.epochs_done
        trial.epochs_done, trial.losses = epoch, 0
        violation, broken = self._broken_limit(metrics)
        trial.feasible = violation <= 0
        if better(value, trial.value, self.goal):
            trial.value, trial.epoch, trial.metrics = value, epoch, metrics
            self._note_best(trial)
        # Told before the study knows: what dies in between tells it again, and the run log takes an epoch once.
        self._tell(lambda listener: listener.epoch_done(trial, epoch, metrics))
        if (against := self._spec.objective.against) is not None:
            self._strategy.note_cost(number, metrics[against])
        verdict = self._strategy.observe(number, epoch, value)
        found = self._health.look(number, epoch, metrics, trial.folder)
        if found:
            self._tell(lambda listener: listener.health_found(trial, found))
        if not trial.feasible:
            self._end(trial, "stopped", broken, violation)
        elif unhealthy := self._health.stop_reason(found):
            self._end(trial, "stopped", unhealthy)
        elif verdict.decision is Decision.PAUSE:
            trial.state = "paused"
            self._tell(lambda listener: listener.trial_suspended(trial, verdict.reason))
        elif verdict.decision is Decision.STOP:
            self._end(trial, "stopped" if math.isfinite(value) else "failed", verdict.reason)
        elif (over := self._over()) and epoch < trial.settings.epochs:
            self.ended_by = over
            self._end(trial, "stopped", f"the sweep was over ({over})")
        return trial.state == "running"

    @uninterrupted()
    def finish(self, number: int, error: str = "") -> None:
        """A trial's worker is done: with all its epochs, or with an error. After a stop this changes nothing."""
        self._tick()
        trial = self.trials[number]
        if trial.state != "running":
            return
        kind = error.partition(":")[0]
        if error and kind != "TimeoutError":
            alike = [one for one in self._errors if one.partition(":")[0] == kind]
            self._errors = [*alike, error]
        self._end(trial, "failed" if error else "completed", error or "trained to its end")

    @uninterrupted()
    def lost(self, number: int, reason: str) -> None:
        """A trial's worker died under it: another one goes on, unless that happens again and again."""
        self._tick()
        trial = self.trials[number]
        if trial.state != "running":
            return
        trial.losses += 1
        if trial.losses >= LOSSES:
            where = f"after epoch {trial.epochs_done}"
            self._end(trial, "failed", f"{reason}, {LOSSES} times {where} (out of memory?)")
            return
        trial.state = "waiting"
        self._waiting.append((number, CUT_SHORT))
        self._tell(lambda listener: listener.trial_suspended(trial, reason))

    def error_of(self, number: int) -> str:
        """The first line of what a failed trial's worker left behind; empty when it left nothing."""
        file = self.trials[number].folder / ERROR
        lines = file.read_text().splitlines() if file.exists() else []
        return lines[0] if lines else ""  # a full disk takes the name of a file, but nothing into it

    def suspend(self, reason: str) -> None:
        """Give the sweep up for a reason that a person can mend: it can go on afterwards."""
        self.ended_by, self.suspended = reason, True

    @uninterrupted()
    def close(self) -> None:
        """The sweep is over: end what is paused or still open, so that nothing stays RUNNING anywhere."""
        for trial in self.trials.values():
            if trial.state not in ENDED:
                before = "others did better until " if trial.state == "paused" else ""
                self._end(trial, "stopped", f"{before}the sweep ended ({self.ended_by})")

    def _broken_limit(self, metrics: dict[str, float]) -> tuple[float, str]:
        """By which part of a limit a trial is over it, and why it is no candidate; 0 when it keeps all."""
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
            state = "failed"  # there is nothing that could be compared, or kept
        trial.state, trial.reason, trial.ended = state, reason, time.time()
        if state != "failed":
            self._errors = []
        self._count_end(trial)
        _write_record(trial)
        self._strategy.finish(trial.number, Outcome(state, reason, violation))
        (trial.folder / LAST).unlink(missing_ok=True)  # nobody goes on with it
        self._tell(lambda listener: listener.trial_ended(trial))

    def _tell(self, call: Callable[[Listener], None]) -> None:
        for listener in self.listeners:
            call(listener)

    def leaderboard(self) -> list[TrialRecord]:
        """Trials that have a value and broke no limit, best first; ties go to the earlier trial."""
        sign = -1 if self.goal == "maximize" else 1
        done = [
            trial
            for trial in list(self.trials.values())
            if trial.value is not None and trial.state != "failed" and trial.feasible
        ]
        return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def pareto_front(trials: Sequence[TrialRecord], cost: str) -> list[TrialRecord]:
    """Those of a leaderboard, best first, that no better or equal one undercuts in `cost`, a metric of theirs."""
    front: list[TrialRecord] = []
    for trial in trials:
        if cost in trial.metrics and (not front or trial.metrics[cost] < front[-1].metrics[cost]):
            front.append(trial)
    return front


def _write_record(trial: TrialRecord) -> None:
    """What the study does not hold of an ended trial, for a process that takes the sweep up later."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    kept = {"metrics": trial.metrics, "started": trial.started, "ended": trial.ended}
    write_json(trial.folder / RECORD, kept)


def _read_record(trial: TrialRecord) -> None:
    """The metrics of the best epoch and the times, from what `_write_record` or the trial's worker left."""
    if trial.state in ENDED:
        file = trial.folder / RECORD
        kept = json.loads(file.read_text()) if file.exists() else {}
        trial.metrics = kept.get("metrics", {})
        trial.started, trial.ended = kept.get("started", trial.started), kept.get("ended")
    elif (state := load_training_state(trial.folder / LAST)) and 0 < trial.epoch <= state.epoch:
        trial.metrics = state.history[trial.epoch - 1]
