"""The lengths of trainings: in how many sections (fidelity levels), and how far a training gets in a given time.

Epochs are counted through all sections. Arrays describe n trainings with L sections each: `ends` [n, L] are the epochs
after which sections end, the same twice for a section that a shortened training leaves out, and `seconds` [n, L] are
those of an epoch in each section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TrainingLengths:
    """The epochs of each section: a fixed number, or where that is None the configuration's own (the parameter
    `epochs_name`, or else `max_epochs`)."""

    max_epochs: int
    epochs_name: str = "epochs"
    sections: tuple[int | None, ...] = (None,)

    def ends(self, params: Mapping[str, Any]) -> list[int]:
        """The epochs after which the sections of a training end; the last one ends it."""
        own = int(params.get(self.epochs_name, self.max_epochs))
        return list(accumulate(own if fixed is None else fixed for fixed in self.sections))

    def of(self, params: Mapping[str, Any]) -> int:
        """The epochs of a whole training."""
        return self.ends(params)[-1]

    @property
    def longest(self) -> list[int]:
        """The ends of the sections of the longest training."""
        return self.ends({})


def shortened(ends: Sequence[int], last_epoch: int) -> list[int]:
    """The ends of the sections of a training that ends at this epoch, as many as before."""
    return [min(end, last_epoch) for end in ends]


def epochs_by_section(done: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many of the first `done` [n] epochs are of each section, [n, L]."""
    starts = np.concatenate([np.zeros((len(ends), 1)), ends[:, :-1]], axis=1)
    return np.asarray(np.clip(np.asarray(done)[:, None] - starts, 0, ends - starts))


def section_of(done: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The index of the section that the epoch after `done` [n] is in; of a finished training the last one."""
    return np.asarray(np.minimum((np.asarray(done)[:, None] >= ends).sum(axis=1), ends.shape[1] - 1))


def reached_within(
    done: np.ndarray, ends: np.ndarray, seconds: np.ndarray, time: np.ndarray | float, whole: bool = False
) -> np.ndarray:
    """The epoch that trainings get to from `done` [n] within so much `time`, at most their end.

    Fractions of an epoch count, unless only `whole` epochs do.
    """
    left = np.broadcast_to(np.asarray(time, float), (len(ends),)).copy()
    todo = epochs_by_section(ends[:, -1], ends) - epochs_by_section(done, ends)
    reached = np.asarray(done, float).copy()
    for section in range(ends.shape[1]):
        cost, many = seconds[:, section], todo[:, section]
        fitting = np.minimum(left / cost, many)
        fitting = np.floor(fitting) if whole else fitting
        reached += fitting
        # What does not get to the end of a section does not get into the next one.
        left = np.where(fitting < many, 0.0, left - fitting * cost)
    return reached


def progress_of(epochs: np.ndarray, ends: np.ndarray, longest: Sequence[int]) -> np.ndarray:
    """Progress from 0 to 1, shape [n]: sections count equally, and within each one it is logarithmic.

    A section's progress is 0 at one epoch of the longest training, whose sections end at `longest`, and 1 at its own
    end. A training that leaves out sections does not get to 1.
    """
    most = np.diff([0, *longest])
    done, lengths = epochs_by_section(epochs, ends), epochs_by_section(ends[:, -1], ends)
    begun = np.minimum(1.0, np.maximum(done, 1e-9) / np.maximum(lengths, 1))
    within = np.maximum(0.0, 1 + np.log(begun) / np.log(np.maximum(most, 2)))
    return np.asarray(np.where(lengths > 0, within, 0.0).mean(axis=1))
