"""The decision log: why each trial started, was paused or resumed, and ended, in the order of the decisions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from binsweep.models.health_rules import HealthFinding
from binsweep.search.execution.trial_record import TrialRecord

DECISIONS = "decisions.jsonl"  # in the sweep's folder


class DecisionLog:
    """A listener of the controller that appends one JSON line for each decision: time, trial, epoch, what, reason."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / DECISIONS
        self._file.touch()

    def trial_started(self, trial: TrialRecord) -> None:
        """A trial starts, or is resumed after its last epoch."""
        started = trial.resumed == ""
        self._write(trial, "begin" if started else "go on", trial.suggested if started else trial.resumed)

    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        """Not logged: trials continue unless something else is decided."""

    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None:
        """Not logged: a finding that stops a trial is the reason of its end."""

    def trial_suspended(self, trial: TrialRecord, reason: str) -> None:
        """A trial is paused, or waits for a worker or for resources."""
        self._write(trial, "pause" if trial.state == "paused" else "wait", reason)

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial has ended."""
        self._write(trial, trial.state, trial.reason)

    def _write(self, trial: TrialRecord, what: str, reason: str) -> None:
        line = {"time": round(time.time(), 3), "trial": trial.number, "epoch": trial.epochs_done}
        with self._file.open("a") as file:
            file.write(json.dumps({**line, "what": what, "reason": reason}) + "\n")
