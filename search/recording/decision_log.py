"""The decision log, in the order of the decisions: why each trial started, was paused or resumed, and ended, and what
people asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from binsweep.models.health_rules import HealthFinding
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.history.decisions import DECISIONS, read_decisions
from binsweep.search.steering.request import AnsweredRequest


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

    def request_answered(self, answered: AnsweredRequest) -> None:
        """Somebody has asked for something: who, when, what and the answer."""
        request = answered.request
        line = {"time": round(answered.at, 3), "trial": request.trial, "epoch": None, "what": "request"}
        line |= {"request": request.id, "asked": str(request), "who": request.who}
        line |= {"asked_at": round(request.when, 3), "granted": answered.granted, "reason": answered.answer}
        self._append(line)

    def catch_up(self, answers: Sequence[AnsweredRequest]) -> None:
        """Append the requests that a killed process has taken in and not logged."""
        known = {one.get("request") for one in read_decisions(self._file.parent)}
        for answered in answers:
            if answered.request.id not in known:
                self.request_answered(answered)

    def _write(self, trial: TrialRecord, what: str, reason: str) -> None:
        line = {"time": round(time.time(), 3), "trial": trial.number, "epoch": trial.epochs_done}
        self._append({**line, "what": what, "reason": reason})

    def _append(self, line: Mapping[str, object]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
