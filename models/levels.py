"""Fidelity levels: a training in sections, from cheap to dear, each of which begins with the weights of the one before.

A cheap section (small photos, a share of them, a head on stored features) tells something about a configuration for
little time, and nothing of it is lost. Epochs are counted through all sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol, TypeVar, cast

from binsweep.models.settings import Settings


class TrialSettings(Protocol):
    """The settings of one training, or of a section of it."""

    @property
    def epochs(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Section(Protocol):
    """A section of a training: a fidelity level, or the whole of another kind of training. A dataclass."""

    @property
    def settings(self) -> TrialSettings: ...
    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Level:
    """One section: its settings, whose `epochs` are its own, and the side of its photos in pixels."""

    settings: Settings
    image_size: int

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Level:
        """A level as `dataclasses.asdict` writes it."""
        return cls(Settings(**stored["settings"]), stored["image_size"])

    @property
    def name(self) -> str:
        """What it trains, on what; trials may differ in how long."""
        share = self.settings.train_share
        photos = f", {share:.0%} of the photos" if share < 1 else ""
        return f"{self.settings.trainable} at {self.image_size} px{photos}"

    def __str__(self) -> str:
        epochs = self.settings.epochs
        return f"{self.name}, {epochs} epoch{'s' if epochs != 1 else ''}"


def level_ends(levels: Sequence[Section]) -> list[int]:
    """The epochs after which the sections of a training end."""
    return list(accumulate(level.settings.epochs for level in levels))


def level_at(levels: Sequence[S], epoch: int) -> S:
    """The section that an epoch of a training is in; before the first epoch, the first section."""
    return next(level for level, end in zip(levels, level_ends(levels), strict=True) if epoch <= end)


def total_epochs(levels: Sequence[Section]) -> int:
    """The epochs of a training in these sections."""
    return level_ends(levels)[-1]


def ending_at(levels: Sequence[S], last_epoch: int) -> tuple[S, ...]:
    """The sections of a training that ends at this epoch: later ones are left out, and the last one is shorter."""
    kept: list[S] = []
    before = 0
    for level in levels:
        epochs = min(level.settings.epochs, last_epoch - before)
        if epochs > 0:
            section = cast(Any, level)
            kept.append(replace(section, settings=replace(section.settings, epochs=epochs)))
        before += level.settings.epochs
    return tuple(kept)
