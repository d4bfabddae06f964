"""Before a sweep starts: its photos, and the banks that its trials share, or its training code."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from binsweep.data.banks.pixels import PixelBank, open_pixel_bank
from binsweep.data.banks.store import bank_folder
from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.data.manifest import Manifest
from binsweep.data.parallel import Progress
from binsweep.data.source_checks import format_skipped
from binsweep.data.split import SplitName
from binsweep.models.backbones.library import interpolation_of
from binsweep.models.levels import Level
from binsweep.models.trial_data import TrialData, build_banks
from binsweep.search.execution.code_trial import CodeTrainer
from binsweep.search.execution.photo_trial import PhotoTrainer
from binsweep.search.execution.trial import Trainer
from binsweep.search.own_code.snapshot import param_paths, take_snapshot
from binsweep.search.recording.code_records import CodeRecords
from binsweep.search.recording.photo_records import PhotoRecords
from binsweep.search.recording.training_records import TrainingRecords
from binsweep.search.spec.parser import check_labels
from binsweep.search.spec.sweep_spec import CodeSpec, PhotoSpec, SweepSpec
from binsweep.search.terminal.progress import ProgressBar
from binsweep.search.workflows.sweep_data import spec_manifest

# What a feature bank depends on, besides the photos.
BANK_SETTINGS = ("backbone", "weights", "trainable", "precision", "augment", "views")


@dataclass(frozen=True)
class PreparedSweep:
    """A spec with what its trials need at hand; `home` is where the sweep is stored.

    The fingerprint is of all that its results depend on besides the spec: of its photos, or of its code.
    """

    spec: SweepSpec
    home: Path
    fingerprint: str
    trainer: Trainer
    records: TrainingRecords
    classes: tuple[Label, ...] = ()  # of the photos


def prepare(spec: SweepSpec, home: Path) -> PreparedSweep:
    """Read the data, or the training code, that a spec names, and check it against the spec."""
    if isinstance(spec, CodeSpec):
        code = take_snapshot(spec.trainer, spec.params, home)
        return PreparedSweep(
            spec, home, code.fingerprint, CodeTrainer(code, param_paths(spec.params)), CodeRecords(code)
        )
    assert isinstance(spec, PhotoSpec)
    manifest, data = prepare_photos(spec, home)
    return PreparedSweep(
        spec, home, manifest.fingerprint, PhotoTrainer(data), PhotoRecords(manifest, data), manifest.classes
    )


def prepare_photos(spec: PhotoSpec, home: Path) -> tuple[Manifest, TrialData]:
    """Read the photos, check them against the spec, and build the banks that the trials share."""
    with ProgressBar("reading the data") as progress:
        manifest = spec_manifest(spec, home, progress)
    check_labels(spec, manifest.classes)
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped):,} files: {format_skipped(manifest.skipped)}", file=sys.stderr)
    for gap in manifest.warnings():
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
            with ProgressBar(f"features of {_described(level, spec)}") as progress:
                own_data = data.at_size(level.image_size, interpolation_of(settings.backbone))
                build_banks(level.settings, own_data, progress)
    return manifest, data


def _described(level: Level, spec: PhotoSpec) -> str:
    """Which features a level's bank holds: the backbone and, of several levels, what they are stored for."""
    settings = level.settings
    if spec.fidelity.n_levels == 1:
        return settings.backbone
    augment = f", augment {settings.augment}" if spec.fidelity.augment else ""
    return f"{settings.backbone} for {settings.trainable} at {level.image_size} px{augment}"


def open_data(spec: PhotoSpec, manifest: Manifest, home: Path) -> TrialData:
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
