"""The checks of a sweep before its data is read.

This module imports little, so that a mistake is reported, and `--dry-run` answers, without importing MLflow and Ray.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from binsweep.data.errors import UserError
from binsweep.models.pretrained import check_weights
from binsweep.search.execution.resources import (
    Node,
    check_resources,
    ray_temp_folder,
    this_machine,
    trial_resources,
)
from binsweep.search.own_code.host_process import CodeError, CodeHost, HostKilledError
from binsweep.search.own_code.snapshot import take_snapshot
from binsweep.search.spec.sweep_spec import CodeSpec, PhotoSpec, SweepSpec

Runner = Literal["ray", "local"]


def check_before_start(
    spec: SweepSpec, cluster: Sequence[Node] | None = None, runner: Runner = "ray"
) -> None:
    """Raise UserError for every mistake that can be found before the data is read.

    `cluster` lists the resources of the nodes of a Ray cluster; without it, the sweep runs on this machine.
    """
    for path, kind in spec.resources.kinds().items():
        if runner == "local" and kind.workers_per_trial > 1:
            rule = f"{path}.workers_per_trial: {kind.workers_per_trial} requested, --runner local trains in one process"
            raise UserError(rule, "omit --runner, or set it to 1")
    if isinstance(spec, PhotoSpec):
        for backbone, weights in itertools.product(spec.values("backbone"), spec.values("weights")):
            check_weights(backbone, weights)
    elif isinstance(spec, CodeSpec):
        check_code(spec)
    if runner == "ray" and cluster is None:
        ray_temp_folder()
    nodes = [this_machine()] if cluster is None else cluster
    check_resources(spec.resources, nodes, "this machine" if cluster is None else "the largest node")
    gpus = [trial_resources(kind, nodes).gpus for kind in spec.resources.kinds().values()]
    if runner == "local":
        gpus = [float(torch.cuda.is_available())]
    _check_budget(spec, any(gpus))


def print_warnings(spec: SweepSpec) -> None:
    """Print what is allowed in a spec and hardly meant."""
    for text in _warnings(spec):
        print(f"warning: {text}", file=sys.stderr)


def _warnings(spec: SweepSpec) -> list[str]:
    if not isinstance(spec, PhotoSpec):
        return []
    if "none" not in spec.values("weights") or "head" not in spec.values("trainable"):
        return []
    where = "fidelity.trainable" if spec.fidelity.trainable else "trainable"
    what = f"with weights: none and {where}: head, a head is trained on the features of a random network"
    return [f"{what}; take other weights, or leave head out"]


def _check_budget(spec: SweepSpec, with_gpus: bool) -> None:
    """Raise UserError for a limit that is spent by GPUs alone if no trial gets one."""
    only_gpus_cost = spec.budget.money is not None and not spec.resources.cpu_hour_price
    if spec.budget.gpu_hours is not None and not with_gpus:
        rule = "budget.gpu_hours: no trial gets a GPU here, so it would never be spent"
        raise UserError(rule, "set budget.minutes instead")
    if only_gpus_cost and not with_gpus:
        rule = "budget.money: only GPUs have a price, and no trial gets one here, so it would never be spent"
        raise UserError(rule, "add resources.cpu_hour_price, or set budget.minutes instead")


def check_code(spec: CodeSpec) -> None:
    """Import the training function, in a process of its own. Raises UserError if that fails."""
    place, _, _ = spec.trainer.rpartition(":")
    with tempfile.TemporaryDirectory() as folder:  # as the trials will import it: without what is not copied
        code = take_snapshot(spec.trainer, {}, Path(folder))
        host = CodeHost(code.place, code.function, threads=1)
        try:
            host.load()
        except (CodeError, HostKilledError, TimeoutError) as error:
            reason = str(error).replace(code.place, place)
            raise UserError(f"trainer: {reason}", "mend it: no trial could begin") from error
        finally:
            host.close()
