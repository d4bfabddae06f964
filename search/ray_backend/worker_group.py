"""A trial with several workers: processes in the trial's placement group that train together.

Ray Tune's worker is rank 0: it reads and writes the trial's files and reports, like a single worker. The others are
its actors in the other bundles of its placement group: they end with it, however it ends, and free their resources.
They are kept for the next trial of the same worker. If one of them dies, the worker fails without an error of the
trial, and the trial is resumed after its last epoch, as for every lost worker.
"""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import os
import socket
import threading
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from binsweep.search.execution.photo_trial import attempt, run_attempts
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import LostWorkerError, Send, TrialTask, hide_gpus, leave_error
from binsweep.search.ray_backend.file_transfer import DriverFiles
from binsweep.search.ray_backend.photo_files import PhotoDriverFiles

LOOPBACK = "127.0.0.1"
MAX_UNWIND_SECONDS = 30.0  # for a process to notice that another one is gone


class Member:
    """A process of a group other than rank 0."""

    def __init__(self, resources: TrialResources) -> None:
        hide_gpus(resources)

    def node(self) -> str:
        """The id of the node that this process runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def join(self, address: str, port: int, rank: int, size: int) -> None:
        """Join the process group; returns when all processes have joined."""
        here = LOOPBACK if address == LOOPBACK else ray.util.get_node_ip_address()
        _join(TCPStore(address, port, size, is_master=False, use_libuv=False), here, rank, size)

    def train(self, task: TrialTask, driver_files: PhotoDriverFiles, parts: int) -> None:
        """This process's part of a trial."""
        with driver_files.at_hand(task, trains=False) as (here, _):
            attempt(here, driver_files.trainer().data, _no_report, parts)


def _no_report(epoch: int, metrics: dict[str, float]) -> bool:
    raise AssertionError("only rank 0 reports")


def _join(store: TCPStore, here: str, rank: int, size: int) -> None:
    """Join the process group over the network interface with the address `here`, and no other."""
    for interface, addresses in psutil.net_if_addrs().items():
        if here in (entry.address for entry in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


_members: list[Any] = []  # the other processes of this process's group, kept from one trial to the next


def run_in_group(task: TrialTask, driver_files: DriverFiles, send: Send) -> None:
    """`run_trial` with all workers of the task. Raises LostWorkerError if one is lost."""
    assert isinstance(driver_files, PhotoDriverFiles)  # own code has no groups
    stopped: list[SystemExit] = []

    def report(epoch: int, metrics: dict[str, float]) -> bool:
        # If the scheduler stops the trial, Ray ends this thread inside send(): the others must know first.
        try:
            return send(epoch, metrics)
        except SystemExit as end:
            stopped.append(end)
            return False

    run_attempts(task, lambda parts: _train_together(task, driver_files, report, parts))
    if stopped:
        raise stopped[0]


def _train_together(task: TrialTask, driver_files: PhotoDriverFiles, send: Send, parts: int) -> None:
    over, failures = threading.Event(), list[Exception]()
    try:
        if not _members:
            _gather_members(task.resources)
        at_work = [member.train.remote(task, driver_files, parts) for member in _members]
        watched = (task, at_work, over, failures)
        threading.Thread(target=_watch, args=watched, name="group-watch", daemon=True).start()
        attempt(task, driver_files.trainer().data, send, parts)
        ray.get(at_work)
    except Exception as error:
        _end_group()
        # If another process failed, this one only saw its connections break.
        blame = failures[0] if failures else _attribute(error)
        if blame is error:
            raise
        raise blame from error
    finally:
        over.set()


def _gather_members(resources: TrialResources) -> None:
    """Start the other processes, each in its bundle of the placement group, and form the process group."""
    bundles, size = get_current_placement_group(), resources.workers
    for index in range(1, size):
        place = PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=index)
        asked = bundles.bundle_specs[index]
        options = {"num_cpus": asked.get("CPU", 0), "num_gpus": asked.get("GPU", 0)}
        options |= {"memory": asked["memory"]} if "memory" in asked else {}
        _members.append(ray.remote(Member).options(scheduling_strategy=place, **options).remote(resources))
    nodes = {str(ray.get_runtime_context().get_node_id()), *ray.get([m.node.remote() for m in _members])}
    address = LOOPBACK if len(nodes) == 1 else ray.util.get_node_ip_address()
    # Bound here, because PyTorch would listen on all interfaces of the machine.
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        size,
        is_master=True,
        wait_for_workers=False,
        use_libuv=False,
        master_listen_fd=listener.detach(),
    )
    joined = [member.join.remote(address, port, rank, size) for rank, member in enumerate(_members, 1)]
    _join(store, address, 0, size)
    ray.get(joined)


def _end_group() -> None:
    """End the other processes; the next attempt starts new ones."""
    for member in _members:
        ray.kill(member)
    _members.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _attribute(error: Exception) -> Exception:
    """LostWorkerError if a process died or a connection broke, which is how the others see it; else the error."""
    if isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    gone = isinstance(error, ray.exceptions.RayError | dist.DistError) or "gloo/transport" in str(error)
    return LostWorkerError(str(error)) if gone else error


def _first_failure(at_work: list[Any]) -> Exception | None:
    """The error of another process that has failed by now, preferably not a lost connection; None if none has."""
    failures = []
    for task in ray.wait(at_work, num_returns=len(at_work), timeout=0)[0]:
        try:
            ray.get(task)
        except Exception as error:
            failures.append(_attribute(error))
    failures.sort(key=lambda failure: isinstance(failure, LostWorkerError))
    return failures[0] if failures else None


def _watch(task: TrialTask, at_work: list[Any], over: threading.Event, failures: list[Exception]) -> None:
    """End all other processes when one of them has failed: the rest would wait for it in the middle of a step.

    With gloo, this process then sees its connections break. NCCL may keep waiting: then this process exits.
    """
    while (failure := _first_failure(at_work)) is None:
        if over.wait(1.0):
            return
    failures.append(failure)
    for member in list(_members):
        ray.kill(member)
    if not over.wait(MAX_UNWIND_SECONDS):
        if not isinstance(failure, LostWorkerError):
            leave_error(task.folder, f"{type(failure).__name__}: {failure}".splitlines()[0], str(failure))
        os._exit(1)
