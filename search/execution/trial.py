"""One trial, as it is handed to a worker: what it trains, where its files go, and what ends it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from binsweep.models.health_rules import HealthRule
from binsweep.models.levels import Section
from binsweep.search.execution.resources import TrialResources
from binsweep.search.spec.objective import Goal

ERROR = "error.txt"
Send = Callable[[int, dict[str, float]], bool]  # (epoch, metrics) -> whether to continue


class LostWorkerError(RuntimeError):
    """A process died or became unreachable. The trial is not to blame and resumes after its last epoch."""


def hide_gpus(resources: TrialResources) -> None:
    """Hide the node's GPUs from this process if its trial has none; Ray leaves them visible."""
    if not resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


ONE_CORE = TrialResources({"CPU": 1.0})


@dataclass(frozen=True)
class TrialTask:
    """Everything that a worker needs to start or resume a trial; small and picklable."""

    number: int
    sections: tuple[
        Any, ...
    ]  # of its training until it ends; of the type of its kind (models.levels.Section)
    folder: Path  # where the trial's files go
    metric: str
    goal: Goal
    threads: int  # of each worker
    known: int = 0  # epochs that the controller knows
    trace: bool = False  # whether torch.profiler records a few steps
    minutes: float | None = None  # the longest that a trial may train without interruption
    costs: bool = False  # whether to measure the inference cost of a photo
    resources: TrialResources = ONE_CORE
    # The health rules that differ from the defaults.
    rules: Mapping[str, HealthRule] = field(default_factory=dict)
    # Until the sweep's time is long over, so that own code which is still at an epoch hangs; and which limit that is.
    seconds_left: float | None = None
    limit: str = ""


class Trainer(Protocol):
    """Trains the trials of a sweep in this process, one after the other."""

    def train(self, task: TrialTask, send: Send) -> None:
        """Train one trial, or go on with it: an epoch's files are in the task's folder before it is sent.

        Epochs that the controller does not know yet are sent again. Returns when the training has ended, or `send`
        has answered that it ends; an exception is the trial's failure, written to `error.txt`, except
        LostWorkerError and a full disk, after which the trial is resumed.
        """


class TrainingKind(Protocol):
    """What the controller, the records and the history ask of a kind of training."""

    def threads(self, sections: tuple[Section, ...], cpus: int) -> int:
        """The threads of a training with so many CPUs."""

    def history(self, folder: Path) -> list[dict[str, float]]:
        """The metrics of each epoch until the state from which the trial in a folder would be resumed."""

    def remove_state(self, folder: Path) -> None:
        """Remove the state of a trial that has ended."""

    def best_checkpoint(self, folder: Path) -> Path:
        """The checkpoint of a trial's best epoch, a file or a folder; it exists once the trial has reported."""

    def remove_best(self, folder: Path) -> None:
        """Remove the checkpoint of the best epoch."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception or one of its causes is a full disk. The trial is not to blame and is resumed later.

    The exceptions of PyTorch and SQLite can only be recognised by their messages.
    """
    one: BaseException | None = error
    seen: list[BaseException] = []  # `raise error from later` makes a circle
    while one is not None and one not in seen:
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(one) for words in ("inline_container.cc", "database or disk is full")):
            return True
        seen.append(one)
        one = one.__cause__ or one.__context__
    return False


def leave_error(folder: Path, reason: str, details: str) -> None:
    """Write the reason why a trial failed, as the first line of its error file, and the details."""
    with contextlib.suppress(OSError):  # on a full disk, the first error must not be hidden by a second one
        (folder / ERROR).write_text(f"{reason}\n\n{details}")
