"""What a trial is given, and how many trials that makes on one machine or on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psutil
import torch

from data.errors import UserError
from models.arithmetic import cores
from search.spec import ResourcesPart

GIB = 2**30
Node = Mapping[str, float]  # what Ray calls CPU, GPU and memory (in bytes)


def this_machine() -> Node:
    """What this machine has, before any Ray runs on it."""
    return {
        "CPU": cores(),
        "GPU": torch.cuda.device_count(),
        "memory": float(psutil.virtual_memory().total),
    }


def gpus_of(resources: ResourcesPart, nodes: Sequence[Node]) -> float:
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


def per_worker(resources: ResourcesPart, nodes: Sequence[Node]) -> dict[str, float]:
    """What Ray sets aside for each worker of a trial, by Ray's names."""
    asked = {"CPU": float(resources.cpus_per_trial), "GPU": gpus_of(resources, nodes)}
    if resources.memory_gib_per_trial is not None:
        asked["memory"] = resources.memory_gib_per_trial * GIB
    return asked


def check_resources(resources: ResourcesPart, nodes: Sequence[Node], who: str) -> int:
    """How many trials may run at once: as many as have room for all of their workers, at most `trials_at_once`.

    Raises UserError when not even one fits: Ray itself would wait for ever for what it does not have.
    """
    asked = per_worker(resources, nodes)
    keys = {"CPU": "cpus_per_trial", "GPU": "gpus_per_trial", "memory": "memory_gib_per_trial"}
    for kind, amount in asked.items():
        most = max(node.get(kind, 0) for node in nodes)
        if amount > most:
            unit = GIB if kind == "memory" else 1
            raise UserError(
                f"resources.{keys[kind]}: {amount / unit:g} asked, {who} has {most / unit:.4g}",
                f"set it to at most {most / unit:.4g}",
            )
    fit = sum(
        min(int(node.get(kind, 0) / amount) for kind, amount in asked.items() if amount > 0) for node in nodes
    )
    if not fit:
        together = ", ".join(f"{keys[kind]} {amount:g}" for kind, amount in asked.items() if amount > 0)
        raise UserError(f"resources: {who} has no node with all of {together}", "ask for less of one of them")
    workers = resources.workers_per_trial
    if fit < workers:
        rule = f"resources.workers_per_trial: {workers} asked, there is room for {fit}"
        raise UserError(rule, f"set it to at most {fit}, or ask for less for each")
    return min(fit // workers, resources.trials_at_once or fit)
