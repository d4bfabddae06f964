"""What can be known to be wrong with a sweep before any data is read.

It imports little, so that mistakes are told, and `--dry-run` answers, without the seconds that MLflow and Ray take.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch

from binsweep.data.errors import UserError
from binsweep.models.pretrained import check_weights
from binsweep.search.execution.resources import Node, check_resources, ray_place, share_of, this_machine
from binsweep.search.spec.parser import SweepSpec

Runner = Literal["ray", "local"]


def check_before_start(
    spec: SweepSpec, cluster: Sequence[Node] | None = None, runner: Runner = "ray"
) -> None:
    """Everything that can be known to be wrong before any data is read; raises UserError.

    `cluster` is what each node of the cluster has that the sweep will run on; without it, it is this machine.
    """
    for path, kind in spec.resources.kinds().items():
        if runner == "local" and kind.workers_per_trial > 1:
            rule = f"{path}.workers_per_trial: {kind.workers_per_trial} asked, --runner local trains in one process"
            raise UserError(rule, "leave --runner out, or set it to 1")
    for backbone, weights in itertools.product(spec.values("backbone"), spec.values("weights")):
        check_weights(backbone, weights)
    if runner == "ray" and cluster is None:
        ray_place()
    nodes = [this_machine()] if cluster is None else cluster
    check_resources(spec.resources, nodes, "this machine" if cluster is None else "the largest node")
    gpus = [share_of(kind, nodes).gpus for kind in spec.resources.kinds().values()]
    if runner == "local":
        gpus = [float(torch.cuda.is_available())]
    if spec.budget.gpu_hours is not None and not any(gpus):
        rule = "budget.gpu_hours: no trial gets a GPU here, so that it would never be spent"
        raise UserError(rule, "give budget.minutes instead")
