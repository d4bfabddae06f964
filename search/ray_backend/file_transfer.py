"""The files of a sweep for workers on any node: on the driver's disk, or copied from it and back."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from binsweep.data.atomic_write import write_bytes
from binsweep.data.banks.pixels import PixelBank
from binsweep.data.banks.store import banks_in_use, evict_banks, open_bank
from binsweep.data.errors import UserError
from binsweep.data.locks import locked, open_lock, try_lock
from binsweep.models.pretrained import file_hash, provide_weights_file, weights_file
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.trial import LAST, TrialTask

CHUNK_BYTES = 32 * 2**20  # of a bank or of weights in one message
IN_USE = "in-use.tmp"  # in a trial's folder on a node; files with this suffix are not sent to the driver
MAX_TIDY_SECONDS = 10.0
MAX_CONCURRENT_CALLS = 8  # of the file server, so that a checkpoint does not wait for a bank

Upload = Callable[[], None]


@dataclass(frozen=True)
class PhotoFiles:
    """The pixel banks of the photos at one image size, resized with one interpolation."""

    image_size: int
    interpolation: str
    train: Path
    validation: Path
    train_also: Path | None


@dataclass(frozen=True)
class DriverFiles:
    """Where a worker finds a sweep's files; small to send. Without a `file_server`, all are on the driver's node."""

    node: str  # Ray's id of the driver's node
    classes: tuple[int, ...]
    head_classes: tuple[int, ...]
    photos: tuple[PhotoFiles, ...]  # at each image size, the data's own first
    banks: Path
    open: tuple[str, ...]  # names of the banks that the sweep uses
    file_server: Any = None

    def data(self) -> TrialData:
        """The training data. On another node than the driver's, the banks are copied first, once."""
        banks, here = self.banks, self._here()
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
        return replace(data, other_sizes=tuple(others))

    @contextlib.contextmanager
    def at_hand(self, task: TrialTask) -> Iterator[tuple[TrialTask, Upload]]:
        """The task with a local folder that has the trial's files, and a function that uploads the changed ones.

        The function returns once they are on the driver's disk.
        """
        if self._here():
            yield task, lambda: None
            return
        self._provide_weights(task.settings.backbone, task.settings.weights)
        with trial_folder(task.folder.name) as folder:
            for name, content in ray.get(self.file_server.files.remote(task.folder.name)).items():
                write_bytes(folder / name, content)
            sent = _modification_times(folder)

            def upload() -> None:
                nonlocal sent
                now = _modification_times(folder)
                changed = {n: (folder / n).read_bytes() for n, stamp in now.items() if sent.get(n) != stamp}
                if changed:
                    ray.get(self.file_server.keep.remote(task.folder.name, changed))
                sent = now

            yield replace(task, folder=folder), upload

    def _here(self) -> bool:
        return self.file_server is None or ray.get_runtime_context().get_node_id() == self.node

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
                    _fetch(
                        temporary,
                        size,
                        functools.partial(self.file_server.weights_part.remote, backbone, weights),
                    )
                    temporary.replace(file)
        provide_weights_file(backbone, weights, file)


@contextlib.contextmanager
def trial_folder(name: str) -> Iterator[Path]:
    """A temporary folder of this node for a trial.

    The worker holds a lock in it, which the system releases when the process ends. Folders without a lock are left by
    killed workers, and are removed first.
    """
    trials = node_home() / "trials"
    trials.mkdir(parents=True, exist_ok=True)
    with locked(trials / ".lock"):  # a new folder has no lock yet
        _remove_orphaned(trials)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=trials))
        lock = open_lock(folder / IN_USE)
        try_lock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_orphaned(trials: Path) -> None:
    for folder in trials.glob("*-*"):
        with contextlib.suppress(OSError):  # its worker has just removed it
            lock = open_lock(folder / IN_USE)
            try:
                if try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_orphaned_trials() -> None:
    """Remove the trial folders of killed workers on this node."""
    trials = node_home() / "trials"
    if trials.is_dir():
        with locked(trials / ".lock"):
            _remove_orphaned(trials)


def node_home() -> Path:
    """The folder for files copied to this node: BINSWEEP_HOME of its Ray, or binsweep in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("BINSWEEP_HOME") or cache / "binsweep").expanduser().absolute()


def open_driver_files(data: TrialData, folder: Path, shared: bool) -> DriverFiles:
    """The files of the sweep in `folder`, whose banks this process has open; if `shared`, also for other nodes."""
    node = ray.get_runtime_context().get_node_id()
    file_server = None
    if shared:
        on_this_node = NodeAffinitySchedulingStrategy(node, soft=False)
        # A killed file server is restarted, and its calls are repeated.
        file_server = (
            ray.remote(FileServer)
            .options(
                num_cpus=0,
                scheduling_strategy=on_this_node,
                max_concurrency=MAX_CONCURRENT_CALLS,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote(folder, data.banks)
        )
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
    return DriverFiles(node, data.classes, data.head_classes, photos, data.banks, names, file_server)


def copy_banks(driver_files: DriverFiles, cpus: float) -> int:
    """Copy the banks to all other nodes with at least `cpus` CPUs, in parallel; returns the number of nodes.

    A node that joins later gets them with its first trial. Raises UserError, naming the node, if one has no space.
    """
    others = _other_nodes(driver_files, cpus)
    tasks = [_run_on(node, _copy_banks_here, driver_files) for node in others]
    for node, task in zip(others, tasks, strict=True):
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"node {node['NodeManagerAddress']}: {error.cause}") from error
            raise
    return len(others)


def _copy_banks_here(driver_files: DriverFiles) -> None:
    remove_orphaned_trials()
    driver_files.data()


def clean_up_nodes(driver_files: DriverFiles) -> None:
    """Remove the trial folders of killed workers on the other nodes, which may not get another trial. Nodes that do
    not answer in time are left to the next sweep."""
    tasks = [_run_on(node, remove_orphaned_trials) for node in _other_nodes(driver_files)]
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=MAX_TIDY_SECONDS)


def _other_nodes(driver_files: DriverFiles, cpus: float = 0.0) -> list[dict[str, Any]]:
    """The live nodes other than the driver's with at least `cpus` CPUs."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != driver_files.node]
    return [node for node in alive if node["Resources"].get("CPU", 0) >= cpus]


def _run_on(node: Mapping[str, Any], function: Callable[..., None], *arguments: Any) -> Any:
    """Call a function on a node, without taking CPUs from its trials."""
    on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=on_node).remote(*arguments)


class FileServer:
    """An actor on the driver's node that serves its files to workers on other nodes."""

    def __init__(self, folder: Path, banks: Path) -> None:
        self._folder, self._banks = folder, banks

    def files(self, trial: str) -> dict[str, bytes]:
        """The files of a trial so far."""
        folder = self._folder / trial
        found = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        return {path.name: path.read_bytes() for path in found}

    def keep(self, trial: str, files: dict[str, bytes]) -> None:
        """Write files of a trial, each atomically."""
        folder = self._folder / trial
        folder.mkdir(parents=True, exist_ok=True)
        # The state comes last: it implies that the other files belong to its epoch.
        for name in sorted(files, key=lambda name: name == LAST):
            write_bytes(folder / name, files[name])

    def bank(self, name: str) -> dict[str, int]:
        """The files of a bank and their sizes in bytes."""
        return {path.name: path.stat().st_size for path in (self._banks / name).iterdir()}

    def bank_part(self, name: str, file: str, start: int) -> bytes:
        """A chunk of a bank's file."""
        return _part(self._banks / name / file, start)

    def weights(self, backbone: str, weights: str) -> tuple[str, int]:
        """A name for the weights of a backbone that identifies their content, and their size in bytes."""
        file = self._weights_file(backbone, weights)
        return f"{file_hash(file)}{file.suffix}", file.stat().st_size

    def weights_part(self, backbone: str, weights: str, start: int) -> bytes:
        """A chunk of the weights."""
        return _part(self._weights_file(backbone, weights), start)

    @staticmethod
    def _weights_file(backbone: str, weights: str) -> Path:
        file = weights_file(backbone, weights)
        assert file is not None, "only pre-trained weights are fetched"
        return file


def _part(file: Path, start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(CHUNK_BYTES)


def _fetch(file: Path, size: int, part: Callable[[int], Any]) -> None:
    """Write a file of `size` bytes from chunks; `part(start)` requests one."""
    with file.open("wb") as stream:
        for start in range(0, size, CHUNK_BYTES):
            stream.write(ray.get(part(start)))


def _fetch_bank(file_server: Any, name: str, folder: Path) -> None:
    """Copy a bank of the driver into an empty folder."""
    sizes = ray.get(file_server.bank.remote(name))
    evict_banks(folder.parent, sum(sizes.values()))
    for file, size in sizes.items():
        _fetch(folder / file, size, functools.partial(file_server.bank_part.remote, name, file))


def _complete(path: Path) -> Path:
    return path  # an existing bank is complete


def _modification_times(folder: Path) -> dict[str, tuple[int, int]]:
    """The modification time and the size of each finished file."""
    found = {}
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".tmp":
            status = path.stat()
            found[path.name] = (status.st_mtime_ns, status.st_size)
    return found
