"""A trial over several workers: processes in the trial's own placement group that train together.

Ray Tune's worker is rank 0: it reads and writes the trial's files and reports, as one that trains alone. The others
are actors of its own, in the other bundles of its placement group: they end with it, however it ends, and what they
held is free. They stay for the next trial of the same worker. When one of them dies, the worker fails without an
error of the trial's, and the sweep lets the trial go on from its last epoch, as for every lost worker.
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

from binsweep.search.execution.trial import (
    LostWorkerError,
    Send,
    TrialResources,
    TrialTask,
    attempt,
    hide_gpus,
    leave_error,
    run_attempts,
)
from binsweep.search.ray_backend.file_transfer import DriverFiles

LOOPBACK = "127.0.0.1"
UNWIND_SECONDS = 30.0  # so long may a process wait for one that is gone


class Member:
    """One process of a group beside the first."""

    def __init__(self, resources: TrialResources) -> None:
        hide_gpus(resources)

    def node(self) -> str:
        """The id of the node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def join(self, address: str, port: int, rank: int, size: int) -> None:
        """Meet the others; returns when all are there."""
        here = LOOPBACK if address == LOOPBACK else ray.util.get_node_ip_address()
        _join(TCPStore(address, port, size, is_master=False, use_libuv=False), here, rank, size)

    def train(self, task: TrialTask, driver_files: DriverFiles, parts: int) -> None:
        """This process's part of a trial."""
        with driver_files.at_hand(task) as (here, _):
            attempt(here, driver_files.data(), _never, parts)


def _never(epoch: int, metrics: dict[str, float]) -> bool:
    raise AssertionError("only rank 0 reports")


def _join(store: TCPStore, here: str, rank: int, size: int) -> None:
    """Become a process of the group; talk over the network interface that has the address `here`, and no other."""
    for interface, addresses in psutil.net_if_addrs().items():
        if here in (entry.address for entry in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


_members: list[Any] = []  # of this process's group; they stay from one trial to the next


def run_in_group(task: TrialTask, driver_files: DriverFiles, send: Send) -> None:
    """What `search.trial.run_trial` does, by all workers of the task. Raises LostWorkerError when one is lost."""
    stopped: list[SystemExit] = []

    def told(epoch: int, metrics: dict[str, float]) -> bool:
        # Ray ends the thread inside the report when the scheduler said stop: the others must hear of it first.
        try:
            return send(epoch, metrics)
        except SystemExit as end:
            stopped.append(end)
            return False

    run_attempts(task, lambda parts: _train_together(task, driver_files, told, parts))
    if stopped:
        raise stopped[0]


def _train_together(task: TrialTask, driver_files: DriverFiles, send: Send, parts: int) -> None:
    over, failures = threading.Event(), list[Exception]()
    try:
        if not _members:
            _gather_members(task.resources)
        at_work = [member.train.remote(task, driver_files, parts) for member in _members]
        watched = (task, at_work, over, failures)
        threading.Thread(target=_watch, args=watched, name="group-watch", daemon=True).start()
        attempt(task, driver_files.data(), send, parts)
        ray.get(at_work)
    except Exception as error:
        _part()
        # Where another one failed, this process only saw the connections break.
        blame = failures[0] if failures else _blamed(error)
        if blame is error:
            raise
        raise blame from error
    finally:
        over.set()


def _gather_members(resources: TrialResources) -> None:
    """Start the other processes, each in its bundle of the trial's placement group, and meet them."""
    bundles, size = get_current_placement_group(), resources.workers
    for index in range(1, size):
        place = PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=index)
        asked = bundles.bundle_specs[index]
        options = {"num_cpus": asked.get("CPU", 0), "num_gpus": asked.get("GPU", 0)}
        options |= {"memory": asked["memory"]} if "memory" in asked else {}
        _members.append(ray.remote(Member).options(scheduling_strategy=place, **options).remote(resources))
    nodes = {str(ray.get_runtime_context().get_node_id()), *ray.get([m.node.remote() for m in _members])}
    address = LOOPBACK if len(nodes) == 1 else ray.util.get_node_ip_address()
    # Bound here, as PyTorch would listen on every interface of the machine.
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


def _part() -> None:
    """End the other processes; the next attempt starts afresh."""
    for member in _members:
        ray.kill(member)
    _members.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _blamed(error: Exception) -> Exception:
    """LostWorkerError for the death of a process, or of a connection, which is what the others see of it; else the
    error itself."""
    if isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    gone = isinstance(error, ray.exceptions.RayError | dist.DistError) or "gloo/transport" in str(error)
    return LostWorkerError(str(error)) if gone else error


def _first_failure(at_work: list[Any]) -> Exception | None:
    """Why another process has failed by now, its own error rather than a lost connection; None when none has."""
    failures = []
    for task in ray.wait(at_work, num_returns=len(at_work), timeout=0)[0]:
        try:
            ray.get(task)
        except Exception as error:
            failures.append(_blamed(error))
    failures.sort(key=lambda failure: isinstance(failure, LostWorkerError))
    return failures[0] if failures else None


def _watch(task: TrialTask, at_work: list[Any], over: threading.Event, failures: list[Exception]) -> None:
    """Ends the others when one of them has failed, as the rest would wait for it within a step.

    Over gloo this process then sees its connections break. NCCL may wait on: then the process ends.
    """
    while (failure := _first_failure(at_work)) is None:
        if over.wait(1.0):
            return
    failures.append(failure)
    for member in list(_members):
        ray.kill(member)
    if not over.wait(UNWIND_SECONDS):
        if not isinstance(failure, LostWorkerError):
            leave_error(task.folder, f"{type(failure).__name__}: {failure}".splitlines()[0], str(failure))
        os._exit(1)
