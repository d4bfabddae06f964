"""Before a sweep starts: its data, and the banks that its trials share."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from binsweep.data.banks.pixels import PixelBank, open_pixel_bank
from binsweep.data.banks.store import bank_folder
from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, format_skipped
from binsweep.data.parallel import Progress
from binsweep.data.split import SplitName
from binsweep.models.backbones.library import interpolation_of
from binsweep.models.trial_data import TrialData, build_banks
from binsweep.search.spec.parser import SweepSpec
from binsweep.search.terminal.progress import ProgressBar
from binsweep.search.workflows.sweep_data import spec_manifest

# What a feature bank depends on, besides the photos.
BANK_SETTINGS = ("backbone", "weights", "trainable", "precision", "augment", "views")


@dataclass(frozen=True)
class PreparedSweep:
    """A spec with its data, read, checked and decoded; `home` is where the sweep is stored."""

    spec: SweepSpec
    manifest: Manifest
    data: TrialData
    home: Path


def prepare(spec: SweepSpec, home: Path) -> PreparedSweep:
    """Read the data, check it against the spec, and build the banks that the trials share."""
    with ProgressBar("reading the data") as progress:
        manifest = spec_manifest(spec, home, progress)
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped):,} files: {format_skipped(manifest.skipped)}", file=sys.stderr)
    for gap in manifest.coverage_warnings():
        print(f"warning: {gap}", file=sys.stderr)
    largest, train = max(spec.values("batch_size")), len(manifest.split("train"))
    if largest > train:
        raise UserError(
            f"batch_size: up to {largest} requested, the train split has {train} images",
            f"set it to at most {train}",
        )
    data = open_data(spec, manifest, home)
    built = set()
    names = [name for name in BANK_SETTINGS if name not in spec.fidelity.lists()]
    for values in itertools.product(*(spec.values(name) for name in names)):
        settings = replace(spec.settings, **dict(zip(names, values, strict=True)))
        for level in spec.levels(settings):
            own = (level.image_size, *(getattr(level.settings, name) for name in BANK_SETTINGS))
            if own in built:
                continue
            built.add(own)
            with ProgressBar(f"features of {settings.backbone}") as progress:
                own_data = data.at_size(level.image_size, interpolation_of(settings.backbone))
                build_banks(level.settings, own_data, progress)
    return PreparedSweep(spec, manifest, data, home)


def open_data(spec: SweepSpec, manifest: Manifest, home: Path) -> TrialData:
    """Decode the photos for training and validation, or open their banks."""
    with ProgressBar("decoding") as progress:
        ways = dict.fromkeys(interpolation_of(backbone) for backbone in spec.values("backbone"))
        data, *others = (
            _open_size(manifest, size, way, home, progress) for way in ways for size in spec.image_sizes
        )
    return replace(data, other_sizes=tuple(others))


def _open_size(
    manifest: Manifest, size: int, interpolation: str, home: Path, progress: Progress
) -> TrialData:
    def opened(split: SplitName | Literal["train_also"]) -> PixelBank:
        return open_pixel_bank(manifest, split, size, home, progress, interpolation)

    return TrialData(
        manifest.classes,
        size,
        opened("train"),
        opened("validation"),
        bank_folder(home),
        opened("train_also") if manifest.train_also else None,
        manifest.head_classes,
        interpolation=interpolation,
    )
