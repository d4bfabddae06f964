"""A trial of a network that learns from photos: train, write best checkpoint and last state, report each epoch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from binsweep.models.backbones.library import interpolation_of
from binsweep.models.decoding import BEST_DECODING
from binsweep.models.distributed import current_group
from binsweep.models.inference_cost import photo_costs
from binsweep.models.levels import Level, Section
from binsweep.models.precision import release_gpu_memory, threads_of
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import load_training_state
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.health import keep_findings
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import (
    ERROR,
    LostWorkerError,
    Send,
    TrialTask,
    is_disk_full,
    leave_error,
)
from binsweep.search.spec.objective import Objective

BEST = "best.pt"
LAST = "last.pt"
TRACE = "trace.json"


@dataclass(frozen=True)
class PhotoTrainer:
    """Trains on photos that are at hand."""

    data: TrialData

    def train(self, task: TrialTask, send: Send) -> None:
        run_trial(task, self.data, send)


class PhotoTraining:
    """Trainings on photos, as the controller and the records see them."""

    def threads(self, sections: tuple[Section, ...], cpus: int) -> int:
        last = sections[-1]
        assert isinstance(last, Level)
        return threads_of(last.settings.trainable, cpus)

    def history(self, folder: Path) -> list[dict[str, float]]:
        state = load_training_state(folder / LAST)
        return state.history if state else []

    def remove_state(self, folder: Path) -> None:
        (folder / LAST).unlink(missing_ok=True)

    def best_checkpoint(self, folder: Path) -> Path:
        return folder / BEST

    def remove_best(self, folder: Path) -> None:
        (folder / BEST).unlink(missing_ok=True)


def limit_memory(resources: TrialResources) -> None:
    """Limit a trial with a fraction of a GPU to that fraction of its memory, however much is free: a trial that needs
    more is split into the same micro-batches each time."""
    if torch.cuda.is_available():
        gpus = resources.each.get("GPU", 0.0)
        torch.cuda.set_per_process_memory_fraction(gpus if 0 < gpus < 1 else 1.0)


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
                if not out_of_memory(error) or 2 * parts > task.sections[-1].settings.batch_size:
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


def attempt(task: TrialTask, data: TrialData, send: Send, parts: int) -> None:
    """Train with `parts` micro-batches per batch. In a process group, only rank 0 uses files and reports."""
    torch.set_num_threads(task.threads)
    limit_memory(task.resources)
    group = current_group()
    deadline = None if task.minutes is None else time.monotonic() + 60 * task.minutes
    objective = Objective(task.goal, task.metric)
    best: float | None = None
    state = group.from_first(load_training_state(task.folder / LAST) if group.rank == 0 else None)
    *earlier, section = task.sections
    data = data.at_size(section.image_size, interpolation_of(section.settings.backbone))
    measured = task.costs and group.rank == 0
    costs = photo_costs(section.settings, data.classes, data.image_size) if measured else {}
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
        earlier=tuple(earlier),
    )
    train(section.settings, data, report, options)


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
