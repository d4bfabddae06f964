"""One trial in its worker: train, write the best checkpoint and the last state, report each epoch."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from binsweep.models.backbones.library import interpolation_of
from binsweep.models.decoding import BEST_DECODING
from binsweep.models.distributed import current_group
from binsweep.models.health_rules import HealthRule
from binsweep.models.inference_cost import photo_costs
from binsweep.models.levels import Level
from binsweep.models.precision import release_gpu_memory
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import load_training_state
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.health import keep_findings
from binsweep.search.execution.resources import TrialResources
from binsweep.search.spec.objective import Goal, Objective

BEST = "best.pt"
LAST = "last.pt"
ERROR = "error.txt"
TRACE = "trace.json"
Send = Callable[[int, dict[str, float]], bool]  # (epoch, metrics) -> whether to continue


class LostWorkerError(RuntimeError):
    """A process died or became unreachable. The trial is not to blame and resumes after its last epoch."""


def hide_gpus(resources: TrialResources) -> None:
    """Hide the node's GPUs from this process if its trial has none; Ray leaves them visible."""
    if not resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def limit_memory(resources: TrialResources) -> None:
    """Limit a trial with a fraction of a GPU to that fraction of its memory, however much is free: a trial that needs
    more is split into the same micro-batches each time."""
    if torch.cuda.is_available():
        gpus = resources.each.get("GPU", 0.0)
        torch.cuda.set_per_process_memory_fraction(gpus if 0 < gpus < 1 else 1.0)


ONE_CORE = TrialResources({"CPU": 1.0})


@dataclass(frozen=True)
class TrialTask:
    """Everything that a worker needs to start or resume a trial; small and picklable."""

    number: int
    settings: Settings
    folder: Path  # where the trial's files go
    metric: str
    goal: Goal
    threads: int  # of each worker
    known: int = 0  # epochs that the controller knows
    trace: bool = False  # whether torch.profiler records a few steps
    minutes: float | None = None  # the longest that a trial may train without interruption
    costs: bool = False  # whether to measure the inference cost of a photo
    resources: TrialResources = ONE_CORE
    rules: Mapping[str, HealthRule] = field(
        default_factory=dict
    )  # the health rules that differ from the defaults
    earlier: tuple[Level, ...] = ()  # the sections before the one of `settings`
    image_size: int | None = None  # of the section of `settings`; None: the data's own


def run_trial(task: TrialTask, data: TrialData, send: Send) -> None:
    """Train one trial in this process.

    Writes `best.pt`, the checkpoint of the best validation epoch, and `last.pt`, the state of the last epoch, into
    the task's folder before it reports the epoch: a stop or a kill at any moment leaves them intact. If there is a
    `last.pt`, the epochs in it that are not known yet are reported, and training continues after them. Out of memory,
    an epoch is repeated in smaller micro-batches. Health findings go to `health.json`. An exception is written to
    `error.txt` and raised.
    """
    run_attempts(task, lambda parts: attempt(task, data, send, parts))


def run_attempts(task: TrialTask, train_in: Callable[[int], None]) -> None:
    """Call `train_in(1)`; whenever it runs out of memory, call it again with twice as many micro-batches.

    Another exception is raised, and written to `error.txt` unless it is a LostWorkerError or the disk is full.
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
            release_gpu_memory()
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
        release_gpu_memory()


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception or one of its causes is a full disk. The trial is not to blame and is resumed later.

    The exceptions of PyTorch and SQLite can only be recognised by their messages.
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
    """Write the reason why a trial failed, as the first line of its error file, and the details."""
    with contextlib.suppress(OSError):  # on a full disk, the first error must not be hidden by a second one
        (folder / ERROR).write_text(f"{reason}\n\n{details}")


def attempt(task: TrialTask, data: TrialData, send: Send, parts: int) -> None:
    """Train with `parts` micro-batches per batch. In a process group, only rank 0 uses files and reports."""
    torch.set_num_threads(task.threads)
    limit_memory(task.resources)
    group = current_group()
    deadline = None if task.minutes is None else time.monotonic() + 60 * task.minutes
    objective = Objective(task.goal, task.metric)
    best: float | None = None
    state = group.from_first(load_training_state(task.folder / LAST) if group.rank == 0 else None)
    data = data.at_size(task.image_size or data.image_size, interpolation_of(task.settings.backbone))
    measured = task.costs and group.rank == 0
    costs = photo_costs(task.settings, data.classes, data.image_size) if measured else {}
    for epoch, metrics in enumerate(state.history if state else [], 1):
        if objective.is_better(value := objective.value_of(metrics), best):
            best = value
        if epoch > task.known and not group.from_first(group.rank > 0 or send(epoch, metrics)):
            return

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        nonlocal best
        metrics.update(costs)
        if parts > 1:
            metrics["micro_batches"] = float(parts)
        if objective.is_better(value := objective.value_of(metrics), best):
            best = value
            snapshot.checkpoint().save(task.folder / BEST)
        if snapshot.findings:
            keep_findings(task.folder, snapshot.findings)
        snapshot.state().save(task.folder / LAST)
        go_on = send(epoch, metrics)
        if go_on and deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"budget.trial_minutes: {task.minutes:g} are over after epoch {epoch}")
        return go_on

    trace = task.folder / TRACE if task.trace and not state and group.rank == 0 else None
    decoding = BEST_DECODING.get(task.metric.removeprefix("val_"), "argmax")
    options = TrainOptions(
        start_from=state,
        micro_batches=parts,
        decoding=decoding,
        trace=trace,
        rules=task.rules,
        earlier=task.earlier,
    )
    train(task.settings, data, report, options)


OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",  # PyTorch's CPU allocator
    "out of memory",  # CUDA and NCCL; for pinned memory, CUDA raises no exception of a class of its own
    "_ALLOC_FAILED",  # cuBLAS, cuDNN before 9
    "_ALLOCATION_FAILED",  # cuDNN 9
)


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, a CUDA library or Python ran out of memory; most can only be recognised by their messages."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY_MESSAGES)
