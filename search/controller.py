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

State = Literal["running", "completed", "stopped", "failed"]


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
        self.goal: Goal = spec.goal
        self._spec, self._strategy, self._folder, self._threads = spec, strategy, folder, threads

    def next_task(self) -> TrialTask | None:
        """The next trial to run, or None when the budget or the space is used up (`ended_by` says which)."""
        if self._out_of_time():
            self.ended_by = self._time_is_over()
        elif len(self.trials) >= self._spec.budget.trials:
            self.ended_by = f"budget.trials: all {self._spec.budget.trials} were started"
        elif (suggestion := self._strategy.suggest()) is None:
            self.ended_by = "space: every configuration was tried"
        else:
            return self._start(suggestion)
        return None

    def _time_is_over(self) -> str:
        return f"budget.minutes: {self._spec.budget.minutes:g} are over"

    def _out_of_time(self) -> bool:
        minutes = self._spec.budget.minutes
        return minutes is not None and time.time() - self.started > 60 * minutes

    def _start(self, suggestion: Suggestion) -> TrialTask:
        number = suggestion.number
        settings = self._spec.trial_settings(suggestion.params, trial_seed(self._spec.search.seed, number))
        folder = self._folder / f"trial-{number:04d}"
        trial = TrialRecord(number, suggestion.params, settings, folder, suggestion.reason)
        self.trials[number] = trial
        self._tell(lambda listener: listener.trial_started(trial))
        return TrialTask(number, settings, folder, self._spec.metric, self._spec.goal, self._threads)

    def report(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in one epoch of a running trial; returns whether it goes on. A stop also ends the trial."""
        trial = self.trials[number]
        # Accuracy stays a number while the loss is already NaN: a diverged trial must not compete with it.
        diverged = not all(math.isfinite(metrics[loss]) for loss in ("train_loss", "val_loss"))
        value = math.nan if diverged else metrics[self._spec.metric]
        trial.epochs_done = epoch
        if better(value, trial.value, self.goal):
            trial.value, trial.epoch, trial.metrics = value, epoch, metrics
        verdict = self._strategy.observe(number, epoch, value)
        self._tell(lambda listener: listener.epoch_done(trial, epoch, metrics))
        if verdict.decision is Decision.STOP:
            self._end(trial, "stopped" if math.isfinite(value) else "failed", verdict.reason)
        elif self._out_of_time() and epoch < trial.settings.epochs:
            self.ended_by = self._time_is_over()
            self._end(trial, "stopped", "the sweep's time was over")
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

    def _end(self, trial: TrialRecord, state: Literal["completed", "stopped", "failed"], reason: str) -> None:
        trial.state, trial.reason, trial.ended = state, reason, time.time()
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
