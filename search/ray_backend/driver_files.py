"""The files of a sweep on the driver, for each kind of training.

A worker imports only the module of its own kind: own code needs no PyTorch.
"""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
from pathlib import Path

import ray

from binsweep.search.execution.code_trial import CodeTrainer
from binsweep.search.execution.photo_trial import PhotoTrainer
from binsweep.search.execution.trial import Trainer
from binsweep.search.ray_backend.code_files import open_code_files
from binsweep.search.ray_backend.file_transfer import DriverFiles
from binsweep.search.ray_backend.photo_files import open_photo_files


def open_driver_files(trainer: Trainer, folder: Path, shared: bool) -> DriverFiles:
    """The files of the sweep in `folder`, which this process has at hand; if `shared`, also for other nodes."""
    node = ray.get_runtime_context().get_node_id()
    if isinstance(trainer, CodeTrainer):
        return open_code_files(trainer.code, trainer.paths, folder, node, shared)
    assert isinstance(trainer, PhotoTrainer)
    return open_photo_files(trainer.data, folder, node, shared)
