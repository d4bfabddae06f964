"""One trial, as a worker runs it: train, keep the best epoch's checkpoint, report."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models.build import Checkpoint
from models.settings import Settings
from models.train import TrialData, train

BEST = "best.pt"
ERROR = "error.txt"
Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class TrialTask:
    """All that a worker needs for one trial; small and picklable."""

    number: int
    settings: Settings
    folder: Path  # where the trial's files go
    metric: str
    goal: Goal
    threads: int


def better(value: float, than: float | None, goal: Goal) -> bool:
    """Whether `value` is better; any number is better than none, and NaN is never better."""
    if than is None:
        return value == value
    return value > than if goal == "maximize" else value < than


def run_trial(task: TrialTask, data: TrialData, send: Callable[[int, dict[str, float]], bool]) -> None:
    """Train one trial; `send(epoch, metrics)` says whether to go on.

    Leaves `best.pt`, the checkpoint of the best validation epoch, in the task's folder, written before the
    epoch is reported, so that a stop or a kill at any moment leaves it whole. An exception is written to
    `error.txt` there and raised.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(task.threads)
    best: float | None = None

    def report(epoch: int, metrics: dict[str, float], checkpoint: Callable[[], Checkpoint]) -> bool:
        nonlocal best
        healthy = all(math.isfinite(metrics[loss]) for loss in ("train_loss", "val_loss"))
        if healthy and better(metrics[task.metric], best, task.goal):
            best = metrics[task.metric]
            checkpoint().save(task.folder / BEST)
        return send(epoch, metrics)

    try:
        train(task.settings, data, report)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        (task.folder / ERROR).write_text(f"{reason}\n\n{traceback.format_exc()}")
        raise
