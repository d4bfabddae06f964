"""The processes that train one trial together: those of torch.distributed if initialised, else this one alone."""

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
    """`size` processes, of which this one has number `rank`; all of them make the same calls.

    In a group of one, each method returns its argument, and nothing is sent.
    """

    rank: int = 0
    size: int = 1

    def shard(self, rows: int) -> slice:
        """This rank's shard of `rows` rows, in order; shards differ by at most one row.

        No shard has one row only, unless there is only one row (batch norm): with few rows the last ranks get none.
        """
        ranks = min(self.size, max(1, rows // 2))
        if self.rank >= ranks:
            return slice(rows, rows)
        return slice(self.rank * rows // ranks, (self.rank + 1) * rows // ranks)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, bit for bit the same on each."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, shard: Tensor) -> Tensor:
        """The rows of all ranks [N, ...], in order of rank; shards may differ in length."""
        if self.size == 1:
            return shard
        lengths = [torch.zeros(1, dtype=torch.long, device=shard.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(shard)], device=shard.device))
        longest = max(int(length) for length in lengths)  # all ranks must send the same number of rows
        padded = shard.new_zeros((longest, *shard.shape[1:]))
        padded[: len(shard)] = shard
        shards = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(shards, padded)
        return torch.cat([other[: int(length)] for other, length in zip(shards, lengths, strict=True)])

    def from_first(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def parallel(self, net: nn.Module) -> nn.Module:
        """The network to call in training: its gradients are the mean over the ranks.

        On a GPU its batch norms use the statistics of the whole batch. PyTorch has no such layer for a CPU, where they
        use those of each rank's shard; `average_statistics` then averages the running statistics.
        """
        if self.size == 1:
            return net
        if next(net.parameters()).is_cuda:
            _synchronize_batch_norms(net)
        # Buffers are sent at every step by default; once an epoch is enough.
        return DistributedDataParallel(net, forward_sync_buffers=False, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def accumulate(self, net: nn.Module, more: bool) -> Iterator[None]:
        """Around a forward and backward pass: gradients stay local if `more` passes follow in the same step."""
        if more and isinstance(net, DistributedDataParallel):
            with net.no_sync():
                yield
        else:
            yield

    def average_statistics(self, net: nn.Module) -> None:
        """Replace running statistics by their mean over the ranks, so that all ranks validate the same network."""
        if self.size == 1:
            return
        for buffer in net.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size


SINGLE_PROCESS = ProcessGroup()


def _synchronize_batch_norms(net: nn.Module) -> None:
    """Make the batch norms below `net` use the statistics of all ranks, which must be on GPUs."""
    from timm.layers import convert_sync_batchnorm  # PyTorch's own drops the activations of timm's layers

    convert_sync_batchnorm(net)


def current_group() -> ProcessGroup:
    """The group that this process belongs to."""
    if not dist.is_available() or not dist.is_initialized():
        return SINGLE_PROCESS
    return ProcessGroup(dist.get_rank(), dist.get_world_size())
