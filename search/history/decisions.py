"""The decisions of a sweep, read back from its log."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

DECISIONS = "decisions.jsonl"  # in the sweep's folder


def read_decisions(folder: Path, trial: int | None = None) -> list[dict[str, Any]]:
    """The decisions of a sweep, or those about one trial, in their order; a half-written last line is left out."""
    file, found = folder / DECISIONS, []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found if trial is None else [one for one in found if one["trial"] == trial]
