"""Which photos make up the batches of a training epoch, in which order and in which views."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from binsweep.models.batches import Batches
from binsweep.models.distributed import SINGLE_PROCESS, ProcessGroup
from binsweep.models.optimization import class_weights
from binsweep.models.precision import to_device
from binsweep.models.profiler import Mark, no_mark
from binsweep.models.settings import Settings


def epoch_rows(labels: Tensor, settings: Settings, generator: torch.Generator) -> list[Tensor]:
    """The rows of every batch of one epoch. A last batch of one row joins the batch before it, for batch norm."""
    rows = shared_rows(labels, settings.train_share)
    if settings.balance == "sampler":
        weights = class_weights(labels, int(labels.max()) + 1)[labels[rows]]
        order = rows[torch.multinomial(weights, len(rows), replacement=True, generator=generator)]
    else:
        order = rows[torch.randperm(len(rows), generator=generator)]
    batches = list(order.split(settings.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def shared_rows(labels: Tensor, share: float) -> Tensor:
    """The rows of a share of each class, rounded up, int64 and ascending; a smaller share is part of a larger one."""
    if share == 1.0:
        return torch.arange(len(labels))
    # Of the photos in an order that is the same for every trial, the first ones of each class.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept = []
    for label in labels.unique():
        rows = order[labels[order] == label]
        kept.append(rows[: math.ceil(share * len(rows))])
    return torch.cat(kept).sort().values


def training_batches(
    split: Batches,
    settings: Settings,
    generator: torch.Generator,
    mark: Mark = no_mark,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields, for each batch of one epoch, inputs and labels of this rank's shard and the labels of the whole batch.

    All random choices are drawn from `generator` in a fixed order, so that every rank of a group draws the same.
    """
    for rows in epoch_rows(split.labels, settings, generator):
        views = torch.zeros_like(rows)
        if split.views > 1:
            views = torch.randint(0, split.views, (len(rows),), generator=generator)
        shard = group.shard(len(rows))
        # An empty shard takes one row and drops it again, so that its inputs have the shape of the others.
        taken = shard if shard.stop > shard.start else slice(0, 1)
        inputs = split.take(rows[taken], views[taken], mark)[: shard.stop - shard.start]
        labels = to_device(split.labels[rows], inputs.device)
        yield inputs, labels[shard], labels
