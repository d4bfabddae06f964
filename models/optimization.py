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


def end_schedule_at(schedule: Any, steps: int) -> None:
    """Let a schedule that has begun end after so many steps in all: what is left of it is walked through faster.

    The learning rate goes on from its present value; only on the way up it jumps by a little. A schedule that already
    ends there, or is constant, is left as it is.
    """
    if not isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR) or schedule.total_steps == steps:
        return
    now, end = schedule.last_epoch, schedule.total_steps - 1
    speed = (end - now) / max(1, steps - 1 - now)
    for phase in schedule._schedule_phases:
        # Of the phase in which the schedule is, the beginning is moved, too, so that its present place stays.
        phase["end_step"] = now + (phase["end_step"] - now) / speed
    schedule.total_steps = steps


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
