"""Optimiser, learning-rate schedule, averaged weights and class weights of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from binsweep.models.settings import Settings


def build_optimizer(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, over all parameters of `net`."""
    parameters = list(net.parameters())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps: int) -> Any:
    """Constant, or one-cycle (Smith & Topin 2017): up to `lr` over 30% of all steps, then down to nearly zero."""
    if settings.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps, cycle_momentum=False
    )


def build_average(net: nn.Module, settings: Settings) -> AveragedModel | None:
    """The exponential moving average of the weights of `net` and of its batch norms' statistics; None without `ema`.

    At a high learning rate the weights wander around a point that is better than any of them (Polyak & Juditsky 1992);
    the average judges a trial fairly before its schedule has ended.
    """
    if not settings.ema:
        return None
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse frequency, mean 1 over the examples: N / (K n_c), the 'balanced' weights of King & Zeng 2001."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())
