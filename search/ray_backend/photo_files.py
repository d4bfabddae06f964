"""What trials over photos need on nodes without a disk in common with the driver: banks and pre-trained weights."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import contextlib
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import ray

from binsweep.data.banks.pixels import PixelBank
from binsweep.data.banks.store import banks_in_use, evict_banks, open_bank
from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.data.locks import locked
from binsweep.models.pretrained import file_hash, provide_weights_file, weights_file
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.photo_trial import PhotoTrainer
from binsweep.search.execution.trial import TrialTask
from binsweep.search.ray_backend.file_transfer import (
    DriverFiles,
    FileServer,
    fetch_file,
    file_part,
    node_home,
    start_file_server,
)


@dataclass(frozen=True)
class PhotoFiles:
    """The pixel banks of the photos at one image size, resized with one interpolation."""

    image_size: int
    interpolation: str
    train: Path
    validation: Path
    train_also: Path | None


@dataclass(frozen=True)
class PhotoDriverFiles(DriverFiles):
    """The files of a sweep over photos: its banks and the weights of its backbones."""

    node: str  # Ray's id of the driver's node
    classes: tuple[Label, ...]
    head_classes: tuple[Label, ...]
    photos: tuple[PhotoFiles, ...]  # at each image size, the data's own first
    banks: Path
    open: tuple[str, ...]  # names of the banks that the sweep uses
    file_server: Any = None
    what: ClassVar[str] = "banks"

    def trainer(self) -> PhotoTrainer:
        banks, here = self.banks, self.is_on_driver()
        if not here:
            banks = node_home() / "banks"
            for name in self.open:
                fetch = functools.partial(_fetch_bank, self.file_server, name)
                open_bank(banks / name, "copy of a bank", _complete, fetch)

        def at_size(photos: PhotoFiles) -> TrialData:
            train, validation = (PixelBank(banks / path.name) for path in (photos.train, photos.validation))
            also = PixelBank(banks / photos.train_also.name) if photos.train_also else None
            return TrialData(
                self.classes,
                photos.image_size,
                train,
                validation,
                banks,
                also,
                self.head_classes,
                interpolation=photos.interpolation,
            )

        data, *others = (at_size(photos) for photos in self.photos)
        return PhotoTrainer(replace(data, other_sizes=tuple(others)))

    def here(self, task: TrialTask) -> TrialTask:
        settings = task.sections[-1].settings
        self._provide_weights(settings.backbone, settings.weights)
        return task

    def _provide_weights(self, backbone: str, weights: str) -> None:
        """Copy weights that only the driver's machine has, once."""
        with contextlib.suppress(UserError):
            weights_file(backbone, weights)
            return
        name, size = ray.get(self.file_server.weights.remote(backbone, weights))
        file = node_home() / "weights" / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")  # one of a killed worker is overwritten
            with locked(file.with_suffix(".lock")):
                if not file.exists():
                    fetch_file(
                        temporary,
                        size,
                        functools.partial(self.file_server.weights_part.remote, backbone, weights),
                    )
                    temporary.replace(file)
        provide_weights_file(backbone, weights, file)


def open_photo_files(data: TrialData, folder: Path, node: str, shared: bool) -> PhotoDriverFiles:
    file_server = start_file_server(PhotoFileServer, folder, data.banks) if shared else None
    names = tuple(path.name for path in banks_in_use(data.banks))
    photos = tuple(
        PhotoFiles(
            one.image_size,
            one.interpolation,
            one.train.path,
            one.validation.path,
            one.train_also.path if one.train_also else None,
        )
        for one in (data, *data.other_sizes)
    )
    return PhotoDriverFiles(node, data.classes, data.head_classes, photos, data.banks, names, file_server)


class PhotoFileServer(FileServer):
    """Serves banks and weights, too."""

    def __init__(self, folder: Path, banks: Path) -> None:
        super().__init__(folder)
        self._banks = banks

    def bank(self, name: str) -> dict[str, int]:
        """The files of a bank and their sizes in bytes."""
        return {path.name: path.stat().st_size for path in (self._banks / name).iterdir()}

    def bank_part(self, name: str, file: str, start: int) -> bytes:
        """A chunk of a bank's file."""
        return file_part(self._banks / name / file, start)

    def weights(self, backbone: str, weights: str) -> tuple[str, int]:
        """A name for the weights of a backbone that identifies their content, and their size in bytes."""
        file = self._weights_file(backbone, weights)
        return f"{file_hash(file)}{file.suffix}", file.stat().st_size

    def weights_part(self, backbone: str, weights: str, start: int) -> bytes:
        """A chunk of the weights."""
        return file_part(self._weights_file(backbone, weights), start)

    @staticmethod
    def _weights_file(backbone: str, weights: str) -> Path:
        file = weights_file(backbone, weights)
        assert file is not None, "only pre-trained weights are fetched"
        return file


def _fetch_bank(file_server: Any, name: str, folder: Path) -> None:
    """Copy a bank of the driver into an empty folder."""
    sizes = ray.get(file_server.bank.remote(name))
    evict_banks(folder.parent, sum(sizes.values()))
    for file, size in sizes.items():
        fetch_file(folder / file, size, functools.partial(file_server.bank_part.remote, name, file))


def _complete(path: Path) -> Path:
    return path  # an existing bank is complete
