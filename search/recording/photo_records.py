"""What the records of a sweep say about networks that learn from photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from binsweep.data.manifest import Manifest
from binsweep.models.checkpoint import load_checkpoint
from binsweep.models.levels import Level
from binsweep.models.precision import choose_precision
from binsweep.models.settings import Settings
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.photo_trial import BEST
from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.recording.run_params import run_params
from binsweep.search.recording.training_records import Dataset
from binsweep.search.terminal.format import format_value
from binsweep.tracking.evaluation.figures import write_csv, write_evaluation

FIGURES = "validation"


@dataclass(frozen=True)
class PhotoRecords:
    """The records of a sweep over the photos of a manifest."""

    manifest: Manifest
    data: TrialData

    @property
    def tags(self) -> Mapping[str, str]:
        return {"dataset.fingerprint": self.manifest.fingerprint}

    def dataset(self) -> Dataset:
        manifest = self.manifest
        size = f"{len(manifest.items):,} images"
        return Dataset(manifest.fingerprint, manifest.source, size, manifest.summary())

    def write_inputs(self, folder: Path) -> Iterable[Path]:
        if not self.manifest.skipped:
            return []
        skipped = folder / "skipped.csv"
        write_csv(skipped, ["id", "reason"], [(item.id, item.reason) for item in self.manifest.skipped])
        return [skipped]

    def write_data_report(self, folder: Path) -> Iterable[Path]:
        from binsweep.data.report.data_report import (  # its libraries take a second to import
            build_data_report,
            write_report,
        )

        home = folder.parent.parent
        return write_report(build_data_report(self.manifest, home), folder / "data" / "report.html")

    def trial_name(self, trial: TrialRecord) -> str:
        settings = _settings(trial)
        return f"{settings.backbone} lr {format_value(settings.lr)} batch {settings.batch_size}"

    def trial_params(self, trial: TrialRecord) -> dict[str, Any]:
        return run_params([level for level in trial.levels if isinstance(level, Level)])

    def trial_tags(self, trial: TrialRecord) -> Mapping[str, str]:
        settings = _settings(trial)
        precision = choose_precision(settings.precision).name
        return {"arithmetic": f"{precision}, channels_last, fused {settings.optimizer}"}

    def write_results(self, folder: Path) -> Iterable[tuple[Path, str]]:
        if not (folder / BEST).exists():
            return []
        checkpoint = load_checkpoint(folder / BEST)
        bank = self.data.validation
        actual = np.asarray(self.data.classes)[bank.labels]
        probabilities = checkpoint.log_probabilities.exp().numpy()
        title = f"validation, epoch {checkpoint.epoch}: accuracy {checkpoint.metrics['val_accuracy']:.1%}"
        figures = folder / FIGURES
        write_evaluation(
            figures, probabilities, actual, self.data.classes, bank.ids, bank.pixels.__getitem__, title
        )
        return [(figures, FIGURES)]

    def has_results(self, folder: Path) -> bool:
        return (folder / FIGURES).exists()


def _settings(trial: TrialRecord) -> Settings:
    last = trial.levels[-1]
    assert isinstance(last, Level)
    return last.settings
