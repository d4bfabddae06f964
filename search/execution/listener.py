"""The events of a sweep, and who receives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from binsweep.models.health_rules import HealthFinding
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.steering.request import AnsweredRequest


class Listener(Protocol):
    """Receives the events of a sweep: the MLflow recorder, the decision log, the live table.

    An epoch that is trained again after an interruption is done again, with the same metrics.
    """

    def trial_started(self, trial: TrialRecord) -> None: ...
    def epoch_done(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> None: ...
    def health_found(self, trial: TrialRecord, found: Sequence[HealthFinding]) -> None: ...
    def trial_suspended(self, trial: TrialRecord, reason: str) -> None: ...
    def trial_ended(self, trial: TrialRecord) -> None: ...
    def request_answered(self, answered: AnsweredRequest) -> None: ...
