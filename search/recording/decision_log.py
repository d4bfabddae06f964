"""The decision log: why each trial began, went on, was paused and ended, in the order in which it was decided."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from binsweep.models.health_rules import HealthFinding
from binsweep.search.execution.trial_record import TrialRecord

DECISIONS = "decisions.jsonl"  # in the sweep's folder


class DecisionLog:
    """A listener of the controller that appends one JSON object a decision: time, trial, epoch, what, reason."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / DECISIONS
        self._file.touch()

    def trial_started(self, trial: TrialRecord) -> None:
        """A trial begins, or goes on behind its last epoch."""
        began = trial.resumed == ""
        self._write(trial, "begin" if began else "go on", trial.suggested if began else trial.resumed)

    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None:
        """To train on is what a trial does unless something else was decided."""

    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None:
        """What a rule sees decides nothing by itself; a stop is told as the trial's end."""

    def trial_suspended(self, trial: TrialRecord, reason: str) -> None:
        """A trial is paused, or waits for another worker."""
        self._write(trial, "pause" if trial.state == "paused" else "wait", reason)

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial is over."""
        self._write(trial, trial.state, trial.reason)

    def _write(self, trial: TrialRecord, what: str, reason: str) -> None:
        line = {"time": round(time.time(), 3), "trial": trial.number, "epoch": trial.epochs_done}
        with self._file.open("a") as file:
            file.write(json.dumps({**line, "what": what, "reason": reason}) + "\n")
