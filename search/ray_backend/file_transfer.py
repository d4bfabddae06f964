"""The files of a sweep for workers on any node: on the driver's disk, or copied from it and back."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from binsweep.data.atomic_write import write_bytes
from binsweep.data.errors import UserError
from binsweep.data.locks import locked, open_lock, try_lock
from binsweep.search.execution.trial import Trainer, TrialTask

WORK = "work"  # in which own code writes what it likes
CHUNK_BYTES = 32 * 2**20  # of a bank or of weights in one message
IN_USE = "in-use.tmp"  # in a trial's folder on a node; files with this suffix are not sent to the driver
MAX_TIDY_SECONDS = 10.0
MAX_CONCURRENT_CALLS = 8  # of the file server, so that a checkpoint does not wait for a bank

Upload = Callable[[], None]


class DriverFiles(ABC):
    """Where a worker finds a sweep's files; small to send. Without a `file_server`, all are on the driver's node."""

    node: str  # Ray's id of the driver's node
    file_server: Any
    what: ClassVar[str]  # that other nodes get before they train
    in_own_process: ClassVar[bool] = (
        False  # whether trials run in a process apart from the worker, which can be ended
    )

    @abstractmethod
    def trainer(self) -> Trainer:
        """What trains the trials on this node. On another node than the driver's, its files are copied first, once."""

    @abstractmethod
    def here(self, task: TrialTask) -> TrialTask:
        """The task as another node than the driver's can train it; copies what only this trial needs."""

    @contextlib.contextmanager
    def at_hand(self, task: TrialTask, trains: bool = True) -> Iterator[tuple[TrialTask, Upload]]:
        """The task with a local folder that has the trial's files, and a function that uploads the changed ones.

        The function returns once they are on the driver's disk, and those that are gone here are gone there. Who
        `trains` the trial takes it over: from then on, files from earlier workers are refused (GivenUpError).
        """
        worker = secrets.token_hex(8)
        if trains and self.file_server is not None:
            ray.get(self.file_server.take_over.remote(task.folder.name, worker))
        if self.is_on_driver():
            yield task, lambda: None
            return
        task = self.here(task)
        with trial_folder(task.folder.name) as folder:
            for name, content in ray.get(self.file_server.files.remote(task.folder.name)).items():
                _write(folder / name, content)
            sent = _modification_times(folder)

            def upload() -> None:
                nonlocal sent
                now = _modification_times(folder)
                changed = {n: (folder / n).read_bytes() for n, stamp in now.items() if sent.get(n) != stamp}
                gone = sent.keys() - now.keys()
                if changed or gone:
                    ray.get(self.file_server.keep.remote(task.folder.name, worker, changed, gone))
                sent = now

            yield replace(task, folder=folder), upload

    def is_on_driver(self) -> bool:
        """Whether this process is on the driver's node."""
        return self.file_server is None or ray.get_runtime_context().get_node_id() == self.node


def start_file_server(server: type[FileServer], *arguments: Any) -> Any:
    """Start a file server on this node, for workers on others."""
    node = ray.get_runtime_context().get_node_id()
    on_this_node = NodeAffinitySchedulingStrategy(node, soft=False)
    # A killed file server is restarted, and its calls are repeated.
    return (
        ray.remote(server)
        .options(
            num_cpus=0,
            scheduling_strategy=on_this_node,
            max_concurrency=MAX_CONCURRENT_CALLS,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(*arguments)
    )


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


def copy_inputs(driver_files: DriverFiles, cpus: float) -> int:
    """Copy what trials need to all other nodes with at least `cpus` CPUs, in parallel; returns the number of nodes.

    A node that joins later gets them with its first trial. Raises UserError, naming the node, if one has no space.
    """
    others = _other_nodes(driver_files, cpus)
    tasks = [_run_on(node, _copy_here, driver_files) for node in others]
    for node, task in zip(others, tasks, strict=True):
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"node {node['NodeManagerAddress']}: {error.cause}") from error
            raise
    return len(others)


def _copy_here(driver_files: DriverFiles) -> None:
    remove_orphaned_trials()
    driver_files.trainer()


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


class GivenUpError(RuntimeError):
    """A worker that was taken for dead, such as behind a network that was cut, is heard after another one has gone on
    with its trial."""


@dataclass
class _Holder:
    """The worker that trains a trial; the lock is held while its files are written."""

    worker: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class FileServer:
    """An actor on the driver's node that serves the files of trials to workers on other nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holders: dict[str, _Holder] = {}

    def take_over(self, trial: str, worker: str) -> None:
        """From now on only this worker's files of the trial are kept."""
        holder = self._holder(trial)
        with holder.lock:
            holder.worker = worker

    def _holder(self, trial: str) -> _Holder:
        return self._holders.setdefault(trial, _Holder())

    def files(self, trial: str) -> dict[str, bytes]:
        """The files of a trial so far, by their paths in its folder."""
        folder = self._folder / trial
        return {name: (folder / name).read_bytes() for name in _modification_times(folder)}

    def keep(self, trial: str, worker: str, files: dict[str, bytes], gone: Collection[str] = ()) -> None:
        """Write files of a trial, each atomically, then remove those that are `gone`. Raises GivenUpError if another
        worker has taken the trial over."""
        holder, folder = self._holder(trial), self._folder / trial
        with holder.lock:
            if holder.worker not in ("", worker):  # "": this server was started again, and knows of nobody
                raise GivenUpError(f"another worker has gone on with {trial}")
            # The state comes last: it implies that the other files belong to its epoch.
            for name in sorted(files, key=lambda name: name.startswith("last.")):
                _write(folder / name, files[name])
            for name in gone:
                (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the first folder that is not empty
                    for parent in Path(name).parents[:-1]:
                        (folder / parent).rmdir()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content)


def file_part(file: Path, start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(CHUNK_BYTES)


def fetch_file(file: Path, size: int, part: Callable[[int], Any]) -> None:
    """Write a file of `size` bytes from chunks; `part(start)` requests one."""
    with file.open("wb") as stream:
        for start in range(0, size, CHUNK_BYTES):
            stream.write(ray.get(part(start)))


def _modification_times(folder: Path) -> dict[str, tuple[int, int]]:
    """The modification time and the size of each finished file, by its path in the folder."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.endswith(".tmp") for part in name.parts) and name.parts[0] != WORK:
            status = path.stat()
            found[str(name)] = (status.st_mtime_ns, status.st_size)
    return found
