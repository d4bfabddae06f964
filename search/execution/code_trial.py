"""A trial of own training code: run it in its process, keep its checkpoints, report each epoch."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from binsweep.data.atomic_write import end_line, sync_file, sync_folder, write_bytes
from binsweep.models.health_rules import RULES, HealthFinding, HealthRule
from binsweep.models.levels import Section
from binsweep.search.execution.health import keep_findings
from binsweep.search.execution.trial import (
    ERROR,
    LostWorkerError,
    Send,
    TrialTask,
    is_disk_full,
    leave_error,
)
from binsweep.search.own_code.host_process import CodeError, HostKilledError, host_for
from binsweep.search.own_code.snapshot import CodeSnapshot
from binsweep.search.own_code.trial import SAVING, TrialStart
from binsweep.search.spec.objective import Objective
from binsweep.search.spec.sweep_spec import CodeSettings

STATE = "last.json"
HISTORY = "history.jsonl"
GRACE_SECONDS = 30.0  # after the time limit, in which an epoch may still end and be reported


@dataclass(frozen=True)
class CodeState:
    """The state of a trial: its last epoch, and the folders of the checkpoints in the trial's folder, if it saves any.

    Written after the files that it names; a checkpoint that it does not name was not complete, or is out of date.
    """

    epoch: int = 0
    last: str | None = None
    last_epoch: int = 0
    best: str | None = None
    best_epoch: int = 0

    @classmethod
    def read(cls, folder: Path) -> CodeState:
        """The state of the trial in a folder; an empty one before its first report."""
        try:
            return cls(**json.loads((folder / STATE).read_text()))
        except (FileNotFoundError, ValueError):
            return cls()  # of a trial without checkpoints, a power cut may leave half a file

    def write(self, folder: Path) -> None:
        """Write the state, and remove the checkpoints that it does not name."""
        write_bytes(folder / STATE, json.dumps(asdict(self)).encode(), durable=self.best is not None)
        for path in folder.glob("checkpoint-*"):
            if path.name not in (self.last, self.best):
                shutil.rmtree(path, ignore_errors=True)


def read_code_history(folder: Path) -> list[dict[str, float]]:
    """The metrics of each reported epoch, from the first on; an epoch without a report has none."""
    file = folder / HISTORY
    found: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            epoch, metrics = json.loads(line)
        except ValueError:
            continue  # the process was killed while it wrote this line, before it sent the epoch
        found.setdefault(epoch, metrics)  # what was sent first counts
    return [found.get(epoch, {}) for epoch in range(1, max(found, default=0) + 1)]


class CodeTraining:
    """Trainings by own code, as the controller and the records see them."""

    def threads(self, sections: tuple[Section, ...], cpus: int) -> int:
        return cpus

    def history(self, folder: Path) -> list[dict[str, float]]:
        return read_code_history(folder)

    def remove_state(self, folder: Path) -> None:
        state = CodeState.read(folder)
        if state.epoch:
            CodeState(state.epoch, None, 0, state.best, state.best_epoch).write(folder)

    def best_checkpoint(self, folder: Path) -> Path:
        return folder / (CodeState.read(folder).best or "no-checkpoint")

    def remove_best(self, folder: Path) -> None:
        shutil.rmtree(self.best_checkpoint(folder), ignore_errors=True)


@dataclass(frozen=True)
class CodeTrainer:
    """Trains with own code, in a process of its own that serves the trials of this worker."""

    code: CodeSnapshot
    paths: Mapping[str, Path]  # the files and folders that the params name, by their keys

    def train(self, task: TrialTask, send: Send) -> None:
        task.folder.mkdir(parents=True, exist_ok=True)
        (task.folder / ERROR).unlink(missing_ok=True)
        try:
            _CodeRun(self.code, task, send).train()
        except CodeError as error:
            leave_error(task.folder, error.reason, error.details)
            raise RuntimeError(error.reason) from error
        except TimeoutError as error:
            leave_error(task.folder, f"TimeoutError: {error}", "")
            raise
        except HostKilledError as error:
            raise LostWorkerError(str(error)) from error
        except Exception as error:
            if not is_disk_full(error):
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                leave_error(task.folder, reason, traceback.format_exc())
            raise


@dataclass
class _CodeRun:
    """One trial, from its state until it ends or is interrupted."""

    code: CodeSnapshot
    task: TrialTask
    send: Send
    state: CodeState = field(init=False)
    losses: _Losses = field(init=False)
    objective: Objective = field(init=False)
    best: float | None = None
    known: int = 0  # the epochs that were reported before, which are reported again if they were not saved
    begun: float = 0.0  # time.monotonic()
    since: float = 0.0  # time.monotonic() of the last report

    def train(self) -> None:
        """Report what the controller does not know, then train from the last checkpoint on."""
        task, settings = self.task, self._settings()
        self.state = CodeState.read(task.folder)
        self.losses = _Losses(task.rules)
        end_line(task.folder / HISTORY)
        # An epoch that the state lacks was not sent: it is trained again, for its checkpoint.
        history = read_code_history(task.folder)[: self.state.epoch]
        self.known = len(history)
        self.objective = Objective(task.goal, task.metric)
        for epoch, metrics in enumerate(history, 1):
            if not metrics:
                continue
            self.losses.add(metrics)
            value = self.objective.value_of(metrics)
            # The best epoch is the one whose checkpoint was kept: one without a checkpoint cannot be promoted.
            if epoch == self.state.best_epoch or (
                self.state.best is None and self.objective.is_better(value, self.best)
            ):
                self.best = value
            if epoch > task.known and not self.send(epoch, metrics):
                return
        if self.known >= settings.epochs:
            return
        checkpoint = task.folder / self.state.last if self.state.last else None
        first = self.state.last_epoch + 1 if checkpoint else 1
        if task.known and not checkpoint:
            text = "it was resumed and has saved nothing, so it began again: give trial.report a `save`"
            keep_findings(task.folder, [HealthFinding("no_checkpoint", task.known, text)])
        start = TrialStart(
            task.number,
            dict(settings.params),
            settings.seed,
            task.metric,
            first,
            settings.epochs,
            task.folder,
            checkpoint,
            task.threads,
            task.resources.gpus,
        )
        self.begun = self.since = time.monotonic()
        host = host_for(self.code.place, self.code.function, task.threads)
        end = host.train(start, self._report, *self._deadline())
        if end.left_processes:
            text = f"it left processes running, which were ended: {', '.join(end.left_processes)}"
            keep_findings(task.folder, [HealthFinding("left_processes", self.state.epoch, text)])

    def _deadline(self) -> tuple[float | None, str]:
        """When an epoch that has not ended is given up (time.monotonic), and the reason."""
        task, limits = self.task, []
        if task.minutes is not None:
            limits.append(
                (60 * task.minutes + GRACE_SECONDS, f"budget.trial_minutes: {task.minutes:g} are over")
            )
        if task.seconds_left is not None:
            limits.append((task.seconds_left, f"{task.limit} are long over"))
        if not limits:
            return None, ""
        seconds, reason = min(limits)
        return self.begun + seconds, f"{reason}, and an epoch has not ended"

    def _settings(self) -> CodeSettings:
        settings = self.task.sections[-1].settings
        assert isinstance(settings, CodeSettings)
        return settings

    def _report(self, epoch: int, metrics: dict[str, float], saved: bool, foreign: list[str]) -> bool:
        """Keep an epoch's files, then send it."""
        task, now = self.task, time.monotonic()
        metrics = {**metrics, "seconds": metrics.get("seconds", now - self.since)}
        value = self.objective.value_of(metrics)
        is_best = self.objective.is_better(value, self.best)
        state = self.state
        if saved:
            name = f"checkpoint-{epoch:06d}"
            _keep_checkpoint(task.folder / SAVING, task.folder / name)
            best = (name, epoch) if is_best or state.best is None else (state.best, state.best_epoch)
            self.state = CodeState(epoch, name, epoch, *best)
        else:
            self.state = CodeState(epoch, state.last, state.last_epoch, state.best, state.best_epoch)
        if is_best and (saved or self.state.best is None):
            self.best = value
        findings = self.losses.add(metrics, epoch) if epoch > self.known else []
        if foreign:
            text = f"it wrote outside of its folder, where trials at once overwrite each other: {', '.join(foreign)}"
            findings.append(HealthFinding("foreign_writes", epoch, text))
        if findings:
            keep_findings(task.folder, findings)
        with (task.folder / HISTORY).open("a") as stream:
            stream.write(json.dumps([epoch, metrics]) + "\n")
            if saved:
                # What was reported until then must not be lost: training goes on behind this checkpoint.
                stream.flush()
                os.fsync(stream.fileno())
        self.state.write(task.folder)
        go_on = self.send(epoch, metrics)
        self.since = time.monotonic()
        if go_on and task.minutes is not None and self.since > self.begun + 60 * task.minutes:
            raise TimeoutError(f"budget.trial_minutes: {task.minutes:g} are over after epoch {epoch}")
        return go_on


def _keep_checkpoint(complete: Path, target: Path) -> None:
    """Give a checkpoint its name once its files are on the disk."""
    for path in complete.rglob("*"):
        if path.is_file():
            sync_file(path)
    shutil.rmtree(target, ignore_errors=True)  # of an epoch that was saved, but not reported
    complete.rename(target)
    sync_folder(target.parent)  # before the state names it


class _Losses:
    """The health rules that need no more than the losses that a trial reports."""

    def __init__(self, rules: Mapping[str, HealthRule]) -> None:
        self._rules = rules
        self._train: list[float] = []
        self._validation: list[float] = []

    def add(self, metrics: Mapping[str, float], epoch: int = 0) -> list[HealthFinding]:
        """Take in an epoch; returns what the rules find at it."""
        if "train_loss" in metrics:
            self._train.append(metrics["train_loss"])
        if "val_loss" in metrics:
            self._validation.append(metrics["val_loss"])
        found = {
            "exploding_tensor": self._exploded(metrics),
            "loss_not_decreasing": self._apply("loss_not_decreasing", self._train) if self._train else "",
        }
        if len(self._train) == len(self._validation):
            found["overfit"] = self._apply("overfit", self._train, self._validation)
            found["overtraining"] = self._apply("overtraining", self._train, self._validation)
        ignored = {name for name, rule in self._rules.items() if rule.action == "ignore"}
        return [
            HealthFinding(name, epoch, text) for name, text in found.items() if text and name not in ignored
        ]

    def _apply(self, name: str, *losses: Sequence[float]) -> str:
        return RULES[name](*losses, **self._rules.get(name, HealthRule()).thresholds)

    @staticmethod
    def _exploded(metrics: Mapping[str, float]) -> str:
        broken = [name for name in ("train_loss", "val_loss") if not math.isfinite(metrics.get(name, 0.0))]
        return f"{broken[0]} is {metrics[broken[0]]}" if broken else ""
