"""What a sweep knows about each of its trials."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from binsweep.data.atomic_write import write_json
from binsweep.models.levels import Section, TrialSettings, level_at, level_ends, total_epochs
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import ONE_CORE, TrainingKind

# paused: the strategy may resume it. waiting: it is next, as soon as a worker replaces the one that it lost, or its
# resources are free.
State = Literal["running", "paused", "waiting", "completed", "stopped", "failed"]
ENDED = ("completed", "stopped", "failed")
RECORD_FILE = "record.json"


@dataclass
class TrialRecord:
    """One trial: `value` is its best so far, reached at `epoch`; `reason` says why it ended."""

    number: int
    params: dict[str, object]
    levels: tuple[Section, ...]  # the sections of its training, as its configuration says
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
    feasible: bool = True  # whether it keeps every limit of the objective
    resumed: str = ""  # why it was last resumed
    last_epoch: int = 0  # where it ends; less than `planned_epochs` if it was shortened
    since: float = 0.0  # time.monotonic() of its last report, or of when it was handed to a worker
    hangs_at: float = 0.0  # time.monotonic() from which its worker takes an epoch that has not ended to hang
    reported: bool = False  # whether it has reported an epoch since it was handed to a worker

    @property
    def settings(self) -> TrialSettings:
        """The settings of its configuration, at the last level."""
        return self.levels[-1].settings

    @property
    def planned_epochs(self) -> int:
        """The epochs of its configuration's whole training."""
        return total_epochs(self.levels)

    @property
    def level(self) -> Section:
        """The fidelity level that it has reached."""
        return level_at(self.levels, self.epochs_done)

    @property
    def is_at_level_end(self) -> bool:
        """Whether its last epoch was the last one of a section, so that its learning rate has come down."""
        return self.epochs_done in level_ends(self.levels)

    def save(self) -> None:
        """Write what the study does not store about an ended trial, for a process that resumes the sweep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {
            "metrics": self.metrics,
            "started": self.started,
            "ended": self.ended,
            "epochs": self.epochs_done,
        }
        write_json(self.folder / RECORD_FILE, kept)

    def restore(self, kind: TrainingKind) -> None:
        """Read the metrics of the best epoch, the times and the epochs, from what `save` or the worker wrote."""
        if self.state in ENDED:
            file = self.folder / RECORD_FILE
            kept = json.loads(file.read_text()) if file.exists() else {}
            self.metrics = kept.get("metrics", {})
            self.started, self.ended = kept.get("started", self.started), kept.get("ended")
            # The study has no value of an epoch that diverged.
            self.epochs_done = max(self.epochs_done, kept.get("epochs", 0))
        elif 0 < self.epoch <= len(history := kind.history(self.folder)):
            self.metrics = history[self.epoch - 1]
