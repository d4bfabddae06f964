"""The processes that train one trial together: those of torch.distributed where it is set up, else this one alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


@dataclass(frozen=True)
class ProcessGroup:
    """So many processes (`size`), of which this is number `rank`; every one of them makes the same calls.

    Alone, each method gives back what it was given, and nothing is sent.
    """

    rank: int = 0
    size: int = 1

    def shard(self, rows: int) -> slice:
        """This rank's part of so many rows, in order; parts differ by one row at most.

        No part has one row alone unless there is only one (batch norm): of few rows the last ranks get none.
        """
        ranks = min(self.size, max(1, rows // 2))
        if self.rank >= ranks:
            return slice(rows, rows)
        return slice(self.rank * rows // ranks, (self.rank + 1) * rows // ranks)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, part: Tensor) -> Tensor:
        """The rows of all ranks [N, ...], those of rank 0 first; parts may differ in length."""
        if self.size == 1:
            return part
        lengths = [torch.zeros(1, dtype=torch.long, device=part.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(part)], device=part.device))
        longest = max(int(length) for length in lengths)  # every rank must send as much as the others
        padded = part.new_zeros((longest, *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([whole[: int(length)] for whole, length in zip(parts, lengths, strict=True)])

    def from_first(self, value: Value) -> Value:
        """What rank 0 has, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def parallel(self, net: nn.Module) -> nn.Module:
        """The network as the training calls it: its gradients are the mean over the ranks.

        On a GPU its batch normalisation takes the statistics of the whole batch; PyTorch has none such for a CPU,
        where they are those of each rank's shard. `average_statistics` then brings the running ones together.
        """
        if self.size == 1:
            return net
        if next(net.parameters()).is_cuda:
            _normalise_together(net)
        # Buffers: sent at every step by default, where once an epoch does.
        return DistributedDataParallel(net, forward_sync_buffers=False, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def accumulate(self, net: nn.Module, more: bool) -> Iterator[None]:
        """Around a forward and backward pass: where `more` follow for the same step, gradients stay here."""
        if more and isinstance(net, DistributedDataParallel):
            with net.no_sync():
                yield
        else:
            yield

    def average_statistics(self, net: nn.Module) -> None:
        """Running statistics become their mean over the ranks: then every rank validates the same network."""
        if self.size == 1:
            return
        for buffer in net.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size


def _normalise_together(net: nn.Module) -> None:
    """Batch normalisation layers below `net` take the statistics of all ranks, which must be on GPUs."""
    from timm.layers import convert_sync_batchnorm  # PyTorch's own drops the activations of timm's layers

    convert_sync_batchnorm(net)


def current_group() -> ProcessGroup:
    """The group that this process belongs to."""
    if not dist.is_available() or not dist.is_initialized():
        return ProcessGroup()
    return ProcessGroup(dist.get_rank(), dist.get_world_size())
