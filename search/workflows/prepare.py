"""Before a sweep starts: checks, the data, and the banks that its trials share."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.banks.store import bank_folder
from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, skipped_text
from binsweep.models.pretrained import check_weights
from binsweep.models.train import TrialData, build_banks
from binsweep.search.execution.resources import (
    Node,
    check_resources,
    ray_temp_folder,
    this_machine,
    trial_resources,
)
from binsweep.search.spec.parser import SweepSpec
from binsweep.search.terminal.progress import ProgressBar
from binsweep.search.workflows.sweep_data import spec_manifest

Runner = Literal["ray", "local"]


@dataclass(frozen=True)
class PreparedSweep:
    """A spec with its data, read, checked and decoded; `home` is where the sweep is stored."""

    spec: SweepSpec
    manifest: Manifest
    data: TrialData
    home: Path


def check_before_start(
    spec: SweepSpec, cluster: Sequence[Node] | None = None, runner: Runner = "ray"
) -> None:
    """Raise UserError for every mistake that can be found before the data is read.

    `cluster` lists the resources of the nodes of a Ray cluster; without it, the sweep runs on this machine.
    """
    for path, kind in spec.resources.kinds().items():
        if runner == "local" and kind.workers_per_trial > 1:
            rule = f"{path}.workers_per_trial: {kind.workers_per_trial} requested, --runner local trains in one process"
            raise UserError(rule, "omit --runner, or set it to 1")
    for backbone, weights in itertools.product(spec.values("backbone"), spec.values("weights")):
        check_weights(backbone, weights)
    if runner == "ray" and cluster is None:
        ray_temp_folder()
    nodes = [this_machine()] if cluster is None else cluster
    check_resources(spec.resources, nodes, "this machine" if cluster is None else "the largest node")
    gpus = [trial_resources(kind, nodes).gpus for kind in spec.resources.kinds().values()]
    if runner == "local":
        gpus = [float(torch.cuda.is_available())]
    if spec.budget.gpu_hours is not None and not any(gpus):
        rule = "budget.gpu_hours: no trial gets a GPU here, so it would never be spent"
        raise UserError(rule, "set budget.minutes instead")


def prepare(spec: SweepSpec, home: Path) -> PreparedSweep:
    """Read the data, check it against the spec, and build the banks that the trials share."""
    with ProgressBar("reading the data") as progress:
        manifest = spec_manifest(spec, home, progress)
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped):,} files: {skipped_text(manifest.skipped)}", file=sys.stderr)
    for gap in manifest.gaps():
        print(f"warning: {gap}", file=sys.stderr)
    largest, train = max(spec.values("batch_size")), len(manifest.split("train"))
    if largest > train:
        raise UserError(
            f"batch_size: up to {largest} requested, the train split has {train} images",
            f"set it to at most {train}",
        )
    data = open_data(spec, manifest, home)
    names = ("backbone", "weights", "trainable", "precision", "augment", "views")
    for values in itertools.product(*(spec.values(name) for name in names)):
        settings = replace(spec.settings, **dict(zip(names, values, strict=True)))
        with ProgressBar(f"features of {settings.backbone}") as progress:
            build_banks(settings, data, progress)
    return PreparedSweep(spec, manifest, data, home)


def open_data(spec: SweepSpec, manifest: Manifest, home: Path) -> TrialData:
    """Decode the train and validation splits, or open their banks."""
    with ProgressBar("decoding") as progress:
        train, validation = (
            open_pixel_bank(manifest, name, spec.data.image_size, home, progress)
            for name in ("train", "validation")
        )
    return TrialData(manifest.classes, spec.data.image_size, train, validation, bank_folder(home))
