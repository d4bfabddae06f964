"""A sweep's files as a worker on any node finds them: on its own disk, or fetched from the driver's and sent back."""

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
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from binsweep.data.atomic_write import write_bytes
from binsweep.data.banks.pixels import PixelBank
from binsweep.data.banks.store import make_room, open_bank, opened_banks
from binsweep.data.errors import UserError
from binsweep.data.locks import open_lock, try_lock
from binsweep.models.pretrained import file_hash, provide, weights_file
from binsweep.models.train import TrialData
from binsweep.search.execution.trial import LAST, TrialTask

CHUNK = 32 * 2**20  # bytes of a bank or of weights that one message carries
IN_USE = "in-use.tmp"  # in a trial's folder of a node; what ends so is not sent to the driver
TIDY_SECONDS = 10.0
CALLS = 8  # so many workers are served at once, so that a checkpoint does not wait for a bank

Push = Callable[[], None]


@dataclass(frozen=True)
class DriverFiles:
    """What a worker must know to find a sweep's files; small to send. Without a `keeper` all nodes are this one."""

    node: str  # Ray's id of the driver's node
    classes: tuple[int, ...]
    image_size: int
    train: Path
    validation: Path
    banks: Path
    open: tuple[str, ...]  # the names of the banks that the sweep uses
    file_server: Any = None

    def data(self) -> TrialData:
        """What trials learn from; on another node than the driver's the banks are brought here first, once."""
        banks, here = self.banks, self._here()
        if not here:
            banks = node_home() / "banks"
            for name in self.open:
                fetch = functools.partial(_fetch_bank, self.file_server, name)
                open_bank(banks / name, "copy of a bank", _whole, fetch)
        train, validation = (PixelBank(banks / path.name) for path in (self.train, self.validation))
        return TrialData(self.classes, self.image_size, train, validation, banks)

    @contextlib.contextmanager
    def at_hand(self, task: TrialTask) -> Iterator[tuple[TrialTask, Push]]:
        """The task with a folder of this node that holds what the trial left before, and a call that brings what has
        changed in it to the driver. The call returns once the driver's disk has it."""
        if self._here():
            yield task, lambda: None
            return
        self._provide_weights(task.settings.backbone, task.settings.weights)
        with trial_folder(task.folder.name) as folder:
            for name, content in ray.get(self.file_server.files.remote(task.folder.name)).items():
                write_bytes(folder / name, content)
            sent = _stamps(folder)

            def push() -> None:
                nonlocal sent
                now = _stamps(folder)
                changed = {n: (folder / n).read_bytes() for n, stamp in now.items() if sent.get(n) != stamp}
                if changed:
                    ray.get(self.file_server.keep.remote(task.folder.name, changed))
                sent = now

            yield replace(task, folder=folder), push

    def _here(self) -> bool:
        return self.file_server is None or ray.get_runtime_context().get_node_id() == self.node

    def _provide_weights(self, backbone: str, weights: str) -> None:
        """Weights that only the driver's machine has are brought here, once."""
        with contextlib.suppress(UserError):
            weights_file(backbone, weights)
            return
        name, size = ray.get(self.file_server.weights.remote(backbone, weights))
        file = node_home() / "weights" / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(".tmp")  # one that a killed worker left is written over
            with FileLock(file.with_suffix(".lock")):
                if not file.exists():
                    _fetch(
                        beside,
                        size,
                        functools.partial(self.file_server.weights_part.remote, backbone, weights),
                    )
                    beside.replace(file)
        provide(backbone, weights, file)


@contextlib.contextmanager
def trial_folder(name: str) -> Iterator[Path]:
    """A folder of this node for a trial, as long as the block lasts.

    Its worker holds a lock in it, which the system lets go however the worker ends: what killed ones left is known by
    that, and removed before.
    """
    trials = node_home() / "trials"
    trials.mkdir(parents=True, exist_ok=True)
    with FileLock(trials / ".lock"):  # a folder that has just been made is not taken for one that was left
        _remove_left(trials)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=trials))
        lock = open_lock(folder / IN_USE)
        try_lock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left(trials: Path) -> None:
    for folder in trials.glob("*-*"):
        with contextlib.suppress(OSError):  # another worker has just removed its own
            lock = open_lock(folder / IN_USE)
            try:
                if try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_left_trials() -> None:
    """Remove what killed workers left of their trials on this node."""
    trials = node_home() / "trials"
    if trials.is_dir():
        with FileLock(trials / ".lock"):
            _remove_left(trials)


def node_home() -> Path:
    """Where a node keeps what it was brought: BINSWEEP_HOME of its Ray, or binsweep in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("BINSWEEP_HOME") or cache / "binsweep").expanduser().absolute()


def open_driver_files(data: TrialData, folder: Path, shared: bool) -> DriverFiles:
    """The site of the sweep in `folder`, whose banks this process has open; with `shared` for other nodes, too."""
    node = ray.get_runtime_context().get_node_id()
    file_server = None
    if shared:
        beside = NodeAffinitySchedulingStrategy(node, soft=False)
        # A keeper that was killed is started again, and what was asked of it is asked again.
        file_server = (
            ray.remote(FileServer)
            .options(
                num_cpus=0,
                scheduling_strategy=beside,
                max_concurrency=CALLS,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote(folder, data.banks)
        )
    names = tuple(path.name for path in opened_banks(data.banks))
    return DriverFiles(
        node,
        data.classes,
        data.image_size,
        data.train.path,
        data.validation.path,
        data.banks,
        names,
        file_server,
    )


def bring_banks(driver_files: DriverFiles, cpus: float) -> int:
    """Bring the banks to every other node with so many CPUs, at once, before any trial waits; returns their number.

    A node that joins later is brought them with its first trial. Raises UserError, naming the node, where one cannot
    hold them.
    """
    others = _other_nodes(driver_files, cpus)
    tasks = [_on(node, _bring, driver_files) for node in others]
    for node, task in zip(others, tasks, strict=True):
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"node {node['NodeManagerAddress']}: {error.cause}") from error
            raise
    return len(others)


def _bring(driver_files: DriverFiles) -> None:
    remove_left_trials()
    driver_files.data()


def tidy_nodes(driver_files: DriverFiles) -> None:
    """Remove what killed workers left on the other nodes, which may never get another trial; those that do not answer
    at once are left to the next sweep."""
    tasks = [_on(node, remove_left_trials) for node in _other_nodes(driver_files)]
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=TIDY_SECONDS)


def _other_nodes(driver_files: DriverFiles, cpus: float = 0.0) -> list[dict[str, Any]]:
    """The living nodes beside the driver's that have so many CPUs."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != driver_files.node]
    return [node for node in alive if node["Resources"].get("CPU", 0) >= cpus]


def _on(node: Mapping[str, Any], function: Callable[..., None], *arguments: Any) -> Any:
    """Ask a node to do something, beside its trials."""
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there).remote(*arguments)


class FileServer:
    """The driver's files, for workers on other nodes: an actor on the driver's node."""

    def __init__(self, folder: Path, banks: Path) -> None:
        self._folder, self._banks = folder, banks

    def files(self, trial: str) -> dict[str, bytes]:
        """What a trial has left so far."""
        folder = self._folder / trial
        found = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        return {path.name: path.read_bytes() for path in found}

    def keep(self, trial: str, files: dict[str, bytes]) -> None:
        """Write a trial's files, each whole."""
        folder = self._folder / trial
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(
            files, key=lambda name: name == LAST
        ):  # it says that the others belong to its epoch
            write_bytes(folder / name, files[name])

    def bank(self, name: str) -> dict[str, int]:
        """The files of a bank and their sizes in bytes."""
        return {path.name: path.stat().st_size for path in (self._banks / name).iterdir()}

    def bank_part(self, name: str, file: str, start: int) -> bytes:
        """At most CHUNK bytes of a bank's file."""
        return _part(self._banks / name / file, start)

    def weights(self, backbone: str, weights: str) -> tuple[str, int]:
        """A name that says what the weights of a backbone are, and their size in bytes."""
        file = self._weights_file(backbone, weights)
        return f"{file_hash(file)}.pth", file.stat().st_size

    def weights_part(self, backbone: str, weights: str, start: int) -> bytes:
        """At most CHUNK bytes of them."""
        return _part(self._weights_file(backbone, weights), start)

    @staticmethod
    def _weights_file(backbone: str, weights: str) -> Path:
        file = weights_file(backbone, weights)
        assert file is not None, "a node lacks weights only where some are wanted"
        return file


def _part(file: Path, start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(CHUNK)


def _fetch(file: Path, size: int, part: Callable[[int], Any]) -> None:
    """Write a file of so many bytes from the keeper's parts; `part(start)` asks for one."""
    with file.open("wb") as stream:
        for start in range(0, size, CHUNK):
            stream.write(ray.get(part(start)))


def _fetch_bank(file_server: Any, name: str, folder: Path) -> None:
    """Fill an empty folder with a bank of the driver's."""
    sizes = ray.get(file_server.bank.remote(name))
    make_room(folder.parent, sum(sizes.values()))
    for file, size in sizes.items():
        _fetch(folder / file, size, functools.partial(file_server.bank_part.remote, name, file))


def _whole(path: Path) -> Path:
    return path  # a bank that exists is whole


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When each finished file was written, and how large it is."""
    found = {}
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".tmp":
            status = path.stat()
            found[path.name] = (status.st_mtime_ns, status.st_size)
    return found
