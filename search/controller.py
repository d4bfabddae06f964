"""The course of a sweep: budget, strategy and record, behind three calls that every runner makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from models.settings import Settings
from search.spec import SweepSpec
from search.strategy import Decision, Outcome, Strategy, Suggestion
from search.trial import ERROR, Goal, TrialTask, better

State = Literal["running", "paused", "completed", "stopped", "failed"]


@dataclass
class TrialRecord:
    """What is known of one trial; `value` is its best so far, at `epoch`; `reason` says why it ended."""

    number: int
    params: dict[str, object]
    settings: Settings
    folder: Path
    suggested: str
    reason: str = ""
    state: State = "running"
    value: float | None = None
    epoch: int = 0
    epochs_done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    ended: float | None = None


class Listener(Protocol):
    """Who is told of a sweep's course: the MLflow recorder, the live table."""

    def trial_started(self, trial: TrialRecord) -> None: ...
    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None: ...
    def trial_ended(self, trial: TrialRecord) -> None: ...


def trial_seed(seed: int, number: int) -> int:
    """A seed of its own for every trial, the same in every repetition of the sweep."""
    return (seed * 1_000_003 + number) % 2**31


class Controller:
    """Hands out trials, judges their epochs, and tells the listeners; calls come from one thread only."""

    def __init__(self, spec: SweepSpec, strategy: Strategy, folder: Path, threads: int) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.listeners: list[Listener] = []
        self.started = time.time()
        self.ended_by = ""
        self.epochs = 0  # trained so far, by all trials
        self.goal: Goal = spec.goal
        self._spec, self._strategy, self._folder, self._threads = spec, strategy, folder, threads
        self._best: float | None = None
        self._holder = -1  # the trial that has it
        self._ended_since_best = 0

    def next_task(self) -> TrialTask | None:
        """The next trial to run, or None when the budget or the space is used up (`ended_by` says which)."""
        if over := self._over():
            self.ended_by = over
        elif len(self.trials) >= self._spec.budget.trials:
            self.ended_by = f"budget.trials: all {self._spec.budget.trials} were started"
        elif (suggestion := self._strategy.suggest()) is None:
            self.ended_by = "space: every configuration was tried"
        elif suggestion.epochs_done:
            trial = self.trials[suggestion.number]
            trial.state = "running"
            return self._task(trial)
        else:
            return self._start(suggestion)
        return None

    def _over(self) -> str:
        """Why no trial may train on, or an empty text; the first budget that is spent."""
        budget = self._spec.budget
        if budget.minutes is not None and time.time() - self.started > 60 * budget.minutes:
            return f"budget.minutes: {budget.minutes:g} are over"
        if budget.epochs is not None and self.epochs >= budget.epochs:
            return f"budget.epochs: all {budget.epochs} were trained"
        if budget.target is not None and not better(budget.target, self._best, self.goal):
            return f"budget.target: {self._spec.metric} reached {self._best:g}"
        if budget.no_improvement is not None and self._ended_since_best >= budget.no_improvement:
            return f"budget.no_improvement: {budget.no_improvement} trials ended without a better one"
        return ""

    def _task(self, trial: TrialRecord) -> TrialTask:
        spec = self._spec
        return TrialTask(trial.number, trial.settings, trial.folder, spec.metric, spec.goal, self._threads)

    def _start(self, suggestion: Suggestion) -> TrialTask:
        number = suggestion.number
        settings = self._spec.trial_settings(suggestion.params, trial_seed(self._spec.search.seed, number))
        folder = self._folder / f"trial-{number:04d}"
        trial = TrialRecord(number, suggestion.params, settings, folder, suggestion.reason)
        self.trials[number] = trial
        self._tell(lambda listener: listener.trial_started(trial))
        return self._task(trial)

    def report(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in one epoch of a running trial; returns whether it goes on.

        A stop also ends the trial. A paused one is not ended: its worker is free, and a later task with the
        same folder goes on from the state left there, telling its epochs again, which count once.
        """
        trial = self.trials[number]
        if epoch <= trial.epochs_done:
            return trial.state == "running"
        # Accuracy stays a number while the loss is already NaN: a diverged trial must not compete with it.
        diverged = not all(math.isfinite(metrics[loss]) for loss in ("train_loss", "val_loss"))
        value = math.nan if diverged else metrics[self._spec.metric]
        self.epochs += max(0, epoch - trial.epochs_done)
        trial.epochs_done = epoch
        if better(value, trial.value, self.goal):
            trial.value, trial.epoch, trial.metrics = value, epoch, metrics
            if better(value, self._best, self.goal):
                self._best, self._holder, self._ended_since_best = value, number, 0
        verdict = self._strategy.observe(number, epoch, value)
        self._tell(lambda listener: listener.epoch_done(trial, epoch, metrics))
        if verdict.decision is Decision.STOP:
            self._end(trial, "stopped" if math.isfinite(value) else "failed", verdict.reason)
        elif (over := self._over()) and epoch < trial.settings.epochs:
            self.ended_by = over
            self._end(trial, "stopped", f"the sweep was over ({over})")
        elif verdict.decision is Decision.PAUSE:
            trial.state, trial.reason = "paused", verdict.reason
        return trial.state == "running"

    def finish(self, number: int, error: str = "") -> None:
        """A trial's worker is done: with all its epochs, or with an error. After a stop this changes nothing."""
        trial = self.trials[number]
        if trial.state == "running":
            self._end(trial, "failed" if error else "completed", error or "trained to its end")

    def error_of(self, number: int, otherwise: str) -> str:
        """The first line of what a failed trial's worker left behind, or `otherwise`."""
        file = self.trials[number].folder / ERROR
        return file.read_text().splitlines()[0] if file.exists() else otherwise

    def close(self, reason: str) -> None:
        """End what still runs, so that nothing stays RUNNING anywhere."""
        for trial in self.trials.values():
            if trial.state == "running":
                self._end(trial, "failed", reason)
            elif trial.state == "paused":
                self._end(trial, "stopped", f"{trial.reason}, until {reason}")

    def _end(self, trial: TrialRecord, state: Literal["completed", "stopped", "failed"], reason: str) -> None:
        trial.state, trial.reason, trial.ended = state, reason, time.time()
        self._ended_since_best = 0 if trial.number == self._holder else self._ended_since_best + 1
        self._strategy.finish(trial.number, Outcome(state, reason))
        self._tell(lambda listener: listener.trial_ended(trial))

    def _tell(self, call: Callable[[Listener], None]) -> None:
        for listener in self.listeners:
            call(listener)

    def leaderboard(self) -> list[TrialRecord]:
        """Trials that have a value, best first; ties go to the earlier trial."""
        sign = -1 if self.goal == "maximize" else 1
        done = [
            trial for trial in self.trials.values() if trial.value is not None and trial.state != "failed"
        ]
        return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
