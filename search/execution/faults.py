"""Why no trial should start although the budget is not exhausted: equal errors in a row, or a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path

MAX_EQUAL_ERRORS = 3  # failures of one kind in a row, after which the code or the data is to blame
MIN_FREE_BYTES = 200 * 2**20  # on the disk, below which no trial starts


class FaultWatch:
    """Counts the errors of trials, and looks at the disk that `folder` is on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._errors: list[str] = []  # of one kind, in a row

    def note_error(self, error: str) -> None:
        """Take in why a trial has failed: the type of the exception, and what it says."""
        kind = error.partition(":")[0]
        if kind != "TimeoutError":
            self._errors = [*(one for one in self._errors if one.partition(":")[0] == kind), error]

    def note_success(self) -> None:
        """A trial has ended without an error."""
        self._errors = []

    @property
    def fault(self) -> str:
        """What is wrong; empty if nothing is."""
        if len(self._errors) >= MAX_EQUAL_ERRORS:
            return (
                f"errors: {MAX_EQUAL_ERRORS} trials in a row failed with the same error: {self._errors[-1]}"
            )
        free = shutil.disk_usage(self._folder).free
        if free < MIN_FREE_BYTES:
            need = f"{MIN_FREE_BYTES // 2**20} MB are needed"
            return f"disk: only {free // 2**20} MB are free at {self._folder}, {need}: free some space to continue"
        return ""
