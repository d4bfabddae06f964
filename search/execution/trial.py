"""One trial, as a worker runs it: train, keep the best epoch's checkpoint and the last epoch's state, report."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from binsweep.models.distributed import current_group
from binsweep.models.health_rules import HealthRule
from binsweep.models.inference_cost import photo_costs
from binsweep.models.precision import give_back_memory
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrialData, train
from binsweep.models.training_state import load_training_state
from binsweep.search.execution.health import keep_findings

BEST = "best.pt"
LAST = "last.pt"
ERROR = "error.txt"
TRACE = "trace.json"
Goal = Literal["maximize", "minimize"]
Send = Callable[[int, dict[str, float]], bool]  # told an epoch and its metrics, it says whether to go on


class LostWorkerError(RuntimeError):
    """A process died, or could not be reached any more: no fault of the trial, which goes on from its last epoch."""


@dataclass(frozen=True)
class TrialResources:
    """What each of the `workers` of a trial gets, by Ray's names: CPU, GPU, memory in bytes."""

    each: Mapping[str, float]
    workers: int = 1  # processes that train it together

    @property
    def cpus(self) -> float:
        """All of its workers' CPUs."""
        return self.each["CPU"] * self.workers

    @property
    def gpus(self) -> float:
        """All of its workers' GPUs."""
        return self.each.get("GPU", 0.0) * self.workers


def hide_gpus(resources: TrialResources) -> None:
    """Take the node's GPUs out of the sight of this process if its trial has none: Ray leaves them there."""
    if not resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def limit_memory(resources: TrialResources) -> None:
    """A trial that has a part of a GPU may take that part of its memory, whatever its neighbours have left: one that
    wants more is cut into micro-batches, the same way each time."""
    if torch.cuda.is_available():
        gpus = resources.each.get("GPU", 0.0)
        torch.cuda.set_per_process_memory_fraction(gpus if 0 < gpus < 1 else 1.0)


ONE_CORE = TrialResources({"CPU": 1.0})


@dataclass(frozen=True)
class TrialTask:
    """All that a worker needs for one trial; small and picklable. A trial that began before goes on."""

    number: int
    settings: Settings
    folder: Path  # where the trial's files go
    metric: str
    goal: Goal
    threads: int  # that each of its workers computes with
    known: int = 0  # epochs that were reported before
    trace: bool = False  # whether torch.profiler looks at a few steps
    minutes: float | None = None  # the longest that a trial may take at a stretch
    costs: bool = False  # whether to measure what one photo costs
    resources: TrialResources = ONE_CORE
    rules: Mapping[str, HealthRule] = field(
        default_factory=dict
    )  # of health, those that are not as by default


def better(value: float, than: float | None, goal: Goal) -> bool:
    """Whether `value` is better; any number is better than none, and NaN is never better."""
    if than is None:
        return value == value
    return value > than if goal == "maximize" else value < than


def run_trial(task: TrialTask, data: TrialData, send: Send) -> None:
    """Train one trial in this process.

    Leaves `best.pt`, the checkpoint of the best validation epoch, and `last.pt`, the state of the last epoch, in
    the task's folder, written before the epoch is reported, so that a stop or a kill at any moment leaves them
    whole. Where there is a `last.pt`, its epochs that are not known yet are reported, and training goes on
    behind them. Out of memory, an epoch is done over in smaller micro-batches. What health rules see goes to
    `health.json`, an exception to `error.txt`, and it is raised.
    """
    run_attempts(task, lambda parts: attempt(task, data, send, parts))


def run_attempts(task: TrialTask, train_in: Callable[[int], None]) -> None:
    """Call `train_in(1)`, and out of memory again with twice as many micro-batches each time.

    Another exception is written to `error.txt`, unless it is a LostWorkerError or the disk is full, and raised.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / ERROR).unlink(missing_ok=True)
    parts = 1
    try:
        while True:
            try:
                train_in(parts)
                return
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or 2 * parts > task.settings.batch_size:
                    raise
            give_back_memory()
            parts *= 2
    except LostWorkerError:
        raise
    except Exception as error:
        if is_disk_full(error):
            for half in task.folder.glob("*.tmp"):
                half.unlink(missing_ok=True)
            raise
        leave_error(task.folder, f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc())
        raise
    finally:
        give_back_memory()


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, or one behind it, says that the disk is full: no fault of a trial, which goes on later.

    PyTorch's and SQLite's say so in words only.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(seen) for words in ("inline_container.cc", "database or disk is full")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def leave_error(folder: Path, reason: str, details: str) -> None:
    """Write down why a trial failed: the reason is the first line."""
    with contextlib.suppress(OSError):  # a full disk must not hide the first error behind a second one
        (folder / ERROR).write_text(f"{reason}\n\n{details}")


def attempt(task: TrialTask, data: TrialData, send: Send, parts: int) -> None:
    """Train in so many micro-batches to a batch. Of a group, rank 0 alone reads and writes files, and sends."""
    torch.set_num_threads(task.threads)
    limit_memory(task.resources)
    group = current_group()
    deadline = None if task.minutes is None else time.monotonic() + 60 * task.minutes
    best: float | None = None
    state = group.from_first(load_training_state(task.folder / LAST) if group.rank == 0 else None)
    measured = task.costs and group.rank == 0
    costs = photo_costs(task.settings, data.classes, data.image_size) if measured else {}
    for epoch, metrics in enumerate(state.history if state else [], 1):
        if _healthy(metrics) and better(metrics[task.metric], best, task.goal):
            best = metrics[task.metric]
        if epoch > task.known and not group.from_first(group.rank > 0 or send(epoch, metrics)):
            return

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        nonlocal best
        metrics.update(costs)
        if parts > 1:
            metrics["micro_batches"] = float(parts)
        if _healthy(metrics) and better(metrics[task.metric], best, task.goal):
            best = metrics[task.metric]
            snapshot.checkpoint().save(task.folder / BEST)
        if snapshot.findings:
            keep_findings(task.folder, snapshot.findings)
        snapshot.state().save(task.folder / LAST)
        go_on = send(epoch, metrics)
        if go_on and deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"budget.trial_minutes: {task.minutes:g} are over after epoch {epoch}")
        return go_on

    trace = task.folder / TRACE if task.trace and not state and group.rank == 0 else None
    train(task.settings, data, report, start_from=state, parts=parts, trace=trace, rules=task.rules)


NO_MEMORY = (
    "can't allocate memory",  # PyTorch's CPU allocator
    "out of memory",  # CUDA and NCCL; CUDA has no class of its own for it where pinned memory is asked for
    "_ALLOC_FAILED",  # cuBLAS, cuDNN before 9
    "_ALLOCATION_FAILED",  # cuDNN 9
)


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, one of CUDA's libraries or Python could not get memory; most say so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in NO_MEMORY)


def _healthy(metrics: dict[str, float]) -> bool:
    return all(math.isfinite(metrics[loss]) for loss in ("train_loss", "val_loss"))
