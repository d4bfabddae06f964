"""What a trial is given, and how many trials that makes on one machine or on the nodes of a cluster."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores, memory
from binsweep.search.execution.trial import TrialResources
from binsweep.search.spec.parser import ResourcesPart

GIB = 2**30
# A socket's name has at most 107 bytes on Linux and 103 on macOS. Ray's consist of the place, our folder ("/ray-" and 8
# more), "/session_2026-11-26_15-03-50_888617_4194304" and "/sockets/plasma_store".
MAX_RAY_FOLDER_LENGTH = (107 if sys.platform == "linux" else 103) - 13 - 43 - 21
Node = Mapping[str, float]  # what Ray calls CPU, GPU and memory (in bytes)


def this_machine() -> Node:
    """What this process may use of this machine, before any Ray runs on it."""
    return {
        "CPU": cores(),
        "GPU": torch.cuda.device_count(),
        "memory": float(memory().total),
    }


def ray_temp_folder() -> str:
    """Where a Ray of this machine may make a folder of its own: RAY_TMPDIR or TMPDIR, else a usual place.

    Under a long name, as schedulers like Slurm set one, Ray's sockets cannot be opened; and Ray splits its workers'
    commands at blanks and encodes them as ASCII. Raises UserError where no place will do.
    """
    asked = str(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute())
    for place in (asked, "/tmp", "/var/tmp"):
        plain = re.fullmatch(r"[A-Za-z0-9/._+-]+", place)
        if plain and len(place) <= MAX_RAY_FOLDER_LENGTH and os.access(place, os.W_OK | os.X_OK):
            return place
    raise UserError(
        f"Ray has no folder for its sockets: {asked} has more than {MAX_RAY_FOLDER_LENGTH} characters or unusual "
        "ones, or is not writable, and neither are /tmp and /var/tmp",
        "set RAY_TMPDIR to a folder with a short and plain name, or use --runner local",
    )


def gpus_per_worker(resources: ResourcesPart, nodes: Sequence[Node]) -> float:
    """The GPUs of one trial, or of each of its workers; where the spec is silent, an equal share for as many trials as
    the CPUs allow. Workers that train together share no GPU: where there is any, each needs one."""
    if resources.gpus_per_trial is not None:
        return resources.gpus_per_trial
    workers = resources.workers_per_trial
    trials = max(1, int(sum(node.get("CPU", 0) for node in nodes) / (workers * resources.cpus_per_trial)))
    share = sum(node.get("GPU", 0) for node in nodes) / (workers * trials)
    if share < 1:
        return share if workers == 1 else float(share > 0)
    return int(share)


def trial_resources(resources: ResourcesPart, nodes: Sequence[Node]) -> TrialResources:
    """What a trial of one kind gets on these nodes."""
    each = {"CPU": float(resources.cpus_per_trial), "GPU": gpus_per_worker(resources, nodes)}
    if resources.memory_gib_per_trial is not None:
        each["memory"] = resources.memory_gib_per_trial * GIB
    return TrialResources(each, resources.workers_per_trial)


def check_resources(resources: ResourcesPart, nodes: Sequence[Node], who: str) -> int:
    """How many trials may run at once: as many as have room for all of their workers, at most `trials_at_once`; of two
    kinds, as many of the common one as there is room for, and large ones in what they leave.

    Raises UserError when not even one of a kind fits: Ray itself would wait for ever for what it does not have.
    """
    left, slots = nodes, 0
    for path, kind in resources.kinds().items():
        share = trial_resources(kind, nodes)
        _require_room(path, share, nodes, who)
        fit, left = _fill(share, left)
        slots += fit
    return min(slots, resources.trials_at_once or slots)


def _require_room(path: str, share: TrialResources, nodes: Sequence[Node], who: str) -> None:
    keys = {"CPU": "cpus_per_trial", "GPU": "gpus_per_trial", "memory": "memory_gib_per_trial"}
    for kind, amount in share.each.items():
        most = max(node.get(kind, 0) for node in nodes)
        if amount > most:
            unit = GIB if kind == "memory" else 1
            raise UserError(
                f"{path}.{keys[kind]}: {amount / unit:g} asked, {who} has {most / unit:.4g}",
                f"set it to at most {most / unit:.4g}",
            )
    fit = sum(_room(share, node) for node in nodes)
    if not fit:
        together = ", ".join(f"{keys[kind]} {amount:g}" for kind, amount in share.each.items() if amount > 0)
        raise UserError(f"{path}: {who} has no node with all of {together}", "ask for less of one of them")
    if fit < share.workers:
        rule = f"{path}.workers_per_trial: {share.workers} asked, there is room for {fit}"
        raise UserError(rule, f"set it to at most {fit}, or ask for less for each")


def _room(share: TrialResources, node: Node) -> int:
    """How many workers fit on a node; what is asked in parts adds up exactly (0.1 of a GPU ten times)."""
    return min(
        math.floor(node.get(kind, 0) / amount + 1e-9) for kind, amount in share.each.items() if amount > 0
    )


def _fill(share: TrialResources, nodes: Sequence[Node]) -> tuple[int, list[Node]]:
    """How many trials fit on the nodes, and what they leave of them."""
    rooms = [_room(share, node) for node in nodes]
    trials = sum(rooms) // share.workers
    left: list[Node] = []
    over = trials * share.workers
    for node, room in zip(nodes, rooms, strict=True):
        taken = min(room, over)
        over -= taken
        left.append({kind: amount - taken * share.each.get(kind, 0) for kind, amount in node.items()})
    return trials, left


def fits(shares: Sequence[TrialResources], nodes: Sequence[Node]) -> bool:
    """Whether trials with these shares find room together, the largest placed first, and on the node with the fewest
    GPUs that has it."""
    left = [dict(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0))]
    for share in sorted(shares, key=lambda share: (share.gpus, share.cpus), reverse=True):
        for _ in range(share.workers):
            place = next((node for node in left if _room(share, node) > 0), None)
            if place is None:
                return False
            for kind, amount in share.each.items():
                place[kind] = place.get(kind, 0) - amount
    return True
