"""What the records of a sweep say about the kind of training: the interface between the recorder and it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from binsweep.search.execution.trial_record import TrialRecord


@dataclass(frozen=True)
class Dataset:
    """The data that trials learn from, as MLflow shows them: `size` for people, `summary` a JSON object."""

    fingerprint: str
    source: str
    size: str
    summary: dict[str, Any]


class TrainingRecords(Protocol):
    """What MLflow is told about a sweep's trainings. Files are written into the sweep's or the trial's folder."""

    @property
    def tags(self) -> Mapping[str, str]:
        """Tags of every run of the sweep."""

    def dataset(self) -> Dataset | None:
        """The data, where the sweep knows them."""

    def write_inputs(self, folder: Path) -> Iterable[Path]:
        """Write what the sweep was begun with; returns files and folders to log."""

    def write_data_report(self, folder: Path) -> Iterable[Path]:
        """Write a report about the data, which may take minutes; returns files to log."""

    def trial_name(self, trial: TrialRecord) -> str:
        """A few words on a configuration."""

    def trial_params(self, trial: TrialRecord) -> dict[str, Any]:
        """All that a trial was given."""

    def trial_tags(self, trial: TrialRecord) -> Mapping[str, str]:
        """How a trial computes."""

    def write_results(self, folder: Path) -> Iterable[tuple[Path, str]]:
        """Write figures about an ended trial; returns files and folders to log, each with its folder in the run."""

    def has_results(self, folder: Path) -> bool:
        """Whether `write_results` has written all for a trial."""
