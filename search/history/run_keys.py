"""The run log's names of a sweep's runs: made here, and read here by whoever looks into a run log."""

from __future__ import annotations

import re

SWEEP = "sweep"  # the parent run


def trial_key(number: int) -> str:
    """The name of a trial's run, and of its folder in the sweep's."""
    return f"trial-{number:04d}"


def trial_number(key: str) -> int | None:
    """The trial whose run has this name; None for every other run, those of finalists and refits as well."""
    found = re.fullmatch(r"trial-(\d{4,})", key, re.ASCII)
    return int(found[1]) if found else None


def finalist_key(number: int, seed: int) -> str:
    """The name of the run in which a trial's configuration is trained again with its fresh seed 1, 2, ..."""
    return f"finalist-{number:04d}-{seed}"


def refit_key(key: str) -> str:
    """The name of the run that does a finalist's or a trial's training over on train and validation together."""
    return f"refit-{key.partition('-')[2]}"
