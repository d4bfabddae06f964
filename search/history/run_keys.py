"""The keys of a sweep's runs in its run log."""

from __future__ import annotations

import functools
import re

SWEEP = "sweep"  # the parent run
JOB_VARIABLE = "BINSWEEP_JOB"  # in the environment of a submitted sweep: the name that it was submitted under


def trial_key(number: int) -> str:
    """The key of a trial's run, also the name of its folder."""
    return f"trial-{number:04d}"


@functools.lru_cache(4096)  # a reader meets each key at every epoch
def trial_number(key: str) -> int | None:
    """The number of the trial whose run has this key; None for other runs, such as those of finalists and refits."""
    found = re.fullmatch(r"trial-(\d{4,})", key, re.ASCII)
    return int(found[1]) if found else None


def finalist_key(number: int, seed: int) -> str:
    """The key of the run that trains a trial's configuration again with its fresh seed 1, 2, ..."""
    return f"finalist-{number:04d}-{seed}"


def refit_key(key: str) -> str:
    """The key of the run that repeats a finalist's or trial's training on train and validation together."""
    return f"refit-{key.partition('-')[2]}"
