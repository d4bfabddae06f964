"""The resources of trials, and how many trials fit on one machine or on the nodes of a cluster."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores, memory
from binsweep.search.spec.schema import ResourcesPart

GIB = 2**30
# A socket's path has at most 107 bytes on Linux and 103 on macOS. Ray's consist of the temporary folder, our folder in
# it ("/ray-" and 8 more), "/session_2026-11-26_15-03-50_888617_4194304" and "/sockets/plasma_store".
MAX_RAY_FOLDER_LENGTH = (107 if sys.platform == "linux" else 103) - 13 - 43 - 21
Node = Mapping[str, float]  # by Ray's names: CPU, GPU and memory (in bytes)


@dataclass(frozen=True)
class TrialResources:
    """What each of the `workers` of a trial gets, by Ray's names: CPU, GPU, memory in bytes."""

    each: Mapping[str, float]
    workers: int = 1  # processes that train it together

    @property
    def cpus(self) -> float:
        """All of its workers' CPUs."""
        return self.each["CPU"] * self.workers

    @property
    def gpus(self) -> float:
        """All of its workers' GPUs."""
        return self.each.get("GPU", 0.0) * self.workers


def this_machine() -> Node:
    """The resources of this machine that this process may use."""
    import torch  # slow to import, and workers of own training code do without it

    return {
        "CPU": cores(),
        "GPU": torch.cuda.device_count(),
        "memory": float(memory().total),
    }


def ray_temp_folder() -> str:
    """The folder for a local Ray's temporary files: RAY_TMPDIR or TMPDIR if Ray can use it, else /tmp or /var/tmp.

    In a folder with a long path, which schedulers like Slurm set, Ray's sockets cannot be opened; and Ray splits its
    workers' commands at blanks and encodes them as ASCII. Raises UserError if no folder is usable.
    """
    requested = str(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute())
    for folder in (requested, "/tmp", "/var/tmp"):
        plain = re.fullmatch(r"[A-Za-z0-9/._+-]+", folder)
        if plain and len(folder) <= MAX_RAY_FOLDER_LENGTH and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError(
        f"Ray has no folder for its sockets: {requested} has more than {MAX_RAY_FOLDER_LENGTH} characters or unusual "
        "ones, or is not writable, and neither are /tmp and /var/tmp",
        "set RAY_TMPDIR to a folder with a short and plain name, or use --runner local",
    )


def gpus_per_worker(part: ResourcesPart, nodes: Sequence[Node]) -> float:
    """The GPUs of each worker of a trial. Default: an equal share for as many trials as the CPUs allow.

    Workers that train together cannot share a GPU: where there is one, each gets at least one.
    """
    if part.gpus_per_trial is not None:
        return part.gpus_per_trial
    workers = part.workers_per_trial
    trials = max(1, int(sum(node.get("CPU", 0) for node in nodes) / (workers * part.cpus_per_trial)))
    gpus = sum(node.get("GPU", 0) for node in nodes) / (workers * trials)
    if gpus < 1:
        return gpus if workers == 1 else float(gpus > 0)
    return int(gpus)


def trial_resources(part: ResourcesPart, nodes: Sequence[Node]) -> TrialResources:
    """The resources of a trial of one kind on these nodes."""
    each = {"CPU": float(part.cpus_per_trial), "GPU": gpus_per_worker(part, nodes)}
    if part.memory_gib_per_trial is not None:
        each["memory"] = part.memory_gib_per_trial * GIB
    return TrialResources(each, part.workers_per_trial)


def check_resources(part: ResourcesPart, nodes: Sequence[Node], where: str) -> int:
    """The number of trials that may run at once: as many as fit with all their workers, but not more than
    `max_concurrent_trials`.

    With two kinds, common trials are placed first, and those of `overrides` in what remains. Raises UserError if no
    trial of a kind fits: Ray would wait for ever for resources that it does not have.
    """
    left, slots = nodes, 0
    for path, kind in part.kinds().items():
        resources = trial_resources(kind, nodes)
        _require_fit(path, resources, nodes, where)
        fit, left = _fill(resources, left)
        slots += fit
    return min(slots, part.max_concurrent_trials or slots)


def _require_fit(path: str, resources: TrialResources, nodes: Sequence[Node], where: str) -> None:
    keys = {"CPU": "cpus_per_trial", "GPU": "gpus_per_trial", "memory": "memory_gib_per_trial"}
    for kind, amount in resources.each.items():
        most = max(node.get(kind, 0) for node in nodes)
        if amount > most:
            unit = GIB if kind == "memory" else 1
            raise UserError(
                f"{path}.{keys[kind]}: {amount / unit:g} requested, {where} has {most / unit:.4g}",
                f"set it to at most {most / unit:.4g}",
            )
    fit = sum(_workers_on(node, resources) for node in nodes)
    if not fit:
        together = ", ".join(
            f"{keys[kind]} {amount:g}" for kind, amount in resources.each.items() if amount > 0
        )
        raise UserError(f"{path}: {where} has no node with all of {together}", "request less of one of them")
    if fit < resources.workers:
        rule = f"{path}.workers_per_trial: {resources.workers} requested, {fit} fit"
        raise UserError(rule, f"set it to at most {fit}, or request less for each")


def _workers_on(node: Node, resources: TrialResources) -> int:
    """The number of workers that fit on a node. Fractions add up exactly: ten times 0.1 of a GPU is one."""
    return min(
        math.floor(node.get(kind, 0) / amount + 1e-9) for kind, amount in resources.each.items() if amount > 0
    )


def _fill(resources: TrialResources, nodes: Sequence[Node]) -> tuple[int, list[Node]]:
    """The number of trials that fit on the nodes, and the resources that remain."""
    capacities = [_workers_on(node, resources) for node in nodes]
    trials = sum(capacities) // resources.workers
    left: list[Node] = []
    to_place = trials * resources.workers
    for node, capacity in zip(nodes, capacities, strict=True):
        placed = min(capacity, to_place)
        to_place -= placed
        left.append({kind: amount - placed * resources.each.get(kind, 0) for kind, amount in node.items()})
    return trials, left


def fits(trials: Sequence[TrialResources], nodes: Sequence[Node]) -> bool:
    """Whether trials with these resources fit together. The largest is placed first, each on the node with the fewest
    GPUs that can hold it."""
    left = [dict(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0))]
    for resources in sorted(trials, key=lambda trial: (trial.gpus, trial.cpus), reverse=True):
        for _ in range(resources.workers):
            place = next((node for node in left if _workers_on(node, resources) > 0), None)
            if place is None:
                return False
            for kind, amount in resources.each.items():
                place[kind] = place.get(kind, 0) - amount
    return True
