"""What the records of a sweep say about trainings by own code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binsweep.search.execution.trial_record import TrialRecord
from binsweep.search.own_code.host_process import OUTPUT
from binsweep.search.own_code.snapshot import CodeSnapshot
from binsweep.search.own_code.trial import ARTIFACTS
from binsweep.search.spec.sweep_spec import CodeSettings
from binsweep.search.terminal.format import format_value

MAX_NAMED = 3  # searched values in the name of a run
CODE = "code"


@dataclass(frozen=True)
class CodeRecords:
    """The records of a sweep of own code."""

    code: CodeSnapshot

    @property
    def tags(self) -> Mapping[str, str]:
        return {"code.fingerprint": self.code.fingerprint}

    def dataset(self) -> None:
        return None  # what the code reads is its own affair

    def write_inputs(self, folder: Path) -> Iterable[Path]:
        """The code as the trials run it."""
        self.code.copy_to(folder / CODE)
        return [folder / CODE] if self.code.files else []

    def write_data_report(self, folder: Path) -> Iterable[Path]:
        return []

    def trial_name(self, trial: TrialRecord) -> str:
        return " ".join(
            f"{name} {format_value(value)}" for name, value in [*trial.params.items()][:MAX_NAMED]
        )

    def trial_params(self, trial: TrialRecord) -> dict[str, Any]:
        settings = trial.levels[-1].settings
        assert isinstance(settings, CodeSettings)
        return settings.run_params()

    def trial_tags(self, trial: TrialRecord) -> Mapping[str, str]:
        return {}

    def write_results(self, folder: Path) -> Iterable[tuple[Path, str]]:
        found = [(folder / OUTPUT, "")] if (folder / OUTPUT).exists() else []
        return [*found, *([(folder / ARTIFACTS, ARTIFACTS)] if (folder / ARTIFACTS).exists() else [])]

    def has_results(self, folder: Path) -> bool:
        return True  # nothing is drawn: its files are there when it ends
