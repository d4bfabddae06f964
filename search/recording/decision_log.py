"""The decision log, in the order of the decisions: why each trial started, was paused or resumed, and ended, and what
people asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from binsweep.data.atomic_write import end_line
from binsweep.models.health_rules import HealthFinding
from binsweep.search.execution.trial_record import ENDED, TrialRecord
from binsweep.search.history.decisions import DECISIONS, read_decisions
from binsweep.search.steering.request import AnsweredRequest


class DecisionLog:
    """A listener of the controller that appends one JSON line for each decision: time, trial, epoch, what, reason."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / DECISIONS
        self._file.touch()
        end_line(self._file)

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

    def catch_up(self, answers: Sequence[AnsweredRequest], trials: Iterable[TrialRecord] = ()) -> None:
        """Append the requests that a killed process has taken in and not logged, and begins and ends of trials that it
        has decided, or a power cut has taken from the log."""
        lines = read_decisions(self._file.parent)
        known = {one.get("request") for one in lines}
        for answered in answers:
            if answered.request.id not in known:
                self.request_answered(answered)
        begun = {one["trial"] for one in lines if one["what"] == "begin"}
        ended = {one["trial"] for one in lines if one["what"] in ENDED}
        for trial in trials:
            if trial.number not in begun:
                self._write(trial, "begin", trial.suggested, trial.started)
            if trial.state in ENDED and trial.number not in ended:
                self._write(trial, trial.state, trial.reason, trial.ended)

    def _write(self, trial: TrialRecord, what: str, reason: str, at: float | None = None) -> None:
        now = time.time() if at is None else at
        line = {"time": round(now, 3), "trial": trial.number, "epoch": trial.epochs_done}
        self._append({**line, "what": what, "reason": reason})

    def _append(self, line: Mapping[str, object]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
